//! Debian's kernel as the guest.

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Lab, Test};

pub const TESTS: &[Test] = &[Test::new("linux::a command's output and status arrive exactly", command)];

const MEBIBYTE: usize = 1 << 20;

/// 1 MiB of random bytes on standard output, their checksum on standard error, and a status.
fn command(lab: &Lab) -> Result<()> {
    let command = "head -c 1048576 /dev/urandom >/tmp/random; cat /tmp/random; sha256sum </tmp/random >&2; exit 7";
    let outcome = lab.boot("linux").exec(command).timeout(600).run()?;
    outcome.status(7)?;
    ensure!(outcome.output.len() == MEBIBYTE, outcome.failure(&format!("{} bytes arrived", outcome.output.len())));
    let found: String = Sha256::digest(&outcome.output).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = String::from_utf8_lossy(&outcome.error).into_owned();
    ensure!(expected.starts_with(&found), outcome.failure(&format!("checksum {found}, the guest says {expected}")));
    Ok(())
}
