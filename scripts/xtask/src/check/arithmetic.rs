//! Arithmetic that can overflow: none on what a program hands in.
//!
//! An optimized kernel does not stop at an overflow, it goes on with a wrong number. Hence privileged source that
//! handles a program's numbers has no arithmetic but what says what happens at the end of the range (`checked_add`,
//! `saturating_sub`, ...). Clippy's `arithmetic_side_effects` finds the rest.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::programs::TARGET;
use crate::workspace;

const LINT: &str = "arithmetic_side_effects";

const AT_BOOT: &str = "before the first program runs: constants, and the machine's numbers";
const TESTED: &str = "levels, orders, places in tables; tested against models with overflow checks";
const REGISTERS: &str = "numbers of fields, registers and tags, matched against ranges before";

/// Where plain arithmetic stands, and why no program can make it overflow.
const EXCEPT: [(&str, &str); 26] = [
    ("iommu/src/dmar.rs", "tested with random tables, with overflow checks"),
    ("iommu/src/unit.rs", "places in a table, fields of registers"),
    ("microhypervisor/src/boot.rs", AT_BOOT),
    ("microhypervisor/src/console.rs", "places in the kernel's own log"),
    ("microhypervisor/src/cpu.rs", "addresses of the blocks of CPUs"),
    ("microhypervisor/src/descriptors.rs", AT_BOOT),
    ("microhypervisor/src/iommu.rs", AT_BOOT),
    ("microhypervisor/src/ioapic.rs", "pins, of which there are few"),
    ("microhypervisor/src/lapic.rs", AT_BOOT),
    ("microhypervisor/src/memory.rs", "addresses and slots in the kernel's own image and pool"),
    ("microhypervisor/src/object.rs", "addresses in the kernel's own pool"),
    ("microhypervisor/src/observation.rs", "sizes fixed at boot, and counts of 64 bits"),
    ("microhypervisor/src/root.rs", AT_BOOT),
    ("microhypervisor/src/smp.rs", AT_BOOT),
    ("microhypervisor/src/space.rs", "MSRs and ports, matched against ranges before"),
    ("microhypervisor/src/space/kernel.rs", AT_BOOT),
    ("microhypervisor/src/svm/", REGISTERS),
    ("microhypervisor/src/vcpu", REGISTERS),
    ("microhypervisor/src/vmx/", REGISTERS),
    ("microhypervisor/core/src/calibration.rs", AT_BOOT),
    ("microhypervisor/core/src/boot", "tested with random tables, with overflow checks"),
    ("microhypervisor/core/src/frames.rs", TESTED),
    ("microhypervisor/core/src/paging.rs", TESTED),
    ("microhypervisor/core/src/shootdown.rs", TESTED),
    ("microhypervisor/core/src/slots.rs", "indices below 2^24"),
    ("microhypervisor/core/src/timeout.rs", TESTED),
];

/// Fails with the places that are not excepted.
pub fn check() -> Result<()> {
    let warn = format!("clippy::{LINT}");
    let mut clippy = Command::new(env!("CARGO"));
    clippy.current_dir(workspace::root()).args(["clippy", "--quiet", "--release", "--target", TARGET]);
    for package in ["microhypervisor", "kernel_core", "iommu", "abi"] {
        clippy.args(["--package", package]);
    }
    clippy.args(["--message-format", "json", "--", "--warn", &warn]);
    let output = clippy.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "clippy failed: {}", String::from_utf8_lossy(&output.stderr));
    let (places, excepted) = places(&String::from_utf8_lossy(&output.stdout));
    ensure!(excepted > 0, "clippy's output is not what it was: no place found, not even an excepted one");
    if !places.is_empty() {
        bail!(
            "this can overflow; say what shall happen then (checked_, saturating_, wrapping_):\n{}",
            places.join("\n")
        );
    }
    Ok(())
}

/// The places in clippy's messages, but for those in excepted files, and the number of these.
fn places(messages: &str) -> (Vec<String>, usize) {
    let mut places = Vec::new();
    let mut excepted = 0;
    for message in messages.lines().filter(|line| line.contains(LINT)) {
        let message: serde_json::Value = serde_json::from_str(message).unwrap_or_default();
        let span = &message["message"]["spans"][0];
        let (file, line) = (span["file_name"].as_str().unwrap_or("?"), &span["line_start"]);
        if EXCEPT.iter().any(|(start, _)| file.starts_with(start)) {
            excepted += 1;
        } else {
            places.push(format!("{file}:{line}: {}", span["text"][0]["text"].as_str().unwrap_or_default().trim()));
        }
    }
    (places, excepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_excepted_is_told() {
        let message = |file: &str| {
            format!(
                r#"{{"reason":"compiler-message","message":{{"code":{{"code":"clippy::{LINT}"}},"spans":[{{"file_name":"{file}","line_start":7,"text":[{{"text":"  let end = start + pages;"}}]}}]}}}}"#
            )
        };
        let other = r#"{"reason":"compiler-artifact"}"#;
        let boot = message("microhypervisor/src/boot.rs");
        let call = message("microhypervisor/src/ctrl_pd.rs");
        assert_eq!(places(&format!("{boot}\n{other}\n")), (vec![], 1));
        let found = vec!["microhypervisor/src/ctrl_pd.rs:7: let end = start + pages;".to_string()];
        assert_eq!(places(&format!("{boot}\n{call}\n{other}\n")), (found, 1));
    }
}
