//! Base address registers: PCI Express Base Specification 7.5.1.2.1.

use super::{Config, Function, change_command, command, register};
use crate::frames::PhysRange;
use plan::PciAddress;

/// Where a function's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// In memory.
    Memory {
        /// Physical addresses.
        range: PhysRange,
        /// Whether reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// In I/O ports.
    Io {
        /// First port.
        base: u16,
        /// Number of ports.
        count: u16,
    },
}

impl Bar {
    /// The physical addresses, if it is in memory.
    pub fn memory(&self) -> Option<PhysRange> {
        match self {
            Self::Memory { range, .. } => Some(*range),
            Self::Io { .. } => None,
        }
    }
}

/// Finds out address and size of each. Meanwhile the function decodes neither memory nor ports.
pub fn read(config: &mut impl Config, at: PciAddress) -> [Option<Bar>; 6] {
    let before = config.read(at, register::COMMAND) & 0xffff;
    change_command(config, at, 0, command::IO | command::MEMORY);
    let mut bars = [None; 6];
    let mut number = 0;
    while number < 6 {
        let (bar, registers) = read_one(config, at, number);
        bars[number as usize] = bar;
        number += registers;
    }
    config.write(at, register::COMMAND, before);
    bars
}

/// BAR `number`, and how many registers it takes.
fn read_one(config: &mut impl Config, at: PciAddress, number: u16) -> (Option<Bar>, u16) {
    let offset = register::BARS + 4 * number;
    let (low, low_mask) = probe(config, at, offset);
    if low & 1 != 0 {
        return (ports(low, low_mask), 1);
    }
    let (high, high_mask, registers) = match low >> 1 & 3 {
        0 => (0, u32::MAX, 1),
        2 if number < 5 => {
            let (high, mask) = probe(config, at, offset + 4);
            (high, mask, 2)
        }
        _ => return (None, 1),
    };
    let address = u64::from(high) << 32 | u64::from(low & !0xf);
    // The bits of an address that can be set; a register that is not there has none.
    let settable = u64::from(high_mask) << 32 | u64::from(low_mask & !0xf);
    let present = low_mask & !0xf != 0 || registers == 2 && high_mask != 0;
    let size = (!settable).wrapping_add(1);
    let usable = present && address != 0 && size.is_power_of_two() && address.is_multiple_of(size);
    let end = address.checked_add(size).filter(|_| usable);
    let bar = end.map(|end| Bar::Memory { range: PhysRange::new(address, end), prefetchable: low & 8 != 0 });
    (bar, registers)
}

/// The ports of a BAR; bits 31:16 of its register may be missing.
fn ports(value: u32, mask: u32) -> Option<Bar> {
    let (base, settable) = (value & 0xfffc, mask & 0xfffc);
    let count = (!settable & 0xffff) + 1;
    let usable = base != 0 && settable != 0 && count.is_power_of_two() && base + count <= 0x1_0000;
    usable.then_some(Bar::Io { base: base as u16, count: count as u16 })
}

/// What a register holds, and which of its bits can be set.
fn probe(config: &mut impl Config, at: PciAddress, offset: u16) -> (u32, u32) {
    let value = config.read(at, offset);
    config.write(at, offset, u32::MAX);
    let mask = config.read(at, offset);
    config.write(at, offset, value);
    (value, mask)
}

/// The first of `functions` beside `whose` that has registers in the same pages as `range`.
pub fn shared_pages(functions: &[Function], whose: PciAddress, range: PhysRange) -> Option<PciAddress> {
    let pages = range.pages_around();
    let touches = |bar: &Bar| bar.memory().is_some_and(|other| other.start < pages.end && pages.start < other.end);
    let others = functions.iter().filter(|function| function.address != whose);
    others.into_iter().find(|other| other.bars.iter().flatten().any(touches)).map(|other| other.address)
}
