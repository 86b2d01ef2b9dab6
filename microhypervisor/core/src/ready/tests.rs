//! The queue against one `VecDeque` per priority.

use super::*;
use proptest::prelude::*;
use std::{collections::VecDeque, vec::Vec};

struct Objects([LinkCell; 12]);

impl Links for Objects {
    fn links(&self, id: u32) -> &LinkCell {
        &self.0[id as usize]
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Back(u8, u32),
    Front(u8, u32),
    Remove(u32),
    Pop,
}

fn op() -> impl Strategy<Value = Op> {
    // Few priorities, so that they are shared; the extremes and the middle of the bitmap among them.
    let priority = || prop::sample::select(&[0u8, 1, 63, 64, 126, 127, 128, 255][..]);
    prop_oneof![
        3 => (priority(), 0..12u32).prop_map(|(priority, id)| Op::Back(priority, id)),
        2 => (priority(), 0..12u32).prop_map(|(priority, id)| Op::Front(priority, id)),
        2 => (0..12u32).prop_map(Op::Remove),
        1 => Just(Op::Pop),
    ]
}

proptest! {
    #[test]
    fn agrees_with_deques(ops in prop::collection::vec(op(), 0..200)) {
        let objects = Objects([const { LinkCell::unlinked() }; 12]);
        let mut queue = ReadyQueue::empty();
        let mut model: Vec<VecDeque<u32>> = (0..PRIORITIES).map(|_| VecDeque::new()).collect();
        for op in ops {
            let queued = |model: &[VecDeque<u32>], id| model.iter().position(|deque| deque.contains(&id));
            match op {
                Op::Back(priority, id) | Op::Front(priority, id) => {
                    let back = matches!(op, Op::Back(..));
                    let accepted = queue.enqueue(&objects, priority, id, !back);
                    prop_assert_eq!(accepted, priority <= PRIORITY_MAX && queued(&model, id).is_none());
                    match accepted {
                        true if back => model[usize::from(priority)].push_back(id),
                        true => model[usize::from(priority)].push_front(id),
                        false => {}
                    }
                }
                Op::Remove(id) => {
                    let priority = queued(&model, id);
                    prop_assert_eq!(queue.remove(&objects, priority.unwrap_or(3) as u8, id), priority.is_some());
                    model.iter_mut().for_each(|deque| deque.retain(|&other| other != id));
                }
                Op::Pop => {
                    let highest = model.iter().rposition(|deque| !deque.is_empty());
                    let expected = highest.and_then(|priority| model[priority].pop_front());
                    prop_assert_eq!(queue.pop_highest(&objects), expected);
                }
            }
            let highest = model.iter().rposition(|deque| !deque.is_empty()).map(|priority| priority as u8);
            prop_assert_eq!(queue.highest(), highest);
            for (id, cell) in objects.0.iter().enumerate() {
                prop_assert_eq!(cell.is_linked(), queued(&model, id as u32).is_some());
            }
        }
        for deque in model.iter_mut().rev() {
            while let Some(id) = deque.pop_front() {
                prop_assert_eq!(queue.pop_highest(&objects), Some(id));
            }
        }
        prop_assert_eq!(queue.pop_highest(&objects), None);
    }
}
