//! Serial-console program.
//!
//! It owns one UART. In mode `console` it shows the logs of all programs and the consoles of all virtual machines,
//! and gives the keys to the console in the foreground; Ctrl-^ switches. In mode `channel` it passes the bytes of one
//! virtual machine's exec channel, both ways, as they are.
//!
//! One thread does everything and waits on one semaphore, which rings and a small interrupt thread up. Without
//! working interrupts it looks at the UART from time to time.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
