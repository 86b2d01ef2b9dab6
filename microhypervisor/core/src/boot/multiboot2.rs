//! Multiboot2 information (Multiboot2 Specification 2.0, 3.6).

use super::{BootInformation, Malformed, PhysicalMemory, UefiMap, Window};

/// EAX at entry.
pub const MAGIC: u32 = 0x36d7_6289;

const END: u32 = 0;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const ACPI_OLD: u32 = 14;
const ACPI_NEW: u32 = 15;
const UEFI_MAP: u32 = 17;
/// Type of memory-map entries that are RAM.
const RAM: u32 = 1;

/// Reads the information at physical address `address`.
pub fn parse(memory: &impl PhysicalMemory, address: u64) -> Result<BootInformation, Malformed> {
    let unreadable = Malformed::Unreadable(address);
    let total = Window::new(memory, address, 8).and_then(|header| header.u32(0)).ok_or(unreadable)?;
    let information = Window::new(memory, address, total.into()).ok_or(unreadable)?;
    let mut found = BootInformation::default();
    let mut offset = 8;
    loop {
        let at = address.saturating_add(offset);
        let header = information.part(offset, 8).ok_or(Malformed::Length(at))?;
        let (kind, size) = header.u32(0).zip(header.u32(4)).ok_or(Malformed::Unreadable(at))?;
        let tag = information.part(offset, size.into()).filter(|tag| tag.len >= 8).ok_or(Malformed::Length(at))?;
        if kind == END {
            return Ok(found);
        }
        read_tag(&mut found, kind, &tag).ok_or(Malformed::Length(at))?;
        if let Some((start, end)) = found.module.filter(|(start, end)| start >= end) {
            return Err(Malformed::Module(start, end));
        }
        offset += u64::from(size).next_multiple_of(8);
    }
}

/// Takes what is wanted of a tag; `None` if the tag is too short for it.
fn read_tag(found: &mut BootInformation, kind: u32, tag: &Window<impl PhysicalMemory>) -> Option<()> {
    match kind {
        MODULE if found.module.is_none() => found.module = Some((tag.u32(8)?.into(), tag.u32(12)?.into())),
        MEMORY_MAP => {
            let entry_size = u64::from(tag.u32(8)?);
            let mut offset = 16;
            while let Some(entry) = tag.part(offset, entry_size.max(24)) {
                if entry.u32(16)? == RAM {
                    found.ram = found.ram.saturating_add(entry.u64(8)?);
                }
                offset += entry.len;
            }
        }
        // The new pointer has what the old one lacks.
        ACPI_OLD if found.rsdp.is_none() => found.rsdp = Some(tag.part(8, 20)?.start),
        ACPI_NEW => found.rsdp = Some(tag.part(8, 36)?.start),
        UEFI_MAP => {
            let map = tag.part(16, tag.len.checked_sub(16)?)?;
            let (descriptor_size, descriptor_version) = (tag.u32(8)?, tag.u32(12)?);
            found.uefi_map =
                Some(UefiMap { address: map.start, size: map.len as u32, descriptor_size, descriptor_version });
        }
        _ => {}
    }
    Some(())
}
