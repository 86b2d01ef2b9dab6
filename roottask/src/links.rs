//! What programs share: two rings between a client and who serves it, and for disks a window with the data.

use crate::child::{Builder, Failure};
use crate::rings::SharedRing;
use crate::workshop::Workshop;
use abi::Selector;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use plan::{SystemPlan, UPLINK, WINDOW, client_name};
use roottask::frames::PhysRange;
use runtime::manifest::Role;

/// Bytes in a ring of requests, and in one of completions.
const DISK_RING: usize = 16 << 10;
/// Bytes in a ring of frames.
const FRAME_RING: usize = 256 << 10;

/// A client and who serves it.
#[derive(Clone, Copy)]
struct Link {
    to_server: SharedRing,
    to_client: SharedRing,
    window: Option<PhysRange>,
}

/// One end of a link, in a program.
#[derive(Clone)]
pub struct End {
    name: String,
    link: Link,
    client: bool,
}

impl End {
    /// Gives it to a program. With `device`, which says where the program's device finds memory, that is told.
    pub fn give(
        &self,
        builder: &mut Builder<'_>,
        device: Option<&mut dyn FnMut(PhysRange) -> Result<u64, Failure>>,
    ) -> Result<(), Failure> {
        let [to, from] = match self.link.window {
            Some(_) => ["requests", "completions"],
            None => ["out", "in"],
        };
        let (to_role, from_role) =
            if self.client { (Role::Producer, Role::Consumer) } else { (Role::Consumer, Role::Producer) };
        builder.ring(&self.link.to_server, &format!("{}.{to}", self.name), to_role, true)?;
        builder.ring(&self.link.to_client, &format!("{}.{from}", self.name), from_role, true)?;
        let Some(window) = self.link.window else { return Ok(()) };
        let address = match device {
            Some(device) => device(window)?,
            None => 0,
        };
        builder.window(&format!("{}.data", self.name), window, address)
    }

    /// Makes the rings usable for the next program at this end.
    pub fn recover(&self) {
        let (to, from) = if self.client { (Role::Producer, Role::Consumer) } else { (Role::Consumer, Role::Producer) };
        self.link.to_server.recover(to, false);
        self.link.to_client.recover(from, false);
    }
}

/// The ends of all links, by program: in the order of the plan's drivers, switches and virtual machines.
pub struct Links {
    /// Of each driver.
    pub drivers: Vec<Vec<End>>,
    /// Of each switch.
    pub switches: Vec<Vec<End>>,
    /// Of each virtual machine.
    pub vms: Vec<Vec<End>>,
}

impl Links {
    /// Makes all rings and windows of `plan`.
    pub fn make(plan: &SystemPlan, workshop: &mut Workshop) -> Self {
        // Each program waits on one semaphore for all of its rings.
        let mut semaphores = |count: usize| -> Vec<Selector> { (0..count).map(|_| workshop.semaphore()).collect() };
        let drivers = semaphores(plan.drivers.len());
        let switches = semaphores(plan.switches.len());
        let used = |vm: &plan::VmPlan| !vm.disks.is_empty() || !vm.switches.is_empty();
        let vms: Vec<_> = plan.vms.iter().map(|vm| if used(vm) { workshop.semaphore() } else { 0 }).collect();
        let empty = |count: usize| (0..count).map(|_| Vec::new()).collect();
        let mut links = Self { drivers: empty(drivers.len()), switches: empty(switches.len()), vms: empty(vms.len()) };
        for (switch, number) in plan.switches.iter().zip(0..) {
            let uplink = |uplink: &String| plan.drivers.iter().position(|driver| driver.name == *uplink);
            if let Some(driver) = switch.uplink.as_ref().and_then(uplink) {
                let link = workshop.link(FRAME_RING, drivers[driver], switches[number], 0);
                links.drivers[driver].push(End { name: UPLINK.into(), link, client: true });
                links.switches[number].push(End { name: UPLINK.into(), link, client: false });
            }
        }
        for (number, vm) in plan.vms.iter().enumerate() {
            let name = &vm.config.name;
            let mut join = |served: &mut Vec<End>, kind: &str, device: &str, link| {
                links.vms[number].push(End { name: format!("{kind}.{device}"), link, client: true });
                served.push(End { name: client_name(name, device), link, client: false });
            };
            for (disk, source) in vm.config.disks.iter().zip(&vm.disks) {
                if let Some(driver) = plan.drivers.iter().position(|driver| driver.name == source.driver) {
                    let link = workshop.link(DISK_RING, vms[number], drivers[driver], WINDOW);
                    join(&mut links.drivers[driver], "disk", &disk.name, link);
                }
            }
            for (nic, name) in vm.config.nics.iter().zip(&vm.switches) {
                if let Some(switch) = plan.switches.iter().position(|switch| switch.name == *name) {
                    let link = workshop.link(FRAME_RING, vms[number], switches[switch], 0);
                    join(&mut links.switches[switch], "nic", &nic.name, link);
                }
            }
        }
        links
    }
}

impl Workshop {
    /// A link between the program that waits on `client` and the one that waits on `server`.
    fn link(&mut self, capacity: usize, client: Selector, server: Selector, window: u64) -> Link {
        Link {
            to_server: self.ring(capacity, server, client),
            to_client: self.ring(capacity, client, server),
            window: (window != 0).then(|| self.shared_memory(window)),
        }
    }
}
