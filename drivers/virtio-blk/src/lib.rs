//! The logic of the driver for virtio disks (VirtIO 1.2, 5.2), apart from rings and threads.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod disk;
pub mod identity;
mod requests;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
