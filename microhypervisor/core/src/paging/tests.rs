//! The walker against a map from page numbers, with what it wrote decoded as the processors' manuals say.

use super::*;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

type Page = (u64, Permissions, Cacheability);

/// Tables in a vector, with the number that may still be allocated.
struct Memory {
    tables: Vec<Option<(Vec<u64>, i32)>>,
    budget: usize,
    /// An entry was replaced that processors may have cached, and whether that was told.
    stale: bool,
    told: bool,
    /// Entries that were written, and are not yet flushed.
    dirty: BTreeSet<u64>,
    /// Bits of an entry that refers to a table.
    table_bits: u64,
}

const ROOT: u64 = 0x1000;

impl Memory {
    fn new(budget: usize, format: &Format) -> Self {
        let tables = vec![None, Some((vec![0; ENTRIES], 0))];
        let table_bits = format.table & 7;
        Self { tables, budget, stale: false, told: false, dirty: BTreeSet::new(), table_bits }
    }

    /// The end of a step.
    fn settle(&mut self) {
        assert_eq!(self.stale, self.told);
        assert!(self.dirty.is_empty(), "every change is told");
        (self.stale, self.told) = (false, false);
    }

    fn table(&self, table: u64) -> &(Vec<u64>, i32) {
        assert_eq!(table % 4096, 0);
        self.tables[table as usize / 4096].as_ref().expect("no use after free")
    }

    /// Calls `found(page, level, entry)` for each leaf, checks the counts and returns the number of tables.
    fn visit(&self, table: u64, level: u8, base: u64, found: &mut impl FnMut(u64, u8, u64)) -> usize {
        let (entries, live) = self.table(table);
        assert_eq!(entries.iter().filter(|&&entry| entry != 0).count(), *live as usize);
        assert!(*live != 0 || table == ROOT, "empty tables are freed");
        let mut count = 1;
        for (index, &entry) in entries.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let page = base + index as u64 * pages(level);
            if level == 0 || (level < 3 && entry & 0x80 != 0) {
                found(page, level, entry);
            } else {
                // Accesses are restricted by leaves only; reserved bits are zero.
                assert!(entry & 7 == self.table_bits && entry & 0xfff0_0000_0000_0f80 == 0);
                count += self.visit(entry & 0x000f_ffff_ffff_f000, level - 1, page, found);
            }
        }
        count
    }
}

impl Tables for Memory {
    fn alloc(&mut self) -> Option<u64> {
        self.budget = self.budget.checked_sub(1)?;
        self.tables.push(Some((vec![0; ENTRIES], 0)));
        Some((self.tables.len() as u64 - 1) * 4096)
    }

    fn free(&mut self, table: u64) {
        self.table(table);
        assert_ne!(table, ROOT);
        self.dirty.retain(|place| place & !0xfff != table);
        self.tables[table as usize / 4096] = None;
        self.budget += 1;
    }

    fn read(&self, place: u64) -> u64 {
        assert_eq!(place % 8, 0);
        self.table(place & !0xfff).0[place as usize % 4096 / 8]
    }

    fn write(&mut self, place: u64, entry: u64) {
        let old = self.read(place);
        self.stale |= old != 0 && old != entry;
        self.dirty.insert(place);
        self.tables[place as usize / 4096].as_mut().unwrap().0[place as usize % 4096 / 8] = entry;
    }

    fn changed(&mut self, first: u64, end: u64, taken: bool) {
        self.told |= taken;
        assert_eq!(first / 4096, (end - 1) / 4096, "of one table");
        self.dirty.retain(|place| !(first..end).contains(place));
    }

    fn fill(&mut self, table: u64, first: u64, step: u64) {
        (0..ENTRIES).for_each(|index| self.write(table + index as u64 * 8, first + index as u64 * step));
        // Whoever keeps the tables flushes what he fills.
        self.changed(table, table + 4096, false);
    }

    fn live(&mut self, place: u64, delta: i32) -> u32 {
        self.table(place & !0xfff);
        let live = &mut self.tables[place as usize / 4096].as_mut().unwrap().1;
        *live += delta;
        u32::try_from(*live).unwrap()
    }
}

/// (address, writable, executable, cacheability) as the processor sees a leaf; panics on reserved bits.
type Decode = fn(u64, u8) -> (u64, bool, bool, Cacheability);

