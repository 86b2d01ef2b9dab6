//! PVH start information (Xen public interface, `arch-x86/hvm/start_info.h`; QEMU starts kernels this way).

use super::{BootInformation, Malformed, PhysicalMemory, Window};

/// First field of the information.
pub const MAGIC: u32 = 0x336e_c578;

/// Most entries of the memory map that are read.
const MAP_MAX: u64 = 1024;
/// Size of a memory-map entry.
const MAP_ENTRY: u64 = 24;
/// Type of memory-map entries that are RAM.
const RAM: u32 = 1;

/// Reads the information at physical address `address`.
pub fn parse(memory: &impl PhysicalMemory, address: u64) -> Result<BootInformation, Malformed> {
    let window = |start, len| Window::new(memory, start, len).ok_or(Malformed::Unreadable(start));
    let information = window(address, 56)?;
    let u32_at = |offset| information.u32(offset).ok_or(Malformed::Unreadable(address));
    let u64_at = |offset| information.u64(offset).ok_or(Malformed::Unreadable(address));

    let magic = u32_at(0)?;
    if magic != MAGIC {
        return Err(Malformed::Signature(magic));
    }
    let (version, modules, list, rsdp) = (u32_at(4)?, u32_at(12)?, u64_at(16)?, u64_at(32)?);
    let mut found = BootInformation { rsdp: Some(rsdp).filter(|&rsdp| rsdp != 0), ..BootInformation::default() };
    if modules != 0 {
        let module = window(list, 32)?;
        let (start, size) = module.u64(0).zip(module.u64(8)).ok_or(Malformed::Unreadable(list))?;
        let end = start.saturating_add(size);
        found.module = Some((start, end));
        if start >= end {
            return Err(Malformed::Module(start, end));
        }
    }
    if version >= 1 {
        let map = u64_at(40)?;
        for index in 0..u64::from(u32_at(48)?).min(MAP_MAX) {
            let entry = window(map.saturating_add(index * MAP_ENTRY), MAP_ENTRY)?;
            let (size, kind) = entry.u64(8).zip(entry.u32(16)).ok_or(Malformed::Unreadable(entry.start))?;
            if kind == RAM {
                found.ram = found.ram.saturating_add(size);
            }
        }
    }
    Ok(found)
}
