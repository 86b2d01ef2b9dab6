//! Fuzz targets: tables and fault records that begin good and are then damaged, against what the specification says of the
//! bytes. Each seed gives one case, always the same; `FUZZ_SEEDS=FIRST..END cargo test -p iommu fuzz` tries others.

use std::boxed::Box;
use std::format;
use std::vec::Vec;

use kernel_core::boot::Window;

use super::dmar::{PLACE, Table};
use super::model::Model;
use crate::Unit;
use crate::dmar::{Dmar, Reserved, UnitAt};

/// Seeds of a run in the suite.
const SEEDS: core::ops::Range<u64> = 0..20_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Runs a target with every seed, and says which one it failed with.
fn fuzz(target: fn(&mut Random)) {
    let wanted = std::env::var("FUZZ_SEEDS").ok();
    let seeds = wanted.as_deref().and_then(|text| {
        let (first, end) = text.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    });
    for seed in seeds.unwrap_or(SEEDS) {
        let outcome = std::panic::catch_unwind(|| target(&mut Random(seed)));
        if let Err(what) = outcome {
            std::eprintln!("seed {seed}: FUZZ_SEEDS={seed}..{} repeats it", seed + 1);
            std::panic::resume_unwind(what);
        }
    }
}

/// A structure of the table, good or nearly so.
fn structure(random: &mut Random) -> Vec<u8> {
    let kind = random.one_of(&[0u16, 0, 1, 1, 2, 3, 4, 5, 77]);
    let start = random.one_of(&[0xfed9_0000u64, 0x7000_0000, 0x1000, 0, 1 << 52, 0xfed9_0008, !0xfff]);
    let mut body = [&[1, 0][..], &random.one_of(&[0u16, 0, 0, 1]).to_le_bytes(), &start.to_le_bytes()].concat();
    if kind == 1 {
        let last = random.one_of(&[0x7000_ffffu64, 0x7000_0fff, 0x1fff, 0xfff, u64::MAX, 0x7000_1000]);
        body.extend(last.to_le_bytes());
    }
    for _ in 0..random.below(4) {
        // Seldom too short, or half a step too long, but as long as it says.
        let length = if random.below(16) == 0 { 6 + random.below(6) } else { 8 + 2 * random.below(3) };
        let kind = random.one_of(&[1u8, 1, 2, 3, 3, 4, 5]);
        body.extend([kind, length as u8, 0, 0, random.next() as u8, random.next() as u8]);
        body.extend((6..length).map(|_| random.one_of(&[0u8, 1, 7, 0x1f, 0xff])));
    }
    [&kind.to_le_bytes()[..], &(4 + body.len() as u16).to_le_bytes(), &body].concat()
}

/// A table, damaged in a few places.
fn damaged(random: &mut Random) -> Vec<u8> {
    let mut bytes = std::vec![0; 48];
    bytes[37] = random.next() as u8;
    let count = random.one_of(&[0, 1, 2, 3, 5, 40]);
    (0..count).for_each(|_| bytes.extend(structure(random)));
    for _ in 0..random.one_of(&[0, 0, 1, 2, 8]) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.one_of(&[0, 1, 2, 3, 4, 7, 8, 0x7f, 0x80, 0xff]),
            2 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
    bytes
}

/// Secondary bus of a bridge: any function is one here.
fn bridge(source: u16) -> u8 {
    source.wrapping_mul(31) as u8
}

