//! Conversion between the system time counter (STC) and device clocks.
//!
//! Every device derives its state from the absolute STC value, so that no rounding accumulates and no clock drifts
//! against another. Products are taken in 128 bits: nothing overflows in the lifetime of a 64-bit counter.

/// Nanoseconds in a second.
pub const NANOS: u64 = 1_000_000_000;

/// Microseconds between two interrupts of a periodic timer at least, however short its period: one that asks for more
/// would spend all its time on them. KVM draws the line there, too.
pub const SHORTEST_PERIOD_US: u64 = 200;

/// The STC's frequency, against which other clocks are expressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    frequency: u64,
}

impl Clock {
    /// A clock that counts `frequency` ticks a second; zero is taken as one.
    pub const fn new(frequency: u64) -> Self {
        Self { frequency: if frequency == 0 { 1 } else { frequency } }
    }

    /// STC ticks a second.
    pub const fn frequency(self) -> u64 {
        self.frequency
    }

    /// How many whole periods of a clock of `hertz` fit into `ticks` STC ticks.
    pub const fn count(self, ticks: u64, hertz: u64) -> u128 {
        ticks as u128 * hertz as u128 / self.frequency as u128
    }

    /// The smallest number of STC ticks in which a clock of `hertz` counts to `count`; saturates at the end of time.
    pub const fn ticks(self, count: u128, hertz: u64) -> u64 {
        let hertz = if hertz == 0 { 1 } else { hertz } as u128;
        match count.checked_mul(self.frequency as u128) {
            Some(product) => {
                let ticks = product.div_ceil(hertz);
                if ticks > u64::MAX as u128 { u64::MAX } else { ticks as u64 }
            }
            None => u64::MAX,
        }
    }
}

/// What the time of day was at one value of the STC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WallClock {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_ns: u64,
    /// The STC when it was that time.
    pub stc: u64,
}

impl WallClock {
    /// Nanoseconds since 1970 at `now`; before the reference point too.
    pub const fn unix_ns_at(self, clock: Clock, now: u64) -> i128 {
        let passed = if now >= self.stc {
            clock.count(now - self.stc, NANOS) as i128
        } else {
            -(clock.count(self.stc - now, NANOS) as i128)
        };
        self.unix_ns as i128 + passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ticks_is_the_first_moment_of_a_count(frequency in 1u64..10_000_000_000, hertz in 1u64..10_000_000_000,
                                                count in 0u64..1 << 40) {
            let clock = Clock::new(frequency);
            let ticks = clock.ticks(count as u128, hertz);
            prop_assume!(ticks < u64::MAX);
            prop_assert!(clock.count(ticks, hertz) >= count as u128);
            if ticks > 0 {
                prop_assert!(clock.count(ticks - 1, hertz) < count as u128 || count == 0);
            }
        }

        #[test]
        fn nothing_overflows(frequency: u64, hertz: u64, ticks: u64, count: u128) {
            let clock = Clock::new(frequency);
            clock.count(ticks, hertz);
            clock.ticks(count, hertz);
            WallClock { unix_ns: count as u64, stc: hertz }.unix_ns_at(clock, ticks);
        }
    }

    #[test]
    fn the_pm_timer_is_exact_after_a_century() {
        let clock = Clock::new(3_000_000_001);
        let century = 3_000_000_001 * 86_400 * 36_525;
        assert_eq!(clock.count(century, 3_579_545), 3_579_545 * 86_400 * 36_525);
    }
}
