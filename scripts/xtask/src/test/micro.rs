//! Micro guests: each exercises one mechanism and tells its verdict as an exit status.

use anyhow::Result;

use super::{Lab, Test};

pub const TESTS: &[Test] = &[Test::new("micro::hello", hello)];

/// Port output, CPUID and HLT in a 64-bit guest.
fn hello(lab: &Lab) -> Result<()> {
    lab.boot("micro").run()?.status(0).map(|_| ())
}
