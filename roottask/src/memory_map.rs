//! What memory the machine has and where the boot module lies, as the boot loader tells it (NOVA 8.3.1): a Multiboot 2
//! information structure (Multiboot 2 specification, 3.4, 3.6.6 and 3.6.8), a Multiboot 1 one (Multiboot
//! specification 0.6.96, 3.3), or a PVH start-of-day structure (Xen public header arch-x86/hvm/start_info.h).
//!
//! All are read from bytes, so that nothing here touches memory; the caller maps what is asked for.

use crate::frames::{FreeMemory, PhysRange};

/// RDI at root's entry after a Multiboot 2 launch.
pub const MULTIBOOT2_MAGIC: u64 = 0x36d7_6289;
/// RDI at root's entry after a Multiboot 1 launch.
pub const MULTIBOOT1_MAGIC: u64 = 0x2bad_b002;
/// RDI at root's entry after a PVH launch: the structure's own magic.
pub const PVH_MAGIC: u64 = 0x336e_c578;

/// Length of the part of a Multiboot 1 information structure that is read.
pub const MULTIBOOT1_LENGTH: usize = 52;
/// Length of an entry in the module list of a Multiboot 1 information structure.
pub const MULTIBOOT1_MODULE_LENGTH: usize = 16;
/// Length of an entry in the module list of a PVH start-of-day structure.
pub const PVH_MODULE_LENGTH: usize = 32;
/// Length of a PVH start-of-day structure, version 1.
pub const PVH_LENGTH: usize = 56;
/// Length of an entry in its memory map.
pub const PVH_ENTRY_LENGTH: usize = 24;

const MULTIBOOT2_TAG_END: u32 = 0;
const MULTIBOOT2_TAG_MODULE: u32 = 3;
const MULTIBOOT2_TAG_MEMORY_MAP: u32 = 6;
const MULTIBOOT2_TAGS_MAX: u32 = 1 << 20;
/// Bits of the flags in Multiboot 1 information: the module list, the memory map are there.
const MULTIBOOT1_MODULES: u32 = 1 << 3;
const MULTIBOOT1_MAP: u32 = 1 << 6;
/// Longest list that is believed, in bytes.
const LIST_MAX: usize = 64 << 10;
/// Type of usable memory in all formats.
const USABLE: u32 = 1;

/// Why there is no memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The boot loader's magic is neither Multiboot nor PVH.
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
                write!(f, "the boot loader passed {magic:#x}: neither Multiboot nor PVH")
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

/// The first tag of kind `wanted` in Multiboot 2 information, header included; `None` if there is none.
fn multiboot2_tag(info: &[u8], wanted: u32, accept: impl Fn(&[u8]) -> bool) -> Result<Option<&[u8]>, MapError> {
    let mut at = 8;
    loop {
        let tag = u32_at(info, at).ok_or(MapError::Malformed)?;
        let size = u32_at(info, at + 4).ok_or(MapError::Malformed)? as usize;
        if tag == MULTIBOOT2_TAG_END {
            return Ok(None);
        }
        let bytes = info.get(at..at.saturating_add(size)).filter(|b| b.len() >= 8).ok_or(MapError::Malformed)?;
        if tag == wanted && accept(bytes) {
            return Ok(Some(bytes));
        }
        at = at.checked_add(size.next_multiple_of(8)).ok_or(MapError::Malformed)?;
    }
}

/// Adds the usable memory in Multiboot 2 information to `free`.
pub fn multiboot2(info: &[u8], free: &mut FreeMemory) -> Result<(), MapError> {
    let tag = multiboot2_tag(info, MULTIBOOT2_TAG_MEMORY_MAP, |_| true)?.ok_or(MapError::NoMap)?;
    let entry_size = u32_at(tag, 8).ok_or(MapError::Malformed)? as usize;
    let entries = tag.get(16..).filter(|_| entry_size >= 24).ok_or(MapError::Malformed)?;
    add(entries.chunks_exact(entry_size), free);
    Ok(())
}

