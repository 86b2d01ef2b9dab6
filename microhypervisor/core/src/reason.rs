//! Why something cannot be: for people to read, nothing matches on it.

use core::fmt;

/// Words, without the way that `str` has to fill up or cut off.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(pub &'a str);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Words before and after a number (an address, an index, some bits), or without a number words after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub &'static [&'static str; 2], pub u64);

impl Reason {
    /// Physical memory that is not there.
    pub const fn unreadable(address: u64) -> Self {
        Self(&["physical address ", " cannot be read"], address)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([before, after], number) = self;
        f.write_str(before)?;
        match (before.is_empty(), number) {
            (true, _) => {}
            (_, 0..16) => write!(f, "{number}")?,
            _ => write!(f, "{number:#x}")?,
        }
        f.write_str(after)
    }
}
