//! Stopping all vCPUs of a machine, for its end, its reset, or to count what they did.
//!
//! The vCPU that wants it makes the others look; each sees it before it does anything else, and parks. When all have, the
//! machine is quiet, until it lets them go on or start anew.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use runtime::sync::Semaphore;
use runtime::syscall::Result;

/// The pause of one machine.
pub struct Pause {
    wanted: AtomicBool,
    resets: AtomicU64,
    parked: Semaphore,
    resume: Semaphore,
    /// Further vCPUs.
    others: usize,
}

impl Pause {
    /// For a machine with `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Result<Self> {
        Ok(Self {
            wanted: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            parked: Semaphore::new(0)?,
            resume: Semaphore::new(0)?,
            others: vcpus - 1,
        })
    }

    /// Whether another vCPU wants a pause: park.
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Waits until all others have parked; `tell` makes them look. False if another vCPU wants a pause, too: park first.
    pub fn begin(&self, tell: impl FnOnce()) -> bool {
        if self.wanted.swap(true, Ordering::SeqCst) {
            return false;
        }
        tell();
        for _ in 0..self.others {
            // An error would mean that there is no such semaphore.
            let _ = self.parked.down();
        }
        true
    }

    /// Lets the others go on.
    pub fn end(&self) {
        self.wanted.store(false, Ordering::SeqCst);
        for _ in 0..self.others {
            self.resume.up();
        }
    }

    /// As [`Pause::end`], after the machine was reset.
    pub fn end_with_reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.end();
    }

    /// Parks. One that was slow to go on after the last pause may give its turn to one that parks again: how often the
    /// machine was reset tells whether it was, not who woke.
    pub fn park(&self) {
        self.parked.up();
        let _ = self.resume.down();
    }

    /// How often the machine was reset.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::SeqCst)
    }
}
