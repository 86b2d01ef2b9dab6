//! Headers against a naive model: a map from every reference ever handed out to what it should read as.

use super::*;
use proptest::prelude::*;
use std::{collections::HashSet, vec, vec::Vec};

#[cfg(loom)]
mod interleaved;

const KINDS: [Kind; 11] = {
    use Kind::*;
    [Pd, ObjectSpace, HostSpace, GuestSpace, DmaSpace, PioSpace, MsrSpace, Ec, Sc, Pt, Sm]
};

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(&KINDS[..])
}

impl HeaderTable<'_> {
    /// Gives an object a free header: that of the memory which the kernel found for it.
    fn alloc(&self, kind: Kind, object: u32, index: u32) -> Reference {
        let header = &self.headers[index as usize];
        let generation = header.coming();
        header.begin(Header::live_content(kind, object), generation);
        Reference { index, generation }
    }

    /// What a reference names, found as the kernel does.
    fn resolve(&self, reference: Reference) -> Option<(Kind, u32)> {
        let named = self.header(reference.index).map_or(Named(0), |header| header.named(reference.generation));
        let found = KINDS.into_iter().find_map(|kind| Some((kind, named.object(kind)?)));
        assert_eq!(named.is_nothing(), found.is_none());
        found
    }
}

/// Ends what `reference` names; false if that is over.
fn invalidate(table: &HeaderTable, reference: Reference) -> bool {
    table.resolve(reference).is_some() && table.end(reference.index, false)
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(Kind, u32),
    Invalidate(usize),
    Release(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (kind(), 0..OBJECTS_MAX).prop_map(|(kind, object)| Op::Alloc(kind, object)),
        any::<usize>().prop_map(Op::Invalidate),
        (0..10u32).prop_map(Op::Release),
    ]
}

proptest! {
    #[test]
    fn stale_references_stay_stale(count in 0..8usize, ops in prop::collection::vec(op(), 0..200)) {
        let headers: Vec<_> = (0..count).map(|_| Header::new()).collect();
        let table = HeaderTable::new(&headers);
        let mut given: Vec<(Reference, Option<(Kind, u32)>)> = Vec::new();
        let (mut available, mut invalid): (Vec<u32>, _) = ((0..count as u32).collect(), HashSet::new());
        for op in ops {
            match op {
                Op::Alloc(kind, object) => if let Some(index) = available.pop() {
                    let reference = table.alloc(kind, object, index);
                    prop_assert!(given.iter().all(|(other, _)| *other != reference));
                    prop_assert!(reference.generation != 0);
                    given.push((reference, Some((kind, object))));
                },
                Op::Invalidate(choice) if !given.is_empty() => {
                    let choice = choice % given.len();
                    let (reference, model) = &mut given[choice];
                    prop_assert_eq!(invalidate(&table, *reference), model.take().is_some_and(|_| invalid.insert(reference.index)));
                }
                Op::Release(index) => {
                    let released = table.release(index);
                    prop_assert_eq!(released, invalid.remove(&index));
                    available.extend(released.then_some(index));
                }
                _ => {}
            }
            for (reference, model) in &given {
                prop_assert_eq!(table.resolve(*reference), *model);
            }
            prop_assert_eq!(table.resolve(Reference::NULL), None);
        }
    }

    #[test]
    fn entries_keep_what_they_are_given(index in 0..HEADERS_MAX, generation in 1..=u32::MAX, bits in 1..32u8, mask in 0..32u8) {
        let reference = Reference { index, generation };
        let (permissions, mask) = (Permissions::from_bits_truncate(bits), Permissions::from_bits_truncate(mask));
        let entry = Entry::new(reference, permissions);
        prop_assert_eq!((entry.reference(), entry.permissions()), (reference, permissions));
        prop_assert_eq!(Entry(entry.to_raw()), entry);
        let masked = entry.mask(mask);
        match permissions & mask {
            none if none.is_empty() => prop_assert_eq!(masked, Entry::NULL),
            some => prop_assert_eq!((masked.reference(), masked.permissions()), (reference, some)),
        }
    }
}

#[test]
fn who_destroys_finds_what_others_do_not() {
    let headers = [Header::new()];
    let table = HeaderTable::new(&headers);
    assert!(headers[0].content().is_nothing());
    let reference = table.alloc(Kind::Sm, 5, 0);
    assert!(table.end(reference.index, false));
    assert_eq!((table.resolve(reference), headers[0].content().object(Kind::Sm)), (None, Some(5)));
    assert!(table.release(0) && headers[0].content().is_nothing());
}

#[test]
fn impossible_entries_are_null() {
    assert_eq!(Entry::NULL.to_raw(), 0);
    assert_eq!(Entry::new(Reference { index: HEADERS_MAX, generation: 1 }, Permissions::all()), Entry::NULL);
    assert_eq!(Entry::new(Reference { index: 1, generation: 0 }, Permissions::all()), Entry::NULL);
    assert_eq!(Entry::new(Reference { index: 1, generation: 1 }, Permissions::empty()), Entry::NULL);
    assert!(size_of::<Header>() <= 32);
}

#[test]
fn a_header_without_generations_left_retires() {
    let headers = [Header::new()];
    headers[0].life.store(u64::from(u32::MAX) << 32, Relaxed);
    let table = HeaderTable::new(&headers);
    let last = table.alloc(Kind::Sm, 1, 0);
    assert_eq!(last.generation, u32::MAX);
    assert!(invalidate(&table, last));
    assert!(!table.release(0));
    assert_eq!((table.resolve(last), table.resolve(Reference::NULL)), (None, None));
}

#[test]
fn owners_know_what_is_theirs() {
    let headers: Vec<_> = (0..5).map(|_| Header::new()).collect();
    let table = HeaderTable::new(&headers);
    let listed = |owner| {
        let mut all = Vec::new();
        let mut next = table.first(owner);
        while let Some(index) = next {
            assert_eq!(table.owner(index), Some(owner));
            all.push(index);
            next = table.next(index);
        }
        all
    };
    for index in [2, 3, 4] {
        attach(|index| &headers[index as usize], 1, index);
    }
    assert_eq!((listed(1), listed(0)), (vec![4, 3, 2], vec![]));
    table.detach(3);
    attach(|index| &headers[index as usize], 0, 3);
    assert_eq!((listed(1), listed(0)), (vec![4, 2], vec![3]));
    table.detach(4);
    table.detach(2);
    assert_eq!((listed(1), table.owner(2)), (vec![], None));
}
