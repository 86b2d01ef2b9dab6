//! Tables as firmware writes them, and as it should not.

use std::vec::Vec;

use kernel_core::boot::{PhysicalMemory, Window};
use proptest::prelude::*;

use crate::Problem;
use crate::dmar::{Dmar, Reserved, UnitAt};

pub const PLACE: u64 = 0x10_0000;

/// Memory with nothing but a table.
pub struct Table(pub Vec<u8>);

impl PhysicalMemory for Table {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        let Some(start) = address.checked_sub(PLACE) else { return false };
        let part = self.0.get(start as usize..start as usize + buffer.len());
        part.map(|part| buffer.copy_from_slice(part)).is_some()
    }
}

fn read(parts: &[&[u8]]) -> Result<Dmar, Problem> {
    // Header, address width, flags: interrupt remapping; 10 reserved bytes.
    let mut bytes = [[0; 36].as_slice(), &[47, 1], &[0; 10]].concat();
    parts.iter().for_each(|part| bytes.extend(*part));
    let table = Table(bytes);
    let window = Window::new(&table, PLACE, table.0.len() as u64).unwrap();
    // The bridge at 00:1c.0 leads to bus 3, that at 03:00.0 to bus 4.
    Dmar::read(&window, &|source| match source {
        0xe0 => 3,
        0x300 => 4,
        other => panic!("no bridge at {other:#x}"),
    })
}

fn unit(address: u64, segment: u16, scopes: &[u8]) -> Vec<u8> {
    let length = 16 + scopes.len() as u16;
    [&[0; 2], &length.to_le_bytes()[..], &[1, 0], &segment.to_le_bytes(), &address.to_le_bytes(), scopes].concat()
}

fn reserved(start: u64, last: u64, segment: u16, scopes: &[u8]) -> Vec<u8> {
    let length = 24 + scopes.len() as u16;
    let numbers = [start.to_le_bytes(), last.to_le_bytes()].concat();
    [&[1, 0], &length.to_le_bytes()[..], &[0; 2], &segment.to_le_bytes(), &numbers, scopes].concat()
}

const IOAPIC: [u8; 8] = [3, 8, 0, 0, 9, 0xf0, 0x1f, 0];
const USB: [u8; 8] = [1, 8, 0, 0, 0, 0, 0x14, 0];
const BEHIND_BRIDGES: [u8; 12] = [1, 12, 0, 0, 0, 0, 0x1c, 0, 0, 0, 2, 1];

#[test]
fn what_firmware_says() {
    let other = [2, 0, 8, 0, 0, 0, 0, 0];
    let later = [77, 0, 4, 0];
    let parts: [&[u8]; 6] = [
        &unit(0xfed9_0000, 0, &[IOAPIC, USB].concat()),
        &other,
        &unit(0xfed9_1000, 1, &[]),
        &reserved(0x7000_0000, 0x7001_ffff, 0, &[&USB[..], &BEHIND_BRIDGES].concat()),
        &reserved(0x7100_0000, 0x7100_0fff, 1, &USB),
        &later,
    ];
    let dmar = read(&parts).unwrap();
    assert!(dmar.interrupts);
    let units = [(0xfed9_0000, 0), (0xfed9_1000, 1)].map(|(address, segment)| UnitAt { address, segment });
    assert_eq!(dmar.units.as_slice(), units);
    let device = |source| Reserved { source, start: 0x7000_0000, pages: 32 };
    // 00:14.0, and 04:02.1 behind two bridges.
    assert_eq!(dmar.reserved.as_slice(), [device(0xa0), device(0x411)]);
    assert_eq!((dmar.ioapic(9), dmar.ioapic(8)), (Some(0xf0f8), None));
}

#[test]
fn broken_tables_are_refused() {
    let good = unit(0xfed9_0000, 0, &[]);
    let with = |part: &[u8]| read(&[&good, part]).map(|_| ()).unwrap_err();
    const LENGTH: &str = "has a structure or a device scope of impossible length";
    const PLACE: &str = "has a unit or reserved memory where none can be";
    for length in [0, 1, 2, 3, 5, 200] {
        assert_eq!(with(&[2, 0, length, 0]), LENGTH, "a structure of {length} bytes");
    }
    assert_eq!(with(&[2]), LENGTH);
    // Too short for what it is.
    assert_eq!(with(&[0, 0, 8, 0, 0, 0, 0, 0]), LENGTH);
    assert_eq!(with(&[&[1, 0, 16, 0, 0, 0][..], &[0; 2], &0x7000_0000u64.to_le_bytes()].concat()), LENGTH);
    for scope in
        [[1, 0, 0, 0, 0, 0, 0, 0], [1, 7, 0, 0, 0, 0, 0, 0], [1, 9, 0, 0, 0, 0, 0, 0], [1, 10, 0, 0, 0, 0, 0, 0]]
    {
        assert_eq!(with(&unit(0xfed9_1000, 0, &scope)), LENGTH, "{scope:?}");
    }
    assert_eq!(with(&unit(0xfed9_1000, 0, &[1])), LENGTH);
    for address in [0, 0xfed9_1008, 1 << 52] {
        assert_eq!(with(&unit(address, 0, &[])), PLACE, "{address:#x}");
    }
    for (start, last) in [(0x1000, 0xfff), (0x1001, 0x1fff), (0x1000, 0x2000), (0x1000, u64::MAX), (0x2000, 0x1fff)] {
        assert_eq!(with(&reserved(start, last, 0, &USB)), PLACE, "{start:#x} to {last:#x}");
    }
    assert_eq!(read(&[]).err().unwrap(), "names no unit");
    let many: Vec<&[u8]> = vec_of(33, &good);
    assert_eq!(read(&many).err().unwrap(), "has more structures than supported");
    assert_eq!(read(&many[..32]).unwrap().units.as_slice().len(), 32);
    let table = Table([0; 20].to_vec());
    assert!(Dmar::read(&Window::new(&table, PLACE_OF_SHORT, 20).unwrap(), &|_| 0).is_err());
}

const PLACE_OF_SHORT: u64 = PLACE;

fn vec_of(count: usize, part: &[u8]) -> Vec<&[u8]> {
    std::iter::repeat_n(part, count).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever the bytes are, nothing overflows and everything ends; what is told can be.
    #[test]
    fn random_tables_are_survived(
        parts in prop::collection::vec((0..4u8, 0..64u8, prop::collection::vec(any::<u8>(), 0..64)), 0..8),
        cut in 0..64usize,
    ) {
        let mut bytes = std::vec![0; 48];
        for (kind, length, content) in parts {
            bytes.extend([kind, 0, length, 0]);
            bytes.extend(content);
        }
        bytes.truncate(bytes.len().saturating_sub(cut).max(1));
        let table = Table(bytes);
        let window = Window::new(&table, PLACE, table.0.len() as u64).unwrap();
        if let Ok(dmar) = Dmar::read(&window, &|source| source as u8) {
            assert!(!dmar.units.as_slice().is_empty());
            for unit in dmar.units.as_slice() {
                assert_eq!(unit.address & 0xfff, 0);
            }
            for range in dmar.reserved.as_slice() {
                assert!(range.pages != 0 && range.start + range.pages * 4096 <= 1 << 52);
            }
        }
    }
}
