//! The system time counter (3.1).
#![allow(unsafe_code)]

use super::semaphore::Semaphore;
use crate::entry::hip;
use crate::report::Outcome;
use crate::spec::hip as page;

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

/// Blocks the current EC, so that all others run, for so many milliseconds.
#[track_caller]
pub fn sleep(milliseconds: u64) -> Outcome {
    let sm = Semaphore::new(0)?;
    sm.down_until(now() + ms(milliseconds));
    Ok(())
}
