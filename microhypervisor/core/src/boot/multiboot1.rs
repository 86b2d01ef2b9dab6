//! Multiboot information (Multiboot Specification 0.6.96, 3.3).

use super::memory_map::MemoryMap;
use super::{BootInformation, Malformed, PhysicalMemory, Window, module};

/// EAX at entry.
pub const MAGIC: u32 = 0x2bad_b002;

/// Flags of what is there: modules, memory map.
const MODULES: u64 = 1 << 3;
const MEMORY_MAP: u64 = 1 << 6;
/// Size of a memory-map entry behind its size field. Others would be legal, but no loader has them.
const MAP_ENTRY: u64 = 20;

/// Reads the information at physical address `address`.
#[inline(never)]
pub fn parse(memory: &impl PhysicalMemory, address: u64, found: &mut BootInformation) -> Result<(), Malformed> {
    let u32_at = |start: u64, offset| {
        let word = Window::new(memory, start, 52).and_then(|information| information.number(offset, 4));
        word.ok_or(Malformed::unreadable(start))
    };
    let flags = u32_at(address, 0)?;
    if flags & MODULES != 0 && u32_at(address, 20)? != 0 {
        let first = u32_at(address, 24)?;
        found.module = module(u32_at(first, 0)?, u32_at(first, 4)?)?;
    }
    if flags & MEMORY_MAP != 0 {
        let (len, map) = (u32_at(address, 44)?, u32_at(address, 48)?);
        let (stride, count) = (MAP_ENTRY + 4, len / (MAP_ENTRY + 4));
        found.map = MemoryMap::new(memory, map + 4, count, stride)?;
        for index in 0..count {
            if u32_at(map + index * stride, 0)? != MAP_ENTRY {
                return Err(Malformed(&"the memory map at # has absurdly small or many entries", map));
            }
        }
    }
    Ok(())
}
