//! The kernel's algorithms without hardware.
#![no_std]
