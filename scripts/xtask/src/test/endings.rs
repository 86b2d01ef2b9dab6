//! Guests that come to a bad end: the monitor's report says why and where, the system goes on, and the run has failed.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::boot::Outcome;
use super::{Lab, Test};
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("endings::a triple fault", triple_fault),
    Test::new("endings::a jump into nothing", jump),
    Test::new("endings::a bad end is the run's exit status", status),
];

/// The monitor's report, which is the same for every crash: the state, and the last exits.
const REPORT: [&str; 4] =
    ["[broken] rip 0008:", "[broken] rax ", "[broken] cr0 ", "[broken] last exits, oldest first, of "];

fn triple_fault(lab: &Lab) -> Result<()> {
    // The guest ends so by an undefined instruction without an interrupt table.
    bad_end(lab, "triple", "triple fault")?.says(": 0f 0b  ud2").map(|_| ())
}

fn jump(lab: &Lab) -> Result<()> {
    let outcome = bad_end(lab, "jump", "jump into nothing: no RAM at guest-physical 0x7ff00000")?;
    outcome.says("[broken] no RAM at rip 0x7ff00000").map(|_| ())
}

/// A system whose guest `broken` ends badly, while the other is at work.
fn system(lab: &Lab, word: &str) -> Result<String> {
    lab.write_system(&format!(
        "[vm.broken]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"{word}\"
console = true

[vm.healthy]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"count=500 hello\"
exec    = true
"
    ))
}

fn bad_end(lab: &Lab, word: &str, why: &str) -> Result<Outcome> {
    let outcome = lab.boot(&system(lab, word)?).run()?;
    outcome.status(0)?;
    for part in REPORT {
        outcome.says(part)?;
    }
    outcome.says(&format!("micro: {word}: "))?;
    outcome.says_before(&format!("vm broken: crashed: {why}"), "vm healthy: powered off")?;
    Ok(outcome)
}

/// The same by the front door.
fn status(lab: &Lab) -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .current_dir(workspace::root())
        .args(["run", &system(lab, "triple")?, "--on", lab.emulator.name(), "--timeout", "240"])
        .stdin(Stdio::null())
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "the status is {:?}: {error}", output.status);
    ensure!(error.starts_with("error: vm broken: crashed: triple fault"), "standard error begins: {error}");
    Ok(())
}
