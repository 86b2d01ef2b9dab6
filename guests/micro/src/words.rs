//! The command line: words, some with a number.

/// The words of a command line.
#[derive(Clone, Copy)]
pub struct Words<'a>(pub &'a str);

impl<'a> Words<'a> {
    /// All words, split at `=`. A boot loader may have put the program's file name first: it is left out.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
        let is_file = |(index, word): &(usize, &str)| {
            *index == 0 && (*word == env!("CARGO_PKG_NAME") || word.contains(['/', '.']))
        };
        self.0.split_ascii_whitespace().enumerate().filter(move |word| !is_file(word)).map(|(_, word)| {
            match word.split_once('=') {
                Some((word, value)) => (word, Some(value)),
                None => (word, None),
            }
        })
    }

    /// The number of a word, if it is there and has one: decimal, or hexadecimal after `0x`.
    pub fn number(self, name: &str) -> Option<u64> {
        self.iter().find(|(word, _)| *word == name).and_then(|(_, value)| number(value?))
    }
}

/// Reads a number.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
