//! The bundle: the root task's ELF file, padded to whole pages, and behind it an archive with the plan, the programs
//! and the guests' files, each starting on a page so that it can be mapped.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::programs::{self, Programs};
use crate::workspace;

/// Everything a machine boots.
pub struct Built {
    /// The system's name.
    pub name: String,
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// The bundle; the system `none` has none.
    pub bundle: Option<PathBuf>,
    /// RAM that the machine needs, in MiB.
    pub memory: u32,
    /// CPUs that the machine has unless the user says otherwise.
    pub cpus: u32,
}

/// Builds the kernel, the programs and the bundle of a system.
pub fn build(system: &str, kernel: Option<&Path>, _exec: Option<&str>) -> Result<Built> {
    let kernel = match kernel {
        Some(file) => file.canonicalize().with_context(|| format!("cannot read {}", file.display()))?,
        None => Programs::build(&["microhypervisor"])?.file("microhypervisor"),
    };
    if system == "none" {
        return Ok(Built { name: system.into(), kernel, bundle: None, memory: 256, cpus: 1 });
    }
    let programs = Programs::build(&programs::ALL)?;
    let mut archive = Archive::default();
    for program in ["serial", "vmm"] {
        archive.page_aligned_file(&format!("programs/{program}"), &programs.stripped(program)?);
    }
    let mut content = programs.stripped("roottask")?;
    content.resize(content.len().next_multiple_of(4096), 0);
    content.extend(archive.finish());
    let bundle = workspace::folder("bundle")?.join(format!("{system}.bundle"));
    workspace::write(&bundle, &content)?;
    Ok(Built { name: system.into(), kernel, bundle: Some(bundle), memory: 1024, cpus: 1 })
}
