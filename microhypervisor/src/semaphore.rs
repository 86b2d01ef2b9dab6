#![allow(unsafe_code)]
//! Semaphores, with FIFO queues and absolute timeouts (NOVA 2.5, 5.4.5).
//!
//! Unsafe: shares semaphores between CPUs.
//!
//! Lock order: a semaphore's lock is innermost.

use core::sync::atomic::{AtomicU32, Ordering};

use abi::Status;
use abi::utcb::gpr;
use kernel_core::ready::Fifo;
use spin::{Mutex, MutexGuard};

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec, EcLinks, EcTimeouts};
use crate::object::{self, by_id};
use crate::{rounds, run, sched, timer};

struct State {
    counter: u64,
    queue: Fifo,
    /// It is being destroyed: nobody may begin to wait.
    closed: bool,
}

/// A semaphore. An interrupt semaphore is upped by its interrupt.
#[repr(C, align(64))]
pub struct Sm {
    state: Mutex<State>,
    /// The interrupt of an interrupt semaphore.
    pub interrupt: Option<u32>,
    /// CPU to which its interrupt is routed.
    pub route: AtomicU32,
}

// SAFETY: the state is behind a lock, the rest atomic or constant.
unsafe impl Sync for Sm {}

impl Sm {
    /// A semaphore with an initial counter, of an interrupt or none.
    pub const fn new(counter: u64, interrupt: Option<u32>) -> Self {
        Self {
            state: Mutex::new(State { counter, queue: Fifo::empty(), closed: false }),
            interrupt,
            route: AtomicU32::new(0),
        }
    }

    /// Releases the EC that waits longest, or counts.
    pub fn up(&self, cpu: &Cpu) -> Result<(), Status> {
        let mut state = self.state.lock();
        if state.queue.front().is_some() {
            release(cpu, state);
            return Ok(());
        }
        state.counter = state.counter.checked_add(1).ok_or(Status::Overflow)?;
        Ok(())
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
            rounds::post_ec(by_id::<Ec>(id), rounds::mail::ABORT);
        }
        first.is_some()
    }

    /// Counts down, or blocks `ec` until an up, or until the time in its RSI if that is not 0.
    pub fn down(&'static self, cpu: &'static Cpu, ec: &'static Ec, zero: bool) -> Result<(), Status> {
        if let Some(gsi) = self.interrupt {
            if self.route.load(Ordering::Relaxed) != ec.cpu.number as u32 {
                return Err(Status::BadCpu);
            }
            crate::interrupt::unmask_level(gsi);
        }
        let mut state = self.state.lock();
        if state.closed {
            return Err(Status::Aborted);
        }
        if state.counter > 0 {
            state.counter = if zero { 0 } else { state.counter.saturating_sub(1) };
            return Ok(());
        }
        self.wait(cpu, ec, state)
    }

    #[inline(never)]
    fn wait(&'static self, cpu: &'static Cpu, ec: &'static Ec, mut state: MutexGuard<State>) -> Result<(), Status> {
        let timeout = ec.gpr(gpr::RSI);
        if timeout != 0 && timeout <= crate::cpu::now() {
            return Err(Status::Timeout);
        }
        // From here on another CPU can wake it; the message is read only after it has parked.
        state.queue.push_back(&EcLinks, object::id(ec));
        drop(state);
        ec.continuation.set(Continuation::Blocked);
        ec.waits_on.set(Some(self));
        if timeout != 0 {
            cpu.timeouts.get().insert(&EcTimeouts, object::id(ec), timeout);
            timer::program(cpu);
        }
        sched::park(cpu, ec)
    }
}

/// Takes the EC that waits longest out of a semaphore's queue, and wakes it.
#[inline(never)]
fn release(cpu: &Cpu, mut state: MutexGuard<State>) {
    let first = state.queue.pop_front(&EcLinks);
    drop(state);
    let Some(ec) = first.map(by_id::<Ec>) else { return };
    if core::ptr::eq(ec.cpu, cpu) {
        wake(cpu, ec, Status::Success);
    } else {
        rounds::post_ec(ec, rounds::mail::WAKE);
    }
}

/// `ec`, which waited, returns from its hypercall with `status`.
fn wake(cpu: &Cpu, ec: &Ec, status: Status) {
    if ec.timeout.deadline().is_some() {
        cpu.timeouts.get().remove(&EcTimeouts, object::id(ec));
    }
    ec.waits_on.set(None);
    run::finish(ec, status);
    sched::unpark(cpu, ec);
}

/// `ec`, which is being stopped, waits no longer.
pub fn forget(cpu: &Cpu, ec: &Ec) {
    if ec.timeout.deadline().is_some() {
        cpu.timeouts.get().remove(&EcTimeouts, object::id(ec));
    }
    if let Some(sm) = ec.waits_on.take() {
        sm.state.lock().queue.remove(&EcLinks, object::id(ec));
    }
}

/// `ec` was taken out of its semaphore's queue, by another CPU's up or because the semaphore is destroyed.
pub fn woken(cpu: &Cpu, ec: &Ec, status: Status) {
    if ec.continuation.get() == Continuation::Blocked {
        wake(cpu, ec, status);
    }
}

/// The timeout of `ec` has passed; the timeout queue has dropped it already. An up on another CPU that came first wins.
pub fn timed_out(cpu: &Cpu, ec: &Ec) {
    let waits = |sm: &Sm| sm.state.lock().queue.remove(&EcLinks, object::id(ec));
    if ec.waits_on.get().is_some_and(waits) {
        wake(cpu, ec, Status::Timeout);
    }
}
