//! A line of text of bounded length, made without a heap: what does not fit is cut off at a character.

use core::fmt;

/// Text of at most `N` bytes.
pub struct Line<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Line<N> {
    /// An empty line.
    pub const fn new() -> Self {
        Self { bytes: [0; N], length: 0 }
    }

    /// The formatted text.
    pub fn format(arguments: fmt::Arguments<'_>) -> Self {
        let mut line = Self::new();
        let _ = fmt::write(&mut line, arguments);
        line
    }

    /// What was written.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }
}

impl<const N: usize> Default for Line<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Write for Line<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut count = text.len().min(N - self.length);
        while !text.is_char_boundary(count) {
            count -= 1;
        }
        self.bytes[self.length..self.length + count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        if count == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(Line::<16>::format(format_args!("{}-{}", 1, "ab")).as_str(), "1-ab");
        assert_eq!(Line::<4>::format(format_args!("abc\u{e4}x")).as_str(), "abc");
        assert_eq!(Line::<0>::format(format_args!("abc")).as_str(), "");
    }
}