/// What chapter 8 of the specification says of these bytes; `None`: they break it.
#[derive(Debug, PartialEq, Eq, Default)]
struct Said {
    interrupts: bool,
    units: Vec<(u64, u16)>,
    reserved: Vec<(u16, u64, u64)>,
    ioapics: Vec<(u8, u16)>,
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at + size)?;
    Some(field.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn said(bytes: &[u8]) -> Option<Said> {
    let mut said = Said { interrupts: bytes.get(37)? & 1 != 0, ..Said::default() };
    let mut rest = bytes.get(48..).unwrap_or_default();
    while !rest.is_empty() {
        let (kind, length) = (number(rest, 0, 2)?, number(rest, 2, 2)? as usize);
        let part = rest.get(..length).filter(|part| part.len() >= 4)?;
        rest = &rest[length..];
        let (segment, start) = match kind {
            0 | 1 => (number(part, 6, 2)?, number(part, 8, 8)?),
            _ => continue,
        };
        let end = if kind == 1 { number(part, 16, 8)?.checked_add(1)? } else { start.checked_add(0x1000)? };
        if start == 0 || start % 4096 != 0 || end % 4096 != 0 || end <= start || end > 1 << 52 {
            return None;
        }
        if kind == 0 {
            said.units.push((start, segment as u16));
        }
        let mut scopes = &part[if kind == 0 { 16 } else { 24 }..];
        while !scopes.is_empty() {
            let length = usize::from(*scopes.get(1)?);
            let scope = scopes.get(..length).filter(|_| length >= 8 && length % 2 == 0)?;
            scopes = &scopes[length..];
            let path = scope[6..].chunks(2).fold(None, |above: Option<u16>, step| {
                let bus = above.map_or(scope[5], bridge);
                Some(u16::from(bus) << 8 | u16::from(step[0] % 32) << 3 | u16::from(step[1] % 8))
            })?;
            match (kind, scope[0]) {
                (1, 1 | 2) if segment == 0 => said.reserved.push((path, start, (end - start) / 4096)),
                (0, 3) => said.ioapics.push((scope[4], path)),
                _ => {}
            }
        }
    }
    let fits = said.units.len() <= 32 && said.reserved.len() <= 32 && said.ioapics.len() <= 32;
    (fits && !said.units.is_empty()).then_some(said)
}

#[test]
fn fuzz_dmar() {
    fuzz(|random| {
        let bytes = damaged(random);
        let table = Table(bytes.clone());
        let window = Window::new(&table, PLACE, bytes.len() as u64).unwrap();
        let found = Dmar::read(&window, &bridge).ok().map(|dmar| Said {
            interrupts: dmar.interrupts,
            units: dmar.units.as_slice().iter().map(|UnitAt { address, segment }| (*address, *segment)).collect(),
            reserved: dmar
                .reserved
                .as_slice()
                .iter()
                .map(|Reserved { source, start, pages }| (*source, *start, *pages))
                .collect(),
            // Of two with one number the first counts.
            ioapics: (0..=255).filter_map(|id| Some((id, dmar.ioapic(id)?))).collect(),
        });
        let expected = said(&bytes).map(|said| {
            let first = |id: u8| said.ioapics.iter().copied().find(|ioapic| ioapic.0 == id);
            Said { ioapics: (0..=255).filter_map(first).collect(), ..said }
        });
        assert_eq!(found, expected, "{bytes:x?}");
    });
}

#[test]
fn fuzz_fault_records() {
    fuzz(|random| {
        let count = 1 + random.below(8) as u32;
        let capability = 6 << 8 | 0x20 << 24 | u64::from(count - 1) << 40;
        let model = Model::default();
        for (register, value) in [(0, 0x10), (0x08, capability as u32), (0x0c, (capability >> 32) as u32), (0x10, 2)] {
            model.set(register, value);
        }
        let unit = Unit::find(&model, UnitAt { address: 0x1000, segment: 0 }, 0x1000).ok().unwrap();
        unit.mask_faults();
        let mut expected = Vec::new();
        for record in (0x200..).step_by(16).take(count as usize) {
            let words: Box<[u32]> = (0..4).map(|_| random.next() as u32).collect();
            (record..).step_by(4).zip(&words).for_each(|(register, word)| model.set(register, *word));
            // 11.4.14.6, as one number: F, T, the reason, the source, the page or the index of an interrupt.
            let all = words.iter().rev().fold(0u128, |sum, word| sum << 32 | u128::from(*word));
            let field = |low: u32, bits: u32| (all >> low) as u64 & ((1 << bits) - 1);
            if field(127, 1) == 1 {
                expected.push((field(64, 16) | field(96, 8) << 16 | field(126, 1) << 24, field(12, 52) << 12));
            }
        }
        model.set(0x34, random.next() as u32);
        let mut found = Vec::new();
        while let Some(fault) = unit.next_fault() {
            found.push(fault);
            assert!(model.get(0x38) >> 31 == 1, "announced again while there are some");
            assert!(found.len() <= count as usize, "{}", format!("the same again: {found:x?}"));
        }
        assert_eq!(found, expected);
        assert_eq!((model.get(0x38) >> 31, model.get(0x34) & 1), (0, 0), "announced again, no overflow is left");
    });
}
