//! The tests that need no emulator: `cargo test` of everything that builds for the host.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Count;
use crate::workspace;

/// Runs them, shows what they print, and counts.
pub fn run(filter: &str) -> Result<Count> {
    let mut cargo = Command::new(env!("CARGO"));
    // The workspace's default members are exactly the crates that build for the host.
    cargo.current_dir(workspace::root()).args(["test", "--no-fail-fast"]);
    if !filter.is_empty() && filter != "host" {
        cargo.args(["--", filter]);
    }
    let mut count = counted(cargo)?;
    if filter.is_empty() || filter == "host" {
        let interleaved = counted(interleaved())?;
        count.passed += interleaved.passed;
        count.failed += interleaved.failed;
    }
    Ok(count)
}

/// The tests of what several CPUs or programs touch, in every interleaving of their threads: built with the atomics of the
/// model checker loom, elsewhere than what runs.
fn interleaved() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).env("RUSTFLAGS", "--cfg loom");
    cargo.args(["test", "--package", "kernel_core", "--package", "runtime", "--lib", "interleaved", "--target-dir"]);
    cargo.arg(workspace::target().join("loom"));
    cargo
}

fn counted(mut cargo: Command) -> Result<Count> {
    let mut process = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = BufReader::new(process.stdout.take().expect("piped"));
    let mut count = Count::default();
    for line in output.lines() {
        let line = line?;
        if let Some(more) = summary(&line) {
            count.passed += more.passed;
            count.failed += more.failed;
        }
        println!("{line}");
    }
    // A crate that does not build has no summary.
    if !process.wait()?.success() && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// The counts in the line that ends each test program.
fn summary(line: &str) -> Option<Count> {
    let counts = line.strip_prefix("test result: ")?;
    let number = |what: &str| {
        let field = counts.split([';', '.']).find_map(|field| field.trim().strip_suffix(what))?;
        field.trim().parse().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted() {
        let line = "test result: ok. 11 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some(Count { passed: 11, failed: 0 }));
        let line = "test result: FAILED. 14 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(line), Some(Count { passed: 14, failed: 1 }));
        assert_eq!(summary("test result_is_counted ... ok"), None);
    }
}
