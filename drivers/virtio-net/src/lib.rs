//! The driver's logic, apart from rings and threads: a virtio network device (VirtIO 1.2, 5.1) that receives into and
//! sends from buffers in the memory for DMA.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod buffers;
pub mod device;
pub mod receive;
pub mod send;

#[cfg(test)]
mod tests;
