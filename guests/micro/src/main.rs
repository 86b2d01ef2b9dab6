//! Micro guests that test and measure single mechanisms: see `README.md` for the words of the command line.
//!
//! The guest runs unchanged under this system, under KVM, and bare.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod basic;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod endings;
#[cfg(target_os = "none")]
mod fpu;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod measure;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod verdict;

/// The guest exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
