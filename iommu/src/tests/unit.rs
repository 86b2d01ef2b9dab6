//! A unit's life: found, taken over, told what to forget, asked for faults; and what devices reach, whatever the order.

use std::collections::BTreeMap;
use std::vec::Vec;

use abi::capability::{Cacheability, Permissions};
use kernel_core::paging::{DMA, Piece, Space, Tables};
use proptest::prelude::*;

use super::model::Model;
use crate::dmar::UnitAt;
use crate::entry::*;
use crate::{Abilities, Unit};

/// Three and four levels, 2 MiB leaves, 2^16 domains; fault records at 0x200, two of them.
const CAPABILITY: u64 = 6 << 8 | 1 << 34 | 6 | 0x20 << 24 | 1 << 40 | 47 << 16;
/// Queue, interrupts, x2APIC.
const EXTENDED: u64 = 1 << 1 | 1 << 3 | 1 << 4;
const AT: UnitAt = UnitAt { address: 0xfed9_0000, segment: 0 };
const ROOT: u64 = 0x1000;
const QUEUE: u64 = 0x2000;
const INTERRUPTS: u64 = 0x3000;

fn model(capability: u64, extended: u64) -> Model {
    let model = Model::default();
    model.set(0, 0x10);
    for (register, value) in [(0x08, capability), (0x10, extended)] {
        model.set(register, value as u32);
        model.set(register + 4, (value >> 32) as u32);
    }
    model
}

fn find(model: &Model) -> Result<Unit<&Model>, &'static str> {
    Unit::find(model, AT, 0x1000)
}

fn started(model: &Model) -> Unit<&Model> {
    let mut unit = find(model).unwrap();
    unit.start(ROOT, QUEUE, Some((INTERRUPTS, true))).unwrap();
    unit
}

#[test]
fn abilities() {
    let one = Abilities::of(CAPABILITY, EXTENDED);
    assert_eq!((one.depth(), one.leaf(), one.domains()), (4, 1, 1 << 16));
    assert!(!one.coherent() && !one.must_be_told() && one.interrupts(true) && one.interrupts(false));
    let leaves = |bits: u64| Abilities::of(bits << 34, 0).leaf();
    assert_eq!([leaves(0), leaves(1), leaves(2), leaves(3)], [0, 1, 0, 2]);
    let depth = |sagaw: u64| Abilities::of(sagaw << 8, 0).depth();
    // Bits 1, 2, 3: 39, 48, 57 bits. Five levels alone are of no use.
    assert_eq!([0, 2, 4, 6, 8, 12, 14].map(depth), [0, 3, 4, 4, 0, 4, 4]);
    for bit in [4, 7] {
        assert!(Abilities::of(CAPABILITY | 1 << bit, EXTENDED).must_be_told());
        let common = one.common(Abilities::of(CAPABILITY | 1 << bit, EXTENDED));
        assert!(common.must_be_told() && Abilities::ALL.common(common) == common);
    }
    let other = Abilities::of(2 << 8 | 5, 1 << 1 | 1 << 3 | 1);
    let common = one.common(other);
    assert_eq!((common.depth(), common.leaf(), common.domains()), (3, 0, 1 << 12));
    assert!(!common.coherent() && !common.interrupts(true) && common.interrupts(false));
    assert!(Abilities::ALL.common(other).coherent());
}

#[test]
fn units_that_cannot_be_used() {
    assert_eq!(find(&model(u64::MAX, u64::MAX)).err().unwrap(), "its registers read all ones");
    let gone = model(CAPABILITY, EXTENDED);
    gone.set(0, u32::MAX);
    assert_eq!(find(&gone).err().unwrap(), "its registers read all ones");
    let useless = "it has no queue of invalidations, or its records of faults are too far away";
    assert_eq!(find(&model(CAPABILITY, EXTENDED & !2)).err().unwrap(), useless);
    assert_eq!(find(&model(CAPABILITY | 0xff << 24, EXTENDED)).err().unwrap(), useless);
    assert!(find(&model(CAPABILITY, EXTENDED)).is_ok());
}

#[test]
fn it_is_turned_on() {
    let model = model(CAPABILITY, EXTENDED);
    started(&model);
    assert_eq!(model.get(0x1c) & (1 << 31 | 1 << 26 | 1 << 25), 1 << 31 | 1 << 26 | 1 << 25);
    assert_eq!((model.root.get(), model.interrupts.get()), (ROOT, INTERRUPTS | 1 << 11 | 7));
    // Compatibility format is never allowed.
    assert!(model.log.borrow().iter().all(|(register, value)| *register != 0x18 || value & 1 << 23 == 0));
    assert_eq!(model.access(0x10, 0, false), None);
}