/// The module in Multiboot 2 information that contains the physical address `inside`.
pub fn multiboot2_module(info: &[u8], inside: u64) -> Option<PhysRange> {
    let range = |tag: &[u8]| Some(PhysRange::new(u32_at(tag, 8)? as u64, u32_at(tag, 12)? as u64));
    let accept = |tag: &[u8]| range(tag).is_some_and(|r| r.contains(inside));
    multiboot2_tag(info, MULTIBOOT2_TAG_MODULE, accept).ok().flatten().and_then(range)
}

/// Physical address and length in bytes of the memory map of Multiboot 1 information.
pub fn multiboot1_map(info: &[u8]) -> Result<(u64, usize), MapError> {
    let word = |at| u32_at(info, at).ok_or(MapError::Malformed);
    let (length, address) = (word(44)? as usize, word(48)? as u64);
    match length {
        _ if word(0)? & MULTIBOOT1_MAP == 0 => Err(MapError::NoMap),
        1..=LIST_MAX => Ok((address, length)),
        _ => Err(MapError::Malformed),
    }
}

/// Adds the usable memory in a Multiboot 1 memory map to `free`. Each entry begins with the length of its rest.
pub fn multiboot1(map: &[u8], free: &mut FreeMemory) -> Result<(), MapError> {
    let split = |map| {
        let size = u32_at(map, 0)? as usize;
        map.get(4..)?.split_at_checked(size).filter(|(entry, _)| entry.len() >= 20)
    };
    let mut rest = map;
    while !rest.is_empty() {
        (_, rest) = split(rest).ok_or(MapError::Malformed)?;
    }
    let mut rest = map;
    let entries = core::iter::from_fn(move || {
        let (entry, behind) = split(rest)?;
        rest = behind;
        Some(entry)
    });
    add(entries, free);
    Ok(())
}

/// Physical address and number of entries of the module list of Multiboot 1 information.
pub fn multiboot1_modules(info: &[u8]) -> Option<(u64, usize)> {
    let (count, address) = (u32_at(info, 20)? as usize, u32_at(info, 24)? as u64);
    let there = u32_at(info, 0)? & MULTIBOOT1_MODULES != 0 && count <= LIST_MAX / MULTIBOOT1_MODULE_LENGTH;
    (there && count != 0).then_some((address, count))
}

/// The module in a Multiboot 1 module list that contains the physical address `inside`.
pub fn multiboot1_module(list: &[u8], inside: u64) -> Option<PhysRange> {
    let range = |e: &[u8]| Some(PhysRange::new(u32_at(e, 0)? as u64, u32_at(e, 4)? as u64));
    list.chunks_exact(MULTIBOOT1_MODULE_LENGTH).filter_map(range).find(|r| r.contains(inside))
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
    add(map.chunks_exact(PVH_ENTRY_LENGTH), free);
}

/// Physical address and number of entries of the module list of a PVH start-of-day structure.
pub fn pvh_modules(info: &[u8]) -> Option<(u64, usize)> {
    let (count, address) = (u32_at(info, 12)? as usize, u64_at(info, 16)?);
    (count != 0 && count <= LIST_MAX / PVH_MODULE_LENGTH).then_some((address, count))
}

/// The module in a PVH module list that contains the physical address `inside`.
pub fn pvh_module(list: &[u8], inside: u64) -> Option<PhysRange> {
    let range = |e: &[u8]| {
        let start = u64_at(e, 0)?;
        Some(PhysRange::new(start, start.checked_add(u64_at(e, 8)?)?))
    };
    list.chunks_exact(PVH_MODULE_LENGTH).filter_map(range).find(|r| r.contains(inside))
}

