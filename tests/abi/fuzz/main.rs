//! A hostile program: random and half-sensible hypercalls, and whether the kernel and all others bear them.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod cage;
#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod foreign;
#[cfg(target_os = "none")]
mod hostile;
#[cfg(target_os = "none")]
#[path = "../extensions/operations.rs"]
mod operations;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod recipes;

#[cfg(target_os = "none")]
lab::suite![episodes];

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
