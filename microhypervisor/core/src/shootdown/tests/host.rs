use super::*;
use proptest::prelude::*;
use std::{collections::BTreeSet, vec::Vec};

#[derive(Clone, Debug)]
enum Op {
    Start(usize, BTreeSet<usize>),
    Interrupt(usize),
}

const CPUS: usize = 130;

fn op() -> impl Strategy<Value = Op> {
    let cpu = || prop::sample::select(&[0usize, 1, 2, 63, 64, 127, 128, 129][..]);
    prop_oneof![
        2 => (cpu(), prop::collection::btree_set(cpu(), 0..6)).prop_map(|(own, targets)| Op::Start(own, targets)),
        3 => cpu().prop_map(Op::Interrupt),
    ]
}

proptest! {
    /// The model: for each CPU the set of those whose acknowledgement its round misses. A CPU is interrupted whenever it
    /// has something to acknowledge and was not before.
    #[test]
    fn rounds_agree_with_sets(ops in prop::collection::vec(op(), 0..60)) {
        let requests: Vec<Requests<3>> = (0..CPUS).map(|_| Requests::none()).collect();
        let rounds: Vec<Round> = (0..CPUS).map(|_| Round::ended()).collect();
        let mut missing = std::vec![BTreeSet::new(); CPUS];
        let mut interrupted = BTreeSet::new();
        for op in ops {
            match op {
                Op::Start(own, targets) if missing[own].is_empty() => {
                    let pairs = targets.iter().map(|&target| (target, &requests[target]));
                    let mut new = BTreeSet::new();
                    let ended = rounds[own].start(own as u16, pairs, |target| assert!(new.insert(target)));
                    prop_assert_eq!(ended, targets.is_empty());
                    prop_assert!(new.is_subset(&targets));
                    interrupted.append(&mut new);
                    prop_assert!(targets.is_subset(&interrupted), "all are or were interrupted");
                    missing[own] = targets;
                }
                Op::Interrupt(cpu) if interrupted.remove(&cpu) => {
                    let taken: Vec<usize> = requests[cpu].take(u16::MAX).map(usize::from).collect();
                    let expected: Vec<usize> = (0..CPUS).filter(|&own| missing[own].contains(&cpu)).collect();
                    prop_assert_eq!(&taken, &expected);
                    for own in taken {
                        missing[own].remove(&cpu);
                        prop_assert_eq!(rounds[own].acknowledge(), missing[own].is_empty());
                    }
                    prop_assert_eq!(requests[cpu].take(u16::MAX).count(), 0);
                }
                _ => {}
            }
            for (round, missing) in rounds.iter().zip(&missing) {
                prop_assert_eq!(round.has_ended(), missing.is_empty());
            }
        }
    }

    /// The model: the set of the removals that no round has covered.
    #[test]
    fn generations_agree_with_sets(ops in prop::collection::vec((0..3u8, any::<usize>()), 0..100)) {
        let space = Generation::first();
        let (mut current, mut open, mut rounds) = (1, BTreeSet::new(), Vec::new());
        for (op, choice) in ops {
            match op {
                0 => {
                    space.bump();
                    current += 1;
                    open.insert(current);
                }
                1 => rounds.extend(space.due()),
                _ if !rounds.is_empty() => {
                    let covered = rounds.swap_remove(choice % rounds.len());
                    space.complete(covered);
                    open.retain(|&removal| removal > covered);
                }
                _ => {}
            }
            prop_assert_eq!(space.current(), current);
            prop_assert_eq!(space.due(), (!open.is_empty()).then_some(current));
        }
    }
}

#[test]
fn uses_are_told() {
    let root = Use::none();
    assert_eq!(root.root(), Use::NONE);
    root.announce(0x1000);
    assert_eq!(root.root(), 0x1000);
    root.enter(0x1000);
    root.enter(0x2000);
    assert_eq!(root.root(), 0x2000);
}
