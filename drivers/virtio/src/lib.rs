//! What drivers of virtio devices share (VirtIO 1.2): the transport over PCI, how queues get at memory. The queues are those
//! of the crate `virtio-drivers`.
#![no_std]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod capability;
pub mod dma;
#[cfg(not(target_os = "none"))]
pub mod model;
#[cfg(target_os = "none")]
pub mod program;
pub mod transport;

#[cfg(test)]
mod tests;