/// Adds what the entries of a map call usable, but for what others among them call something else. In all formats an
/// entry begins with address, length and type.
fn add<'a>(entries: impl Iterator<Item = &'a [u8]> + Clone, free: &mut FreeMemory) {
    let ranges = entries.filter_map(|entry| {
        let (start, length, kind) = (u64_at(entry, 0)?, u64_at(entry, 8)?, u32_at(entry, 16)?);
        Some((PhysRange::new(start, start.saturating_add(length)), kind == USABLE))
    });
    for (range, _) in ranges.clone().filter(|(_, usable)| *usable) {
        free.add(range);
    }
    for (range, _) in ranges.filter(|(_, usable)| !*usable) {
        free.remove(range);
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
    fn the_module_around_an_address_is_found() {
        let module = |start: u32, end: u32| [&start.to_le_bytes()[..], &end.to_le_bytes()].concat();
        let info = multiboot2_info(&[(3, module(0x1000, 0x2000)), (3, module(0x5000, 0x9001)), (0, Vec::new())]);
        assert_eq!(multiboot2_module(&info, 0x6000), Some(PhysRange::new(0x5000, 0x9001)));
        assert_eq!(multiboot2_module(&info, 0x2000), None);
        let mut info = std::vec![0; MULTIBOOT1_LENGTH];
        info[20..28].copy_from_slice(&[2, 0, 0, 0, 0, 0x70, 0, 0]);
        assert_eq!(multiboot1_modules(&info), None, "flag clear");
        info[0] = 1 << 3;
        assert_eq!(multiboot1_modules(&info), Some((0x7000, 2)));
        let list = [module(0x1000, 0x2000), std::vec![0; 8], module(0x5000, 0x9000), std::vec![0; 8]].concat();
        assert_eq!(multiboot1_module(&list, 0x8fff), Some(PhysRange::new(0x5000, 0x9000)));
        assert_eq!(multiboot1_module(&list, 0x9000), None);
        let mut info = std::vec![0; PVH_LENGTH];
        assert_eq!(pvh_modules(&info), None);
        info[12] = 1;
        info[17] = 0x30;
        assert_eq!(pvh_modules(&info), Some((0x3000, 1)));
        let list = [0x5000u64, 0x4000, 0, 0].map(u64::to_le_bytes).concat();
        assert_eq!(pvh_module(&list, 0x5000), Some(PhysRange::new(0x5000, 0x9000)));
    }

    #[test]
    fn multiboot1_memory_is_found() {
        let mut info = std::vec![0; MULTIBOOT1_LENGTH];
        info[44..52].copy_from_slice(&[48, 0, 0, 0, 0, 0x90, 0, 0]);
        assert_eq!(multiboot1_map(&info), Err(MapError::NoMap), "flag clear");
        info[0] = 1 << 6;
        assert_eq!(multiboot1_map(&info), Ok((0x9000, 48)));
        let sized = |e: Vec<u8>| [&20u32.to_le_bytes()[..], &e[..20]].concat();
        let map = [sized(entry(0, 0x9f000, 1)), sized(entry(0xf0000, 0x10000, 2)), sized(entry(0x100000, 0x7000, 1))];
        let mut free = FreeMemory::new();
        assert_eq!(multiboot1(&map.concat(), &mut free), Ok(()));
        assert_eq!(free.total(), 0x9f000 + 0x7000);
        assert_eq!(multiboot1(&map.concat()[..70], &mut free), Err(MapError::Malformed));
        assert_eq!(
            multiboot1(&[&map.concat()[..], &[19, 0, 0, 0], &[0; 19]].concat(), &mut free),
            Err(MapError::Malformed)
        );
    }

    #[test]
    fn what_any_entry_keeps_is_not_used() {
        let map = [entry(0x4000, 0x1000, 2), entry(0, 0x9000, 1), entry(0x8800, 0x10, 3), entry(0x6000, 0x2000, 1)];
        let mut free = FreeMemory::new();
        pvh(&map.concat(), &mut free);
        assert_eq!(free.ranges(), [PhysRange::new(0, 0x4000), PhysRange::new(0x5000, 0x8000)]);
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
            let _ = (multiboot1_map(&info), multiboot1(&info, &mut free), multiboot1_modules(&info));
            let _ = (multiboot2_module(&info, 5), multiboot1_module(&info, 5), pvh_modules(&info), pvh_module(&info, 5));
        }
    }
}
