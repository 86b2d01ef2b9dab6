//! The freestanding programs: the kernel and everything that runs on it or inside its guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The target all of them are built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// Every package that is built for [`TARGET`].
pub const ALL: [&str; 6] = ["microhypervisor", "roottask", "serial", "vmm", "agent", "micro"];

/// Where the built programs lie.
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds the named packages, optimized.
    pub fn build<P: AsRef<str>>(packages: impl IntoIterator<Item = P>) -> Result<Self> {
        let folder = workspace::target().join(TARGET).join("release");
        let mut packages = packages.into_iter().peekable();
        if packages.peek().is_none() {
            return Ok(Self { folder });
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(workspace::root()).args(["build", "--release", "--quiet", "--target", TARGET]);
        for package in packages {
            cargo.args(["--package", package.as_ref()]);
        }
        run(&mut cargo, "building the freestanding programs")?;
        Ok(Self { folder })
    }

    /// The ELF file of a program, debug information included.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program as it goes into a bundle: with its symbols, which reports need, and without debug information.
    pub fn stripped(&self, name: &str) -> Result<Vec<u8>> {
        let stripped = workspace::folder("bundle")?.join(format!("{name}.{}", std::process::id()));
        strip(&self.file(name), &stripped)?;
        let content = workspace::read(&stripped);
        let _ = std::fs::remove_file(&stripped);
        content
    }
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
