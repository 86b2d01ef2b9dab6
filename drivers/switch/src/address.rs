//! MAC addresses in frames (IEEE 802.3 3.2.3).

use core::fmt;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Destination and source of a frame; `None` if it is too short to have both.
    pub fn of_frame(frame: &[u8]) -> Option<(Self, Self)> {
        let (destination, rest) = frame.split_first_chunk()?;
        Some((Self(*destination), Self(*rest.first_chunk()?)))
    }

    /// Whether it means several stations, or all.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station may send from it.
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }

    /// Whether frames for it stay on their link: no bridge passes them on (IEEE 802.1Q, table 8-1).
    pub fn is_link_local(self) -> bool {
        self.0[..5] == [0x01, 0x80, 0xc2, 0, 0] && self.0[5] < 16
    }

    /// The address as a number below 2^48.
    pub fn number(self) -> u64 {
        self.0.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn kinds_of_addresses_are_told_apart() {
        let station = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert!(station.is_station() && !station.is_group());
        assert_eq!((station.to_string().as_str(), station.number()), ("52:54:00:12:34:56", 0x5254_0012_3456));
        assert!(Mac([0xff; 6]).is_group() && !Mac([0xff; 6]).is_link_local());
        assert!(!Mac([0; 6]).is_station() && !Mac([1, 0, 0, 0, 0, 0]).is_station());
        assert!(Mac([1, 0x80, 0xc2, 0, 0, 15]).is_link_local());
        assert!(!Mac([1, 0x80, 0xc2, 0, 0, 16]).is_link_local());
        let frame = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(Mac::of_frame(&frame), Some((Mac([1, 2, 3, 4, 5, 6]), Mac([7, 8, 9, 10, 11, 12]))));
        assert_eq!(Mac::of_frame(&frame[..11]), None);
    }
}
