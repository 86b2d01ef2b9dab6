//! A function of made-up registers, and what a guest does with it.

extern crate std;

use super::*;
use crate::backplane::Route;
use crate::lapic::ApicMode;
use proptest::prelude::*;
use std::sync::{Arc as Shared, Mutex};

/// What was done to the function.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Done {
    Map(usize, Range<u64>, u64),
    Unmap(Range<u64>, u64),
    Allow(bool),
    Reset,
    Write(usize, u64, u64),
}

struct Fake {
    words: [u32; 64],
    lengths: [u64; BARS],
    interrupts: u16,
    done: Shared<Mutex<Vec<Done>>>,
}

impl Hardware for Fake {
    fn config(&self, offset: u16) -> u32 {
        self.words[usize::from(offset) / 4]
    }
    fn length(&self, bar: usize) -> u64 {
        self.lengths[bar]
    }
    fn interrupts(&self) -> u16 {
        self.interrupts
    }
    fn read(&self, bar: usize, offset: u64, _: Width) -> u64 {
        (bar as u64) << 32 | offset
    }
    fn write(&self, bar: usize, offset: u64, _: Width, value: u64) {
        self.done.lock().unwrap().push(Done::Write(bar, offset, value));
    }
    fn map(&mut self, bar: usize, pages: Range<u64>, gpa: u64) {
        self.done.lock().unwrap().push(Done::Map(bar, pages, gpa));
    }
    fn unmap(&mut self, pages: Range<u64>, gpa: u64) {
        self.done.lock().unwrap().push(Done::Unmap(pages, gpa));
    }
    fn allow(&mut self, requests: bool) {
        self.done.lock().unwrap().push(Done::Allow(requests));
    }
    fn reset(&mut self) {
        self.done.lock().unwrap().push(Done::Reset);
    }
}

/// A wide BAR 0 of 32 KiB with the table on its third page and the pending bits on its fifth, and a BAR 2 of 256 bytes.
/// Behind the header: MSI, power management, VPD, MSI-X with ten entries, PCI Express.
fn fake() -> Fake {
    let mut words = [0; 64];
    (words[0], words[1], words[2]) = (0x10d3_8086, 0x0010_0007, 0x0200_0001);
    (words[4], words[5], words[6]) = (0xfeb0_000c, 0x10, 0xfeb1_0000);
    (words[11], words[12], words[13], words[15]) = (0x0001_8086, 0xfff0_0001, 0x40, 0x10b);
    (words[16], words[17]) = (0x0080_5005, 0xfee0_0000);
    (words[20], words[21]) = (0x0003_5801, 0);
    (words[22], words[23]) = (0x0000_6003, 0);
    (words[24], words[25], words[26]) = (0x8009_7011, 0x2000, 0x4000);
    (words[28], words[29]) = (0x0002_0010, 0x1000_8fc2);
    let lengths = [0x8000, 0, 0x100, 0, 0, 0];
    Fake { words, lengths, interrupts: 3, done: Shared::default() }
}

struct Bench {
    function: Passthrough<Fake>,
    done: Shared<Mutex<Vec<Done>>>,
    backplane: Arc<Backplane>,
}

impl Bench {
    fn new() -> Self {
        let fake = fake();
        let done = fake.done.clone();
        let backplane = Arc::new(Backplane::new(1));
        backplane.publish(0, Route { mode: ApicMode::Xapic, takes_vectors: true, clustered: false, logical: 0 });
        let mut function = Passthrough::new(fake, backplane.clone());
        function.place(0, 0xc000_0000);
        function.place(2, 0xc001_0000);
        Self { function, done, backplane }
    }

    fn done(&self) -> Vec<Done> {
        core::mem::take(&mut *self.done.lock().unwrap())
    }

    fn word(&mut self, at: u16) -> u32 {
        self.function.read_config(at, Width::Dword)
    }

    fn set(&mut self, at: u16, width: Width, value: u32) -> Vec<Done> {
        self.function.write_config(at, width, value);
        self.done()
    }

