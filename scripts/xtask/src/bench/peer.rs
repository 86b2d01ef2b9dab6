//! The peer: Linux from Debian's kernel package, with its own KVM modules, on the same emulator; on it a small monitor of
//! ours (`tests/bench/kvm`) that runs the same guest with the same models of devices.

use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::emulator::bochs::CPU_FOR_LINUX;
use crate::emulator::{Boot, Emulator};
use crate::guest::Recipe;
use crate::programs::{self, Programs};
use crate::source::Source;
use crate::system::{self, System};
use crate::workspace;

/// What it is called in the table.
pub const NAME: &str = "Linux KVM";
/// RAM of its machine in MiB; with half of that its kernel makes no large pages.
pub const MEMORY: u32 = 1024;
/// What the lines of its monitor begin with: kernel, command line, parameters of KVM, mitigations.
pub const PREFIX: &str = "peer: ";
/// What it says when it cannot go on.
pub const FAILED: &str = "peer: failed: ";

/// The recipe with its kernel and modules.
const RECIPE: &str = "debian-cloud";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Its command line: its best configuration.
const LINE: &str = "console=ttyS0 nokaslr mitigations=off transparent_hugepage=always";

/// The CPU on which both are measured, if the emulator's usual one will not do: Linux dies on Bochs' Ice Lake
/// (docs/emulators.md).
pub fn cpu(on: Emulator) -> Option<&'static str> {
    (on == Emulator::Bochs).then_some(CPU_FOR_LINUX)
}

/// Makes what its machine boots: the guest is that of a system's first virtual machine.
pub fn boot(system: &str) -> Result<Boot> {
    let files = Recipe::read(RECIPE)?.with_modules()?;
    let (kernel, modules) = files.split_first().context("no kernel")?;
    let system = System::parse(&Source::read(&system::find(system)?)?)?;
    let words = &system.plan.vms.first().context("the system has no virtual machine")?.config.cmdline;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.folder(folder);
    }
    // Its first process has a console before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    for module in modules {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        archive.file(&format!("modules/{name}"), 0o644, &workspace::read(module)?);
    }
    archive.file("init", 0o755, &monitor()?);
    archive.file("guest", 0o644, &Programs::build(["micro"])?.stripped("micro")?);
    archive.file("words", 0o644, words.as_bytes());
    let initrd = workspace::folder("bundle")?.join("kvm-peer.cpio");
    workspace::write(&initrd, &archive.finish())?;
    Ok(Boot { kernel: kernel.clone(), module: Some(initrd), linux: Some(LINE.into()) })
}

/// Builds the monitor: one file that needs nothing of the Linux that it runs on.
fn monitor() -> Result<Vec<u8>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    cargo.args(["build", "--release", "--quiet", "--target", TARGET, "--package", "kvm-peer"]);
    programs::run(&mut cargo, "building the monitor for KVM")?;
    workspace::read(&workspace::target().join(TARGET).join("release/kvm-peer"))
}
