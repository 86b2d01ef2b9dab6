//! The kernel's algorithms without hardware: what the kernel decides, apart from what it touches.
//!
//! Nothing here reads a register, holds a raw pointer or allocates; where an algorithm must meet memory it does so
//! through a small trait, so that the host's tests drive the very code that runs privileged. Kernel objects are named
//! by plain `u32` ids and linked through cells inside themselves. No function panics or loops for ever, whatever user
//! code, a guest or the firmware hands in; a queue's links and a table's frames are the kernel's own and trusted.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod account;
pub mod boot;
pub mod calibration;
pub mod frames;
pub mod mailbox;
#[cfg(all(test, loom))]
#[path = "../tests/modelled/mod.rs"]
mod modelled;
pub mod paging;
pub mod ready;
pub mod reason;
pub mod shootdown;
pub mod slots;
mod sync;
pub mod timeout;
pub mod virt;
