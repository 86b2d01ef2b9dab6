//! The 8254 timer: channel 0 (IRQ 0) and channel 2 (speaker, polled through port 0x61). Channel 1, once the memory
//! refresh, only takes its programming.
//!
//! Intel 8254 (231164-005): control word, modes 0 to 5, counter latch, read-back. Port 0x61: ICH9 datasheet, 13.7.1.

use crate::clock::Clock;

/// Input clock in hertz.
pub const HERTZ: u64 = 1_193_182;

/// Clocks between two ticks at least: of shorter periods so many count as one tick that a guest cannot be kept busy by
/// its timer alone. The count runs as programmed.
const SHORTEST: u128 = (HERTZ * crate::clock::SHORTEST_PERIOD_US).div_ceil(1_000_000) as u128;

/// Which bytes of the count an access takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Debug)]
struct Channel {
    mode: u8,
    access: Access,
    decimal: bool,
    /// The count loaded, 1 to 65536; zero while none is.
    reload: u32,
    /// Clocks counted before `since`.
    base: u128,
    /// When counting went on; `None` while the gate holds it.
    since: Option<u64>,
    gate: bool,
    write_low: Option<u8>,
    read_high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
    /// Rising edges of the output that were passed on.
    edges: u128,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: Access::Both,
            decimal: false,
            reload: 0,
            base: 0,
            since: None,
            gate,
            write_low: None,
            read_high_next: false,
            latched: None,
            status: None,
            edges: 0,
        }
    }

    /// Clocks since the count was loaded.
    fn elapsed(&self, clock: Clock, now: u64) -> u128 {
        self.base + self.since.map_or(0, |since| clock.count(now.saturating_sub(since), HERTZ))
    }

    fn running(&self) -> bool {
        self.reload != 0 && self.since.is_some()
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn output(&self, clock: Clock, now: u64) -> bool {
        let elapsed = self.elapsed(clock, now);
        let reload = u128::from(self.reload);
        if reload == 0 {
            return self.mode != 0;
        }
        match self.mode {
            0 => elapsed >= reload,
            1 => self.base == 0 && self.since.is_none() || elapsed >= reload,
            // With the gate low the output is high.
            2 => !self.gate || elapsed % reload != reload - 1,
            3 => !self.gate || elapsed % reload < reload.div_ceil(2),
            _ => elapsed != reload,
        }
    }

    fn count(&self, clock: Clock, now: u64) -> u16 {
        let elapsed = self.elapsed(clock, now);
        let reload = u128::from(self.reload);
        if reload == 0 {
            return 0;
        }
        let modulus: u128 = if self.decimal { 10_000 } else { 0x1_0000 };
        let count = match self.mode {
            2 => reload - elapsed % reload,
            3 => {
                // Counts by two, twice in each period; an odd count loses its last bit.
                let phase = elapsed % reload;
                let half = reload.div_ceil(2);
                let passed = if phase < half { phase } else { phase - half };
                (reload & !1).saturating_sub(2 * passed)
            }
            // The others count on through zero.
            _ => (reload + modulus - elapsed % modulus) % modulus,
        };
        let count = (count % modulus) as u16;
        if self.decimal { to_decimal(count) } else { count }
    }

    /// Rising edges of the output since the count was loaded.
    fn rising_edges(&self, clock: Clock, now: u64) -> u128 {
        if !self.running() {
            return self.edges;
        }
        let (elapsed, reload) = (self.elapsed(clock, now), u128::from(self.reload));
        match self.mode {
            2 | 3 => elapsed / reload,
            0 | 1 => u128::from(elapsed >= reload),
            _ => u128::from(elapsed > reload),
        }
    }

    /// Edges that count as one.
    fn stride(&self) -> u128 {
        if self.is_periodic() { SHORTEST.div_ceil(self.reload.max(1).into()) } else { 1 }
    }

    /// When the output rises next after the edges passed on.
    fn next_edge(&self, clock: Clock) -> Option<u64> {
        let since = self.since.filter(|_| self.reload != 0)?;
        let reload = u128::from(self.reload);
        let at = match self.mode {
            2 | 3 => (self.edges + self.stride()) * reload,
            _ if self.edges != 0 => return None,
            0 | 1 => reload,
            _ => reload + 1,
        };
        Some(since.saturating_add(clock.ticks(at.saturating_sub(self.base), HERTZ)))
    }

    fn load(&mut self, value: u16, now: u64) {
        let value = if self.decimal { from_decimal(value) } else { value.into() };
        self.reload = if value != 0 { value } else { 1 + if self.decimal { 9_999 } else { 0xffff } };
        self.base = 0;
        self.edges = 0;
        // Modes 1 and 5 wait for the gate to rise.
        self.since = (self.gate && !matches!(self.mode, 1 | 5)).then_some(now);
    }

    fn set_gate(&mut self, gate: bool, clock: Clock, now: u64) {
        if gate == self.gate {
            return;
        }
        match self.mode {
            0 | 4 if gate => self.since = Some(now),
            0 | 4 => {
                self.base = self.elapsed(clock, now);
                self.since = None;
            }
            // A rising gate starts the count anew.
            _ if gate => {
                self.base = 0;
                self.edges = 0;
                self.since = Some(now);
            }
            2 | 3 => {
                self.base = 0;
                self.since = None;
            }
            _ => {}
        }
        self.gate = gate;
    }

    fn control(&mut self, value: u8, clock: Clock, now: u64) {
        match value >> 4 & 3 {
            0 => self.latch(clock, now),
            access => {
                *self = Self::new(self.gate);
                self.access = match access {
                    1 => Access::Low,
                    2 => Access::High,
                    _ => Access::Both,
                };
                let mode = value >> 1 & 7;
                self.mode = if mode > 5 { mode - 4 } else { mode };
                self.decimal = value & 1 != 0;
            }
        }
    }

    fn latch(&mut self, clock: Clock, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(clock, now));
        }
    }

    fn latch_status(&mut self, clock: Clock, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let status = u8::from(self.output(clock, now)) << 7
            | u8::from(self.reload == 0) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.decimal);
        self.status.get_or_insert(status);
    }

    fn read(&mut self, clock: Clock, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(clock, now)).to_le_bytes();
        let take_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.read_high_next = !self.read_high_next;
                !self.read_high_next
            }
        };
        if !self.read_high_next {
            self.latched = None;
        }
        if take_high { high } else { low }
    }

    fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.write_low.take()) {
            (Access::Low, _) => self.load(value.into(), now),
            (Access::High, _) => self.load(u16::from(value) << 8, now),
            (Access::Both, None) => self.write_low = Some(value),
            (Access::Both, Some(low)) => self.load(u16::from_le_bytes([low, value]), now),
        }
    }
}

