//! The threads that interrupt the vCPU: one for time, one for console input.
//!
//! The vCPU's handler owns all devices. These threads only leave word and make the vCPU exit, or, while it is halted,
//! wake its handler. Both run at a higher priority than the vCPU, on the same CPU.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use abi::Selector;
use abi::scd::Scd;
use runtime::channel::Receiver;
use runtime::sync::{Semaphore, sleep_until};
use runtime::syscall::Result;
use runtime::{syscall, thread, time};

/// Scheduling of both threads.
const SCD: Scd = Scd { budget: 10, priority: 80, cos: 0 };
/// Bytes of console input on their way; a power of two.
const INPUT: usize = 256;
/// How long the input thread waits when the guest takes nothing, in milliseconds.
const INPUT_RETRY_MS: u64 = 10;

/// What handler and threads share.
pub struct Shared {
    vcpu: Selector,
    /// STC value at which the vCPU must exit; `u64::MAX`: never.
    deadline: AtomicU64,
    /// What the timer thread sleeps until.
    armed: AtomicU64,
    halted: AtomicBool,
    wake: Semaphore,
    timer: Semaphore,
    input: [AtomicU8; INPUT],
    written: AtomicUsize,
    read: AtomicUsize,
}

impl Shared {
    /// For the vCPU whose EC is, or will be, at `vcpu`.
    pub fn new(vcpu: Selector) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            vcpu,
            deadline: AtomicU64::new(u64::MAX),
            armed: AtomicU64::new(u64::MAX),
            halted: AtomicBool::new(false),
            wake: Semaphore::new(0)?,
            timer: Semaphore::new(0)?,
            input: [const { AtomicU8::new(0) }; INPUT],
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
        }))
    }

    /// Makes the vCPU exit at `deadline`.
    pub fn arm(&self, deadline: u64) {
        self.deadline.store(deadline, Ordering::SeqCst);
        if deadline < self.armed.load(Ordering::SeqCst) {
            self.timer.up();
        }
    }

    /// Sleeps in the handler of a halted vCPU until `deadline` (`u64::MAX`: for ever) or until someone wakes it.
    pub fn sleep(&self, deadline: u64) {
        self.halted.store(true, Ordering::SeqCst);
        if !self.has_input() {
            let _ = self.wake.wait(if deadline == u64::MAX { 0 } else { deadline });
        }
        self.halted.store(false, Ordering::SeqCst);
    }

    /// Makes the vCPU's handler look.
    fn kick(&self) {
        if self.halted.load(Ordering::SeqCst) {
            self.wake.up();
        } else {
            // It fails only for a vCPU that is no more.
            let _ = syscall::ctrl_ec(self.vcpu, false);
        }
    }

    /// Whether console input waits.
    pub fn has_input(&self) -> bool {
        self.written.load(Ordering::Acquire) != self.read.load(Ordering::Relaxed)
    }

    /// Offers waiting input to `take`, which returns how many bytes it took.
    pub fn offer_input(&self, take: impl FnOnce(&[u8]) -> usize) {
        let read = self.read.load(Ordering::Relaxed);
        let count = self.written.load(Ordering::Acquire).wrapping_sub(read).min(INPUT);
        let mut bytes = [0; INPUT];
        for (index, byte) in bytes[..count].iter_mut().enumerate() {
            *byte = self.input[read.wrapping_add(index) % INPUT].load(Ordering::Relaxed);
        }
        let taken = take(&bytes[..count]).min(count);
        self.read.store(read.wrapping_add(taken), Ordering::Release);
    }

    /// Appends as much of `bytes` as fits; returns how many.
    fn put_input(&self, bytes: &[u8]) -> usize {
        let written = self.written.load(Ordering::Relaxed);
        let room = INPUT - written.wrapping_sub(self.read.load(Ordering::Acquire));
        let count = bytes.len().min(room);
        for (index, byte) in bytes[..count].iter().enumerate() {
            self.input[written.wrapping_add(index) % INPUT].store(*byte, Ordering::Relaxed);
        }
        self.written.store(written.wrapping_add(count), Ordering::Release);
        count
    }

    fn keep_time(&self) -> ! {
        loop {
            let deadline = self.deadline.load(Ordering::SeqCst);
            self.armed.store(deadline, Ordering::SeqCst);
            let woken = self.timer.wait(if deadline == u64::MAX { 0 } else { deadline.max(1) });
            if woken == Ok(true) || time::now() < deadline {
                continue;
            }
            // Once per deadline: the handler sets the next. A halted vCPU's handler has this timeout itself.
            let _ = self.deadline.compare_exchange(deadline, u64::MAX, Ordering::SeqCst, Ordering::SeqCst);
            if !self.halted.load(Ordering::SeqCst) {
                self.kick();
            }
        }
    }

    fn pass_input(&self, mut ring: Receiver) {
        let mut buffer = [0; INPUT];
        // A broken or closed ring ends the input, not the machine.
        while ring.wait(0) == Ok(true) {
            let Ok(count) = ring.peek(&mut buffer) else { return };
            let count = self.put_input(&buffer[..count]);
            ring.consume(count);
            self.kick();
            if count == 0 {
                sleep_until(time::now() + time::ticks_from_ms(INPUT_RETRY_MS));
            }
        }
    }
}

/// Starts both threads.
pub fn spawn(shared: &Arc<Shared>) -> Result<()> {
    let timer = shared.clone();
    thread::spawn(SCD, move || timer.keep_time())?;
    if let Some(ring) = Receiver::open("input") {
        let input = shared.clone();
        thread::spawn(SCD, move || input.pass_input(ring))?;
    }
    Ok(())
}
