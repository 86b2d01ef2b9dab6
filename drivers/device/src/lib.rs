//! What driver programs share: the device's registers in its BARs, memory for DMA, interrupts.
#![no_std]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod dma;
#[cfg(target_os = "none")]
pub mod program;
pub mod registers;