fn decode_host(entry: u64, level: u8) -> (u64, bool, bool, Cacheability) {
    assert_eq!(entry & 5, 5, "present, user");
    let pat_bit = if level == 0 { 7 } else { 12 };
    let pat = (entry >> pat_bit & 1) << 2 | (entry >> 4 & 1) << 1 | entry >> 3 & 1;
    let cacheability = match pat {
        0 => Cacheability::WriteBack,
        1 => Cacheability::WriteThrough,
        3 => Cacheability::Uncacheable,
        4 => Cacheability::WriteCombining,
        5 => Cacheability::WriteProtected,
        _ => panic!("PAT entry {pat}"),
    };
    let mut address = entry & 0x000f_ffff_ffff_f000;
    if level != 0 {
        address &= !(1 << 12);
    }
    (address, entry & 2 != 0, entry >> 63 == 0, cacheability)
}

fn decode_ept(entry: u64, _level: u8) -> (u64, bool, bool, Cacheability) {
    assert_eq!(entry & 1, 1, "readable");
    assert_eq!(entry & 0xff00_0000_0000_0f00, 0);
    let cacheability = match entry >> 3 & 7 {
        0 => Cacheability::Uncacheable,
        1 => Cacheability::WriteCombining,
        4 => Cacheability::WriteThrough,
        5 => Cacheability::WriteProtected,
        6 => Cacheability::WriteBack,
        other => panic!("memory type {other}"),
    };
    (entry & 0x000f_ffff_ffff_f000, entry & 2 != 0, entry & 4 != 0, cacheability)
}

/// Second-level entries (VT-d specification 9.8): there is neither execution nor cacheability.
fn decode_dma(entry: u64, _level: u8) -> (u64, bool, bool, Cacheability) {
    assert_eq!(entry & 1, 1, "readable");
    // Reserved or ignored by some hardware: snooping, transient mappings.
    assert_eq!(entry & 0xff00_0000_0000_0f7c, 0);
    (entry & 0x000f_ffff_ffff_f000, entry & 2 != 0, false, Cacheability::WriteBack)
}

fn check(space: &Space, memory: &Memory, model: &BTreeMap<u64, Page>, decode: Decode) {
    let mut seen = 0;
    let tables = memory.visit(ROOT, space.format.root_level, 0, &mut |page, level, entry| {
        assert!(level <= space.leaf_level);
        let (address, write, execute, cacheability) = decode(entry, level);
        assert_eq!(address % (pages(level) * 4096), 0);
        for offset in 0..pages(level) {
            let (pa, permissions, ca) = model[&(page + offset)];
            assert_eq!((address + offset * 4096, cacheability), (pa, ca));
            assert_eq!(write, permissions.contains(Permissions::WRITE));
            let executes = space.format.rights[0] != space.format.rights[4];
            assert_eq!(execute, executes && permissions.bits() >= 4);
        }
        seen += pages(level);
    });
    assert_eq!(seen, model.len() as u64);
    assert_eq!(tables, memory.tables.iter().flatten().count(), "no table is lost");
}

#[derive(Clone, Debug)]
struct Op {
    page: u64,
    frame: u64,
    count: u64,
    permissions: Permissions,
    cacheability: Cacheability,
}

fn op() -> impl Strategy<Value = Op> {
    // Three small windows at far-apart addresses, each across a border of large pages; aligned ranges now and then.
    let page = (prop::sample::select(&[0u64, (1 << 18) - 1024, (1 << 35) - 1024][..]), 0..2048u64);
    let alignment = prop_oneof![Just(0u32), Just(4), Just(9)];
    let permissions = prop_oneof![1 => Just(0u8), 3 => 0..32u8];
    (page, 0..4096u64, 1..1200u64, alignment, permissions, 0..5u32).prop_map(
        |((base, page), frame, count, alignment, permissions, ca)| Op {
            page: base + (page >> alignment << alignment),
            frame: frame >> alignment << alignment,
            count: (count >> alignment << alignment).max(1),
            permissions: Permissions::from_bits_truncate(permissions),
            cacheability: Cacheability::from_bits(ca).unwrap(),
        },
    )
}

