//! The AHCI driver's logic (Serial ATA Advanced Host Controller Interface 1.3.1; ATA/ATAPI Command Set - 3), apart from
//! real registers and memory.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod controller;
pub mod disk;
pub mod identify;
pub mod spec;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
