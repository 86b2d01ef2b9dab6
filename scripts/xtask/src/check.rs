//! `cargo xtask check`: everything about the sources that needs no running system.

mod arithmetic;
mod dependencies;
mod lines;
mod panics;
mod size;

use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::programs::{self, Programs, TARGET};
use crate::{setup, workspace};

/// Most lines of source that may run privileged: without VT-d, and with it.
const PRIVILEGED_LINES: (usize, usize) = (9500, 10_000);
/// Most bytes of code and constants in the kernel.
const KERNEL_BYTES: u64 = 96 * 1024;

type Check = fn() -> Result<()>;

/// Runs every check; fails with the names of those that failed.
pub fn run() -> Result<()> {
    setup::for_building()?;
    let checks: [(&str, Check); 9] = [
        ("formatting", formatting),
        ("who depends on whom", dependencies::check),
        ("privileged source", privileged_source),
        ("lints of what runs on the host", || lints(&["--all-targets"])),
        ("lints of what runs on the kernel", lints_freestanding),
        ("arithmetic on what programs hand in", arithmetic::check),
        ("documentation", documentation),
        ("kernel size", kernel_size),
        ("paths to a panic in the kernel", panics),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        eprintln!("checking {name}");
        if let Err(error) = check() {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "these checks failed: {}", failed.join(", "));
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).args(arguments);
    cargo
}

fn formatting() -> Result<()> {
    programs::run(
        &mut cargo(&["fmt", "--all", "--check"]),
        "the files above are not formatted; `cargo fmt --all` does it",
    )
}

fn lints(arguments: &[&str]) -> Result<()> {
    let mut clippy = cargo(&["clippy", "--quiet"]);
    programs::run(clippy.args(arguments).args(["--", "-D", "warnings"]), "clippy")
}

fn freestanding() -> Vec<&'static str> {
    let mut arguments = vec!["--release", "--target", TARGET];
    for package in programs::PACKAGES {
        arguments.extend(["--package", package]);
    }
    arguments
}

fn lints_freestanding() -> Result<()> {
    lints(&freestanding())
}

fn documentation() -> Result<()> {
    let options = ["doc", "--quiet", "--no-deps", "--document-private-items"];
    let mut host = cargo(&options);
    let packages = ["xtask", "instruction-count", "window-trace", "kvm-peer"];
    host.args(packages.iter().flat_map(|package| ["--package", package]));
    programs::run(host.env("RUSTDOCFLAGS", "-D warnings"), "rustdoc")?;
    // Everything else as it is on the kernel: the runtime has only a part of its modules on the host.
    let mut target = cargo(&options);
    target.args(freestanding());
    for library in ["abi", "kernel_core", "machine", "plan", "runtime"] {
        target.args(["--package", library]);
    }
    programs::run(target.env("RUSTDOCFLAGS", "-D warnings"), "rustdoc")
}

/// Lines of source that may run privileged: of VT-d, and of all else.
pub fn privileged_lines() -> Result<(usize, usize)> {
    lines::privileged(workspace::root())
}

fn privileged_source() -> Result<()> {
    let (remapping, rest) = privileged_lines()?;
    let (most, most_of_all) = PRIVILEGED_LINES;
    println!("privileged source: {rest} lines of at most {most}, and with VT-d {} of {most_of_all}", rest + remapping);
    ensure!(rest <= most, "{} lines too many", rest - most);
    ensure!(rest + remapping <= most_of_all, "{} lines too many with VT-d", rest + remapping - most_of_all);
    Ok(())
}

/// Bytes of code and constants in the kernel.
pub fn kernel_text() -> Result<u64> {
    let kernel = Programs::build(["microhypervisor"])?.file("microhypervisor");
    size::constant(&workspace::read(&kernel)?)
}

fn kernel_size() -> Result<()> {
    let bytes = kernel_text()?;
    println!("kernel text and constants: {bytes} bytes of at most {KERNEL_BYTES}");
    if bytes > KERNEL_BYTES {
        bail!("{} bytes too many", bytes - KERNEL_BYTES);
    }
    Ok(())
}

fn panics() -> Result<()> {
    let kernel = Programs::build(["microhypervisor"])?.file("microhypervisor");
    let found = panics::paths(&kernel)?;
    ensure!(found.is_empty(), "these may panic:\n{}", found.join("\n"));
    Ok(())
}
