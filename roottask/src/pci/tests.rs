//! A configuration space of made-up functions.

use super::*;
use crate::frames::PhysRange;
use std::collections::BTreeMap;
use std::string::ToString;
use std::vec;

const PAGE: usize = 1024;

/// A function: its words, and which bits of them can be written.
#[derive(Clone)]
pub struct Fake {
    words: Vec<u32>,
    writable: Vec<u32>,
}

impl Fake {
    pub fn new(id: u32, class: u32) -> Self {
        let mut fake = Self { words: vec![0; PAGE], writable: vec![0; PAGE] };
        fake.words[0] = id;
        fake.words[1] = 1 << 20;
        fake.writable[1] = 0xffff;
        fake.words[2] = class << 8;
        fake
    }

    /// A BAR with flags in its low bits.
    pub fn bar(mut self, number: usize, value: u32, settable: u32) -> Self {
        self.words[4 + number] = value;
        self.writable[4 + number] = settable;
        self
    }

    /// A capability of `words` words, whose first has the next offset in bits 15:8.
    pub fn capability(mut self, offset: usize, words: &[u32]) -> Self {
        if self.words[13] == 0 {
            self.words[13] = offset as u32;
        }
        self.words[offset / 4..][..words.len()].copy_from_slice(words);
        self
    }

    pub fn header(mut self, kind: u32) -> Self {
        self.words[3] = kind << 16;
        self
    }

    pub fn bridge(mut self, secondary: u32, subordinate: u32) -> Self {
        self.words[6] = secondary << 8 | subordinate << 16;
        self.header(1)
    }
}

/// The space; writes are remembered in order.
#[derive(Default, Clone)]
pub struct Space {
    functions: BTreeMap<PciAddress, Fake>,
    written: Vec<(u16, u32)>,
    /// What a write to this word does to all others: the function forgets its addresses.
    reset_by: Option<(u16, u32)>,
}

impl Config for Space {
    fn read(&mut self, at: PciAddress, offset: u16) -> u32 {
        self.functions.get(&at).map_or(u32::MAX, |fake| fake.words[usize::from(offset) / 4])
    }

    fn write(&mut self, at: PciAddress, offset: u16, value: u32) {
        self.written.push((offset, value));
        let Some(fake) = self.functions.get_mut(&at) else { return };
        let word = usize::from(offset) / 4;
        fake.words[word] = fake.words[word] & !fake.writable[word] | value & fake.writable[word];
        if self.reset_by == Some((offset, value)) {
            (4..10).for_each(|bar| fake.words[bar] &= 0xf);
            fake.words[1] &= !0xffff;
        }
    }
}

pub fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(bus, device, function)
}

pub fn space(functions: impl IntoIterator<Item = (PciAddress, Fake)>) -> Space {
    Space { functions: functions.into_iter().collect(), ..Space::default() }
}

/// As QEMU's NVMe controller: 16 KiB at 0xfebd4000 by a 64-bit BAR, PCI Express with FLR, MSI-X.
pub fn nvme() -> Fake {
    Fake::new(0x0010_1b36, 0x01_08_02)
        .bar(0, 0xfebd_4004, 0xffff_c000)
        .bar(1, 0, u32::MAX)
        .capability(0x40, &[0x0040_8011, 0x2000, 0x3000])
        .capability(0x80, &[0x0092_6010, 1 << 28, 0])
        .capability(0x60, &[0x0003_0001, 8])
}

fn only(fake: Fake) -> Function {
    let found = enumerate(&mut space([(at(0, 4, 0), fake)]), 0);
    assert_eq!(found.len(), 1);
    found[0].clone()
}

#[test]
fn a_function_is_described() {
    let found = only(nvme());
    assert_eq!((found.vendor, found.device, found.class), (0x1b36, 0x0010, 0x01_08_02));
    let range = PhysRange::new(0xfebd_4000, 0xfebd_8000);
    assert_eq!(found.bars, [Some(Bar::Memory { range, prefetchable: false }), None, None, None, None, None]);
    let msix = MsiX { offset: 0x40, entries: 65, bar: 0, table: 0x2000 };
    assert_eq!((found.capabilities.msix, msix.length()), (Some(msix), 65 * 16));
    assert_eq!(found.capabilities.express, Some(Express { offset: 0x80, port: Port::Integrated, flr: true }));
    assert_eq!(found.capabilities.power_reset, None, "bit 3: no reset by D3hot");
    assert_eq!(describe(&found, 2).to_string(), "00:04.0 1b36:0010 NVMe, group 2, 65 MSI-X, FLR");
}

