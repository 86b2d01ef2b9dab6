#![allow(unsafe_code)]
//! Semaphores, with FIFO queues and absolute timeouts (NOVA 2.5, 5.4.5).
//!
//! Unsafe: shares semaphores between CPUs.
//!
//! Lock order: a semaphore's lock is innermost.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use abi::Status;
use abi::hypercall::flag;
use abi::utcb::gpr;
use kernel_core::ready::Fifo;
use spin::Mutex;

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec, EcLinks, EcTimeouts};
use crate::object::{self, by_id};
use crate::{rounds, run, sched, timer};

struct State {
    queue: Fifo,
    /// It is being destroyed: nobody may begin to wait.
    closed: bool,
}

/// A semaphore. An interrupt semaphore is upped by its interrupt.
#[repr(C, align(64))]
pub struct Sm {
    /// While nobody waits the count plus one, of the largest thus 0: the fast path changes it, but not from or to 0. While
    /// somebody waits 0, which changes under the lock only.
    pub word: AtomicU64,
    state: Mutex<State>,
    /// The interrupt of an interrupt semaphore.
    pub interrupt: Option<u32>,
    /// CPU to which its interrupt is routed; [`u32::MAX`] if there is no interrupt.
    pub route: AtomicU32,
}

// SAFETY: the state is behind a lock, the rest atomic or constant.
unsafe impl Sync for Sm {}

impl Sm {
    /// A semaphore with an initial counter, of an interrupt or none.
    pub const fn new(counter: u64, interrupt: Option<u32>) -> Self {
        Self {
            word: AtomicU64::new(counter.wrapping_add(1)),
            state: Mutex::new(State { queue: Fifo::empty(), closed: false }),
            interrupt,
            route: AtomicU32::new(if interrupt.is_some() { 0 } else { u32::MAX }),
        }
    }

    /// Releases the EC that waits longest, or counts.
    pub fn up(&self, cpu: &Cpu) -> Result<(), Status> {
        let mut state = self.state.lock();
        if let Some(id) = state.queue.pop_front(&EcLinks) {
            self.settle(&state);
            drop(state);
            let ec = by_id::<Ec>(id);
            match core::ptr::eq(ec.cpu, cpu) {
                true => wake(cpu, ec, Status::Success),
                false => rounds::post_ec(ec, rounds::mail::WAKE),
            }
            return Ok(());
        }
        let more = |word: u64| (word != 0).then_some(word.wrapping_add(1));
        self.word.fetch_update(Ordering::Release, Ordering::Relaxed, more).map(drop).map_err(|_| Status::Overflow)
    }

    /// Takes `ec` out of the queue; false if it is not there.
    fn remove(&self, ec: &Ec) -> bool {
        let mut state = self.state.lock();
        state.queue.remove(&EcLinks, object::id(ec)).then(|| self.settle(&state)).is_some()
    }

    /// Somebody waits no longer: if nobody does, the count is 0.
    #[inline(always)]
    fn settle(&self, state: &State) {
        if state.queue.front().is_none() {
            self.word.store(1, Ordering::Release);
        }
    }

    /// Whether somebody waits.
    pub fn has_waiters(&self) -> bool {
        self.state.lock().queue.front().is_some()
    }

    /// Destruction: from now on nobody waits; releases the EC that waits longest. False if there is none.
    pub fn abort_one(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = true;
        let first = state.queue.pop_front(&EcLinks);
        if let Some(id) = first {
            self.settle(&state);
            rounds::post_ec(by_id::<Ec>(id), rounds::mail::ABORT);
        }
        first.is_some()
    }

    /// Counts down, or blocks `ec` until an up, or until the time in its RSI if that is not 0.
    pub fn down(&'static self, cpu: &Cpu, ec: &'static Ec, zero: bool) -> Result<(), Status> {
        if let Some(gsi) = self.interrupt {
            if self.route.load(Ordering::Relaxed) != cpu.number as u32 {
                return Err(Status::BadCpu);
            }
            crate::interrupt::unmask_level(gsi);
        }
        self.take(ec, zero)
    }

    /// The same, of any semaphore.
    #[inline(never)]
    fn take(&'static self, ec: &'static Ec, zero: bool) -> Result<(), Status> {
        let (timeout, mut state) = (ec.gpr(gpr::RSI), self.state.lock());
        loop {
            let word = self.word.load(Ordering::Relaxed);
            // While somebody waits it says nothing.
            let counts = word != 1 && state.queue.front().is_none();
            if !counts && (state.closed || timeout != 0 && timeout <= crate::cpu::now()) {
                return Err(if state.closed { Status::Aborted } else { Status::Timeout });
            }
            let less = if counts && !zero { word.wrapping_sub(1) } else { counts as u64 };
            match self.word.compare_exchange(word, less, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if counts => return Ok(()),
                Ok(_) => break,
                Err(_) => {}
            }
        }
        // From here on another CPU can wake it; the message is read only after it has parked.
        state.queue.push(&EcLinks, object::id(ec), false);
        drop(state);
        ec.continuation.set(Continuation::Blocked);
        ec.waits_on.set(Some(self));
        if timeout != 0 {
            ec.cpu.timeouts.get().insert(&EcTimeouts, object::id(ec), timeout);
            timer::program(ec.cpu);
        }
        sched::park(ec.cpu, ec)
    }
}

/// ctrl_sm without Z of `ec`, which holds all registers that the call preserves, when the fast path has found `sm`.
pub extern "C" fn control(cpu: &'static Cpu, ec: &'static Ec, sm: &'static Sm, which: u8) -> Status {
    let result = match (which >> 4 & flag::SM_DOWN != 0, sm.interrupt) {
        (false, _) => sm.up(cpu),
        (true, None) => sm.take(ec, false),
        (true, Some(_)) => sm.down(cpu, ec, false),
    };
    result.err().unwrap_or(Status::Success)
}

/// `ec`, which waited, returns from its hypercall with `status`.
#[inline(always)]
fn wake(cpu: &Cpu, ec: &Ec, status: Status) {
    ec.waits_on.set(None);
    run::finish(ec, status);
    sched::unpark(cpu, ec);
}

/// `ec`, which is being stopped, waits no longer; its timeout ends in [`sched::unpark`].
pub fn forget(ec: &Ec) {
    ec.waits_on.take().inspect(|sm| _ = sm.remove(ec));
}

/// `ec` was taken out of its semaphore's queue, by another CPU's up or because the semaphore is destroyed.
pub fn woken(cpu: &Cpu, ec: &Ec, status: Status) {
    if ec.continuation.get() == Continuation::Blocked {
        wake(cpu, ec, status);
    }
}

/// The timeout of `ec` has passed; the timeout queue has dropped it already. An up on another CPU that came first wins.
pub fn timed_out(cpu: &Cpu, ec: &Ec) {
    if ec.waits_on.get().is_some_and(|sm| sm.remove(ec)) {
        wake(cpu, ec, Status::Timeout);
    }
}