#[test]
fn what_the_firmware_left_on_is_taken_over() {
    let model = model(CAPABILITY, EXTENDED);
    for (register, value) in [(0x20, 0x9000), (0x90, 0xa000), (0x88, 0x40), (0x80, 0x40), (0xb8, 0xb000)] {
        model.set(register, value);
    }
    model.root.set(0x9000);
    // Everything, compatibility format too, and protected memory.
    model.set(0x1c, 0xd780_0000);
    model.set(0x64, 1 << 31);
    started(&model);
    assert_eq!(model.get(0x1c) & 0xff80_0000, 0xc700_0000);
    assert_eq!((model.root.get(), model.interrupts.get() & !0xfff, model.get(0x64)), (ROOT, INTERRUPTS, 0));
    // Translation was on all the time.
    assert!(model.log.borrow().iter().all(|(register, value)| *register != 0x18 || value >> 31 != 0));
    // But not with tables of another kind.
    let model = self::model(CAPABILITY, EXTENDED);
    model.set(0x20, 0x9400);
    model.set(0x1c, 0xc000_0000);
    started(&model);
    assert!(model.log.borrow().contains(&(0x18, 0)));
}

#[test]
fn commands_that_are_not_taken_are_told() {
    for (bit, interrupts) in [(31, false), (30, false), (26, false), (25, true), (24, true)] {
        let model = model(CAPABILITY, EXTENDED);
        model.deaf.set(1 << bit);
        let mut unit = find(&model).unwrap();
        let result = unit.start(ROOT, QUEUE, interrupts.then_some((INTERRUPTS, false)));
        assert_eq!(result, Err("it does not take commands"), "bit {bit}");
    }
    let busy = model(CAPABILITY, EXTENDED);
    busy.set(0x1c, 1 << 26);
    busy.set(0x88, 0x10);
    assert_eq!(find(&busy).unwrap().start(ROOT, QUEUE, None), Err("its queue of before does not end"));
}

#[test]
fn a_queue_that_stops_is_noticed_and_not_used_again() {
    let model = model(CAPABILITY, EXTENDED);
    let mut unit = started(&model);
    for _ in 0..1000 {
        // Round and round.
        assert_eq!(unit.forget(&[FORGET_CONTEXTS, forget_domain(7)]), Ok(()));
    }
    model.stuck.set(true);
    assert_eq!(unit.forget(&[FORGET_CONTEXTS]), Err("its queue does not answer"));
    model.stuck.set(false);
    let written = model.log.borrow().len();
    assert_eq!(unit.forget(&[FORGET_CONTEXTS]), Err("its queue does not answer"));
    assert_eq!(model.log.borrow().len(), written);
}

#[test]
fn faults_are_collected_before_more_are_announced() {
    let model = model(CAPABILITY, EXTENDED);
    let unit = started(&model);
    let record = |at: u32, page: u32, reason: u32| {
        [page, 0, 0x10, 1 << 31 | reason].into_iter().zip((at..).step_by(4)).for_each(|(word, at)| model.set(at, word));
    };
    record(0x200, 0x1000, 5);
    unit.announce_faults(0xfee0_1000 | 0x200 << 32, 0xd8);
    // What was there before is gone.
    assert_eq!([0x38, 0x3c, 0x40, 0x44, 0x20c].map(|register| model.get(register)), [0, 0xd8, 0xfee0_1000, 0x200, 5]);
    unit.mask_faults();
    record(0x200, 0x1000, 5);
    record(0x210, 0x2000, 6);
    model.set(0x34, 1);
    let mut found = Vec::new();
    while let Some((told, address)) = unit.next_fault() {
        assert_eq!(model.get(0x38) >> 31, 1, "masked as long as there are any");
        found.push((told, address));
    }
    assert_eq!(found, [(0x5_0010, 0x1000), (0x6_0010, 0x2000)]);
    assert_eq!((model.get(0x34), model.get(0x38)), (0, 0));
}

/// Tables of a space in the model's memory.
struct Frames<'a> {
    model: &'a Model,
    next: u64,
    live: BTreeMap<u64, i32>,
    taken: bool,
    /// Not to be used before the next invalidation.
    freed: Vec<u64>,
}

