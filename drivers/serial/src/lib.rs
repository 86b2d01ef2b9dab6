//! The serial program's logic, apart from ports and rings: the UART's registers, and several sources on one terminal.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod multiplexer;
pub mod uart;
