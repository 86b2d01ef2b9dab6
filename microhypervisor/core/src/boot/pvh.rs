//! PVH start information (Xen public interface, `arch-x86/hvm/start_info.h`; QEMU starts kernels this way).

use super::memory_map::MemoryMap;
use super::{BootInformation, Malformed, PhysicalMemory, Window, module};

/// First field of the information.
pub const MAGIC: u32 = 0x336e_c578;

/// Size of a memory-map entry.
const MAP_ENTRY: u64 = 24;

/// Reads the information at physical address `address`.
#[inline(never)]
pub fn parse(memory: &impl PhysicalMemory, address: u64, found: &mut BootInformation) -> Result<(), Malformed> {
    let window = |start, len| Window::new(memory, start, len).ok_or(Malformed::unreadable(start));
    let information = window(address, 56)?;
    let places = [(0, 4), (4, 4), (12, 4), (16, 8), (32, 8), (40, 8), (48, 4)];
    let numbers = information.numbers(&places).ok_or(Malformed::unreadable(address))?;
    let [magic, version, modules, list, rsdp, map, entries] = numbers;
    if magic != u64::from(MAGIC) {
        return Err(Malformed(&"wrong signature #", magic));
    }
    found.rsdp = (rsdp != 0).then_some(rsdp);
    if modules != 0 {
        let first = window(list, 32)?;
        let [start, size] = first.numbers(&[(0, 8), (8, 8)]).ok_or(Malformed::unreadable(list))?;
        found.module = module(start, start.saturating_add(size))?;
    }
    if version >= 1 {
        found.map = MemoryMap::new(memory, map, entries, MAP_ENTRY)?;
    }
    Ok(())
}
