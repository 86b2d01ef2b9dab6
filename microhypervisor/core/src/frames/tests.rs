//! The allocator against a naive model: the list of allocated ranges.

use super::*;
use proptest::prelude::*;
use std::{vec, vec::Vec};

/// Free lists hold exactly the blocks that the states name; free and allocated blocks cover the pool once.
/// Returns the number of free frames.
fn check(frames: &Frames, first_free: u32, allocated: &[(u32, u8)]) -> u32 {
    let mut covered = vec![0u8; frames.meta.len()];
    let mut free = 0;
    for order in 0..ORDERS as u8 {
        let (mut frame, mut prev) = (frames.heads[usize::from(order)], NIL);
        while frame != NIL {
            let meta = frames.meta[frame as usize];
            assert_eq!((meta.state, meta.prev), (FREE | order, prev));
            assert_eq!(frame % (1 << order), 0);
            // Buddies that are both free would have been merged.
            let buddy = frame ^ 1 << order;
            assert!(usize::from(order) == ORDERS - 1 || frames.state(buddy) != FREE | order);
            covered[frame as usize..][..1 << order].iter_mut().for_each(|count| *count += 1);
            free += 1 << order;
            (prev, frame) = (frame, meta.next);
        }
    }
    for &(frame, order) in allocated {
        assert_eq!(frames.order(FrameNumber(frame)), Some(order));
        assert_eq!(frame % (1 << order), 0);
        covered[frame as usize..][..1 << order].iter_mut().for_each(|count| *count += 1);
    }
    for (frame, &count) in covered.iter().enumerate() {
        assert_eq!(count, u8::from(frame as u32 >= first_free), "frame {frame}");
    }
    free
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(u8),
    Free(usize),
    FreeAny(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..ORDERS as u8 + 2).prop_map(Op::Alloc),
        3 => (0..3u8).prop_map(Op::Alloc),
        4 => any::<usize>().prop_map(Op::Free),
        1 => (0..6000u32).prop_map(Op::FreeAny),
    ]
}

proptest! {
    #[test]
    fn agrees_with_ranges(len in 0..5000usize, first_free in 0..300u32, ops in prop::collection::vec(op(), 0..80)) {
        let mut meta = vec![FrameMeta::RESERVED; len];
        let mut frames = Frames::new(&mut meta, first_free);
        let mut allocated: Vec<(u32, u8)> = Vec::new();
        check(&frames, first_free, &allocated);
        for op in ops {
            match op {
                Op::Alloc(order) => match frames.alloc(order) {
                    Some(FrameNumber(frame)) => {
                        let meta = frames.meta_mut(FrameNumber(frame)).unwrap();
                        prop_assert_eq!(meta.owner, 0);
                        meta.owner = u32::MAX;
                        allocated.push((frame, order));
                    }
                    // Nothing that large was free; `check` has shown that free buddies are always merged.
                    None => prop_assert!((usize::from(order)..ORDERS).all(|order| frames.heads[order] == NIL)),
                },
                Op::Free(choice) if !allocated.is_empty() => {
                    let (frame, order) = allocated.swap_remove(choice % allocated.len());
                    prop_assert_eq!(frames.free(FrameNumber(frame)), Some(order));
                    prop_assert_eq!(frames.free(FrameNumber(frame)), None);
                    prop_assert!(frames.meta_mut(FrameNumber(frame)).is_none());
                }
                Op::FreeAny(frame) if allocated.iter().all(|block| block.0 != frame) => {
                    prop_assert_eq!(frames.free(FrameNumber(frame)), None);
                }
                _ => {}
            }
            check(&frames, first_free, &allocated);
        }
        let total = len.saturating_sub(first_free as usize) as u32;
        for (frame, _) in std::mem::take(&mut allocated) {
            prop_assert!(frames.free(FrameNumber(frame)).is_some());
        }
        prop_assert_eq!(check(&frames, first_free, &allocated), total);
    }
}

#[test]
fn metadata_is_16_bytes() {
    assert_eq!(size_of::<FrameMeta>(), 16);
}

#[test]
fn exhausts_and_recovers() {
    let mut meta = [FrameMeta::RESERVED; 1024];
    let mut frames = Frames::new(&mut meta, 0);
    for _ in 0..3 {
        let taken: Vec<_> = core::iter::from_fn(|| frames.alloc(0)).collect();
        assert_eq!((taken.len(), frames.alloc(0)), (1024, None));
        taken.into_iter().for_each(|frame| assert_eq!(frames.free(frame), Some(0)));
        let whole = frames.alloc(10).unwrap();
        assert_eq!(frames.free(whole), Some(10));
    }
}
