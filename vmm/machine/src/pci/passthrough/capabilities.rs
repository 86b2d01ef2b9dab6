//! The configuration space that a guest sees of a function which it has to itself.
//!
//! Identity, class and memory registers are the function's; it has no ROM, no I/O ports and no interrupt pin. Capabilities
//! that the guest sees are made here: PCI Express as an endpoint inside the root complex, with function-level reset; MSI-X;
//! power management, whose states change nothing; and those of virtio devices, which only say where things are. All others are
//! hidden. PCI Express Base Specification 3.0, 7.8; PCI Power Management 1.2, 3.2; PCI Local Bus Specification 3.0, 6.8.2.

use core::ops::Range;

use super::Hardware;
use crate::bus::Width;
use crate::pci::bus::BARS;
use crate::pci::config::{Config, Identity};
use crate::pci::msix::{self, Msix};

/// Capability ids.
const POWER: u8 = 0x01;
const VENDOR_SPECIFIC: u8 = 0x09;
const EXPRESS: u8 = 0x10;
/// Most capabilities that are looked at: more do not fit without repeating.
const ENTRIES: usize = 48;
/// Vendor of virtio devices.
const VIRTIO: u16 = 0x1af4;
/// Smallest memory behind a register.
const PAGE: u64 = 4096;
/// Bytes of an entry of the table of messages.
const ENTRY: u64 = 16;

/// Where a structure is in the function's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The register.
    pub bar: usize,
    /// Offsets behind it.
    pub bytes: Range<u64>,
}

impl Place {
    /// Whether it is there.
    pub fn has(&self, bar: usize, offset: u64) -> bool {
        self.bar == bar && self.bytes.contains(&offset)
    }
}

/// The space, and what it leads to.
pub struct Space {
    /// What the guest sees.
    pub config: Config,
    /// The table of messages: all of the function's.
    pub table: Option<Place>,
    /// The pending bits.
    pub pending: Option<Place>,
    express: Option<usize>,
    msix: Option<usize>,
}

impl Space {
    /// That of `hardware`, whose messages are to be `msix`.
    pub fn new(hardware: &impl Hardware, msix: &mut Msix) -> Self {
        let word = |offset: u16| hardware.config(offset);
        let config = Config::new(Identity {
            vendor: word(0x00) as u16,
            device: (word(0x00) >> 16) as u16,
            class: word(0x08),
            subsystem_vendor: word(0x2c) as u16,
            subsystem: (word(0x2c) >> 16) as u16,
        });
        let mut space = Self { config, table: None, pending: None, express: None, msix: None };
        space.add_memory(hardware);
        const LIST: u32 = 1 << 20;
        let mut offset = if word(0x04) & LIST != 0 { word(0x34) as u16 & 0xfc } else { 0 };
        for _ in 0..ENTRIES {
            if offset < 0x40 {
                break;
            }
            space.add_capability(hardware, offset, msix);
            offset = (word(offset) >> 8) as u16 & 0xfc;
        }
        space
    }

    fn add_memory(&mut self, hardware: &impl Hardware) {
        for bar in (0..BARS).filter(|bar| hardware.length(*bar) != 0) {
            let size = hardware.length(bar).max(PAGE);
            let register = hardware.config(0x10 + 4 * bar as u16);
            match (register >> 1 & 3, u32::try_from(size)) {
                (2, _) if bar + 1 < BARS => self.config.add_wide_memory(bar, size, register & 8 != 0),
                (_, Ok(size)) => self.config.add_memory(bar, size),
                _ => {}
            }
        }
    }

    /// Adds what the guest sees of the function's capability at `offset`.
    fn add_capability(&mut self, hardware: &impl Hardware, offset: u16, messages: &mut Msix) {
        // Nothing stands behind the space.
        let word = |index: u16| match offset + 4 * index {
            inside @ ..0x100 => hardware.config(inside),
            _ => 0,
        };
        let head = word(0);
        match head as u8 {
            POWER => {
                // Version 3, D0 and D3hot; back in D0 it is as it was.
                const NO_SOFT_RESET: u8 = 1 << 3;
                self.config.add_capability(POWER, &[3, 0, NO_SOFT_RESET, 0, 0, 0], &[0, 0, 3]);
            }
            EXPRESS if self.express.is_none() => self.add_express(word(1)),
            msix::CAPABILITY if self.msix.is_none() && hardware.interrupts() != 0 => {
                let place = |word: u32, length: u64| {
                    let start = u64::from(word & !7);
                    let bar = (word & 7) as usize;
                    let inside = bar < BARS && start + length <= hardware.length(bar);
                    inside.then_some(Place { bar, bytes: start..start + length })
                };
                let entries = u64::from(head >> 16 & 0x7ff) + 1;
                let pending = place(word(2), entries.div_ceil(64) * 8);
                if let (Some(table), Some(pending)) = (place(word(1), entries * ENTRY), pending) {
                    let (mut body, writable) = messages.capability(table.bar as u8, table.bytes.start as u32, 0);
                    body[6..].copy_from_slice(&word(2).to_le_bytes());
                    self.msix = Some(self.config.add_capability(msix::CAPABILITY, &body, &writable));
                    (self.table, self.pending) = (Some(table), Some(pending));
                }
            }
            VENDOR_SPECIFIC if hardware.config(0) as u16 == VIRTIO => {
                let length = usize::from((head >> 16) as u8).clamp(4, 32);
                let mut bytes = [0; 32];
                for (index, chunk) in bytes.chunks_mut(4).enumerate() {
                    chunk.copy_from_slice(&word(index as u16).to_le_bytes());
                }
                self.config.add_capability(VENDOR_SPECIFIC, &bytes[2..length], &[]);
            }
            _ => {}
        }
    }

    fn add_express(&mut self, capabilities: u32) {
        /// Version 2, an endpoint inside the root complex: it has no link.
        const KIND: u8 = 9 << 4 | 2;
        /// The payload's size is the function's; errors are told by role; function-level reset.
        const PAYLOAD: u32 = 7;
        const ROLES: u32 = 1 << 15;
        const RESET: u32 = 1 << 28;
        let mut body = [0; 0x3a];
        body[0] = KIND;
        body[2..6].copy_from_slice(&(capabilities & PAYLOAD | ROLES | RESET).to_le_bytes());
        // Device control says what the function may do on its link: noted, and left as firmware had it.
        self.express = Some(self.config.add_capability(EXPRESS, &body, &[0, 0, 0, 0, 0, 0, 0xff, 0x7f]));
    }

    /// The structures in the function's memory that are not the guest's to reach.
    pub fn structures(&self) -> impl Iterator<Item = Place> {
        [self.table.clone(), self.pending.clone()].into_iter().flatten()
    }

    /// MSI-X's message control.
    pub fn message_control(&self) -> Option<u16> {
        self.msix.map(|msix| (self.config.dword(msix) >> 16) as u16)
    }

    /// Whether a write begins a function-level reset: bit 15 of device control.
    pub fn starts_reset(&self, register: u16, width: Width, value: u32) -> bool {
        let Some(express) = self.express else { return false };
        let byte = (express as u16 + 9).checked_sub(register).filter(|byte| usize::from(*byte) < width.bytes().min(4));
        byte.is_some_and(|byte| value >> (8 * byte) & 0x80 != 0)
    }
}
