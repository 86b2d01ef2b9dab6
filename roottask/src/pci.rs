//! PCI functions: finding them, what they can do, where their registers are. PCI Express Base Specification, chapter 7;
//! PCI Firmware Specification 4.1 (MCFG).
//!
//! What a device says of itself is not believed: lists have an end, addresses and lengths are checked where they are used.

mod bar;
mod capability;
mod fault;
mod group;
mod listing;
mod obstacle;
mod reset;
#[cfg(test)]
pub(crate) mod tests;

use alloc::vec::Vec;
use plan::PciAddress;

pub use bar::{Bar, shared_pages};
pub use capability::{Capabilities, Express, Msi, MsiX, Port, write_msi};
pub use fault::Fault;
pub use group::groups;
pub use listing::{class_name, describe, heading, row};
pub use obstacle::{Obstacle, Situation, Use};
pub use reset::{Reset, quiet, reset};

/// Offsets in configuration space, of 32 bits each.
pub(crate) mod register {
    pub const ID: u16 = 0x00;
    pub const COMMAND: u16 = 0x04;
    pub const CLASS: u16 = 0x08;
    pub const HEADER: u16 = 0x0c;
    pub const BARS: u16 = 0x10;
    pub const BUSES: u16 = 0x18;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT: u16 = 0x3c;
}

/// Bits of the command register.
pub mod command {
    /// I/O BARs are decoded.
    pub const IO: u32 = 1 << 0;
    /// Memory BARs are decoded.
    pub const MEMORY: u32 = 1 << 1;
    /// The function may send requests: DMA and MSIs.
    pub const MASTER: u32 = 1 << 2;
    /// The function does not use its interrupt pin.
    pub const NO_PIN: u32 = 1 << 10;
}

/// Access to configuration space.
pub trait Config {
    /// The 32 bits at `offset`, a multiple of 4 below 4096; all ones where nothing is.
    fn read(&mut self, at: PciAddress, offset: u16) -> u32;
    /// Writes the 32 bits at `offset`.
    fn write(&mut self, at: PciAddress, offset: u16, value: u32);
}

/// Sets and clears bits of the command register. The upper half of the word, whose bits are cleared by ones, is left alone.
pub fn change_command(config: &mut impl Config, at: PciAddress, set: u32, clear: u32) {
    let value = config.read(at, register::COMMAND) & 0xffff;
    config.write(at, register::COMMAND, value & !clear | set);
}

/// What stands behind the common part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A device.
    Endpoint,
    /// A bridge to the buses from `secondary` to `subordinate`.
    Bridge {
        /// The bus behind it.
        secondary: u8,
        /// The last bus behind it.
        subordinate: u8,
    },
    /// Something else.
    Other(u8),
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor number.
    pub vendor: u16,
    /// Device number.
    pub device: u16,
    /// Class, subclass and interface, in bits 23:16, 15:8 and 7:0.
    pub class: u32,
    /// What it is.
    pub header: Header,
    /// Whether its device has several functions.
    pub multifunction: bool,
    /// Base address registers; the one behind a 64-bit one is none.
    pub bars: [Option<Bar>; 6],
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its interrupt pin: 1 to 4, 0 for none.
    pub pin: u8,
    /// The bridge that it is behind.
    pub above: Option<PciAddress>,
}

/// The class of host bridges.
const HOST_BRIDGE: u32 = 0x0600;

/// All functions on `bus` and behind its bridges. Bridges must have got their numbers by firmware.
pub fn enumerate(config: &mut impl Config, bus: u8) -> Vec<Function> {
    let mut functions = Vec::new();
    let mut seen = [false; 256];
    // Buses to look at, with the bridge above.
    let mut waiting = Vec::from([(bus, None)]);
    while let Some((bus, above)) = waiting.pop() {
        if core::mem::replace(&mut seen[bus as usize], true) {
            continue;
        }
        for device in 0..32 {
            for function in 0..8 {
                let at = PciAddress::new(bus, device, function);
                let found = examine(config, at, above);
                // Without function 0 there is none of this device.
                let last = function == 0 && !found.as_ref().is_some_and(|found| found.multifunction);
                if let Some(Header::Bridge { secondary, .. }) = found.as_ref().map(|found| found.header)
                    && secondary > bus
                {
                    waiting.push((secondary, Some(at)));
                }
                functions.extend(found);
                if last {
                    break;
                }
            }
        }
    }
    functions.sort_by_key(|function: &Function| function.address);
    functions
}

/// The function at `at`, if there is one.
fn examine(config: &mut impl Config, at: PciAddress, above: Option<PciAddress>) -> Option<Function> {
    let id = config.read(at, register::ID);
    let (vendor, device) = (id as u16, (id >> 16) as u16);
    if matches!(vendor, 0 | 0xffff) {
        return None;
    }
    let kind = config.read(at, register::HEADER) >> 16;
    let class = config.read(at, register::CLASS) >> 8;
    let header = match kind & 0x7f {
        0 => Header::Endpoint,
        1 => {
            let buses = config.read(at, register::BUSES);
            Header::Bridge { secondary: (buses >> 8) as u8, subordinate: (buses >> 16) as u8 }
        }
        other => Header::Other(other as u8),
    };
    // A host bridge's registers may be where all memory is seen from.
    let sized = header == Header::Endpoint && class >> 8 != HOST_BRIDGE;
    Some(Function {
        address: at,
        vendor,
        device,
        class,
        header,
        multifunction: kind & 0x80 != 0,
        bars: if sized { bar::read(config, at) } else { [None; 6] },
        capabilities: capability::read(config, at),
        pin: (config.read(at, register::INTERRUPT) >> 8) as u8,
        above,
    })
}

/// A range of buses whose configuration space is in memory (ECAM): 4 KiB for each function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Physical address of bus 0, whether or not it is in the range.
    pub base: u64,
    /// First bus.
    pub first: u8,
    /// Last bus.
    pub last: u8,
}

impl Ecam {
    /// The range of segment 0 that `mcfg` describes, if it does.
    pub fn find(mcfg: &[u8]) -> Option<Self> {
        let (entries, _) = mcfg.get(44..)?.as_chunks::<16>();
        entries.iter().find_map(|entry| {
            let [b0, b1, b2, b3, b4, b5, b6, b7, s0, s1, first, last, ..] = *entry;
            let base = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
            let usable = [s0, s1] == [0, 0] && first <= last && base != 0 && base.is_multiple_of(1 << 20);
            usable.then_some(Self { base, first, last })
        })
    }

    /// Physical address of a function's page; `None` if its bus is not in the range.
    pub fn page(&self, at: PciAddress) -> Option<u64> {
        let inside = (self.first..=self.last).contains(&at.bus());
        inside.then(|| self.base + (u64::from(at.requester()) << 12))
    }
}
