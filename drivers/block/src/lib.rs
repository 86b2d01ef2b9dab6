//! What all disk drivers share: the driver's side of [`runtime::block`].
//!
//! A driver implements [`Device`]; a [`Server`] takes the requests of several clients from their rings, checks them,
//! cuts them into pieces that the device can take, keeps the device busy with pieces of all clients in turn, and
//! acknowledges what is done. All of this is plain logic, tested on the host. Only the target has `program`, which adds
//! rings, semaphores and interrupts, and `controller`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(target_os = "none")]
pub mod controller;
pub mod device;
pub mod hardware;
#[cfg(not(target_os = "none"))]
pub mod model;
#[cfg(target_os = "none")]
pub mod program;
pub mod region;
pub mod server;
mod session;

pub use device::{Action, Command, Device, Failure, Geometry, Outcome};
pub use hardware::{Hardware, Memory};
pub use region::Region;
pub use server::Server;
pub use session::Port;
