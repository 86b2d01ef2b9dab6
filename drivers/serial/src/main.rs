//! Serial-console program.
#![no_std]
#![no_main]
