//! Why a function cannot be given away: to a driver, or to a virtual machine.

use super::{Bar, Function, Header, Port, Reset, shared_pages};
use crate::dmar::Dmar;
use crate::frames::PhysRange;
use alloc::string::String;
use core::fmt;
use plan::PciAddress;

/// All that decides.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// All functions of the machine.
    pub functions: &'a [Function],
    /// The group of each.
    pub groups: &'a [usize],
    /// Who has each, as `driver disk0`.
    pub owners: &'a [Option<String>],
    /// The IOMMUs; `None`: DMA is not remapped.
    pub dmar: Option<&'a Dmar>,
}

/// What a function is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// For a driver, which is trusted with its device where there is no IOMMU.
    Driver,
    /// For a virtual machine, whose programs are not trusted at all.
    PassThrough,
}

/// What stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is no device.
    Bridge,
    /// It has an owner already.
    Owner(String),
    /// It has registers in the same page as this function.
    SharedPage(PciAddress),
    /// DMA is not remapped.
    NoIommu,
    /// No IOMMU that is in use governs it.
    Ungoverned,
    /// The firmware reserved memory for it (RMRR).
    Reserved(PhysRange),
    /// Its requests go in the name of this bridge.
    Behind(PciAddress),
    /// This function of its group has another owner.
    Group(PciAddress, String),
    /// It cannot be reset, so what one owner leaves in it another one finds.
    NoReset,
}

impl Situation<'_> {
    /// Why function `number` cannot be given to `who`, as `driver disk0` or `vm linux`.
    pub fn obstacle(&self, purpose: Use, number: usize, who: &str) -> Option<Obstacle> {
        let guest = purpose == Use::PassThrough;
        let fixed = self.functions.get(number).and_then(Reset::of).is_none();
        let remapping = || match self.dmar {
            Some(dmar) => self.of_remapping(number, who, dmar),
            None => guest.then_some(Obstacle::NoIommu),
        };
        let reset = || (guest && fixed).then_some(Obstacle::NoReset);
        self.of_itself(number, who).or_else(remapping).or_else(reset)
    }

    fn of_itself(&self, number: usize, who: &str) -> Option<Obstacle> {
        let function = self.functions.get(number)?;
        if function.header != Header::Endpoint || function.class >> 16 == BRIDGES {
            return Some(Obstacle::Bridge);
        }
        if let Some(owner) = self.owner(number).filter(|owner| *owner != who) {
            return Some(Obstacle::Owner(owner.into()));
        }
        let mut bars = function.bars.iter().flatten().filter_map(Bar::memory);
        bars.find_map(|bar| shared_pages(self.functions, function.address, bar)).map(Obstacle::SharedPage)
    }

    fn of_remapping(&self, number: usize, who: &str, dmar: &Dmar) -> Option<Obstacle> {
        let function = self.functions.get(number)?;
        if dmar.unit_of(self.functions, function).is_none() {
            return Some(Obstacle::Ungoverned);
        }
        if let Some(memory) = dmar.reserved_for(self.functions, function) {
            return Some(Obstacle::Reserved(memory));
        }
        if let Some(bridge) = conventional_bridge(self.functions, function) {
            return Some(Obstacle::Behind(bridge));
        }
        let group = self.groups.get(number);
        (0..self.functions.len()).filter(|other| self.groups.get(*other) == group).find_map(|other| {
            let owner = self.owner(other).filter(|owner| *owner != who)?;
            Some(Obstacle::Group(self.functions[other].address, owner.into()))
        })
    }

    fn owner(&self, number: usize) -> Option<&str> {
        self.owners.get(number)?.as_deref()
    }
}

/// The base class of bridges.
const BRIDGES: u32 = 0x06;

/// The bridge of conventional PCI nearest to the root that `function` is behind.
fn conventional_bridge(functions: &[Function], function: &Function) -> Option<PciAddress> {
    let mut found = None;
    let mut at = function.above;
    // No path is longer than there are buses.
    for _ in 0..256 {
        let Some(bridge) = functions.iter().find(|other| Some(other.address) == at) else { break };
        let port = bridge.capabilities.express.map(|express| express.port);
        if !matches!(port, Some(Port::Down | Port::Up)) {
            found = Some(bridge.address);
        }
        at = bridge.above;
    }
    found
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => write!(f, "it is a bridge, not a device"),
            Self::Owner(owner) => write!(f, "it is that of the {owner}"),
            Self::SharedPage(other) => write!(f, "it has registers in the same page as {other}"),
            Self::NoIommu => write!(f, "there is no IOMMU in use (VT-d is off in the firmware's set-up?)"),
            Self::Ungoverned => write!(f, "no IOMMU in use governs it"),
            Self::Reserved(memory) => write!(
                f,
                "the firmware reserved memory for it at {:#x} to {:#x} (RMRR): turn what needs it off in the firmware's set-up",
                memory.start,
                memory.end - 1
            ),
            Self::Behind(bridge) => write!(f, "the conventional PCI bridge {bridge} sends its requests as its own"),
            Self::Group(other, owner) => {
                write!(f, "it shares its group with {other} of the {owner}: no IOMMU keeps the two apart")
            }
            Self::NoReset => write!(f, "it cannot be reset between two owners"),
        }
    }
}

#[cfg(test)]
mod tests;
