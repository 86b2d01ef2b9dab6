//! The switch's logic, apart from rings and threads: where a frame goes, and the turns of the ports.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod forward;
pub mod service;
pub mod table;
