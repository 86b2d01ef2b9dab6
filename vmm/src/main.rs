//! The virtual-machine monitor: one process per virtual machine.
#![no_std]
#![no_main]