fn agrees_with_map(format: &'static Format, leaf_level: u8, budget: usize, ops: Vec<Op>, decode: Decode) {
    let space = Space::new(format, ROOT, leaf_level);
    let mut memory = Memory::new(budget, format);
    let mut model: BTreeMap<u64, Page> = BTreeMap::new();
    for Op { page, frame, count, permissions, cacheability } in ops {
        let (mut done, mut splits) = (0, 0);
        while done < count {
            let (va, pa) = ((page + done) << 12, (frame + done) << 12);
            let step = space
                .map_step(&mut memory, &Piece { va, pa, count: count - done, permissions, cacheability, kept: false });
            memory.settle();
            match step {
                Ok(step) => {
                    splits = if step == 0 { splits + 1 } else { 0 };
                    assert!(splits <= 2 && step <= count - done);
                    let stored = permissions & PERMISSIONS;
                    for offset in 0..step {
                        model.remove(&(page + done + offset));
                        if !stored.is_empty() {
                            model.insert(page + done + offset, (pa + offset * 4096, stored, cacheability));
                        }
                    }
                    done += step;
                }
                Err(error) => {
                    assert_eq!(error, Status::MemCap);
                    assert!(memory.budget < 3, "a step never needs more than three tables");
                    break;
                }
            }
        }
        check(&space, &memory, &model, decode);
        for page in (page.saturating_sub(2)..page + count + 2).step_by(97) {
            let (leaf, run) = space.lookup_run(&memory, page, count);
            let found = (!leaf.permissions.is_empty()).then_some((leaf.address, leaf.permissions, leaf.cacheability));
            assert_eq!(found, model.get(&page).copied());
            for offset in 1..run.min(1500) {
                let expected = found.map(|(pa, permissions, ca)| (pa + offset * 4096, permissions, ca));
                assert_eq!(model.get(&(page + offset)).copied(), expected);
            }
        }
    }
    // Destruction: all steps together take all tables.
    let mut done = 0;
    while done < space.format.pages {
        let step = space.map_step(&mut memory, &Piece::unmap(done << 12, space.format.pages - done));
        done += step.expect("clearing everything needs no table");
    }
    assert_eq!((memory.tables.iter().flatten().count(), memory.budget), (1, budget));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn host_agrees_with_map(leaf_level in 0..3u8, budget in prop_oneof![Just(100usize), 0..12usize], ops in prop::collection::vec(op(), 0..12)) {
        agrees_with_map(&HOST, leaf_level, budget, ops, decode_host);
    }

    #[test]
    fn ept_agrees_with_map(leaf_level in 0..3u8, budget in prop_oneof![Just(100usize), 0..12usize], ops in prop::collection::vec(op(), 0..12)) {
        agrees_with_map(&EPT, leaf_level, budget, ops, decode_ept);
    }

    #[test]
    fn dma_agrees_with_map(four in any::<bool>(), leaf_level in 0..3u8, budget in prop_oneof![Just(100usize), 0..12usize], ops in prop::collection::vec(op(), 0..12)) {
        let ops = ops.into_iter().map(|op| {
            let page = if four { op.page } else { op.page % (1 << 26) };
            Op { page, cacheability: WB, ..op }
        });
        agrees_with_map(&DMA[usize::from(four)], leaf_level, budget, ops.collect(), decode_dma);
    }
}

fn level(space: &Space, memory: &Memory, va: u64) -> u8 {
    space.descend(memory, va >> 12, false).1
}

const ALL: Permissions = abi::capability::MEMORY_ALL;
const WB: Cacheability = Cacheability::WriteBack;

fn piece(va: u64, pa: u64, count: u64, permissions: Permissions) -> Piece {
    Piece { va, pa, count, permissions, cacheability: WB, kept: false }
}

#[test]
fn large_pages_are_used_split_and_replaced() {
    let space = Space::new(&EPT, ROOT, 2);
    let mut memory = Memory::new(100, &HOST);
    let gib = 1u64 << 30;
    assert_eq!(space.map_step(&mut memory, &piece(gib, 4 * gib, 1 << 18, ALL)), Ok(1 << 18));
    let leaf = |address| Leaf { address, permissions: ALL, cacheability: WB };
    let lookup = |memory: &Memory, va: u64| space.lookup_run(memory, va >> 12, 1);
    assert_eq!(lookup(&memory, gib + 0x5000), (leaf(4 * gib + 0x5000), (1 << 18) - 5));
    assert_eq!(lookup(&memory, 0).1, 1 << 18);
    // One page less: 511 leaves of 2 MiB and 511 of 4 KiB remain, after two splits.
    for done in [0, 0, 1] {
        assert_eq!(space.map_step(&mut memory, &piece(gib + 0x5000, 0, 1, Permissions::empty())), Ok(done));
    }
    assert_eq!(memory.tables.iter().flatten().count(), 4);
    assert_eq!(lookup(&memory, gib + 0x5000).0.permissions, Permissions::empty());
    assert_eq!((lookup(&memory, gib + 0x6000).0, level(&space, &memory, gib + 0x6000)), (leaf(4 * gib + 0x6000), 0));
    assert_eq!(
        (lookup(&memory, gib + 0x200000).0, level(&space, &memory, gib + 0x200000)),
        (leaf(4 * gib + 0x200000), 1)
    );
    // Back to leaves of 2 MiB: the table below goes.
    assert_eq!(space.map_step(&mut memory, &piece(gib, 4 * gib, 1 << 18, ALL)), Ok(1 << 9));
    assert_eq!(level(&space, &memory, gib + 0x5000), 1);
    assert_eq!(memory.tables.iter().flatten().count(), 3);
    // Aligned differently: no large leaf is possible.
    for done in [0, STEP] {
        assert_eq!(space.map_step(&mut memory, &piece(gib, 4 * gib + 0x1000, 1 << 18, ALL)), Ok(done));
    }
}

