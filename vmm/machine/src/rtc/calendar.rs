//! The Gregorian calendar: seconds since 1970 to date and time of day, and back.

const DAYS_IN_400_YEARS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

/// A date and a time of day, as a guest may have written them: the fields may lie outside their ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    /// Year, with the century.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// Days since 1970-01-01. A month counts from March, so that the leap day is the last of its year.
fn days(year: u16, month: u8, day: u8) -> i64 {
    let month = i64::from(month.clamp(1, 12));
    let shifted = (month + 9) % 12;
    let year = i64::from(year) - i64::from(month < 3);
    let day_of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + day_of_year - DAYS_TO_1970
}

impl DateTime {
    /// The date and time `seconds` after 1970-01-01T00:00:00Z, clamped to the years 0 to 9999.
    pub fn from_unix(seconds: i128) -> Self {
        let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799) as i64;
        let in_day = seconds.rem_euclid(86_400);
        let since = seconds.div_euclid(86_400) + DAYS_TO_1970;
        let (cycle, in_cycle) = (since.div_euclid(DAYS_IN_400_YEARS), since.rem_euclid(DAYS_IN_400_YEARS));
        // Leap days at the ends of the 4-, 100- and 400-year cycles do not begin a year of their own.
        let year_of_cycle = (in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
        let day_of_year = in_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = (shifted + 2) % 12 + 1;
        Self {
            year: (400 * cycle + year_of_cycle + i64::from(month < 3)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8,
            hour: (in_day / 3600) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01T00:00:00Z; fields past their ranges carry over.
    pub fn to_unix(self) -> i128 {
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        i128::from(days(self.year, self.month, self.day) * 86_400 + time)
    }

    /// Day of the week: 1 is Sunday.
    pub fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        (days(self.year, self.month, self.day) + 4).rem_euclid(7) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day| DateTime { year, month, day, hour: 0, minute: 0, second: 0 };
        assert_eq!(DateTime::from_unix(0), date(1970, 1, 1));
        assert_eq!(date(1970, 1, 1).weekday(), 5);
        assert_eq!(DateTime::from_unix(951_782_400), date(2000, 2, 29));
        assert_eq!(date(2026, 1, 1).to_unix(), 1_767_225_600);
        assert_eq!(date(2100, 3, 1).to_unix() - date(2100, 2, 28).to_unix(), 86_400);
        assert_eq!(DateTime::from_unix(-1), DateTime { hour: 23, minute: 59, second: 59, ..date(1969, 12, 31) });
        assert_eq!(DateTime::from_unix(i128::MAX).year, 9999);
        assert_eq!(DateTime::from_unix(i128::MIN), date(0, 1, 1));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -62_167_219_200i128..253_402_300_800) {
            let time = DateTime::from_unix(seconds);
            prop_assert_eq!(time.to_unix(), seconds);
            prop_assert!((1..=12).contains(&time.month) && (1..=31).contains(&time.day));
        }

        #[test]
        fn anything_written_is_some_time(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) {
            let time = DateTime { year, month, day, hour, minute, second };
            DateTime::from_unix(time.to_unix());
            prop_assert!((1..=7).contains(&time.weekday()));
        }
    }
}
