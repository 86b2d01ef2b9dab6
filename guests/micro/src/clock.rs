//! Time by the TSC, which is calibrated against the power-management timer (ACPI 6.5, 4.8.2.1.4).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, say};

const PM_TIMER: u16 = 0x608;
const PM_HERTZ: u64 = 3_579_545;
/// It may have as few bits.
const PM_MASK: u32 = 0xff_ffff;
/// Readings of both clocks for one.
const READINGS: u32 = 4;
/// Calibration time, in milliseconds.
const WINDOW: u64 = 50;

static PER_MILLISECOND: AtomicU64 = AtomicU64::new(0);

/// The power-management timer.
pub fn pm_timer() -> u32 {
    cpu::in32(PM_TIMER) & PM_MASK
}

/// TSC ticks in a millisecond.
pub fn per_millisecond() -> u64 {
    match PER_MILLISECOND.load(Ordering::Relaxed) {
        0 => {
            let ticks = calibrate();
            PER_MILLISECOND.store(ticks, Ordering::Relaxed);
            ticks
        }
        ticks => ticks,
    }
}

/// Both clocks at one moment: of several readings the one that took least, for something else may run in between.
fn both() -> (u32, u64) {
    let reading = || {
        let tsc = cpu::tsc();
        let timer = pm_timer();
        (cpu::tsc() - tsc, timer, tsc)
    };
    let (_, timer, tsc) = (1..READINGS).fold(reading(), |best, _| best.min(reading()));
    (timer, tsc)
}

fn calibrate() -> u64 {
    let (start, tsc) = both();
    loop {
        let (timer, now) = both();
        let passed = u64::from(timer.wrapping_sub(start) & PM_MASK);
        let ticks = now - tsc;
        if passed >= PM_HERTZ * WINDOW / 1000 {
            return (ticks as u128 * PM_HERTZ as u128 / (passed as u128 * 1000)).max(1) as u64;
        }
        if ticks > 1 << 36 {
            say!("the power-management timer stands still: a gigahertz assumed");
            return 1_000_000;
        }
    }
}

/// TSC ticks of a time.
pub fn ticks(milliseconds: u64) -> u64 {
    per_millisecond().saturating_mul(milliseconds)
}

/// Whole microseconds of TSC ticks.
pub fn microseconds(ticks: u64) -> u64 {
    (ticks as u128 * 1000 / per_millisecond() as u128) as u64
}
