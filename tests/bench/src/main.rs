//! The bench root task: the kernel's operations, one by one, each between marks that a counter sees.
//!
//! It begins as the root task of any kernel with this interface and uses nothing else than that interface. Each operation
//! is made [`window::ROUNDS`] times, so that the first time, when caches and tables are cold, can be told from the others.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod window;

#[cfg(target_os = "none")]
lab::suite![names, ipc, semaphore, create, memory, recall, interrupt, exit];

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
