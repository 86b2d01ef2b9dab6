//! Multiboot2 information (Multiboot2 Specification 2.0, 3.6).

use super::memory_map::{MemoryMap, UefiMap};
use super::{BootInformation, Malformed, PhysicalMemory, Window, module};

/// EAX at entry.
pub const MAGIC: u32 = 0x36d7_6289;

const END: u64 = 0;
const MODULE: u64 = 3;
const MEMORY_MAP: u64 = 6;
const ACPI_OLD: u64 = 14;
const ACPI_NEW: u64 = 15;
const UEFI_MAP: u64 = 17;

/// Most bytes of information; boot loaders give a few thousand.
const TOTAL_MAX: u64 = 1 << 20;

/// Reads the information at physical address `address`.
#[inline(never)]
pub fn parse(memory: &impl PhysicalMemory, address: u64, found: &mut BootInformation) -> Result<(), Malformed> {
    let unreadable = Malformed::unreadable(address);
    let total = Window::new(memory, address, 8).and_then(|header| header.number(0, 4)).ok_or(unreadable)?;
    if total > TOTAL_MAX {
        return Err(Malformed(&"the item at # does not fit where it stands", address));
    }
    let information = Window::new(memory, address, total).ok_or(unreadable)?;
    let mut offset = 8;
    loop {
        let at = address.saturating_add(offset);
        let too_short = Malformed(&"the item at # does not fit where it stands", at);
        let header = information.part(offset, 8).ok_or(too_short)?;
        let [kind, size] = header.numbers(&[(0, 4), (4, 4)]).ok_or(Malformed::unreadable(at))?;
        let tag = information.part(offset, size).filter(|tag| tag.len >= 8).ok_or(too_short)?;
        match kind {
            END => return Ok(()),
            MODULE if found.module.is_none() => {
                let [start, end] = tag.numbers(&[(8, 4), (12, 4)]).ok_or(too_short)?;
                found.module = module(start, end)?;
            }
            MEMORY_MAP => {
                let stride = tag.number(8, 4).ok_or(too_short)?;
                let entries = tag.part(16, tag.len.saturating_sub(16)).ok_or(too_short)?;
                let count = entries.len.checked_div(stride).unwrap_or(0);
                found.map = MemoryMap::new(memory, entries.start, count, stride)?;
            }
            UEFI_MAP => found.uefi = Some(uefi_map(&tag).ok_or(too_short)?),
            // The new pointer has what the old one lacks.
            ACPI_OLD if found.rsdp.is_none() => found.rsdp = Some(tag.part(8, 20).ok_or(too_short)?.start),
            ACPI_NEW => found.rsdp = Some(tag.part(8, 36).ok_or(too_short)?.start),
            _ => {}
        }
        offset += size.next_multiple_of(8);
    }
}

/// `None` if the tag is too short, or the descriptors larger than the information page can tell.
fn uefi_map(tag: &Window<impl PhysicalMemory>) -> Option<UefiMap> {
    let map = tag.part(16, tag.len.checked_sub(16)?)?;
    let [descriptor_size, descriptor_version] = tag.numbers(&[(8, 4), (12, 4)])?;
    Some(UefiMap {
        start: map.start,
        size: map.len.try_into().ok()?,
        descriptor_size: descriptor_size.try_into().ok()?,
        descriptor_version: descriptor_version.try_into().ok()?,
    })
}
