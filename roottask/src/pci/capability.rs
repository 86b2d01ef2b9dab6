//! Capabilities: PCI Express Base Specification 7.5.3, 7.7; PCI Local Bus Specification 3.0, 6.8; PCI Power Management
//! 3.2; Advanced Capabilities for Conventional PCI (AF).

use super::{Config, register};
use plan::PciAddress;

/// Most entries of a list that are looked at: more do not fit without repeating.
const ENTRIES: usize = 48;
/// The same for the extended list.
const EXTENDED_ENTRIES: usize = 960;

/// What a function can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Power management: offset, if going to D3hot and back resets the function.
    pub power_reset: Option<u16>,
    /// Message-signalled interrupts.
    pub msi: Option<Msi>,
    /// The same with a table.
    pub msix: Option<MsiX>,
    /// PCI Express.
    pub express: Option<Express>,
    /// Conventional PCI's function-level reset: offset.
    pub conventional_flr: Option<u16>,
    /// Which kinds of access control (ACS) are on; `None` without the capability.
    pub access_control: Option<u16>,
    /// Address translation services.
    pub ats: bool,
}

/// Message-signalled interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Offset of the capability.
    pub offset: u16,
    /// Whether addresses have 64 bits.
    pub wide: bool,
}

/// Writes the one message of a function that has no table, and turns it on.
pub fn write_msi(config: &mut impl Config, at: PciAddress, msi: Msi, address: u32, data: u16) {
    const ENABLE: u32 = 1 << 16;
    /// Bits 6:4 of the control word: how many messages are used, as a power of two.
    const SEVERAL: u32 = 7 << 20;
    config.write(at, msi.offset + 4, address);
    if msi.wide {
        config.write(at, msi.offset + 8, 0);
    }
    config.write(at, msi.offset + if msi.wide { 12 } else { 8 }, data.into());
    let control = config.read(at, msi.offset);
    config.write(at, msi.offset, control & !SEVERAL | ENABLE);
}

/// Message-signalled interrupts with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Offset of the capability.
    pub offset: u16,
    /// Entries of the table.
    pub entries: u16,
    /// Number of the BAR with the table.
    pub bar: u8,
    /// Offset of the table in it.
    pub table: u32,
}

impl MsiX {
    /// Bytes of an entry.
    pub const ENTRY: u64 = 16;
    /// Bit of the control word: the function uses the table.
    pub const ENABLE: u32 = 1 << 31;
    /// Bit of the control word: no entry is used.
    pub const MASK: u32 = 1 << 30;

    /// Bytes of the table.
    pub fn length(&self) -> u64 {
        u64::from(self.entries) * Self::ENTRY
    }
}

/// What kind of PCI Express function it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// A device.
    Endpoint,
    /// A device inside the root complex.
    Integrated,
    /// A port of the root complex, or one of a switch that leads down.
    Down,
    /// The port of a switch that leads up.
    Up,
    /// A bridge to or from conventional PCI, or something else.
    Other(u8),
}

/// PCI Express.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Offset of the capability.
    pub offset: u16,
    /// What it is.
    pub port: Port,
    /// Whether it has the function-level reset.
    pub flr: bool,
}

/// Reads the lists of capabilities of the function at `at`.
pub fn read(config: &mut impl Config, at: PciAddress) -> Capabilities {
    let mut found = Capabilities::default();
    const LIST: u32 = 1 << 20;
    if config.read(at, register::COMMAND) & LIST == 0 {
        return found;
    }
    let mut offset = config.read(at, register::CAPABILITIES) as u16 & 0xfc;
    for _ in 0..ENTRIES {
        if offset < 0x40 {
            break;
        }
        let head = config.read(at, offset);
        standard(config, at, offset, head, &mut found);
        offset = (head >> 8) as u16 & 0xfc;
    }
    if found.express.is_some() {
        extended(config, at, &mut found);
    }
    found
}

fn standard(config: &mut impl Config, at: PciAddress, offset: u16, head: u32, found: &mut Capabilities) {
    // Nothing stands behind the space; 0xfc is the last word.
    let mut word = |index: u16| match offset + 4 * index {
        inside @ ..0x100 => config.read(at, inside),
        _ => 0,
    };
    match head & 0xff {
        0x01 => {
            const NO_SOFT_RESET: u32 = 1 << 3;
            found.power_reset = (word(1) & NO_SOFT_RESET == 0).then_some(offset);
        }
        // It has up to 24 bytes.
        0x05 if offset <= 0xe8 => found.msi = Some(Msi { offset, wide: head & 1 << 23 != 0 }),
        0x10 => {
            let port = match head >> 20 & 0xf {
                0 | 1 => Port::Endpoint,
                4 | 6 => Port::Down,
                5 => Port::Up,
                9 => Port::Integrated,
                other => Port::Other(other as u8),
            };
            found.express = Some(Express { offset, port, flr: word(1) & 1 << 28 != 0 });
        }
        0x11 => {
            let place = word(1);
            let entries = (head >> 16 & 0x7ff) as u16 + 1;
            found.msix = Some(MsiX { offset, entries, bar: (place & 7) as u8, table: place & !7 });
        }
        0x13 => found.conventional_flr = (head & 1 << 25 != 0).then_some(offset),
        _ => {}
    }
}

fn extended(config: &mut impl Config, at: PciAddress, found: &mut Capabilities) {
    let mut offset = 0x100;
    for _ in 0..EXTENDED_ENTRIES {
        if offset < 0x100 {
            break;
        }
        let head = config.read(at, offset);
        if matches!(head, 0 | u32::MAX) {
            break;
        }
        match head & 0xffff {
            0x0d if offset < 0xffc => found.access_control = Some((config.read(at, offset + 4) >> 16) as u16),
            0x0f => found.ats = true,
            _ => {}
        }
        offset = (head >> 20) as u16 & 0xffc;
    }
}
