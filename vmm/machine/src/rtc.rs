//! The real-time clock and its CMOS memory.
//!
//! Motorola MC146818A: registers A to D, time, alarm, update cycle, periodic and alarm interrupts; the century is CMOS
//! byte 0x32 as on PCs (ACPI 6.5, 5.2.9, CENTURY). The time of day is computed from the STC at every access, so it
//! cannot drift; the update is instantaneous and announced 244 us before.

pub mod calendar;

use crate::clock::{Clock, NANOS, WallClock};
use calendar::DateTime;

/// Interrupt line.
pub const IRQ: u8 = 8;
/// CMOS index of the century, for the FADT.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

const A_UPDATING: u8 = 0x80;
/// Divider chain running from 32768 Hz.
const A_DIVIDER_RUNS: u8 = 0x20;

const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;

const C_REQUEST: u8 = 0x80;
const D_VALID: u8 = 0x80;

/// The update-in-progress bit rises this long before the seconds change.
const UPDATE_WARNING_NS: i128 = 244_141;

/// What the time stands at: running from a point of the STC, or held while the guest sets it.
#[derive(Clone, Copy, Debug)]
enum Time {
    Running { unix_ns: i128, since: u64 },
    Held { time: DateTime, fraction_ns: i128 },
}

/// Clock, calendar and CMOS memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    clock: Clock,
    time: Time,
    index: u8,
    a: u8,
    b: u8,
    /// Interrupt flags, without the request bit.
    c: u8,
    /// Seconds since 1970 up to which updates and alarms were looked at.
    seen_second: i128,
    /// Periods up to which periodic interrupts were looked at.
    seen_period: u128,
    cmos: [u8; 128],
}

impl Rtc {
    /// A clock that shows `wall`, in Coordinated Universal Time.
    pub fn new(clock: Clock, wall: WallClock, now: u64) -> Self {
        let mut rtc = Self {
            clock,
            time: Time::Running { unix_ns: wall.unix_ns.into(), since: wall.stc },
            index: 0,
            a: A_DIVIDER_RUNS | 6,
            b: B_24_HOURS,
            c: 0,
            seen_second: 0,
            seen_period: 0,
            cmos: [0; 128],
        };
        rtc.catch_up(now);
        rtc
    }

    /// Tells firmware how much RAM there is, in the bytes that PC firmware uses.
    pub fn set_memory(&mut self, below_4g: u64, above_4g: u64) {
        let mut put = |index: usize, bytes: &[u8]| self.cmos[index..index + bytes.len()].copy_from_slice(bytes);
        let capped = |value: u64| (value.min(0xffff) as u16).to_le_bytes();
        put(0x15, &640u16.to_le_bytes());
        put(0x17, &capped(below_4g.saturating_sub(1 << 20) >> 10));
        put(0x30, &capped(below_4g.saturating_sub(1 << 20) >> 10));
        put(0x34, &capped(below_4g.saturating_sub(16 << 20) >> 16));
        put(0x5b, &(above_4g >> 16).to_le_bytes()[..3]);
    }

    /// RESET clears the interrupt enables and flags; time and memory have a battery.
    pub fn reset(&mut self) {
        self.b &= !(B_PERIODIC | B_ALARM | B_UPDATE);
        self.c = 0;
        self.index = 0;
    }

    /// Nanoseconds since 1970 that the clock shows.
    fn unix_ns(&self, now: u64) -> i128 {
        match self.time {
            Time::Running { unix_ns, since } if now >= since => unix_ns + self.clock.count(now - since, NANOS) as i128,
            Time::Running { unix_ns, since } => unix_ns - self.clock.count(since - now, NANOS) as i128,
            Time::Held { time, fraction_ns } => time.to_unix() * i128::from(NANOS) + fraction_ns,
        }
    }

    fn second(&self, now: u64) -> i128 {
        self.unix_ns(now).div_euclid(NANOS.into())
    }

    fn date_time(&self, now: u64) -> DateTime {
        match self.time {
            Time::Held { time, .. } => time,
            Time::Running { .. } => DateTime::from_unix(self.second(now)),
        }
    }

    fn is_held(&self) -> bool {
        matches!(self.time, Time::Held { .. })
    }

    /// The periodic interrupt's rate in hertz (MC146818A, table 5).
    fn rate(&self) -> Option<u64> {
        match self.a & 0xf {
            0 => None,
            select @ 1..=2 => Some(512 >> select),
            select => Some(65_536 >> select),
        }
    }

    /// Periods of the periodic interrupt since the STC was zero.
    fn period(&self, now: u64) -> u128 {
        self.rate().map_or(0, |rate| self.clock.count(now, rate))
    }