#[test]
fn failed_steps_change_nothing() {
    for budget in 0..3 {
        let space = Space::new(&HOST, ROOT, 2);
        let mut memory = Memory::new(budget, &HOST);
        assert_eq!(space.map_step(&mut memory, &piece(0x1000, 0x1000, 1, ALL)), Err(Status::MemCap));
        assert_eq!((memory.budget, memory.tables.iter().flatten().count()), (budget, 1));
    }
}

#[test]
fn ranges_are_checked() {
    let space = Space::new(&HOST, ROOT, 2);
    let mut memory = Memory::new(100, &HOST);
    let mut step = |va, pa, count, permissions| space.map_step(&mut memory, &piece(va, pa, count, permissions));
    assert_eq!(step(1 << 48, 0, 1, ALL), Err(Status::BadPar));
    assert_eq!(step((1 << 48) - 4096, 0, 2, ALL), Err(Status::BadPar));
    assert_eq!(step(u64::MAX, u64::MAX, u64::MAX, ALL), Err(Status::BadPar));
    assert_eq!(step(0, 1 << 52, 1, ALL), Err(Status::BadPar));
    assert_eq!(step(0, 0, 0, ALL), Ok(0));
    assert_eq!(step((1 << 48) - 4096, (1 << 52) - 4096, 1, ALL), Ok(1));
    assert_eq!(step((1 << 48) - 4096, u64::MAX, 1, Permissions::empty()), Ok(1));
    assert_eq!(step(0, 0, 1 << 36, Permissions::empty()), Ok(1 << 27));
    let (leaf, run) = space.lookup_run(&memory, 1 << 36, 1);
    assert_eq!((leaf.address, leaf.permissions, run), (0, Permissions::empty(), 1));
}

#[test]
fn what_is_kept_is_mapped_but_gives_nothing() {
    let space = Space::new(&HOST, ROOT, 2);
    let mut memory = Memory::new(100, &HOST);
    let kept = Piece { kept: true, ..piece(0x5000, 0x8000, 1, ALL) };
    assert_eq!(space.map_step(&mut memory, &kept), Ok(1));
    let (place, level) = space.descend(&memory, 5, false);
    assert_eq!((level, decode_host(memory.read(place), 0)), (0, (0x8000, true, true, WB)));
    let leaf = space.lookup_run(&memory, 5, 1).0;
    assert_eq!((leaf.address, leaf.permissions), (0x8000, Permissions::empty()));
    // A page of the program's own behind it is another piece.
    assert_eq!(space.map_step(&mut memory, &piece(0x6000, 0x9000, 1, ALL)), Ok(1));
    assert_eq!(space.lookup_run(&memory, 5, 9).1, 1);
    // What is unmapped as the kernel's own must be that page.
    let unmap = |va, pa| Piece { pa, kept: true, ..Piece::unmap(va, 1) };
    for other in [unmap(0x5000, 0x9000), unmap(0x7000, 0x8000), unmap(1 << 40, 0x8000)] {
        assert_eq!(space.map_step(&mut memory, &other), Ok(1));
    }
    assert_eq!(space.lookup_run(&memory, 5, 1).0.address, 0x8000);
    assert_eq!(space.map_step(&mut memory, &unmap(0x5000, 0x8000)), Ok(1));
    assert_eq!(space.lookup_run(&memory, 5, 1).0.address, 0);
    assert_eq!(space.map_step(&mut memory, &kept), Ok(1));
    assert_eq!(space.map_step(&mut memory, &Piece::unmap(0x5000, 2)), Ok(2));
    assert!(memory.tables[place as usize / 4096].is_none(), "the table goes with its last page");
}
