//! The LAPIC timer: one-shot, periodic, TSC deadline.
//!
//! Intel SDM vol. 3A, 11.5.4. The guest's TSC is the STC. The count's input clock is the STC divided by a power of
//! two ([`CrystalClock`]), so that CPUID 0x15 states it exactly and every expiry is a whole number of STC ticks.

use crate::clock::SHORTEST_PERIOD_US;

/// The clock that the timer counts: the STC's frequency, halved until it fits the 32 bits of CPUID 0x15 ECX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrystalClock {
    /// Ticks a second.
    pub frequency: u64,
    /// The STC counts `1 << shift` times as fast.
    pub shift: u32,
}

impl CrystalClock {
    /// The crystal that belongs to an STC of `frequency` hertz.
    pub const fn new(frequency: u64) -> Self {
        let bits = u64::BITS - frequency.leading_zeros();
        let shift = bits.saturating_sub(u32::BITS);
        Self { frequency: frequency >> shift, shift }
    }
}

/// Timer mode: LVT timer bits 18:17.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Counts down once.
    OneShot,
    /// Counts down and starts again.
    Periodic,
    /// Fires when the TSC reaches a value.
    Deadline,
}

/// A count on its way down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Countdown {
    /// STC value at which it reaches zero.
    expiry: u64,
    /// STC ticks of one full count.
    period: u64,
}

/// The timer's registers. Times are STC values, the mode comes from the LVT entry.
#[derive(Clone, Debug)]
pub struct Timer {
    shift: u32,
    /// STC ticks between two periodic interrupts at least.
    shortest: u64,
    initial: u32,
    divide: u32,
    countdown: Option<Countdown>,
    deadline: u64,
}

impl Timer {
    /// A stopped timer.
    pub fn new(crystal: CrystalClock) -> Self {
        let frequency = u128::from(crystal.frequency) << crystal.shift;
        let shortest = (frequency * u128::from(SHORTEST_PERIOD_US) / 1_000_000) as u64;
        Self { shift: crystal.shift, shortest, initial: 0, divide: 0, countdown: None, deadline: 0 }
    }

    /// Stops and clears everything.
    pub fn reset(&mut self) {
        *self =
            Self { shift: self.shift, shortest: self.shortest, initial: 0, divide: 0, countdown: None, deadline: 0 };
    }

    /// STC ticks of one count.
    fn unit(&self) -> u64 {
        // Bits 3 and 1:0 give the exponent minus one, modulo eight: 0b111 divides by one.
        let exponent = ((self.divide >> 1 & 4 | self.divide & 3) + 1) & 7;
        1 << (exponent + self.shift)
    }

    /// A count in STC ticks. With the greatest frequency (shift 32) and divider this passes 64 bits: end of time.
    fn span(&self, count: u32) -> u64 {
        u64::from(count).saturating_mul(self.unit())
    }

