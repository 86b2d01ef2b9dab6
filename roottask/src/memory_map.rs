//! What memory the machine has, as the boot loader tells it (NOVA 8.3.1): a Multiboot 2 information structure
//! (Multiboot 2 specification, 3.4 and 3.6.8) or a PVH start-of-day structure (Xen public header arch-x86/hvm/start_info.h).
//!
//! Both are read from bytes, so that nothing here touches memory; the caller maps what is asked for.

use crate::frames::{FreeMemory, PhysRange};

/// RDI at root's entry after a Multiboot 2 launch.
pub const MULTIBOOT2_MAGIC: u64 = 0x36d7_6289;
/// RDI at root's entry after a PVH launch: the structure's own magic.
pub const PVH_MAGIC: u64 = 0x336e_c578;

/// Length of a PVH start-of-day structure, version 1.
pub const PVH_LENGTH: usize = 56;
/// Length of an entry in its memory map.
pub const PVH_ENTRY_LENGTH: usize = 24;

const MULTIBOOT2_TAG_END: u32 = 0;
const MULTIBOOT2_TAG_MEMORY_MAP: u32 = 6;
const MULTIBOOT2_TAGS_MAX: u32 = 1 << 20;
/// Type of usable memory in both formats.
const USABLE: u32 = 1;

/// Why there is no memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The boot loader's magic is neither Multiboot 2 nor PVH.
    UnknownLoader(u64),
    /// The structure is damaged.
    Malformed,
    /// The structure has no memory map.
    NoMap,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownLoader(magic) => {
                write!(f, "the boot loader passed {magic:#x}: neither Multiboot 2 nor PVH")
            }
            Self::Malformed => write!(f, "the boot loader's information is damaged"),
            Self::NoMap => write!(f, "the boot loader passed no memory map"),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Total length of the Multiboot 2 information that begins with these bytes.
pub fn multiboot2_length(start: &[u8]) -> Result<usize, MapError> {
    match u32_at(start, 0) {
        Some(length) if (16..=MULTIBOOT2_TAGS_MAX).contains(&length) => Ok(length as usize),
        _ => Err(MapError::Malformed),
    }
}

/// Adds the usable memory in Multiboot 2 information to `free`.
pub fn multiboot2(info: &[u8], free: &mut FreeMemory) -> Result<(), MapError> {
    let mut at = 8;
    loop {
        let tag = u32_at(info, at).ok_or(MapError::Malformed)?;
        let size = u32_at(info, at + 4).ok_or(MapError::Malformed)? as usize;
        match tag {
            MULTIBOOT2_TAG_END => return Err(MapError::NoMap),
            MULTIBOOT2_TAG_MEMORY_MAP => {
                let entry_size = u32_at(info, at + 8).ok_or(MapError::Malformed)? as usize;
                let entries = info.get(at + 16..at.saturating_add(size)).ok_or(MapError::Malformed)?;
                if entry_size < 24 {
                    return Err(MapError::Malformed);
                }
                for entry in entries.chunks_exact(entry_size) {
                    add(entry, u32_at(entry, 16), free);
                }
                return Ok(());
            }
            _ if size < 8 => return Err(MapError::Malformed),
            _ => at = at.checked_add(size.next_multiple_of(8)).ok_or(MapError::Malformed)?,
        }
    }
}

/// Physical address and number of entries of the memory map of a PVH start-of-day structure.
pub fn pvh_map(info: &[u8]) -> Result<(u64, usize), MapError> {
    let word = |at| u32_at(info, at).ok_or(MapError::Malformed);
    if word(0)? as u64 != PVH_MAGIC {
        return Err(MapError::Malformed);
    }
    let address = u64_at(info, 40).ok_or(MapError::Malformed)?;
    let entries = word(48)? as usize;
    if word(4)? < 1 || address == 0 || entries == 0 {
        return Err(MapError::NoMap);
    }
    if entries > 1024 {
        return Err(MapError::Malformed);
    }
    Ok((address, entries))
}

/// Adds the usable memory in a PVH memory map to `free`.
pub fn pvh(map: &[u8], free: &mut FreeMemory) {
    for entry in map.chunks_exact(PVH_ENTRY_LENGTH) {
        add(entry, u32_at(entry, 16), free);
    }
}

/// An entry in either format begins with address and length.
fn add(entry: &[u8], kind: Option<u32>, free: &mut FreeMemory) {
    if let (Some(start), Some(length), Some(USABLE)) = (u64_at(entry, 0), u64_at(entry, 8), kind) {
        free.add(PhysRange::new(start, start.saturating_add(length)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn entry(start: u64, length: u64, kind: u32) -> Vec<u8> {
        [&start.to_le_bytes()[..], &length.to_le_bytes(), &kind.to_le_bytes(), &[0; 4]].concat()
    }

    fn multiboot2_info(tags: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut info = std::vec![0; 8];
        for (tag, body) in tags {
            info.extend(tag.to_le_bytes());
            info.extend((8 + body.len() as u32).to_le_bytes());
            info.extend(body);
            info.resize(info.len().next_multiple_of(8), 0);
        }
        let length = info.len() as u32;
        info[..4].copy_from_slice(&length.to_le_bytes());
        info
    }

    #[test]
    fn multiboot2_memory_is_found_behind_other_tags() {
        let mut map = std::vec![24, 0, 0, 0, 0, 0, 0, 0];
        map.extend(entry(0, 0x9f000, 1));
        map.extend(entry(0x100000, 0x7f00000, 1));
        map.extend(entry(0xfee00000, 0x1000, 2));
        let info = multiboot2_info(&[(1, b"a b\0".to_vec()), (6, map), (0, Vec::new())]);
        let mut free = FreeMemory::new();
        assert_eq!(multiboot2_length(&info), Ok(info.len()));
        assert_eq!(multiboot2(&info, &mut free), Ok(()));
        assert_eq!(free.total(), 0x9f000 + 0x7f00000);
        let none = multiboot2_info(&[(0, Vec::new())]);
        assert_eq!(multiboot2(&none, &mut free), Err(MapError::NoMap));
        assert_eq!(multiboot2(&info[..40], &mut free), Err(MapError::Malformed));
    }

    #[test]
    fn pvh_memory_is_found() {
        let mut info = std::vec![0; PVH_LENGTH];
        info[..4].copy_from_slice(&(PVH_MAGIC as u32).to_le_bytes());
        assert_eq!(pvh_map(&info), Err(MapError::NoMap), "version 0");
        info[4] = 1;
        info[40..48].copy_from_slice(&0x5000u64.to_le_bytes());
        info[48] = 2;
        assert_eq!(pvh_map(&info), Ok((0x5000, 2)));
        let map = [entry(0x100000, 0x1000000, 1), entry(0xb0000000, 0x10000000, 2)].concat();
        let mut free = FreeMemory::new();
        pvh(&map, &mut free);
        assert_eq!(free.total(), 0x1000000);
    }

    proptest! {
        #[test]
        fn random_information_does_no_harm(mut info in prop::collection::vec(any::<u8>(), 0..300), tag in 0u8..8) {
            if info.len() > 16 {
                info[8..12].copy_from_slice(&[tag, 0, 0, 0]);
            }
            let mut free = FreeMemory::new();
            let _ = (multiboot2_length(&info), multiboot2(&info, &mut free), pvh_map(&info));
            pvh(&info, &mut free);
        }
    }
}
