//! Runs a command inside a Linux guest and sends its output and status through the exec port.
//!
//! `agent FILE` runs `/bin/sh FILE`; what it writes to standard output and standard error leaves byte for byte as
//! frames by `rep outsb` to port 0x0e90, then its exit status, 128 + number if a signal ended it. `agent mark N` writes
//! N to port 0x0e98: the monitor notes a milestone. Without the monitor's ports the agent prints instead.
//!
//! A frame is a type (u8), a length (u32, little-endian) and that many bytes. Types: 0 ready (protocol version, u32),
//! 1 standard output, 2 standard error, 3 exit status (i32). The program is static and needs no C library.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod channel;
#[cfg(target_os = "none")]
mod linux;
#[cfg(target_os = "none")]
mod run;

/// The agent exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