    fn catch_up(&mut self, now: u64) {
        self.seen_second = self.second(now);
        self.seen_period = self.period(now);
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 { value } else { ((value / 10 % 16) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 { value } else { (value >> 4).saturating_mul(10).saturating_add(value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// Whether the alarm rings in a second; an alarm byte of 0xc0 or more matches any.
    fn alarm_matches(&self, second: i128) -> bool {
        let time = DateTime::from_unix(second);
        let matches = |index: u8, value: u8| {
            let alarm = self.cmos[usize::from(index)];
            alarm >= 0xc0 || alarm == value
        };
        matches(SECONDS_ALARM, self.encode(time.second))
            && matches(MINUTES_ALARM, self.encode(time.minute))
            && matches(HOURS_ALARM, self.encode_hour(time.hour))
    }

    /// Sets the flags of what happened up to `now`.
    pub fn advance(&mut self, now: u64) {
        let period = self.period(now);
        if period > self.seen_period && self.rate().is_some() {
            self.c |= B_PERIODIC;
        }
        self.seen_period = period;
        let second = self.second(now);
        if !self.is_held() && second > self.seen_second {
            self.c |= B_UPDATE;
            // An alarm repeats within a day at the latest.
            let first = self.seen_second.max(second - 86_400);
            if self.b & B_ALARM != 0 && (first + 1..=second).any(|second| self.alarm_matches(second)) {
                self.c |= B_ALARM;
            }
        }
        self.seen_second = second;
    }

    /// The level of the interrupt line.
    pub fn interrupt(&self) -> bool {
        self.b & self.c & (B_PERIODIC | B_ALARM | B_UPDATE) != 0
    }

    /// When an enabled interrupt may come next. While the request stands there is none.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        if self.interrupt() {
            return None;
        }
        let periodic =
            self.rate().filter(|_| self.b & B_PERIODIC != 0).map(|rate| self.clock.ticks(self.seen_period + 1, rate));
        let update = match self.time {
            Time::Running { unix_ns, since } if self.b & (B_ALARM | B_UPDATE) != 0 => {
                let target = (self.second(now).max(self.seen_second) + 1) * i128::from(NANOS) - unix_ns;
                let ticks = |ns: i128| self.clock.ticks(ns.unsigned_abs(), NANOS);
                Some(if target >= 0 {
                    since.saturating_add(ticks(target))
                } else {
                    since.saturating_sub(ticks(target))
                })
            }
            _ => None,
        };
        periodic.into_iter().chain(update).min()
    }

    /// Reads port 0x70 (`data` false; the index is write-only and reads as written) or 0x71.
    pub fn read(&mut self, data: bool, now: u64) -> u8 {
        if !data {
            return self.index;
        }
        let time = self.date_time(now);
        match self.index & 0x7f {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode(time.weekday()),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode((time.year % 100) as u8),
            CENTURY => self.encode((time.year / 100) as u8),
            REGISTER_A => {
                let to_update = i128::from(NANOS) - self.unix_ns(now).rem_euclid(NANOS.into());
                let updating = !self.is_held() && to_update <= UPDATE_WARNING_NS;
                self.a | if updating { A_UPDATING } else { 0 }
            }
            REGISTER_B => self.b,
            REGISTER_C => {
                self.advance(now);
                let request = if self.interrupt() { C_REQUEST } else { 0 };
                core::mem::take(&mut self.c) | request
            }
            REGISTER_D => D_VALID,
            index => self.cmos[usize::from(index)],
        }
    }

    /// Writes port 0x70 (bit 7, the NMI gate, is remembered and means nothing) or 0x71.
    pub fn write(&mut self, data: bool, value: u8, now: u64) {
        if !data {
            self.index = value;
            return;
        }
        self.advance(now);
        match self.index & 0x7f {
            index @ (SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY) => self.set_field(index, value, now),
            REGISTER_A => {
                let held = self.is_held();
                self.a = value & !A_UPDATING;
                // After the divider's reset the first update follows half a second later.
                self.hold_or_run(now, if held { 500_000_000 } else { 0 });
                self.catch_up(now);
            }
            REGISTER_B => {
                self.b = value;
                self.hold_or_run(now, 0);
                if value & B_SET != 0 {
                    self.b &= !B_UPDATE;
                }
                self.catch_up(now);
            }
            REGISTER_C | REGISTER_D | WEEKDAY => {}
            index => self.cmos[usize::from(index)] = value,
        }
    }

    /// Time stands while SET is written or the divider is held in reset.
    fn hold_or_run(&mut self, now: u64, fraction_ns: i128) {
        let hold = self.b & B_SET != 0 || self.a & 0x60 == 0x60;
        match (hold, self.time) {
            (true, Time::Running { .. }) => {
                let fraction_ns = self.unix_ns(now).rem_euclid(NANOS.into());
                self.time = Time::Held { time: self.date_time(now), fraction_ns };
            }
            (false, Time::Held { time, fraction_ns: held }) => {
                let fraction = if fraction_ns != 0 { fraction_ns } else { held };
                self.time = Time::Running { unix_ns: time.to_unix() * i128::from(NANOS) + fraction, since: now };
            }
            _ => {}
        }
    }

    fn set_field(&mut self, index: u8, value: u8, now: u64) {
        let mut time = self.date_time(now);
        let decoded = self.decode(value);
        match index {
            SECONDS => time.second = decoded,
            MINUTES => time.minute = decoded,
            HOURS => time.hour = self.decode_hour(value),
            DAY => time.day = decoded,
            MONTH => time.month = decoded,
            YEAR => time.year = time.year / 100 * 100 + u16::from(decoded % 100),
            _ => time.year = u16::from(decoded) * 100 + time.year % 100,
        }
        match &mut self.time {
            Time::Held { time: held, .. } => *held = time,
            Time::Running { .. } => {
                let fraction_ns = self.unix_ns(now).rem_euclid(NANOS.into());
                self.time = Time::Running { unix_ns: time.to_unix() * i128::from(NANOS) + fraction_ns, since: now };
            }
        }
        self.catch_up(now);
    }
}

#[cfg(test)]
mod tests;
