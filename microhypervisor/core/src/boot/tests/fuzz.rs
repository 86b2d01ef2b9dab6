//! All parsers on memory that has been changed in the ways that break parsers: none panics, overflows (tests are built
//! with the checks for that), reads without bound, or gives what its documentation excludes.
//!
//! The same cases every time. A long run takes others: `PROPTEST_RNG_SEED=2 PROPTEST_CASES=1000000 cargo test --release
//! -p kernel_core fuzz`, with overflow checks from `CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true`.

use super::*;
use crate::boot::elf::RootElf;
use crate::boot::{acpi, multiboot1, multiboot2, pvh};
use abi::ROOT_UTCB_ADDRESS;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use std::string::ToString;

/// Cases of each test; more if the environment asks for more.
const CASES: u32 = 3000;
/// Most reads that any input of the sizes used here justifies. Without the holes of absurd memory maps.
const READS: usize = 100_000;

fn configuration() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = if asked.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { asked.rng_seed };
    ProptestConfig { cases: asked.cases.max(CASES), rng_seed, ..asked }
}

/// Something that happens to memory.
#[derive(Clone, Debug)]
enum Change {
    /// A field gets a value.
    Set { region: Index, at: Index, width: usize, value: u64 },
    /// A value is added to a field, so that it keeps its alignment, say.
    Add { region: Index, at: Index, value: u64 },
    /// A field becomes the address of something, or nearly.
    Point { region: Index, at: Index, to: Index, off: i64, width: usize },
    /// A part is repeated elsewhere.
    Copy { region: Index, from: Index, to: Index, len: usize },
    /// The end is missing.
    Cut { region: Index, len: Index },
    /// Everything is noise.
    Noise { region: Index, bytes: Vec<u8> },
}

fn width() -> impl Strategy<Value = usize> {
    prop::sample::select(&[1usize, 2, 4, 8][..])
}

fn value() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 2, 7, 8, 9, 20, 24, 36, 44, 56, 64, 0x7f, 0xff, 0x1000, 0xffff, 1 << 31, u32::MAX as u64, 1 << 63];
    let pages = prop::sample::select(&[!0xfffu64, !0x1fff, 1 << 12, 1 << 47, 1 << 52, 1 << 63][..]);
    let edge = (prop::sample::select(edges.to_vec()), -2i64..3).prop_map(|(edge, off)| edge.wrapping_add_signed(off));
    prop_oneof![3 => edge, 2 => pages, 1 => any::<u64>(), 1 => (0u64..64).prop_map(|bit| 1 << bit)]
}

fn change() -> impl Strategy<Value = Change> {
    use Change::*;
    let index = any::<Index>;
    prop_oneof![
        6 => (index(), index(), width(), value()).prop_map(|(region, at, width, value)| Set { region, at, width, value }),
        3 => (index(), index(), value()).prop_map(|(region, at, value)| Add { region, at, value }),
        3 => (index(), index(), index(), -64i64..64, width())
            .prop_map(|(region, at, to, off, width)| Point { region, at, to, off, width }),
        2 => (index(), index(), index(), 1usize..64).prop_map(|(region, from, to, len)| Copy { region, from, to, len }),
        1 => (index(), index()).prop_map(|(region, len)| Cut { region, len }),
        1 => (index(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(region, bytes)| Noise { region, bytes }),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 0..8)
}

/// Adds to the eight bytes at a place that is aligned to `align`.
fn add(bytes: &mut [u8], at: Index, align: usize, value: u64) {
    if let Some(places) = bytes.len().checked_sub(7).filter(|places| *places > 0) {
        let at = at.index(places) / align * align;
        let old = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        bytes[at..at + 8].copy_from_slice(&old.wrapping_add(value).to_le_bytes());
    }
}

/// Writes the part of `value` that fits.
fn set(bytes: &mut [u8], at: Index, width: usize, value: u64) {
    if bytes.is_empty() {
        return;
    }
    // Most fields are aligned.
    let at = at.index(bytes.len()) / width.min(4) * width.min(4);
    for (byte, value) in bytes[at..].iter_mut().zip(value.to_le_bytes()).take(width) {
        *byte = value;
    }
}

impl Change {
    fn apply(&self, regions: &mut [(u64, Vec<u8>)]) {
        let addresses: Vec<u64> = regions.iter().map(|region| region.0).collect();
        let (Self::Set { region, .. }
        | Self::Add { region, .. }
        | Self::Point { region, .. }
        | Self::Copy { region, .. }
        | Self::Cut { region, .. }
        | Self::Noise { region, .. }) = self;
        let bytes = &mut region.get_mut(regions).1;
        match self {
            Self::Set { at, width, value, .. } => set(bytes, *at, *width, *value),
            Self::Add { at, value, .. } => add(bytes, *at, 4, *value),
            Self::Point { at, to, off, width, .. } => {
                set(bytes, *at, *width, to.get(&addresses).wrapping_add_signed(*off));
            }
            Self::Copy { from, to, len, .. } if !bytes.is_empty() => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let len = (*len).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + len, to);
            }
            Self::Copy { .. } => {}
            Self::Cut { len, .. } => bytes.truncate(len.index(bytes.len() + 1)),
            Self::Noise { bytes: noise, .. } => bytes.iter_mut().zip(noise).for_each(|(byte, noise)| *byte = *noise),
        }
    }
}