#[test]
fn looking_changes_nothing() {
    let mut space = space([(at(0, 4, 0), nvme())]);
    space.functions.get_mut(&at(0, 4, 0)).expect("is there").words[1] |= command::MEMORY | command::MASTER;
    let before = space.clone();
    enumerate(&mut space, 0);
    assert_eq!(space.functions[&at(0, 4, 0)].words, before.functions[&at(0, 4, 0)].words);
    // While a BAR holds ones, nothing is decoded.
    let ones = space.written.iter().position(|write| *write == (0x10, u32::MAX)).expect("was probed");
    assert_eq!(space.written[0], (4, command::MASTER));
    assert!(ones > 0 && space.written.last() == Some(&(4, command::MEMORY | command::MASTER)));
}

#[test]
fn bars_of_all_kinds() {
    let found = only(
        Fake::new(0x1234_8086, 0x02_00_00)
            .bar(0, 0xc000_000c, 0)
            .bar(1, 0x40, 0xffff_fffe)
            .bar(2, 0xe001, 0xffe0)
            .bar(3, 0xfebf_0000, 0xffff_f000)
            .bar(4, 0x6, 0xffff_f000)
            .bar(5, 0xfec0_0004, 0xffff_0000),
    );
    // 8 GiB, 64-bit and prefetchable, whose address is no multiple of that.
    assert_eq!(found.bars[0], None);
    assert_eq!(found.bars[2], Some(Bar::Io { base: 0xe000, count: 32 }));
    let range = PhysRange::new(0xfebf_0000, 0xfebf_1000);
    assert_eq!(found.bars[3], Some(Bar::Memory { range, prefetchable: false }));
    assert_eq!(found.bars[4..], [None, None], "a reserved kind, and 64 bits without a second register");
    let large = only(Fake::new(1, 0).bar(0, 0xc, 0).bar(1, 0x40, 0xffff_fffe));
    let range = PhysRange::new(0x40_0000_0000, 0x42_0000_0000);
    assert_eq!(large.bars[0], Some(Bar::Memory { range, prefetchable: true }));
    let unset = only(Fake::new(1, 0).bar(0, 0, 0xffff_f000).bar(1, 0x1000, 0xf0ff_f000));
    assert_eq!(unset.bars, [None; 6], "no address, and a size that is none");
}

#[test]
fn lists_without_an_end_are_left() {
    let loops = only(nvme().capability(0x60, &[0x4001, 0]));
    assert!(loops.capabilities.msix.is_some() && loops.capabilities.power_reset.is_some());
    let mut fake = nvme();
    fake.words[0x40] = 0x100 << 20 | 1 << 16 | 0x0f;
    assert!(only(fake).capabilities.ats);
    // Behind the space: nothing is read there.
    let at_the_end = only(Fake::new(1, 0).capability(0xfc, &[0x11]));
    assert_eq!(at_the_end.capabilities.msix.map(|msix| (msix.table, msix.entries)), Some((0, 1)));
}

/// A port of the root complex at device 1 with a device behind it, and a bridge that leads back.
pub fn behind_bridges() -> Space {
    let acs = |control: u32| [1 << 16 | 0x0d, control << 16];
    let port = |secondary, control| {
        Fake::new(0x0001_8086, 0x06_04_00)
            .bridge(secondary, 9)
            .capability(0x40, &[0x0042_0010, 0])
            .capability(0x100, &acs(control))
    };
    let device = || Fake::new(0x0002_8086, 0x02_00_00);
    space([
        (at(0, 0, 0), Fake::new(0x0003_8086, 0x06_00_00).bar(0, 0x8000_0000, 0xffff_0000)),
        (at(0, 1, 0), port(1, 0x1d)),
        (at(0, 2, 0), port(2, 0x1c)),
        (at(0, 31, 0), device().header(0x80)),
        (at(0, 31, 2), device()),
        (at(0, 31, 7), device()),
        (at(1, 0, 0), device()),
        (at(1, 1, 1), device()),
        (at(2, 0, 0), device()),
        (at(2, 1, 0), Fake::new(0x0004_8086, 0x06_04_00).bridge(0, 9)),
    ])
}

