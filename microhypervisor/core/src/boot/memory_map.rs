//! Memory maps: what of the physical memory is RAM, says the boot loader; what UEFI firmware keeps, says its own.
//!
//! Firmware gets its maps wrong. Entries may overlap, wrap around and come in any order; what one entry calls RAM and
//! another something else is no RAM.

use super::{Malformed, PhysicalMemory, Window};

/// Most entries of a map; real ones have a few dozen.
const ENTRIES_MAX: u64 = 1024;
/// Bytes of base, length and type in an entry.
const ENTRY: u64 = 20;
/// Type of entries that are RAM.
const RAM: u64 = 1;

/// Where a boot loader's memory map is. All loaders have base, length and type in its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    start: u64,
    count: u64,
    /// Bytes from an entry to the next one.
    stride: u64,
}

/// An entry of a map: start, end, whether it is RAM.
struct Entry(u64, u64, bool);

impl MemoryMap {
    /// The map with `count` entries at `start`, if all of them can be read and they are not absurdly many.
    pub(super) fn new(memory: &impl PhysicalMemory, start: u64, count: u64, stride: u64) -> Result<Self, Malformed> {
        let map = Self { start, count, stride };
        if count > ENTRIES_MAX || stride < ENTRY {
            return Err(Malformed(&"the memory map at # has absurdly small or many entries", start));
        }
        if map.entries(memory).count() as u64 == count { Ok(map) } else { Err(Malformed::unreadable(start)) }
    }

    #[inline(never)]
    fn entry(&self, memory: &impl PhysicalMemory, index: u64) -> Option<Entry> {
        let entry = Window::new(memory, self.start.checked_add(index.checked_mul(self.stride)?)?, ENTRY)?;
        let [start, len, kind] = entry.numbers(&[(0, 8), (8, 8), (16, 4)])?;
        Some(Entry(start, start.saturating_add(len), kind == RAM))
    }

    fn entries(&self, memory: &impl PhysicalMemory) -> impl Iterator<Item = Entry> {
        (0..self.count).map_while(move |index| self.entry(memory, index))
    }

    /// Bytes of RAM, if there is a map. RAM that is listed twice counts twice.
    pub fn ram(&self, memory: &impl PhysicalMemory) -> Option<u64> {
        let ram = self.entries(memory).filter(|Entry(.., is_ram)| *is_ram);
        (self.count != 0).then(|| ram.fold(0, |sum, Entry(start, end, _)| end.abs_diff(start).saturating_add(sum)))
    }

    /// The first address from `start` to before `end` that is no RAM. Without a map everything passes for RAM.
    pub fn hole(&self, memory: &impl PhysicalMemory, start: u64, end: u64) -> Option<u64> {
        let entries = |is_ram| self.entries(memory).filter(move |entry| entry.2 == is_ram);
        let taken = entries(false).filter(|entry| entry.0.max(start) < entry.1.min(end));
        let taken = taken.map(|entry| entry.0.max(start)).min();
        // Each round gets behind one entry more.
        let mut ram = start;
        while let Some(further) = entries(true).filter(|entry| entry.0 <= ram).map(|entry| entry.1).max() {
            if further <= ram || ram >= end {
                break;
            }
            ram = further;
        }
        let uncovered = (self.count != 0 && ram < end).then_some(ram);
        [taken, uncovered].into_iter().flatten().min()
    }
}

/// Where the memory map of UEFI firmware is (UEFI Specification 2.10, 7.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UefiMap {
    /// Physical address.
    pub start: u64,
    /// Size in bytes.
    pub size: u32,
    /// Size of a descriptor in bytes.
    pub descriptor_size: u16,
    /// Version of the descriptors.
    pub descriptor_version: u16,
}

/// Types of the memory that the firmware's runtime services keep: code and data.
const RUNTIME: [u64; 2] = [5, 6];
/// Bytes of a descriptor that are defined.
const DESCRIPTOR: u64 = 40;

impl UefiMap {
    /// Physical ranges that the firmware's runtime services keep. Descriptors that are absurd are no ranges.
    pub fn runtime<M: PhysicalMemory>(&self, memory: &M) -> impl Iterator<Item = (u64, u64)> {
        let Self { start, size, descriptor_size, .. } = *self;
        let stride = u64::from(descriptor_size).max(DESCRIPTOR);
        (0..u64::from(size) / stride).filter_map(move |index| {
            let descriptor = Window::new(memory, start.checked_add(index * stride)?, DESCRIPTOR)?;
            let [kind, start, pages] = descriptor.numbers(&[(0, 4), (8, 8), (24, 8)])?;
            let end = start.checked_add(pages.checked_mul(4096)?)?;
            (RUNTIME.contains(&kind) && start < end).then_some((start, end))
        })
    }
}