impl Tables for Frames<'_> {
    fn alloc(&mut self) -> Option<u64> {
        self.next += 0x1000;
        Some(self.next)
    }
    fn free(&mut self, table: u64) {
        self.freed.push(table);
    }
    fn read(&self, place: u64) -> u64 {
        self.model.entry(place & !0xfff, place as usize % 4096 / 8)
    }
    fn write(&mut self, place: u64, entry: u64) {
        self.model.put(place & !0xfff, place as usize % 4096 / 8, entry);
    }
    fn changed(&mut self, _first: u64, _end: u64, taken: bool) {
        self.taken |= taken;
    }
    fn fill(&mut self, table: u64, first: u64, step: u64) {
        (0..512).for_each(|index| self.write(table + index * 8, first + index * step));
    }
    fn live(&mut self, place: u64, delta: i32) -> u32 {
        let live = self.live.entry(place & !0xfff).or_default();
        *live += delta;
        *live as u32
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, frame: u64, count: u64, write: bool },
    Unmap { page: u64, count: u64 },
    Access { page: u64, write: bool },
    Assign { other: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = || prop_oneof![0..16u64, 500..530u64, 1020..1030u64];
    let count = || prop_oneof![Just(1u64), Just(8), Just(512)];
    let step = prop_oneof![
        (page(), 0..2048u64, count(), any::<bool>()).prop_map(|(page, frame, count, write)| {
            let aligned = |number: u64| number / count * count;
            Step::Map { page: aligned(page), frame: aligned(frame), count, write }
        }),
        (page(), count()).prop_map(|(page, count)| Step::Unmap { page: page / count * count, count }),
        (page(), any::<bool>()).prop_map(|(page, write)| Step::Access { page, write }),
        (page(), any::<bool>()).prop_map(|(page, write)| Step::Access { page, write }),
        any::<bool>().prop_map(|other| Step::Assign { other }),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Mapping, taking away and moving a device, with the invalidations that the kernel makes: what the device reaches is
    /// at every moment what the space holds that it is assigned to.
    #[test]
    fn devices_reach_what_their_space_holds(steps in steps(), caching: bool, four: bool) {
        const DEVICE: u16 = 0x10;
        const CONTEXTS: u64 = 0x4000;
        let told = if caching { 1 << 7 } else { 0 };
        let model = model(CAPABILITY | told, EXTENDED);
        model.caching.set(caching);
        let mut unit = started(&model);
        let abilities = unit.abilities;
        model.put(ROOT, 0, root(CONTEXTS)[0]);
        let mut frames =
            Frames { model: &model, next: 0x10_0000, live: BTreeMap::new(), taken: false, freed: Vec::new() };
        let roots = [0x5000, 0x6000];
        let spaces = roots.map(|root| Space::new(&DMA[usize::from(four)], root, abilities.leaf()));
        let mut held: [BTreeMap<u64, (u64, bool)>; 2] = Default::default();
        let mut assigned = None;
        for step in steps {
            let piece = match step {
                Step::Assign { other } => {
                    let which = usize::from(other);
                    let entry = context(roots[which], if four { 4 } else { 3 }, 7 + which as u16);
                    let at = usize::from(DEVICE) * 2;
                    for (word, value) in [(0, 0), (1, entry[1]), (0, entry[0])] {
                        model.put(CONTEXTS, at + word, value);
                    }
                    unit.forget(&[FORGET_CONTEXTS, FORGET_TRANSLATIONS]).unwrap();
                    assigned = Some(which);
                    continue;
                }
                Step::Access { page, write } => {
                    let expected = assigned.and_then(|which: usize| held[which].get(&page).copied());
                    let expected = expected.filter(|(_, writable)| *writable || !write).map(|(frame, _)| frame);
                    prop_assert_eq!(model.access(DEVICE, page, write), expected);
                    continue;
                }
                Step::Map { page, frame, count, write } => {
                    let permissions = if write { Permissions::READ | Permissions::WRITE } else { Permissions::READ };
                    let pa = (0x10_0000 + frame) << 12;
                    Piece { va: page << 12, pa, count, permissions, cacheability: Cacheability::WriteBack, kept: false }
                }
                Step::Unmap { page, count } => Piece::unmap(page << 12, count),
            };
            // Always the first space, whether or not the device uses it now.
            let (space, held, domain) = (&spaces[0], &mut held[0], 7);
            let mut done = 0;
            while done < piece.count {
                let (va, pa) = (piece.va + (done << 12), piece.pa + (done << 12));
                done += space.map_step(&mut frames, &Piece { va, pa, count: piece.count - done, ..piece }).unwrap();
            }
            for offset in 0..piece.count {
                let page = (piece.va >> 12) + offset;
                held.remove(&page);
                if !piece.permissions.is_empty() {
                    held.insert(page, ((piece.pa >> 12) + offset, piece.permissions.contains(Permissions::WRITE)));
                }
            }
            if core::mem::take(&mut frames.taken) || abilities.must_be_told() {
                unit.forget(&[forget_domain(domain)]).unwrap();
            }
            // Used again at once, for something else.
            for table in frames.freed.drain(..) {
                (0..512).for_each(|index| model.put(table, index, 0xdead_f003));
            }
        }
    }
}
