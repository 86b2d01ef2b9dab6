use super::*;
use core::sync::atomic::{AtomicBool, AtomicU32};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

#[derive(Clone, Debug)]
enum Op {
    Post(u32, u32),
    Take,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..6u32, 0..8u32).prop_map(|(id, bits)| Op::Post(id, bits)),
        2 => Just(Op::Take),
    ]
}

proptest! {
    /// The model: objects with their bits in order of arrival, those that the owner has taken over apart.
    #[test]
    fn agrees_with_two_lists(ops in prop::collection::vec(op(), 0..100)) {
        let cells = Cells::<6>::new();
        let (mailbox, mut inbox) = (Mailbox::empty(), Inbox::empty());
        let (mut posted, mut taken) = (Vec::new(), VecDeque::new());
        for op in ops {
            match op {
                Op::Post(id, bits) => {
                    let queued = posted.iter_mut().chain(&mut taken).find(|entry: &&mut (u32, u32)| entry.0 == id);
                    let is_new = bits != 0 && queued.is_none();
                    if let Some(entry) = queued {
                        entry.1 |= bits;
                    }
                    prop_assert_eq!(mailbox.post(&cells, id, bits), is_new && posted.is_empty());
                    posted.extend(is_new.then_some((id, bits)));
                }
                Op::Take => {
                    if taken.is_empty() {
                        taken.extend(posted.drain(..));
                    }
                    prop_assert_eq!(inbox.take(&mailbox, &cells), taken.pop_front());
                }
            }
            prop_assert_eq!(inbox.is_empty(&mailbox), posted.is_empty() && taken.is_empty());
            for id in 0..6 {
                let waits = posted.iter().chain(&taken).any(|entry| entry.0 == id);
                prop_assert_eq!(cells.cell(id).is_pending(), waits);
            }
        }
    }
}

/// Every message arrives once, and the owner needs no look but those that senders ask for.
#[test]
fn threads_lose_nothing() {
    const ROUNDS: u32 = 20_000;
    let cells = Cells::<4>::new();
    let mailbox = Mailbox::empty();
    let interrupt = AtomicBool::new(false);
    // A sender posts its bit again only when the owner has seen it: what arrives can be counted.
    let seen = [const { AtomicU32::new(0) }; 3];
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let waits = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(std::time::Instant::now() < deadline, "a message or its interrupt was lost");
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        for (sender, seen) in seen.iter().enumerate() {
            let (cells, mailbox, interrupt, waits) = (&cells, &mailbox, &interrupt, &waits);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    if mailbox.post(cells, round % 4, 1 << sender) {
                        interrupt.store(true, Release);
                    }
                    waits(&|| seen.load(Acquire) > round);
                }
            });
        }
        let mut inbox = Inbox::empty();
        while seen.iter().any(|seen| seen.load(Relaxed) < ROUNDS) {
            waits(&|| interrupt.swap(false, Acquire));
            while let Some((id, bits)) = inbox.take(&mailbox, &cells) {
                for (sender, seen) in seen.iter().enumerate().filter(|(sender, _)| bits & 1 << sender != 0) {
                    let round = seen.fetch_add(1, Release);
                    assert_eq!(round % 4, id, "sender {sender}");
                }
            }
        }
    });
}
