//! The microhypervisor.
#![no_std]
#![no_main]
