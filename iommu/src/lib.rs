//! DMA and interrupt remapping: Intel Virtualization Technology for Directed I/O, architecture specification 4.1
//! (sections are those of that specification).
//!
//! Nothing here touches hardware: [`dmar`] reads the firmware's table, [`entry`] has the formats of what units read in
//! memory, [`unit`] drives a unit through the trait [`Hardware`]. Tables of DMA spaces are made by
//! [`kernel_core::paging`].
#![no_std]

#[cfg(test)]
extern crate std;

pub mod dmar;
pub mod entry;
pub mod unit;

pub use unit::{Abilities, Hardware, Unit};

/// Why something is not used, in words.
pub type Problem = &'static str;

#[cfg(test)]
mod tests;
