//! What all disk drivers share: the driver's side of [`runtime::block`].
//!
//! A driver implements [`Device`]; a [`Server`] takes the requests of several clients from their rings, checks them,
//! cuts them into pieces that the device can take, keeps the device busy with pieces of all clients in turn, and
//! acknowledges what is done. All of it is plain logic, tested on the host; programs for the target add
//! rings, semaphores and the interrupt.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod region;
pub mod server;
mod session;

pub use device::{Action, Command, Device, Geometry, Outcome};
pub use region::Region;
pub use server::Server;
pub use session::Port;
