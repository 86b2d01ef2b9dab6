//! Bad input: each case ends at once, with a line that says what is wrong.

use super::Test;

pub const TESTS: &[Test] = &[];
