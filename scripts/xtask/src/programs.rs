//! The freestanding programs: the kernel and everything that runs on it or inside its guests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The target all of them are built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// Every package that is built for [`TARGET`].
pub const PACKAGES: &[&str] = &[
    "microhypervisor",
    "roottask",
    "serial",
    "nvme",
    "ahci",
    "switch",
    "virtio-blk",
    "virtio-net",
    "e1000e",
    "vmm",
    "agent",
    "micro",
    "conformance",
    "bench",
];
/// Programs for tests that are examples, and how cargo builds them.
const EXAMPLES: [(&str, [&str; 6]); 2] = [
    ("faulty", ["--package", "runtime", "--features", "freestanding", "--example", "faulty"]),
    ("hostile", ["--package", "runtime", "--features", "freestanding", "--example", "hostile"]),
];

/// Where the built programs lie.
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds everything that a test may boot.
    pub fn all() -> Result<Self> {
        Self::build(PACKAGES.iter().copied().chain(EXAMPLES.map(|(name, _)| name)))
    }

    /// Builds the named programs, optimized.
    pub fn build<P: AsRef<str>>(programs: impl IntoIterator<Item = P>) -> Result<Self> {
        let folder = workspace::target().join(TARGET).join("release");
        let mut packages = Vec::new();
        for program in programs {
            match EXAMPLES.iter().find(|(name, _)| *name == program.as_ref()) {
                Some((_, arguments)) => cargo_build(arguments)?,
                None => packages.extend(["--package".to_string(), program.as_ref().to_string()]),
            }
        }
        if !packages.is_empty() {
            cargo_build(&packages)?;
        }
        Ok(Self { folder })
    }

    /// The ELF file of a program, debug information included.
    pub fn file(&self, name: &str) -> PathBuf {
        let example = EXAMPLES.iter().any(|(example, _)| *example == name);
        if example { self.folder.join("examples").join(name) } else { self.folder.join(name) }
    }

    /// A program as it goes into a bundle: with its symbols, which reports need, and without debug information.
    pub fn stripped(&self, name: &str) -> Result<Vec<u8>> {
        // Tests run side by side, in this process and in others.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let stripped = workspace::folder("bundle")?.join(format!("{name}.{}.{number}", std::process::id()));
        strip(&self.file(name), &stripped)?;
        let content = workspace::read(&stripped);
        let _ = std::fs::remove_file(&stripped);
        content
    }
}

fn cargo_build<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).args(["build", "--release", "--quiet", "--target", TARGET]).args(arguments);
    run(&mut cargo, "building the freestanding programs")
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from), "stripping debug information")
}

/// Runs a command whose messages the user should see; `doing` starts the error's line.
pub fn run(command: &mut Command, doing: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Standard output belongs to what the user asked for.
    let status =
        command.stdout(std::io::stderr()).status().with_context(|| format!("{doing}: cannot start `{program}`"))?;
    if !status.success() {
        bail!("{doing}: `{program}` failed ({status}); its messages stand above");
    }
    Ok(())
}
