//! Driver program for virtio network devices: joins one to a switch.
//!
//! Two threads that share nothing: one waits for frames from the network, the other for frames from the switch.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
