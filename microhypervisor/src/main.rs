//! The microhypervisor: the only privileged program of the system.
//!
//! Rooms: `boot` brings the machine up and starts the root protection domain; `run` is the way in and out;
//! `hypercall`, `create`, `ctrl_pd` are what programs can ask for; `portal`, `semaphore`, `sched` move control between
//! execution contexts; `space` and `memory` hold what protection domains own; `guest`, `vcpu`, `vmx`, `svm` run virtual
//! machines; the rest drives the few devices that must be privileged.
#![no_std]
#![no_main]

mod boot;
mod console;
mod cpu;
mod create;
mod ctrl_pd;
mod descriptors;
mod destroy;
mod ec;
mod fast;
mod fpu;
mod guest;
mod hypercall;
mod interrupt;
mod ioapic;
mod iommu;
mod lapic;
mod memory;
mod object;
mod observation;
mod panic;
mod pd;
mod platform;
mod portal;
mod registers;
mod root;
mod rounds;
mod run;
mod sched;
mod semaphore;
mod smp;
mod space;
mod svm;
mod timer;
mod vcpu;
mod vmx;
