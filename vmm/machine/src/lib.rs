//! The virtual machine without the hardware: device models, loaders, tables, emulation.
#![no_std]

extern crate alloc;

pub mod acpi;
pub mod backplane;
pub mod board;
pub mod bus;
pub mod byte_queue;
pub mod clock;
pub mod cpuid;
pub mod debug_port;
pub mod decode;
pub mod emulate;
pub mod event_name;
pub mod exec_port;
pub mod i8042;
pub mod interrupt;
pub mod ioapic;
pub mod kvmclock;
pub mod lapic;
pub mod loader;
pub mod memory;
pub mod msr;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod report;
pub mod rtc;
pub mod serial;
pub mod site;
pub mod statistics;
pub mod trail;
pub mod vcpu;
pub mod virtio;
pub mod walk;
