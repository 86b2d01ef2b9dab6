use super::*;
use crate::boot::memory_map::*;
use proptest::prelude::*;

const AT: u64 = 0x9000;

/// Base, length and type of each entry.
type Entries<'a> = &'a [(u64, u64, u32)];

fn map(entries: Entries) -> (Ram, MemoryMap) {
    let bytes: Vec<u8> = entries.iter().flat_map(|&(base, len, kind)| bytes![base, len, kind, 0u32]).collect();
    let ram = Ram::with(AT, bytes);
    let map = MemoryMap::new(&ram, AT, entries.len() as u64, 24).unwrap();
    (ram, map)
}

fn hole(entries: Entries, start: u64, end: u64) -> Option<u64> {
    let (ram, map) = map(entries);
    map.hole(&ram, start, end)
}

#[test]
fn maps_that_are_in_order() {
    let entries = [(0, 0x9_0000, 1), (0x9_0000, 0x7_0000, 2), (0x10_0000, 0x100_0000, 1)];
    let (ram, found) = map(&entries);
    assert_eq!(found.ram(&ram), Some(0x109_0000));
    assert_eq!(hole(&entries, 0x10_0000, 0x110_0000), None);
    assert_eq!(hole(&entries, 0x10_0000, 0x110_0001), Some(0x110_0000));
    assert_eq!(hole(&entries, 0xf_ffff, 0x10_1000), Some(0xf_ffff));
    assert_eq!(hole(&entries, 0x8_f000, 0x9_1000), Some(0x9_0000));
    assert_eq!(hole(&entries, 0x9000_0000, 0x9000_1000), Some(0x9000_0000));
    // Without a map nothing is known.
    assert_eq!((MemoryMap::default().ram(&ram), MemoryMap::default().hole(&ram, 0, u64::MAX)), (None, None));
}

#[test]
fn maps_that_are_absurd() {
    // Out of order, adjacent, overlapping, empty, around the end of the address space.
    let entries =
        [(0x30_0000, 0x10_0000, 1), (u64::MAX, u64::MAX, 1), (0x28_0000, 0x10_0000, 1), (0x20_0000, 0x8_0000, 1)];
    assert_eq!(hole(&entries, 0x20_0000, 0x40_0000), None);
    assert_eq!(hole(&entries, 0x20_0000, 0x40_0001), Some(0x40_0000));
    assert_eq!(hole(&[(0x20_0000, u64::MAX, 1)], 0x20_0000, u64::MAX), None);
    assert_eq!(hole(&[(0x20_0000, 0, 1)], 0x20_0000, 0x20_0001), Some(0x20_0000));
    let (ram, found) = map(&[(0, u64::MAX, 1), (0, u64::MAX, 1)]);
    assert_eq!(found.ram(&ram), Some(u64::MAX));
    // What is RAM and something else is something else.
    let entries = [(0, u64::MAX, 1), (0x30_0000, 0x1000, 2), (0x28_0000, 0x10, 99)];
    assert_eq!(hole(&entries, 0x20_0000, 0x40_0000), Some(0x28_0000));
    assert_eq!(hole(&entries, 0x28_0010, 0x30_0000), None);
    assert_eq!(hole(&entries, 0x30_0fff, 0x40_0000), Some(0x30_0fff));
    assert_eq!(hole(&entries, 0x30_1000, u64::MAX), None);
    assert_eq!(hole(&[(0x30_0000, 0x1000, 2)], 0x20_0000, 0x20_1000), Some(0x20_0000));
}

#[test]
fn uefi_maps_are_bounded_by_their_size() {
    let descriptor = |kind: u32, start: u64, pages: u64| bytes![kind, 0u32, start, 0u64, pages, 0u64];
    let bytes = [
        descriptor(5, 0x1000, 2),
        descriptor(7, 0x10_0000, 16),
        descriptor(6, 0x8000, u64::MAX),
        descriptor(6, u64::MAX - 4095, 2),
        descriptor(6, 0x9000, 0),
        descriptor(6, 0x4_0000, 1),
    ];
    let ram = Ram::with(AT, bytes.concat());
    let runtime = |size, descriptor_size| {
        let map = UefiMap { start: AT, size, descriptor_size, descriptor_version: 1 };
        map.runtime(&ram).collect::<Vec<_>>()
    };
    assert_eq!(runtime(240, 40), [(0x1000, 0x3000), (0x4_0000, 0x4_1000)]);
    assert_eq!(runtime(239, 40), [(0x1000, 0x3000)]);
    assert_eq!(runtime(240, 0), runtime(240, 40));
    assert_eq!(runtime(u32::MAX, u16::MAX), [(0x1000, 0x3000)]);
    assert_eq!(runtime(39, 40), []);
}

proptest! {
    /// Byte by byte, in a small world.
    #[test]
    fn holes_are_where_a_naive_reader_finds_them(
        entries in prop::collection::vec((0u64..40, 0u64..30, 1u32..3), 1..7),
        start in 0u64..60,
        len in 0u64..20,
    ) {
        let has = |address, ram| {
            entries.iter().any(|(base, len, kind)| (*kind == 1) == ram && (*base..base + len).contains(&address))
        };
        let expected = (start..start + len).find(|&address| !has(address, true) || has(address, false));
        prop_assert_eq!(hole(&entries, start, start + len), expected);
    }
}
