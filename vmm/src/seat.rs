//! A vCPU's seat: how others make it look, how it sleeps, and its alarm clock.
//!
//! Whoever has something for a vCPU says so on the backplane first, then makes it look: by recalling it, or, while its
//! handler sleeps, by the semaphore that it sleeps on. The handler says that it sleeps, then looks at the backplane: one
//! of the two sees the other.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::Selector;
use runtime::sync::Semaphore;
use runtime::syscall::Result;
use runtime::{syscall, time};

/// One vCPU as others see it. It has a thread on its CPU, at a higher priority, that keeps its time.
pub struct Seat {
    vcpu: Selector,
    sleeping: AtomicBool,
    wake: Semaphore,
    /// STC value at which the vCPU must exit; `u64::MAX`: never.
    deadline: AtomicU64,
    /// What the timer thread sleeps until.
    armed: AtomicU64,
    timer: Semaphore,
}

impl Seat {
    /// For the vCPU whose EC is, or will be, at `vcpu`.
    pub fn new(vcpu: Selector) -> Result<Self> {
        Ok(Self {
            vcpu,
            sleeping: AtomicBool::new(false),
            wake: Semaphore::new(0)?,
            deadline: AtomicU64::new(u64::MAX),
            armed: AtomicU64::new(u64::MAX),
            timer: Semaphore::new(0)?,
        })
    }

    /// The vCPU's EC.
    pub fn vcpu(&self) -> Selector {
        self.vcpu
    }

    /// Makes the vCPU exit at `deadline`.
    pub fn arm(&self, deadline: u64) {
        self.deadline.store(deadline, Ordering::SeqCst);
        if deadline < self.armed.load(Ordering::SeqCst) {
            self.timer.up();
        }
    }

    /// Sleeps in the vCPU's handler until `deadline` (`u64::MAX`: for ever), or until someone makes it look. Not at all
    /// if there are news.
    pub fn sleep(&self, deadline: u64, has_news: impl FnOnce() -> bool) {
        self.sleeping.store(true, Ordering::SeqCst);
        if !has_news() {
            let _ = self.wake.wait(if deadline == u64::MAX { 0 } else { deadline });
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Makes the vCPU look.
    pub fn wake(&self) {
        if self.sleeping.load(Ordering::SeqCst) {
            self.wake.up();
        } else {
            // It fails only for a vCPU that is no more.
            let _ = syscall::ctrl_ec(self.vcpu, false);
        }
    }

    /// The alarm clock's thread.
    pub fn keep_time(&self) -> ! {
        loop {
            let deadline = self.deadline.load(Ordering::SeqCst);
            self.armed.store(deadline, Ordering::SeqCst);
            let woken = self.timer.wait(if deadline == u64::MAX { 0 } else { deadline.max(1) });
            if woken == Ok(true) || time::now() < deadline {
                continue;
            }
            // Once per deadline: the handler sets the next. A handler that sleeps has this timeout itself.
            let _ = self.deadline.compare_exchange(deadline, u64::MAX, Ordering::SeqCst, Ordering::SeqCst);
            if !self.sleeping.load(Ordering::SeqCst) {
                let _ = syscall::ctrl_ec(self.vcpu, false);
            }
        }
    }
}
