//! The third suite: what devices can do, and what not. It needs QEMU's `edu` device, and passes with and without an IOMMU:
//! without one each attack must work, or its test shows nothing.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod device;
#[cfg(target_os = "none")]
#[path = "../extensions/operations.rs"]
#[allow(dead_code)]
mod operations;

#[cfg(target_os = "none")]
lab::suite![dma, message];

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
