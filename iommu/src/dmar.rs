//! The firmware's DMAR table (section 8): the units, the memory that devices need whatever happens, the I/O APICs.

use kernel_core::boot::{List, PhysicalMemory, Window};

use crate::Problem;

/// Most units that are served.
pub const UNITS_MAX: usize = 32;

const LENGTH: Problem = "has a structure or a device scope of impossible length";
const PLACE: Problem = "has a unit or reserved memory where none can be";

/// A remapping unit (8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitAt {
    /// Physical address of its registers.
    pub address: u64,
    /// Segment of its devices.
    pub segment: u16,
}

/// Reserved memory of one device (8.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Source id of the device, in segment 0.
    pub source: u16,
    /// Physical address of the first page.
    pub start: u64,
    /// Number of pages.
    pub pages: u64,
}

/// Tells the secondary bus of the bridge with a source id.
pub type Bridge<'a> = &'a dyn Fn(u16) -> u8;

/// What the table says.
pub struct Dmar {
    /// The platform supports interrupt remapping.
    pub interrupts: bool,
    /// The units.
    pub units: List<UnitAt, UNITS_MAX>,
    /// Reserved memory, device by device.
    pub reserved: List<Reserved, 32>,
    ioapics: List<(u8, u16), 32>,
}

impl Dmar {
    /// Reads the table. Structures that the kernel does not need (ATSR, RHSA, ANDD, SATC and what may come) are skipped.
    ///
    /// # Errors
    /// The table is refused as a whole if anything in it has an impossible length or place: nobody knows then which
    /// devices the units govern.
    pub fn read(table: &Window<impl PhysicalMemory>, bridge: Bridge) -> Result<Self, Problem> {
        let interrupts = table.number(37, 1).ok_or(LENGTH)? & 1 != 0;
        let mut dmar = Self { interrupts, units: List::empty(), reserved: List::empty(), ioapics: List::empty() };
        let mut offset = 48;
        while offset < table.len {
            let length = table.number(offset + 2, 2).filter(|length| *length >= 4).ok_or(LENGTH)?;
            let part = table.part(offset, length).ok_or(LENGTH)?;
            if let Some(kind @ 0..=1) = part.number(0, 2) {
                dmar.add(&part, kind == 1, bridge)?;
            }
            offset += part.len;
        }
        if dmar.units.as_slice().is_empty() { Err("names no unit") } else { Ok(dmar) }
    }

    /// Source id of the interrupts of the I/O APIC with number `id` in the MADT.
    pub fn ioapic(&self, id: u8) -> Option<u16> {
        self.ioapics.as_slice().iter().find(|ioapic| ioapic.0 == id).map(|ioapic| ioapic.1)
    }

    /// Adds a unit (8.3), or `reserved` memory (8.4), and its device scopes (8.3.1).
    fn add(&mut self, part: &Window<impl PhysicalMemory>, reserved: bool, bridge: Bridge) -> Result<(), Problem> {
        let [segment, start] = part.numbers(&[(6, 2), (8, 8)]).ok_or(LENGTH)?;
        let segment = segment as u16;
        let last = if reserved { part.number(16, 8).ok_or(LENGTH)? } else { start | 0xfff };
        if start == 0 || start & 0xfff != 0 || last <= start || last & 0xfff != 0xfff || last >> 52 != 0 {
            return Err(PLACE);
        }
        let pages = (last - start + 1) >> 12;
        let mut room = reserved || self.units.push(UnitAt { address: start, segment });
        let mut offset = if reserved { 24 } else { 16 };
        while offset < part.len {
            let scope = part.number(offset + 1, 1).and_then(|length| part.part(offset, length));
            let scope = scope.filter(|scope| scope.len >= 8 && scope.len.is_multiple_of(2)).ok_or(LENGTH)?;
            let byte = |at| scope.number(at, 1).unwrap_or(0) as u8;
            let mut bus = byte(5);
            let mut source = 0;
            for step in (6..scope.len).step_by(2) {
                bus = if step == 6 { bus } else { bridge(source) };
                source = u16::from(bus) << 8 | u16::from(byte(step) & 31) << 3 | u16::from(byte(step + 1) & 7);
            }
            room &= match (byte(0), reserved) {
                // An endpoint or a bridge.
                (1 | 2, true) if segment == 0 => self.reserved.push(Reserved { source, start, pages }),
                // An I/O APIC.
                (3, false) => self.ioapics.push((byte(4), source)),
                _ => true,
            };
            offset += scope.len;
        }
        room.then_some(()).ok_or("has more structures than supported")
    }
}
