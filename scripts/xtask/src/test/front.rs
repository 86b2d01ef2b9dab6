//! The front door itself, used as a user would: exit status, standard output, the terminal.

use super::Test;

pub const TESTS: &[Test] = &[];
