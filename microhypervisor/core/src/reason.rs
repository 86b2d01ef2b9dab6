//! Why something cannot be: for people to read, nothing matches on it.

use core::fmt::{self, Write};

/// Words, without the way that `str` has to fill up or cut off.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(pub &'a str);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A number in hexadecimal, or in decimal: without what the numbers of the language can besides, which is larger.
pub struct Hex(pub u64);
/// See [`Hex`].
pub struct Decimal(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x").and_then(|()| digits(f, self.0, 16))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        digits(f, self.0, 10)
    }
}

fn digits(f: &mut fmt::Formatter<'_>, number: u64, base: u32) -> fmt::Result {
    let (above, last) = (number / u64::from(base), (number % u64::from(base)) as u32);
    if above != 0 {
        digits(f, above, base)?;
    }
    f.write_char(char::from_digit(last, base).unwrap_or('?'))
}

/// Words, in which `#` stands for a number (an address, an index, some bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub &'static &'static str, pub u64);

impl Reason {
    /// Physical memory that is not there.
    pub const fn unreadable(address: u64) -> Self {
        Self(&"physical address # cannot be read", address)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match (byte, self.1) {
            (b'#', 0..16) => digits(f, self.1, 10),
            (b'#', _) => Hex(self.1).fmt(f),
            _ => f.write_char(byte.into()),
        })
    }
}