fn to_decimal(value: u16) -> u16 {
    (0..4).fold(0, |sum, digit| sum | (value / 10u16.pow(digit) % 10) << (4 * digit))
}

fn from_decimal(value: u16) -> u32 {
    (0..4).fold(0, |sum, digit| sum + u32::from(value >> (4 * digit) & 0xf) * 10u32.pow(digit)) % 10_000
}

/// The timer and port 0x61.
#[derive(Clone, Debug)]
pub struct Pit {
    clock: Clock,
    channels: [Channel; 3],
    speaker: bool,
}

impl Pit {
    /// An unprogrammed timer: no channel counts.
    pub fn new(clock: Clock) -> Self {
        Self { clock, channels: [Channel::new(true), Channel::new(true), Channel::new(false)], speaker: false }
    }

    /// Reads port 0x40 to 0x43.
    pub fn read(&mut self, offset: u16, now: u64) -> u8 {
        match self.channels.get_mut(usize::from(offset)) {
            Some(channel) => channel.read(self.clock, now),
            None => 0xff,
        }
    }

    /// Writes port 0x40 to 0x43.
    pub fn write(&mut self, offset: u16, value: u8, now: u64) {
        match (self.channels.get_mut(usize::from(offset)), value >> 6) {
            (Some(channel), _) => channel.write(value, now),
            (None, 3) => {
                // Read-back: latch counts (bit 5 clear) and states (bit 4 clear) of the channels in bits 3:1.
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & 2 << index != 0 {
                        if value & 0x20 == 0 {
                            channel.latch(self.clock, now);
                        }
                        if value & 0x10 == 0 {
                            channel.latch_status(self.clock, now);
                        }
                    }
                }
            }
            (None, channel) => self.channels[usize::from(channel)].control(value, self.clock, now),
        }
    }

    /// Reads port 0x61: gate, speaker, refresh toggle (every 15 us), output of channel 2.
    pub fn read_port_b(&self, now: u64) -> u8 {
        let refresh = (self.clock.count(now, HERTZ) / 18) & 1 != 0;
        u8::from(self.channels[2].gate)
            | u8::from(self.speaker) << 1
            | u8::from(refresh) << 4
            | u8::from(self.channels[2].output(self.clock, now)) << 5
    }

    /// Writes port 0x61.
    pub fn write_port_b(&mut self, value: u8, now: u64) {
        self.speaker = value & 2 != 0;
        self.channels[2].set_gate(value & 1 != 0, self.clock, now);
    }

    /// When channel 0's output rises next.
    pub fn next_tick(&self) -> Option<u64> {
        self.channels[0].next_edge(self.clock)
    }

    /// Whether channel 0's output rose since the last call. Edges that passed together count as one.
    pub fn take_tick(&mut self, now: u64) -> bool {
        let channel = &mut self.channels[0];
        let edges = channel.rising_edges(self.clock, now);
        let rose = edges >= channel.edges + channel.stride();
        if rose {
            channel.edges = edges;
        }
        rose
    }

    /// The level of IRQ 0.
    pub fn output(&self, now: u64) -> bool {
        self.channels[0].output(self.clock, now) || self.channels[0].is_periodic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOCK: Clock = Clock::new(HERTZ * 100);

    #[test]
    fn a_periodic_tick_keeps_the_mean_rate() {
        let clock = Clock::new(2_999_999_999);
        let mut pit = Pit::new(clock);
        assert_eq!(pit.next_tick(), None);
        pit.write(3, 0x34, 0);
        pit.write(0, 0x9c, 0);
        pit.write(0, 0x2e, 0);
        let mut now = 0;
        for _ in 0..100_000 {
            now = pit.next_tick().unwrap();
            assert!(!pit.take_tick(now - 1));
            assert!(pit.take_tick(now));
            assert!(!pit.take_tick(now));
        }
        assert_eq!(now, clock.ticks(100_000 * 0x2e9c, HERTZ));
    }

    /// Two clocks a period would be 600,000 ticks a second.
    #[test]
    fn short_periods_count_as_one() {
        for mode in [0x14, 0x16] {
            let mut pit = Pit::new(CLOCK);
            pit.write(3, mode, 0);
            pit.write(0, 2, 0);
            let mut now = 0;
            for _ in 0..100 {
                let next = pit.next_tick().unwrap();
                assert!(next - now >= 200 * CLOCK.frequency() / 1_000_000);
                assert!(!pit.take_tick(next - 1) && pit.take_tick(next));
                now = next;
            }
            assert!(now < CLOCK.ticks(100 * SHORTEST + 200, HERTZ));
        }
    }

    #[test]
    fn linux_calibrates_with_channel_two() {
        let mut pit = Pit::new(CLOCK);
        pit.write_port_b(1, 0);
        pit.write(3, 0xb0, 0);
        pit.write(2, 100, 0);
        pit.write(2, 0, 0);
        assert_eq!(pit.read_port_b(9999) & 0x21, 0x01);
        assert_eq!(pit.read_port_b(10_000) & 0x21, 0x21);
        // Counts through zero.
        pit.write(3, 0x80, 10_100);
        assert_eq!((pit.read(2, 0), pit.read(2, 0)), (0xff, 0xff));
    }

    #[test]
    fn the_gate_holds_mode_zero() {
        let mut pit = Pit::new(CLOCK);
        pit.write_port_b(1, 0);
        pit.write(3, 0xb0, 0);
        pit.write(2, 100, 0);
        pit.write(2, 0, 0);
        pit.write_port_b(0, 5000);
        assert_eq!(pit.read_port_b(50_000) & 0x20, 0);
        pit.write_port_b(3, 50_000);
        assert_eq!(pit.read_port_b(54_900) & 0x23, 3);
        assert_eq!(pit.read_port_b(55_000) & 0x23, 0x23);
    }

    #[test]
    fn one_shot_ticks_once_and_latches_hold() {
        let mut pit = Pit::new(CLOCK);
        pit.write(3, 0x38, 0);
        pit.write(0, 10, 0);
        pit.write(0, 0, 0);
        assert_eq!(pit.next_tick(), Some(1100));
        pit.write(3, 0xc2, 300);
        assert_eq!(pit.read(0, 900), 0x80 | 0x38);
        assert_eq!((pit.read(0, 900), pit.read(0, 900)), (7, 0));
        assert_eq!(pit.read(0, 900), 1);
        assert!(pit.take_tick(5000));
        assert_eq!(pit.next_tick(), None);
    }

    #[test]
    fn decimal() {
        assert_eq!(to_decimal(1234), 0x1234);
        assert_eq!(from_decimal(0x9999), 9999);
        let mut pit = Pit::new(CLOCK);
        pit.write(3, 0x31, 0);
        pit.write(0, 0, 0);
        pit.write(0, 0, 0);
        assert_eq!((pit.read(0, 100), pit.read(0, 100)), (0x99, 0x99));
    }

    proptest! {
        #[test]
        fn any_sequence_is_safe(ops in prop::collection::vec((0u8..5, 0u16..4, any::<u8>(), any::<u64>()), 0..200)) {
            let mut pit = Pit::new(Clock::new(2_400_000_000));
            for (op, offset, value, now) in ops {
                match op {
                    0 => pit.write(offset, value, now),
                    1 => { pit.read(offset, now); }
                    2 => pit.write_port_b(value, now),
                    3 => { pit.take_tick(now); }
                    _ => { pit.read_port_b(now); pit.next_tick(); pit.output(now); }
                }
            }
        }
    }
}
