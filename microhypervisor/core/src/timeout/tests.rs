//! The heap against a sorted set, with its structure checked after each step.

use super::*;
use proptest::prelude::*;
use std::{collections::BTreeSet, vec::Vec};

struct Objects(Vec<TimeoutNode>);

impl TimeoutNodes for Objects {
    fn node(&self, id: u32) -> &TimeoutNode {
        &self.0[id as usize]
    }
}

impl Objects {
    fn new(count: u32) -> Self {
        Self((0..count).map(|_| TimeoutNode::unlinked()).collect())
    }

    /// Checks order, links and ranks below `id` and returns the number of nodes. (A left spine can be long.)
    fn check(&self, root: u32) -> usize {
        let (mut stack, mut count) = (std::vec![(root, NIL, 0)], 0);
        while let Some((id, parent, earliest)) = stack.pop() {
            if id == NIL {
                continue;
            }
            let node = self.node(id);
            let (left, right) = (node.left.get(), node.right.get());
            assert_eq!(node.parent.get(), parent);
            assert!(node.deadline.get() >= earliest);
            assert!(rank(self, left) >= rank(self, right));
            assert_eq!(node.rank.get(), rank(self, right) + 1);
            stack.extend([(left, id, node.deadline.get()), (right, id, node.deadline.get())]);
            count += 1;
        }
        count
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u32, u64),
    Remove(u32),
    Expire(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let deadline = || prop_oneof![0..50u64, Just(0), Just(u64::MAX), any::<u64>()];
    prop_oneof![
        5 => (0..40u32, deadline()).prop_map(|(id, deadline)| Op::Insert(id, deadline)),
        3 => (0..40u32).prop_map(Op::Remove),
        1 => deadline().prop_map(Op::Expire),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_sorted_set(ops in prop::collection::vec(op(), 0..200)) {
        let objects = Objects::new(40);
        let mut queue = TimeoutQueue::empty();
        let mut model: BTreeSet<(u64, u32)> = BTreeSet::new();
        for op in ops {
            match op {
                Op::Insert(id, deadline) => {
                    let free = model.iter().all(|entry| entry.1 != id);
                    prop_assert_eq!(queue.insert(&objects, id, deadline), free);
                    if free {
                        model.insert((deadline, id));
                    }
                }
                Op::Remove(id) => {
                    let entry = model.iter().find(|entry| entry.1 == id).copied();
                    prop_assert_eq!(objects.node(id).deadline(), entry.map(|entry| entry.0));
                    prop_assert_eq!(queue.remove(&objects, id), entry.is_some());
                    entry.map(|entry| model.remove(&entry));
                }
                Op::Expire(now) => {
                    let earliest = model.first().map(|entry| entry.0).filter(|&deadline| deadline <= now);
                    let expired = queue.pop_expired(&objects, now);
                    prop_assert_eq!(expired.is_some(), earliest.is_some());
                    if let (Some(id), Some(deadline)) = (expired, earliest) {
                        prop_assert!(model.remove(&(deadline, id)));
                    }
                }
            }
            prop_assert_eq!(objects.check(queue.root), model.len());
            prop_assert_eq!(queue.first(&objects).map(|first| first.0), model.first().map(|first| first.0));
        }
    }
}

/// Counts accesses: the promise of O(log n) for the worst of many patterns.
#[test]
fn every_step_is_logarithmic() {
    struct Counting(Objects, Cell<u32>);
    impl TimeoutNodes for Counting {
        fn node(&self, id: u32) -> &TimeoutNode {
            self.1.set(self.1.get() + 1);
            self.0.node(id)
        }
    }
    const COUNT: u32 = 4096;
    // Rising, falling, zigzag, scattered deadlines; removal from either end or scattered.
    let orders: [fn(u32) -> u32; 4] =
        [|i| i, |i| COUNT - i, |i| if i % 2 == 0 { i } else { COUNT - i }, |i| i.wrapping_mul(2_654_435_761) % COUNT];
    for deadline in orders {
        for victim in orders {
            let nodes = Counting(Objects::new(COUNT), Cell::new(0));
            let mut queue = TimeoutQueue::empty();
            for id in 0..COUNT {
                nodes.1.set(0);
                assert!(queue.insert(&nodes, id, deadline(id).into()));
                assert!(nodes.1.get() < 12 * 20, "insertion took {}", nodes.1.get());
            }
            for step in 0..COUNT {
                nodes.1.set(0);
                queue.remove(&nodes, victim(step) % COUNT);
                assert!(nodes.1.get() < 12 * 30, "removal took {}", nodes.1.get());
            }
            nodes.0.check(queue.root);
        }
    }
}
