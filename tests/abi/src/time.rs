//! The system time counter (3.1).
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::semaphore::Semaphore;
use crate::entry::hip;
use crate::report::{Outcome, failed};
use crate::spec::hip as page;
use crate::thread::spawn;

/// The counter.
pub fn now() -> u64 {
    // SAFETY: RDTSC has no side effects.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks in so many milliseconds.
pub fn ms(milliseconds: u64) -> u64 {
    hip(page::STC_FREQUENCY) / 1000 * milliseconds
}

/// Spins for so many ticks.
pub fn spin(ticks: u64) {
    let end = now() + ticks;
    while now() < end {
        core::hint::spin_loop();
    }
}

/// Blocks the root EC for so many milliseconds at least, and until no other of its CPU has anything to do.
#[track_caller]
pub fn sleep(milliseconds: u64) -> Outcome {
    pause(milliseconds)?;
    settle()
}

/// Blocks the current EC for so many milliseconds at least, whatever others do.
#[track_caller]
pub fn pause(milliseconds: u64) -> Outcome {
    let sm = Semaphore::new(0)?;
    sm.down_until(now() + ms(milliseconds));
    Ok(())
}

/// Blocks the current EC until `done` says so, for ten seconds at most.
#[track_caller]
pub fn until(done: impl Fn() -> bool) -> Outcome {
    let end = now() + ms(10_000);
    while !done() {
        if now() > end {
            return Err(failed("what it waits for does not come".into()));
        }
        pause(1)?;
    }
    Ok(())
}

/// Blocks the root EC until no other of its CPU has anything to do: then a thread of the lowest priority runs.
#[track_caller]
pub fn settle() -> Outcome {
    static GATES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
    if GATES[0].load(Relaxed) == 0 {
        let gates = [Semaphore::new(0)?, Semaphore::new(0)?];
        spawn(1, move |_| {
            loop {
                gates[0].down();
                gates[1].up();
            }
        })?;
        GATES.iter().zip(gates).for_each(|(to, gate)| to.store(gate.0, Relaxed));
    }
    let [go, done] = [0, 1].map(|gate: usize| Semaphore(GATES[gate].load(Relaxed)));
    go.up();
    done.wait()
}
