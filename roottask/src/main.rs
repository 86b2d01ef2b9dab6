//! First program: owns everything at start, carries out the system plan.
//!
//! In order: [`start`] finds memory and gives the runtime what it needs; [`system`] reads archive and plan and has the
//! [`workshop`] start the programs, each built by [`child`]; [`service`] answers their faults and messages; what a
//! virtual machine used comes back by [`reclaim`], and [`keeper`] starts it anew if the plan says so; when all virtual
//! machines have ended, [`power`] switches the machine off.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod authority;
#[cfg(target_os = "none")]
mod child;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod drivers;
#[cfg(target_os = "none")]
mod faults;
#[cfg(target_os = "none")]
mod keeper;
#[cfg(target_os = "none")]
mod kernel_log;
#[cfg(target_os = "none")]
mod links;
#[cfg(target_os = "none")]
mod observe;
#[cfg(target_os = "none")]
mod passthrough;
#[cfg(target_os = "none")]
mod platform;
#[cfg(target_os = "none")]
mod power;
#[cfg(target_os = "none")]
mod reclaim;
#[cfg(target_os = "none")]
mod rings;
#[cfg(target_os = "none")]
mod scrub;
#[cfg(target_os = "none")]
mod service;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod system;
#[cfg(target_os = "none")]
mod watchdog;
#[cfg(target_os = "none")]
mod window;
#[cfg(target_os = "none")]
mod workshop;

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
