//! The NVMe driver's logic (NVM Express base specification 1.4), apart from real registers and memory.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod controller;
pub mod disk;
pub mod queue;
pub mod spec;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// The controller's registers, and memory that both it and the driver reach.
pub trait Hardware {
    /// Reads the 32-bit register at this offset.
    fn read(&mut self, register: u64) -> u32;
    /// Writes it, after all stores before.
    fn write(&mut self, register: u64, value: u32);
    /// Loads 8 bytes of the DMA memory; the controller may write them at any time.
    fn load(&self, offset: u64) -> u64;
    /// Stores 8 bytes there.
    fn store(&mut self, offset: u64, value: u64);
    /// Address of the DMA memory, as the controller sees it; a multiple of a page.
    fn address(&self) -> u64;
    /// Length of the DMA memory in bytes.
    fn length(&self) -> u64;
    /// Lets a millisecond pass.
    fn pause(&mut self);
}
