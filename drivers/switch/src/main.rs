//! Ethernet switch between virtual machines and network devices.
//!
//! Each port is two rings of frames (`runtime::net`). One thread serves them all and waits on one semaphore. It trusts
//! no port: what a program writes into its rings costs the frames of its own port.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
