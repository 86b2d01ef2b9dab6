//! The system time counter (NOVA 3.1): IA32_TSC, at the frequency that the manifest tells.
//!
//! Conversions are pure; the clock itself exists only in the target.

/// Nanoseconds in `ticks` of a counter with `frequency` Hz.
pub const fn nanoseconds(ticks: u64, frequency: u64) -> u64 {
    (ticks as u128 * 1_000_000_000 / frequency as u128) as u64
}

/// Ticks of a counter with `frequency` Hz in `nanoseconds`, rounded up.
pub const fn ticks(nanoseconds: u64, frequency: u64) -> u64 {
    (nanoseconds as u128 * frequency as u128).div_ceil(1_000_000_000) as u64
}

#[cfg(target_os = "none")]
pub use clock::{frequency, now, now_ns, ticks_from_ms, wall_clock_ns};

#[cfg(target_os = "none")]
mod clock {
    #![allow(unsafe_code)]
    use crate::manifest;

    /// The system time counter.
    pub fn now() -> u64 {
        // SAFETY: RDTSC only reads; the kernel never disables it (NOVA 3.1).
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    /// Ticks per second.
    pub fn frequency() -> u64 {
        manifest().stc_frequency
    }

    /// Nanoseconds since the counter was 0.
    pub fn now_ns() -> u64 {
        super::nanoseconds(now(), frequency())
    }

    /// Ticks in `ms` milliseconds.
    pub fn ticks_from_ms(ms: u64) -> u64 {
        super::ticks(ms * 1_000_000, frequency())
    }

    /// Wall-clock time in nanoseconds since 1970 UTC.
    pub fn wall_clock_ns() -> u64 {
        let manifest = manifest();
        let since = now().saturating_sub(manifest.wall_clock_stc);
        manifest.wall_clock + super::nanoseconds(since, frequency())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_do_not_overflow() {
        assert_eq!(nanoseconds(3_000_000_000, 3_000_000_000), 1_000_000_000);
        assert_eq!(ticks(1, 3_000_000_000), 3);
        assert_eq!(ticks(1, 100), 1);
        let century = 100 * 365 * 86400 * 1_000_000_000;
        assert_eq!(nanoseconds(ticks(century, 3_000_000_000), 3_000_000_000), century);
    }
}
