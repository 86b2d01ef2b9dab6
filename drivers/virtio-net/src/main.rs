//! Driver program for virtio network devices: joins one to a switch.
//!
//! Two threads that share nothing: one waits for frames from the network, the other for frames from the switch.
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
