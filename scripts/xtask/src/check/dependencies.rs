//! Who may depend on whom, inside the workspace: the architecture's rule as a table.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace;

/// A crate and those of ours that it may depend on. A crate that is missing here may not exist.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("kernel_core", &["abi"]),
    ("iommu", &["abi", "kernel_core"]),
    ("microhypervisor", &["abi", "kernel_core", "iommu"]),
    ("runtime", &["abi", "plan"]),
    ("plan", &[]),
    ("roottask", &["abi", "runtime", "plan"]),
    ("serial", &["abi", "runtime"]),
    ("block", &["abi", "device", "runtime", "plan"]),
    ("nvme", &["block", "runtime"]),
    ("ahci", &["block", "runtime"]),
    ("switch", &["abi", "runtime", "plan"]),
    ("device", &["runtime"]),
    ("virtio", &["device"]),
    ("nic", &["abi", "runtime"]),
    ("virtio-blk", &["block", "device", "runtime", "virtio"]),
    ("virtio-net", &["runtime", "device", "nic", "virtio"]),
    ("e1000e", &["runtime", "device", "nic"]),
    ("machine", &["abi"]),
    ("vmm", &["abi", "runtime", "plan", "machine"]),
    ("agent", &[]),
    ("micro", &[]),
    ("conformance", &[]),
    ("bench", &["conformance"]),
    ("instruction-count", &[]),
    ("window-trace", &[]),
    ("kvm-peer", &["abi", "machine"]),
    ("xtask", &["abi", "plan"]),
];

/// The part of `cargo metadata` that matters.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Set for a crate of this workspace.
    path: Option<String>,
}

/// Compares the workspace with the table.
pub fn check() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace::root())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let broken = broken(&metadata);
    if !broken.is_empty() {
        bail!("{}", broken.join("; "));
    }
    Ok(())
}

fn broken(metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some((_, allowed)) = MAY_DEPEND.iter().find(|(crate_name, _)| *crate_name == name) else {
            broken.push(format!("{name} is not in the table of scripts/xtask/src/check/dependencies.rs"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            if !allowed.contains(&dependency.name.as_str()) {
                broken.push(format!("{name} may not depend on {}", dependency.name));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_to_the_table() {
        check().expect("keeps to it");
    }

    #[test]
    fn a_wrong_dependency_is_named() {
        let ours = |name: &str| Dependency { name: name.into(), path: Some(String::new()) };
        let package = |name: &str, dependencies| Package { name: name.into(), dependencies };
        let metadata = Metadata {
            packages: vec![
                package("vmm", vec![ours("microhypervisor"), Dependency { name: "x86".into(), path: None }]),
                package("libc", vec![]),
            ],
        };
        assert_eq!(
            broken(&metadata),
            [
                "vmm may not depend on microhypervisor",
                "libc is not in the table of scripts/xtask/src/check/dependencies.rs"
            ]
        );
    }
}
