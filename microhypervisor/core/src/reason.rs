//! Why something cannot be: for people to read, nothing matches on it.

use core::fmt;

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
        match (before.is_empty(), number) {
            (true, _) => f.write_str(after),
            (_, 0..16) => write!(f, "{before}{number}{after}"),
            _ => write!(f, "{before}{number:#x}{after}"),
        }
    }
}
