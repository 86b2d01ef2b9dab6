//! The CMOS clock's registers as time (Motorola MC146818A data sheet; register 0x32 holds the century on PCs).

/// The clock's registers as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Register 0x00.
    pub second: u8,
    /// Register 0x02.
    pub minute: u8,
    /// Register 0x04; bit 7 is PM in 12-hour mode.
    pub hour: u8,
    /// Register 0x07.
    pub day: u8,
    /// Register 0x08.
    pub month: u8,
    /// Register 0x09.
    pub year: u8,
    /// Register 0x32, 0 if absent.
    pub century: u8,
    /// Register B: bit 2 binary rather than BCD, bit 1 24-hour mode.
    pub status_b: u8,
}

impl Registers {
    /// Seconds since 1970 UTC; `None` if the registers hold no time.
    pub fn unix_seconds(&self) -> Option<u64> {
        let binary = self.status_b & 4 != 0;
        let number = |value: u8| match (binary, value & 0xf, value >> 4) {
            (true, ..) => Some(value as u64),
            (false, ones @ 0..=9, tens @ 0..=9) => Some(tens as u64 * 10 + ones as u64),
            _ => None,
        };
        let mut hour = number(self.hour & 0x7f)?;
        if self.status_b & 2 == 0 {
            hour = hour % 12 + if self.hour & 0x80 != 0 { 12 } else { 0 };
        }
        let century = number(self.century).filter(|c| (19..=25).contains(c)).unwrap_or(20);
        let (year, month, day) = (century * 100 + number(self.year)?, number(self.month)?, number(self.day)?);
        let (minute, second) = (number(self.minute)?, number(self.second)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        // Days since 1 March of year 0 in the proleptic Gregorian calendar.
        let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 306 + 5) / 10 + day - 1;
        Some((days.checked_sub(719_468)? * 24 + hour) * 3600 + minute * 60 + second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let bcd = Registers {
            second: 0x56,
            minute: 0x34,
            hour: 0x12,
            day: 0x29,
            month: 0x02,
            year: 0x24,
            century: 0x20,
            status_b: 2,
        };
        assert_eq!(bcd.unix_seconds(), Some(1_709_210_096));
        let noon = Registers { hour: 0x92, status_b: 0, ..bcd };
        assert_eq!(noon.unix_seconds(), Some(1_709_210_096));
        let binary = Registers { second: 0, minute: 0, hour: 0, day: 1, month: 1, year: 0, century: 0, status_b: 6 };
        assert_eq!(binary.unix_seconds(), Some(946_684_800));
        assert_eq!(Registers { month: 0x13, ..bcd }.unix_seconds(), None);
        assert_eq!(Registers { second: 0xff, ..bcd }.unix_seconds(), None);
    }
}
