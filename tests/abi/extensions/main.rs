//! The second suite: what this kernel adds to the interface.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod operations;

#[cfg(target_os = "none")]
lab::suite![
    abandoned,
    circles,
    destroyers,
    exhaustion,
    reclaim,
    shootdown,
    sysenter,
    traced,
    transfer_guest,
    transfer_leaks
];

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
