//! Driver program for network controllers of Intel's 82574 family: joins one to a switch.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod program;

#[cfg(target_os = "none")]
runtime::main!(main);

#[cfg(target_os = "none")]
fn main() {
    program::run();
}

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
