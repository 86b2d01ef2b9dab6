//! The virtual-machine monitor: one process per virtual machine.
//!
//! What a machine is and does lives in the crate `machine`; this program joins it to the kernel: spaces, guest memory
//! ([`memory`]), each vCPU with its event portals and their handler ([`monitor`]) and its alarm clock ([`seat`]), what
//! the vCPUs share ([`vm`]), the devices on the PCI bus and their services ([`devices`], [`disk`], [`nic`], [`random`],
//! [`console`]), console input ([`input`]), the rings to console and exec channel ([`output`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod ending;
#[cfg(target_os = "none")]
mod image;
#[cfg(target_os = "none")]
mod input;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod monitor;
#[cfg(target_os = "none")]
mod nic;
#[cfg(target_os = "none")]
mod output;
#[cfg(target_os = "none")]
mod passthrough;
#[cfg(target_os = "none")]
mod pause;
#[cfg(target_os = "none")]
mod pipe;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod seat;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod vm;

runtime::program!(start::run);
