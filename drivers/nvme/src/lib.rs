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
