//! What the kernel's operations cost.

use super::Test;
use crate::bench;

pub const TESTS: &[Test] =
    &[Test::new("bench::no operation costs more than recorded", |lab| bench::check(lab.emulator))];
