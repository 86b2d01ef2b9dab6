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
            (b'#', 0..16) => write!(f, "{}", self.1),
            (b'#', number) => write!(f, "{number:#x}"),
            _ => f.write_char(byte.into()),
        })
    }
}
