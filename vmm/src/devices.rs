//! The devices on the PCI bus of a machine, each behind a lock of its own, and the thread that brings them what their
//! services have.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use abi::scd::Scd;
use abi::{Selector, Status};
use machine::backplane::Backplane;
use machine::pci::bus::{Bus, Function, Slot};
use machine::pci::passthrough::Passthrough;
use machine::virtio::block::Block;
use machine::virtio::console::Console;
use machine::virtio::entropy::Entropy;
use machine::virtio::net::Net;
use machine::virtio::pci::VirtioPci;
use plan::VmConfig;
use runtime::manifest::RingEntry;
use runtime::sync::{Mutex, Semaphore};
use runtime::{log, manifest, thread};

use crate::console::{End, Line};
use crate::disk::Disk;
use crate::memory::HostMemory;
use crate::nic::Nic;
use crate::passthrough::{self, Real};
use crate::random::Random;
use crate::vm::{self, Machine};

/// One function and its lock.
struct Locked<F>(Mutex<F>);

impl<F: Function> Slot for Locked<F> {
    fn with(&self, access: &mut dyn FnMut(&mut dyn Function)) {
        access(&mut *self.0.lock());
    }
}

fn locked<F: Function + 'static>(function: F) -> Result<Box<dyn Slot>, String> {
    let lock = vm::mutex(function).map_err(|status| format!("the kernel refuses a semaphore: {status:?}"))?;
    Ok(Box::new(Locked(lock)))
}

/// Makes the devices that the configuration names. Waits for the services of disks to say what these are.
/// `guest`: the guest space. `line`: the other side of a virtio console.
pub fn bus(
    config: &VmConfig,
    memory: HostMemory,
    guest: Selector,
    backplane: &Arc<Backplane>,
    line: Option<&Arc<Line>>,
) -> Result<Bus, String> {
    let mut slots = Vec::new();
    for disk in &config.disks {
        let (disk, what) = Disk::open(disk)?;
        let name = String::from(disk.name());
        slots.push(locked(VirtioPci::new(Block::new(disk, what, &name), memory, backplane.clone()))?);
    }
    for nic in &config.nics {
        let device = Net::new(Nic::open(nic)?, nic.mac);
        slots.push(locked(VirtioPci::new(device, memory, backplane.clone()))?);
    }
    if config.entropy {
        match Random::find() {
            Some(random) => {
                slots.push(locked(VirtioPci::new(Entropy::new(random), memory, backplane.clone()))?);
            }
            None => log!("the CPU makes no random numbers: the machine has no entropy device"),
        }
    }
    if let Some(line) = line {
        slots.push(locked(VirtioPci::new(Console::new(End(line.clone())), memory, backplane.clone()))?);
    }
    for (number, function) in config.functions.iter().enumerate() {
        slots.push(locked(Passthrough::new(Real::open(number, function, guest)?, backplane.clone()))?);
    }
    Ok(Bus::new(slots))
}

/// The semaphore of the rings to the devices' services: they share one.
fn work() -> Option<Semaphore> {
    let ours = |ring: &&RingEntry| {
        let name = ring.name.as_str();
        ring.role == runtime::manifest::Role::Consumer as u32 && (name.starts_with("disk.") || name.starts_with("nic."))
    };
    manifest().rings.iter().find(ours).map(|ring| Semaphore::from_selector(ring.sel_data))
}

/// Starts the threads for which there is something to do.
pub fn serve(machine: &'static Machine, scd: Scd) -> Result<(), Status> {
    let functions = &machine.config.functions;
    let first = machine.bus.slots().count() - functions.len();
    for (slot, function) in (first..).zip(functions) {
        passthrough::listen(machine, slot, function, scd)?;
    }
    if let Some(line) = &machine.line {
        thread::spawn(scd, move || line.pass(|| machine.serve_console()))?;
    }
    if let Some(work) = work() {
        thread::spawn(scd, move || serve_all(machine, work))?;
    }
    Ok(())
}

fn serve_all(machine: &Machine, work: Semaphore) {
    loop {
        let mut idle = true;
        for slot in machine.bus.slots() {
            let mut wakes = machine::backplane::VcpuSet::EMPTY;
            slot.with(&mut |function| {
                function.serve();
                wakes = function.take_wakes();
                idle &= function.idle();
            });
            machine.look(wakes);
        }
        if idle {
            // An error would mean that there is no such semaphore.
            let _ = work.wait(0);
        }
    }
}