    /// The divide configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; a running count goes on from where it stands.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        let count = self.current(now);
        self.divide = value & 0xb;
        if self.countdown.is_some() {
            self.countdown = Some(Countdown {
                expiry: now.saturating_add(self.span(count.max(1))),
                period: self.span(self.initial),
            });
        }
    }

    /// The initial count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial count register: starts, or with zero stops, the count. Ignored in deadline mode.
    pub fn set_initial(&mut self, count: u32, mode: Mode, now: u64) {
        if mode == Mode::Deadline {
            return;
        }
        self.initial = count;
        let period = self.span(count);
        self.countdown = (count != 0).then(|| Countdown { expiry: now.saturating_add(period), period });
    }

    /// The current count register.
    pub fn current(&self, now: u64) -> u32 {
        let Some(Countdown { expiry, period }) = self.countdown else { return 0 };
        let left = match expiry.saturating_sub(now) {
            // Periods that count as one.
            left if left > period && period != 0 => (left - 1) % period + 1,
            left => left,
        };
        left.div_ceil(self.unit()).min(u32::MAX.into()) as u32
    }

    /// IA32_TSC_DEADLINE: zero unless armed.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Writes IA32_TSC_DEADLINE; zero disarms. Ignored outside deadline mode.
    pub fn set_deadline(&mut self, value: u64, mode: Mode) {
        if mode == Mode::Deadline {
            self.deadline = value;
        }
    }

    /// The LVT entry's mode changes: between deadline and the counting modes the timer is disarmed.
    pub fn change_mode(&mut self, from: Mode, to: Mode) {
        if (from == Mode::Deadline) != (to == Mode::Deadline) {
            self.countdown = None;
            self.deadline = 0;
        }
    }

    /// When it fires next.
    pub fn next(&self, mode: Mode) -> Option<u64> {
        match mode {
            Mode::Deadline => (self.deadline != 0).then_some(self.deadline),
            _ => self.countdown.map(|countdown| countdown.expiry),
        }
    }

    /// Consumes what is due at `now`; whether it fired. Periods that passed together fire once, and so do as many as
    /// make a period of the shortest length.
    pub fn fire(&mut self, mode: Mode, now: u64) -> bool {
        if self.next(mode).is_none_or(|due| due > now) {
            return false;
        }
        self.deadline = 0;
        self.countdown = match (mode, self.countdown) {
            (Mode::Periodic, Some(Countdown { expiry, period })) if period != 0 => {
                let passed = (now - expiry) / period + self.shortest.div_ceil(period).max(1);
                Some(Countdown { expiry: expiry.saturating_add(passed.saturating_mul(period)), period })
            }
            _ => None,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crystal_fits_cpuid() {
        assert_eq!(CrystalClock::new(3_000_000_000), CrystalClock { frequency: 3_000_000_000, shift: 0 });
        assert_eq!(CrystalClock::new(5_000_000_000), CrystalClock { frequency: 2_500_000_000, shift: 1 });
        assert!(CrystalClock::new(u64::MAX).frequency <= u32::MAX.into());
    }

    #[test]
    fn dividers() {
        let mut timer = Timer::new(CrystalClock::new(1_000_000_000));
        for (bits, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            timer.set_divide(bits, 0);
            assert_eq!(timer.unit(), divisor, "{bits:#x}");
        }
    }

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = Timer::new(CrystalClock::new(1_000_000_000));
        timer.set_divide(3, 0);
        timer.set_initial(100, Mode::OneShot, 1000);
        assert_eq!(timer.current(1000), 100);
        assert_eq!(timer.current(1016), 99);
        assert_eq!(timer.next(Mode::OneShot), Some(2600));
        assert!(!timer.fire(Mode::OneShot, 2599));
        assert!(timer.fire(Mode::OneShot, 2600));
        assert!(!timer.fire(Mode::OneShot, 9999));
        assert_eq!(timer.current(9999), 0);
        assert_eq!(timer.initial(), 100);
    }

    #[test]
    fn deadline_is_cleared_when_it_fires() {
        let mut timer = Timer::new(CrystalClock::new(1_000_000_000));
        timer.set_deadline(500, Mode::OneShot);
        assert_eq!(timer.deadline(), 0);
        timer.set_deadline(500, Mode::Deadline);
        timer.set_initial(10, Mode::Deadline, 0);
        assert_eq!(timer.next(Mode::Deadline), Some(500));
        assert!(timer.fire(Mode::Deadline, 501));
        assert_eq!(timer.deadline(), 0);
        timer.set_deadline(600, Mode::Deadline);
        timer.change_mode(Mode::Deadline, Mode::Periodic);
        assert_eq!(timer.next(Mode::Periodic), None);
    }

    /// A period of a few ticks interrupts no oftener than the shortest, and still counts as programmed.
    #[test]
    fn short_periods_count_as_one() {
        let mut timer = Timer::new(CrystalClock::new(1_000_000_000));
        timer.set_divide(11, 0);
        timer.set_initial(7, Mode::Periodic, 0);
        assert_eq!(timer.next(Mode::Periodic), Some(7));
        let mut fired = 0;
        for now in 0..1_000_000 {
            fired += u32::from(timer.fire(Mode::Periodic, now));
            assert_eq!(u64::from(timer.current(now)), 7 - now % 7);
        }
        assert_eq!(fired, 5);
    }

    proptest! {
        #[test]
        fn periods_never_drift(count in 1u32.., divide in 0u32..16, start in 0u64..1 << 40,
                               steps in prop::collection::vec(0u64..1 << 45, 1..20)) {
            let mut timer = Timer::new(CrystalClock::new(2_000_000_000));
            timer.set_divide(divide, 0);
            timer.set_initial(count, Mode::Periodic, start);
            let period = timer.span(count);
            let mut now = start;
            for step in steps {
                now += step;
                timer.fire(Mode::Periodic, now);
                let next = timer.next(Mode::Periodic).unwrap();
                prop_assert!(next > now && next - now <= period.max(timer.shortest.next_multiple_of(period)));
                prop_assert_eq!((next - start) % period, 0);
                prop_assert!(timer.current(now) >= 1 && timer.current(now) <= count);
            }
        }

        #[test]
        fn any_sequence_is_safe(frequency: u64, ops in prop::collection::vec((0u8..6, any::<u64>()), 0..64)) {
            let mut timer = Timer::new(CrystalClock::new(frequency));
            for (op, value) in ops {
                let mode = [Mode::OneShot, Mode::Periodic, Mode::Deadline][(value % 3) as usize];
                match op {
                    0 => timer.set_divide(value as u32, value),
                    1 => timer.set_initial(value as u32, mode, value),
                    2 => timer.set_deadline(value, mode),
                    3 => timer.change_mode(mode, Mode::Deadline),
                    4 => { timer.fire(mode, value); }
                    _ => { timer.current(value); }
                }
            }
        }
    }
}
