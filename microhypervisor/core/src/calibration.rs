//! The frequency of the system time counter, measured against the power-management timer (ACPI 6.5, 4.8.3.3).

/// Frequency of the power-management timer.
pub const PM_TIMER_HZ: u32 = 3_579_545;

/// Ticks of the power-management timer, of 32 or 24 bits, from value `start` to value `now`. The timer must have
/// wrapped around at most once: 24 bits last 4.7 s.
pub const fn elapsed(start: u32, now: u32, wide: bool) -> u32 {
    now.wrapping_sub(start) & if wide { u32::MAX } else { 0x00ff_ffff }
}

/// Frequency in Hz of a counter that advanced by `count` during `ticks` of the power-management timer; 0 if no tick
/// passed.
pub fn frequency(count: u64, ticks: u32) -> u64 {
    let (ticks, timer) = (u64::from(ticks), u64::from(PM_TIMER_HZ));
    let (Some(whole), Some(rest)) = (count.checked_div(ticks), count.checked_rem(ticks)) else { return 0 };
    whole.saturating_mul(timer).saturating_add(rest * timer / ticks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wrapped_timer_counts_on(start in any::<u32>(), ticks in 0..1u32 << 24) {
            prop_assert_eq!(elapsed(start, start.wrapping_add(ticks), true), ticks);
            let start = start & 0xff_ffff;
            prop_assert_eq!(elapsed(start, (start + ticks) & 0xff_ffff, false), ticks);
        }

        #[test]
        fn frequencies_are_found(hz in 1_000_000..10_000_000_000u64, ms in 50..4000u64) {
            let found = frequency(hz * ms / 1000, (u64::from(PM_TIMER_HZ) * ms / 1000) as u32);
            prop_assert!(found.abs_diff(hz) <= hz / 100_000 + 100, "{} for {}", found, hz);
        }

        #[test]
        fn frequencies_are_exact(count in any::<u64>(), ticks in 1..u32::MAX) {
            let exact = u128::from(count) * u128::from(PM_TIMER_HZ) / u128::from(ticks);
            prop_assert_eq!(frequency(count, ticks), u64::try_from(exact).unwrap_or(u64::MAX));
            prop_assert_eq!(frequency(count, 0), 0);
        }
    }
}
