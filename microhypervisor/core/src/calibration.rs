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
pub const fn frequency(count: u64, ticks: u32) -> u64 {
    scale(count, PM_TIMER_HZ as u64, ticks as u64)
}

/// `value` * `numerator` / `denominator`, rounded down; at most `u64::MAX`, and 0 if the denominator is.
pub const fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    if denominator == 0 {
        return 0;
    }
    let scaled = value as u128 * numerator as u128 / denominator as u128;
    if scaled > u64::MAX as u128 { u64::MAX } else { scaled as u64 }
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
        fn scaling_is_exact(value in any::<u64>(), numerator in any::<u64>(), denominator in 1..u64::MAX) {
            let exact = u128::from(value) * u128::from(numerator) / u128::from(denominator);
            prop_assert_eq!(scale(value, numerator, denominator), u64::try_from(exact).unwrap_or(u64::MAX));
            prop_assert_eq!(scale(value, numerator, 0), 0);
        }
    }
}
