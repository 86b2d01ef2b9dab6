//! The driver's logic, apart from rings and threads: a network controller of Intel's 82574 family. Section numbers are
//! those of the "Intel 82574 GbE Controller Family Datasheet", revision 3.4.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod receive;
pub mod send;
mod spec;
pub mod start;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
