//! Bad input: each case ends at once, with a line that says what is wrong.

use anyhow::Result;

use super::{Lab, Test};

pub const TESTS: &[Test] = &[Test::new("fault::no root task", no_root_task)];

/// A boot loader that was given the kernel alone.
fn no_root_task(lab: &Lab) -> Result<()> {
    lab.boot("none")
        .run()?
        .fatal("kilonova: fatal: the boot loader gave no root image: pass it as the first module (QEMU: -initrd)")?;
    Ok(())
}