    /// Where a capability is.
    fn capability(&mut self, id: u8) -> Option<u16> {
        let mut at = self.word(0x34) as u16 & 0xff;
        while at != 0 {
            let head = self.word(at);
            if head as u8 == id {
                return Some(at);
            }
            at = (head >> 8) as u16 & 0xff;
        }
        None
    }

    /// Vectors that came.
    fn came(&self) -> Vec<usize> {
        let Some(mail) = self.backplane.collect(0) else { return Vec::new() };
        (0..256).filter(|vector| mail.vectors[vector / 32] >> (vector % 32) & 1 != 0).collect()
    }
}

#[test]
fn what_is_unsafe_is_hidden() {
    let mut bench = Bench::new();
    assert_eq!((bench.word(0x00), bench.word(0x08), bench.word(0x2c)), (0x10d3_8086, 0x0200_0001, 0x0001_8086));
    assert_eq!((bench.word(0x30), bench.word(0x3c)), (0, 0), "neither ROM nor pin");
    let found = [0x01, 0x03, 0x05, 0x10, 0x11].map(|id| bench.capability(id).is_some());
    assert_eq!(found, [true, false, false, true, true], "VPD and MSI are hidden");
    let msix = bench.capability(0x11).unwrap();
    assert_eq!((bench.word(msix) >> 16, bench.word(msix + 4), bench.word(msix + 8)), (2, 0x2000, 0x4000));
    let express = bench.capability(0x10).unwrap();
    assert_eq!((bench.word(express) >> 16, bench.word(express + 4)), (0x92, 0x1000_8002));
}

#[test]
fn registers_are_mapped_where_the_guest_wants_them_but_for_the_messages() {
    let mut bench = Bench::new();
    let pages = [0..0x2000, 0x3000..0x4000, 0x5000..0x8000];
    let maps = |base: u64| pages.clone().map(|piece| Done::Map(0, piece.clone(), base + piece.start));
    let unmaps = |base: u64| pages.clone().map(|piece| Done::Unmap(piece.clone(), base + piece.start));
    assert_eq!(bench.set(0x04, Width::Word, 2), maps(0xc000_0000));
    assert_eq!(bench.set(0x10, Width::Dword, 0xc100_0000), [unmaps(0xc000_0000), maps(0xc100_0000)].concat());
    // Over RAM, over configuration space, and over the LAPIC nothing is mapped.
    assert_eq!(bench.set(0x10, Width::Dword, 0x10_0000), unmaps(0xc100_0000));
    for elsewhere in [0xe000_0000, 0xfee0_0000, u32::MAX] {
        assert_eq!(bench.set(0x10, Width::Dword, elsewhere), [], "{elsewhere:#x}");
    }
    assert_eq!(bench.set(0x10, Width::Dword, 0), []);
    assert_eq!(bench.set(0x14, Width::Dword, 0x40), maps(HIGH_MEMORY));
    assert_eq!(bench.set(0x04, Width::Word, 0), unmaps(HIGH_MEMORY));
}

#[test]
fn small_registers_are_reached_by_exits_and_end_where_they_end() {
    let mut bench = Bench::new();
    assert_eq!(bench.function.sizes()[2], 0x1000);
    assert_eq!(bench.function.read(2, 0xfc, Width::Dword), 2 << 32 | 0xfc);
    assert_eq!(bench.function.read(2, 0xfd, Width::Dword), 0xffff_ffff);
    bench.function.write(2, 0xf8, Width::Qword, 7);
    bench.function.write(2, 0x100, Width::Byte, 7);
    assert_eq!(bench.done(), [Done::Write(2, 0xf8, 7)]);
}

