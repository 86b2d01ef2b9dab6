//! PVH start information (Xen public interface, `arch-x86/hvm/start_info.h`; QEMU starts kernels this way).

use super::memory_map::MemoryMap;
use super::{BootInformation, Malformed, PhysicalMemory, Window, module};

/// First field of the information.
pub const MAGIC: u32 = 0x336e_c578;

/// Size of a memory-map entry.
const MAP_ENTRY: u64 = 24;

/// Reads the information at physical address `address`.
pub fn parse(memory: &impl PhysicalMemory, address: u64) -> Result<BootInformation, Malformed> {
    let window = |start, len| Window::new(memory, start, len).ok_or(Malformed::unreadable(start));
    let information = window(address, 56)?;
    let u32_at = |offset| information.u32(offset).ok_or(Malformed::unreadable(address));
    let u64_at = |offset| information.u64(offset).ok_or(Malformed::unreadable(address));

    let (magic, version, modules, list, rsdp) = (u32_at(0)?, u32_at(4)?, u32_at(12)?, u64_at(16)?, u64_at(32)?);
    if magic != MAGIC {
        return Err(Malformed(&["wrong signature ", ""], magic.into()));
    }
    let mut found = BootInformation { rsdp: (rsdp != 0).then_some(rsdp), ..BootInformation::default() };
    if modules != 0 {
        let first = window(list, 32)?;
        let (start, size) = first.u64(0).zip(first.u64(8)).ok_or(Malformed::unreadable(list))?;
        found.module = module(start, start.saturating_add(size))?;
    }
    if version >= 1 {
        found.map = MemoryMap::new(memory, u64_at(40)?, u32_at(48)?.into(), MAP_ENTRY)?;
    }
    Ok(found)
}
