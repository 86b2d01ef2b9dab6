//! The micro guest: a kernel of its own that exercises one mechanism of the virtual machine at a time.
//!
//! Words on its command line choose what runs; the table in [`tests`] lists them. It checks itself, writes what it saw
//! to COM1, and switches the machine off.
#![no_std]
#![no_main]