#[test]
fn messages_become_the_guests() {
    let mut bench = Bench::new();
    let msix = bench.capability(0x11).unwrap();
    for (offset, value) in [(0x2010, 0xfee0_0000), (0x2014, 0), (0x2018, 0x51), (0x201c, 0)] {
        bench.function.write(0, offset, Width::Dword, value);
    }
    bench.function.interrupt(1);
    assert_eq!(bench.came(), [] as [usize; 0], "MSI-X is off");
    assert_eq!(bench.set(msix + 2, Width::Word, 0x8000), []);
    bench.function.interrupt(1);
    assert_eq!(bench.came(), [] as [usize; 0], "it may send nothing");
    assert_eq!(bench.set(0x04, Width::Word, 4), [Done::Allow(true)]);
    bench.function.interrupt(1);
    assert_eq!(bench.came(), [0x51]);
    // Masked, it waits, and shows.
    bench.function.write(0, 0x201c, Width::Dword, 1);
    bench.function.interrupt(1);
    assert_eq!((bench.came(), bench.function.read(0, 0x4000, Width::Dword)), (Vec::new(), 2));
    bench.function.write(0, 0x201c, Width::Dword, 0);
    assert_eq!(bench.came(), [0x51]);
    assert_eq!(bench.set(0x04, Width::Word, 0), [Done::Allow(false)]);
    assert_eq!(bench.done(), [], "the table was never the function's own");
}

#[test]
fn the_page_of_the_table_is_not_written() {
    let mut bench = Bench::new();
    // Entries that the guest does not have, and what is behind the table.
    for offset in [0x2030, 0x2090, 0x20a0, 0x2ffc, 0x4000] {
        bench.function.write(0, offset, Width::Dword, 0xfee0_0000);
    }
    assert_eq!(bench.done(), []);
    assert_eq!(bench.function.read(0, 0x2030, Width::Dword), 0);
    bench.function.write(0, 0x4008, Width::Dword, 5);
    assert_eq!(bench.done(), [Done::Write(0, 0x4008, 5)], "behind the pending bits");
}

#[test]
fn a_reset_leaves_nothing() {
    for machine in [false, true] {
        let mut bench = Bench::new();
        let (express, msix) = (bench.capability(0x10).unwrap(), bench.capability(0x11).unwrap());
        bench.set(0x04, Width::Word, 6);
        bench.set(msix + 2, Width::Word, 0x8000);
        bench.function.write(0, 0x200c, Width::Dword, 0);
        assert_eq!(bench.set(express + 8, Width::Word, 0x7fff), [], "all but the reset");
        match machine {
            true => bench.function.reset(),
            false => bench.function.write_config(express + 8, Width::Dword, 0x8000),
        }
        let done = bench.done();
        assert_eq!((done.len(), done.last()), (4, Some(&Done::Reset)), "unmapped first: {done:?}");
        assert_eq!((bench.word(0x04) as u16, bench.word(0x10), bench.word(msix) >> 16), (0, 0xc000_000c, 2));
        assert_eq!(bench.function.read(0, 0x200c, Width::Dword), 1);
        assert_eq!(bench.word(express + 8), 0);
    }
}

#[test]
fn a_broken_capability_is_none() {
    let mut words = fake();
    // The table leaves its register; the list leads back to itself.
    words.words[25] = 0x7ff8;
    words.words[28] = 0x0002_7010;
    let mut bench = Bench::new();
    bench.function = Passthrough::new(words, bench.backplane.clone());
    assert_eq!(bench.capability(0x11), None);
    assert!(bench.capability(0x10).is_some());
}

proptest! {
    /// Whatever the guest writes: what is mapped is what was not unmapped, and the table's page never is.
    #[test]
    fn a_guest_reaches_only_its_registers(writes in prop::collection::vec((0u16..256, 0usize..3, any::<u32>()), 0..60)) {
        let mut bench = Bench::new();
        let mut mapped: Vec<(Range<u64>, u64)> = Vec::new();
        for (register, width, value) in writes {
            let width = [Width::Byte, Width::Word, Width::Dword][width];
            bench.function.write_config(register & !(width.bytes() as u16 - 1), width, value);
            for done in bench.done() {
                match done {
                    Done::Map(bar, pages, gpa) => {
                        prop_assert!(bar == 0 && !pages.contains(&0x2000) && !pages.contains(&0x4000));
                        prop_assert!(is_in_window(gpa, pages.end - pages.start));
                        mapped.push((pages, gpa));
                    }
                    Done::Unmap(pages, gpa) => {
                        let index = mapped.iter().position(|piece| *piece == (pages.clone(), gpa));
                        prop_assert!(index.is_some());
                        mapped.remove(index.unwrap());
                    }
                    _ => {}
                }
            }
            prop_assert!(mapped.is_empty() || mapped.len() == 3);
        }
    }
}