#[test]
fn bridges_are_followed() {
    let found = enumerate(&mut behind_bridges(), 0);
    let addresses: Vec<_> = found.iter().map(|function| (function.address.to_string(), function.above)).collect();
    let expected = [
        ("00:00.0", None),
        ("00:01.0", None),
        ("00:02.0", None),
        ("00:1f.0", None),
        ("00:1f.2", None),
        ("00:1f.7", None),
        ("01:00.0", Some(at(0, 1, 0))),
        ("02:00.0", Some(at(0, 2, 0))),
        ("02:01.0", Some(at(0, 2, 0))),
    ];
    assert_eq!(addresses, expected.map(|(address, above)| (address.to_string(), above)), "function 0 comes first");
    assert_eq!(found[0].bars, [None; 6], "those of a host bridge are not touched");
}

#[test]
fn groups_are_what_an_iommu_keeps_apart() {
    let found = enumerate(&mut behind_bridges(), 0);
    // The port at 2 does not validate who sends; device 31 has three functions; bus 1 is behind a port that isolates.
    assert_eq!(groups(&found), [0, 1, 2, 3, 3, 3, 4, 2, 2]);
}

#[test]
fn pages_of_others_are_seen() {
    let found =
        enumerate(&mut space([(at(0, 4, 0), nvme()), (at(0, 5, 0), nvme().bar(0, 0xfebd_8804, 0xffff_f800))]), 0);
    assert_eq!(shared_pages(&found, at(0, 4, 0), PhysRange::new(0xfebd_4000, 0xfebd_8000)), None);
    assert_eq!(shared_pages(&found, at(0, 4, 0), PhysRange::new(0xfebd_8000, 0xfebd_8100)), Some(at(0, 5, 0)));
    assert_eq!(shared_pages(&found, at(0, 5, 0), PhysRange::new(0xfebd_8000, 0xfebd_8100)), None);
}

#[test]
fn a_reset_keeps_the_addresses() {
    let mut fake = nvme();
    fake.writable[0x88 / 4] = 0x7fff;
    fake.words[1] |= command::MEMORY | command::MASTER;
    fake.writable[0x40 / 4] = MsiX::ENABLE | MsiX::MASK;
    fake.words[0x40 / 4] |= MsiX::ENABLE;
    let function = only(fake.clone());
    let mut space = space([(at(0, 4, 0), fake)]);
    space.reset_by = Some((0x88, 1 << 15));
    let mut waited = 0;
    assert_eq!(reset(&mut space, &function, |ms| waited += ms), Some(Reset::Function(0x80)));
    assert!((100..1000).contains(&waited));
    let words = &space.functions[&at(0, 4, 0)].words;
    assert_eq!((words[4], words[5]), (0xfebd_4004, 0));
    assert_eq!(words[1] & 0xffff, command::MEMORY | command::NO_PIN, "it sends nothing");
    assert_eq!(words[0x40 / 4] & MsiX::ENABLE, 0);
    let place = |offset| space.written.iter().position(|(written, _)| *written == offset);
    assert!(place(4) < place(0x88), "bus mastering goes first");
}

#[test]
fn what_cannot_be_reset_is_quiet_nevertheless() {
    let fake = Fake::new(1, 0);
    let function = only(fake.clone());
    let mut space = space([(at(0, 4, 0), fake)]);
    space.functions.get_mut(&at(0, 4, 0)).expect("is there").words[1] |= command::MASTER;
    assert_eq!(reset(&mut space, &function, |_| ()), None);
    assert_eq!(space.functions[&at(0, 4, 0)].words[1] & command::MASTER, 0);
    let power = only(Fake::new(1, 0).capability(0x40, &[1, 0]));
    assert_eq!(Reset::of(&power), Some(Reset::Power(0x40)));
}

#[test]
fn tables_of_configuration_space() {
    let mut mcfg = vec![0; 44];
    let entry = |base: u64, segment: u8, first: u8, last: u8| {
        let mut entry = base.to_le_bytes().to_vec();
        entry.extend([segment, 0, first, last, 0, 0, 0, 0]);
        entry
    };
    assert_eq!(Ecam::find(&mcfg), None);
    mcfg.extend(entry(0xa000_0000, 1, 0, 255));
    assert_eq!(Ecam::find(&mcfg), None, "another segment");
    mcfg.extend(entry(0xb000_0000, 0, 0, 15));
    let ecam = Ecam::find(&mcfg).expect("is there");
    assert_eq!(ecam.page(at(1, 2, 3)), Some(0xb011_3000));
    assert_eq!(ecam.page(at(16, 0, 0)), None);
    mcfg.truncate(70);
    assert_eq!(Ecam::find(&mcfg), None, "cut");
    assert_eq!(Ecam::find(&[0; 10]), None);
}