fn changed(mut ram: Ram, changes: &[Change]) -> Ram {
    changes.iter().for_each(|change| change.apply(&mut ram.regions));
    ram
}

/// Sums that parsers check are right again, so that they look further.
fn repaired(mut ram: Ram) -> Ram {
    for (_, bytes) in &mut ram.regions {
        if bytes.starts_with(b"RSD PTR ") {
            for (len, at) in [(20, 8), (36, 32)] {
                if let Some(pointer) = bytes.get_mut(..len) {
                    super::acpi::fix(pointer, at);
                }
            }
            continue;
        }
        let len = bytes.get(4..8).map_or(0, |len| u32::from_le_bytes([len[0], len[1], len[2], len[3]]));
        if let Some(table) = bytes.get_mut(..len as usize).filter(|table| table.len() > 9) {
            super::acpi::fix(table, 9);
        }
    }
    ram
}

/// Everything that the kernel does with ACPI tables.
fn use_tables(ram: &Ram, rsdp: Option<u64>) {
    let mut tables = acpi::find(ram, rsdp);
    let mut processors = 0;
    tables.processors(ram, |_| processors += 1);
    tables.check_ioapics(|chip| chip.address % 2 == 0);
    tables.complaints().iter().for_each(|complaint| assert!(!complaint.to_string().is_empty()));
    assert!(tables.ioapics().len() <= acpi::IOAPICS_MAX && processors < 1 << 17);
    let _ = tables.fadt.map(|fadt| (fadt.pm_timer, fadt.reset));
    assert!(ram.reads.get() < READS, "{} reads", ram.reads.get());
}

/// Everything that the kernel does with a boot loader's information.
fn use_information(ram: &Ram, found: Result<BootInformation, Malformed>) {
    assert!(ram.reads.get() < READS, "{} reads", ram.reads.get());
    let found = match found {
        Ok(found) => found,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(found.module.is_none_or(|(start, end)| start < end));
    for (start, end) in [(0, u64::MAX), found.module.unwrap_or((0x20_0000, 0x40_0000)), (5, 5), (9, 3)] {
        let hole = found.map.hole(ram, start, end);
        assert!(hole.is_none_or(|hole| (start..end).contains(&hole)), "{hole:?} in {start:#x}..{end:#x}");
        assert!(hole.is_none() || found.map.ram(ram).is_some());
    }
    if let Some(map) = found.uefi {
        assert!(map.runtime(ram).all(|(start, end)| start < end));
    }
}

proptest! {
    #![proptest_config(configuration())]

    #[test]
    fn tables(changes in changes(), old: bool, repair in prop::bool::weighted(0.8)) {
        let (ram, rsdp) = if old { (super::acpi::old_machine(), None) } else { (super::acpi::new_machine(), Some(0x8000)) };
        let ram = changed(ram, &changes);
        use_tables(&if repair { repaired(ram) } else { ram }, rsdp);
    }

    #[test]
    fn boot_information(changes in changes()) {
        for (information, parse) in [
            (super::loaders::grub(), multiboot2::parse as Parse),
            (super::loaders::old_loader(), multiboot1::parse),
            (super::loaders::qemu(), pvh::parse),
        ] {
            let ram = changed(Ram::with(super::loaders::AT, information), &changes);
            use_information(&ram, read_by(parse, &ram, super::loaders::AT));
        }
    }

    #[test]
    fn root_images(changes in changes(), headers in prop::collection::vec((any::<Index>(), value(), any::<bool>()), 0..4)) {
        let ram = changed(Ram::with(super::elf::LOAD, super::elf::good()), &changes);
        // The headers are a small part of the file.
        let mut ram = ram;
        let file = &mut ram.regions[0].1;
        let end = file.len().min(288);
        for (at, value, more) in headers {
            if more { add(&mut file[..end], at, 8, value) } else { set(&mut file[..end], at, 8, value) }
        }
        let len = file.len() as u64;
        match RootElf::parse(&ram, super::elf::LOAD, super::elf::LOAD + len) {
            Ok(elf) => for segment in elf.segments() {
                let pages = segment.pages.checked_mul(4096).unwrap();
                prop_assert!(segment.va % 4096 == 0 && segment.va.checked_add(pages).unwrap() <= ROOT_UTCB_ADDRESS);
                prop_assert!(segment.pa >= super::elf::LOAD && segment.pa + pages <= (super::elf::LOAD + len).next_multiple_of(4096));
            },
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        prop_assert!(ram.reads.get() < READS);
    }

    /// Nothing that makes sense, everywhere that a parser looks first.
    #[test]
    fn noise(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..400), pointer: bool) {
        let mut bytes = bytes;
        if pointer && bytes.len() >= 36 {
            bytes[..8].copy_from_slice(b"RSD PTR ");
        }
        let ram = repaired(Ram::with(0x9000, bytes.clone()).and(0x40e, bytes![0x900u16]));
        use_tables(&ram, Some(0x9000));
        let len = bytes.len() as u64;
        for parse in [multiboot2::parse as Parse, multiboot1::parse, pvh::parse] {
            let ram = Ram::with(0x9000, bytes.clone());
            use_information(&ram, read_by(parse, &ram, 0x9000));
        }
        prop_assert!(RootElf::parse(&ram, 0x9000, 0x9000 + len).is_err());
    }
}
