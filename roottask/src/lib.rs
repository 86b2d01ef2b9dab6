//! What the root task decides without touching hardware: memory map, allocation, archive, images, reports, restarts.
//!
//! The program itself is in `main.rs`; everything here is tested on the host.
#![no_std]

extern crate alloc;

#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod archive;
pub mod calendar;
pub mod dmar;
pub mod frames;
pub mod image;
pub mod memory_map;
pub mod observation;
pub mod pci;
pub mod report;
pub mod restart;
