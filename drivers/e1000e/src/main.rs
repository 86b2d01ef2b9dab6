//! Driver program for network controllers of Intel's 82574 family: joins one to a switch.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
