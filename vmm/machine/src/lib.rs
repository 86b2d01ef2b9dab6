//! The virtual machine without the hardware: device models, loaders, tables, emulation.
#![no_std]

pub mod board;
pub mod bus;
pub mod clock;
