extern crate std;

use super::*;
use crate::memory::VecMemory;
use crate::virtio::driver::{self, BUFFERS, Driver, STEP};
use crate::virtio::feature;
use crate::virtio::queue::Queue;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use proptest::prelude::*;

#[derive(Default)]
struct Screen {
    attended: bool,
    room: usize,
    shown: Vec<u8>,
    flushes: u32,
    more: bool,
    typed: VecDeque<u8>,
}

impl Terminal for Screen {
    fn attend(&mut self, present: bool) {
        self.attended = present;
    }
    fn room(&mut self) -> usize {
        self.room
    }
    fn put(&mut self, bytes: &[u8]) {
        self.room = self.room.checked_sub(bytes.len()).expect("no more than there is room for");
        self.shown.extend_from_slice(bytes);
    }
    fn flush(&mut self, more: bool) {
        self.flushes += 1;
        self.more = more;
    }
    fn get(&mut self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.typed.len());
        bytes.iter_mut().zip(self.typed.drain(..count)).for_each(|(byte, typed)| *byte = typed);
        count
    }
}

type Bench = driver::Bench<Console<Screen>>;

impl Bench {
    fn new(room: usize) -> Self {
        let mut console = Console::new(Screen { room, ..Screen::default() });
        Model::<Arc<VecMemory>>::start(&mut console, feature::VERSION_1);
        Self::with(console)
    }

    fn serve(&mut self, ready: bool) {
        assert_eq!(self.act(|console, io| console.serve(ready, io)), Ok(false));
    }

    fn screen(&mut self) -> &mut Screen {
        &mut self.device.terminal
    }

    /// The guest writes `text`, in two pieces.
    fn writes(&mut self, at: u64, text: &[u8]) {
        self.drivers[TRANSMIT].memory.write(at, text).unwrap();
        let half = text.len() as u32 / 2;
        let pieces = [(at, half), (at + u64::from(half), text.len() as u32 - half)];
        self.drivers[TRANSMIT].add(&pieces, &[]).unwrap();
    }
}

#[test]
fn output_arrives_and_its_buffers_come_back() {
    let mut bench = Bench::new(4096);
    bench.drivers[TRANSMIT].want_interrupt();
    let long: Vec<u8> = (0..1000).map(|number| number as u8).collect();
    bench.writes(BUFFERS, &long);
    bench.writes(BUFFERS + STEP, b"short");
    bench.drivers[TRANSMIT].add(&[(BUFFERS, 0)], &[]).unwrap();
    assert_eq!(bench.run(TRANSMIT), Ok(()));
    assert_eq!(bench.screen().shown, [&long[..], b"short"].concat());
    assert_eq!((bench.screen().flushes, bench.screen().more), (1, false), "one for all");
    for _ in 0..3 {
        assert_eq!(bench.drivers[TRANSMIT].take_back().map(|(_, written)| written), Some(0));
    }
    assert_eq!(bench.interrupts.take_isr(), 1);
    bench.writes(BUFFERS, b"more");
    assert!(bench.drivers[TRANSMIT].must_notify(), "the device wants to hear of more");
}

#[test]
fn output_waits_for_room() {
    let mut bench = Bench::new(300);
    let text: Vec<u8> = (0..1000).map(|number| number as u8).collect();
    bench.writes(BUFFERS, &text);
    bench.writes(BUFFERS + STEP, b"end");
    assert_eq!(bench.run(TRANSMIT), Ok(()));
    assert!(bench.screen().shown == text[..300] && bench.screen().more);
    assert_eq!(bench.drivers[TRANSMIT].take_back(), None, "the guest has to wait for it");
    // A second notification, or a look without room, changes nothing.
    assert_eq!(bench.run(TRANSMIT), Ok(()));
    bench.serve(true);
    assert!(bench.screen().shown.len() == 300 && bench.screen().more);
    bench.screen().room = 700;
    bench.serve(true);
    assert!(bench.drivers[TRANSMIT].take_back().is_some() && bench.screen().more);
    bench.screen().room = 700;
    bench.serve(true);
    assert!(bench.drivers[TRANSMIT].take_back().is_some() && !bench.screen().more);
    assert_eq!(bench.screen().shown, [&text[..], b"end"].concat());
    let flushes = bench.screen().flushes;
    bench.serve(true);
    assert_eq!(bench.screen().flushes, flushes, "nothing to do");
}

#[test]
fn input_waits_for_buffers() {
    let mut bench = Bench::new(0);
    bench.drivers[RECEIVE].want_interrupt();
    bench.screen().typed.extend(b"hello");
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.interrupts.take_isr(), 0, "no buffer yet");
    bench.buffer(0, 3);
    assert!(bench.drivers[RECEIVE].must_notify(), "the device waits for it");
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.drivers[RECEIVE].take_back().map(|(_, written)| written), Some(3));
    assert_eq!(bench.interrupts.take_isr(), 1);
    bench.buffer(1, 100);
    bench.buffer(2, 1000);
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.drivers[RECEIVE].take_back().map(|(_, written)| written), Some(2));
    assert_eq!(bench.drivers[RECEIVE].take_back(), None);
    // The last buffer is in the device's hand.
    bench.screen().typed.extend(b"world");
    bench.serve(true);
    assert_eq!(bench.drivers[RECEIVE].take_back().map(|(_, written)| written), Some(5));
    assert_eq!((bench.read(0, 3), bench.read(1, 3), bench.read(2, 6)), ("hel".into(), "lo\0".into(), "world\0".into()));
}

#[test]
fn a_driver_that_is_not_ready_gets_nothing() {
    let mut bench = Bench::new(100);
    bench.screen().typed.extend(b"hello");
    bench.buffer(0, 8);
    bench.serve(false);
    assert_eq!((bench.screen().typed.len(), bench.drivers[RECEIVE].take_back()), (5, None));
    bench.serve(true);
    assert!(bench.drivers[RECEIVE].take_back().is_some());
}

#[test]
fn a_queue_that_is_full_at_once_is_heard_of_again() {
    let mut bench = Bench::new(100);
    (0..8).for_each(|number| bench.drivers[TRANSMIT].add(&[(BUFFERS + number, 1)], &[]).map(drop).unwrap());
    (0..8).for_each(|number| bench.buffer(number, 1));
    bench.screen().typed.extend([7; 100]);
    for queue in [RECEIVE, TRANSMIT] {
        assert!(bench.drivers[queue].must_notify());
        assert_eq!(bench.run(queue), Ok(()));
        (0..8).for_each(|_| assert!(bench.drivers[queue].take_back().is_some()));
    }
    bench.buffer(0, 1);
    bench.drivers[TRANSMIT].add(&[(BUFFERS, 1)], &[]).unwrap();
    assert!(bench.drivers.iter_mut().all(Driver::must_notify));
}

#[test]
fn buffers_of_the_wrong_direction_are_violations() {
    type Buffers<'a> = &'a [(u64, u32)];
    let cases: [(usize, Buffers, Buffers); 4] = [
        (RECEIVE, &[(BUFFERS, 8)], &[]),
        (RECEIVE, &[(BUFFERS, 8)], &[(BUFFERS + STEP, 8)]),
        (RECEIVE, &[], &[(BUFFERS, 0)]),
        (TRANSMIT, &[(BUFFERS, 8)], &[(BUFFERS + STEP, 8)]),
    ];
    for (queue, readable, writable) in cases {
        let mut bench = Bench::new(100);
        bench.screen().typed.extend(b"secret");
        bench.drivers[queue].add(readable, writable).unwrap();
        assert_eq!(bench.run(queue), Err(Violation::Request));
        assert_eq!((bench.read(0, 8), bench.screen().shown.len()), (alloc::vec![0; 8], 0));
    }
    for queue in [RECEIVE, TRANSMIT] {
        let mut bench = Bench::new(100);
        bench.drivers[queue].add(&[(0xffff_0000, 8)], &[]).unwrap();
        assert_eq!(bench.run(queue), Err(Violation::Buffer));
    }
}

#[test]
fn a_reset_forgets_buffers_and_ends_attendance() {
    let mut bench = Bench::new(3);
    assert!(bench.screen().attended);
    bench.writes(BUFFERS + STEP, b"a text");
    bench.buffer(0, 8);
    assert_eq!((bench.run(TRANSMIT), bench.run(RECEIVE)), (Ok(()), Ok(())));
    assert!(bench.device.waiting.is_some() && bench.device.stalled.is_some());
    Model::<Arc<VecMemory>>::reset(&mut bench.device);
    bench.queues.iter_mut().for_each(Queue::reset);
    bench.screen().room = 100;
    bench.screen().typed.extend(b"secret");
    bench.serve(true);
    assert!(!bench.screen().attended);
    assert_eq!(bench.screen().shown, b"a t");
    assert_eq!(bench.screen().typed.len(), 6);
    assert_eq!(bench.read(0, 8), [0; 8]);
}

#[test]
fn emergency_output_needs_no_driver() {
    let mut console = Console::new(Screen { room: 2, ..Screen::default() });
    let mut write = |offset, bytes: &[u8]| Model::<Arc<VecMemory>>::write_config(&mut console, offset, bytes);
    write(8, b"x\0\0\0");
    write(0, b"-");
    write(9, b"-");
    write(4096, b"-");
    write(8, b"y");
    write(8, b"lost");
    assert_eq!((&console.terminal.shown[..], console.terminal.flushes), (&b"xy"[..], 2));
    assert_eq!(Model::<Arc<VecMemory>>::features(&console), 4);
}

proptest! {
    /// Output of any shape and input, with room and buffers that come late: every byte arrives once, in order.
    #[test]
    fn no_byte_is_lost(steps in prop::collection::vec((0u8..6, 1u32..700), 1..120)) {
        let mut bench = Bench::new(0);
        let (mut written, mut typed, mut read) = (Vec::new(), Vec::new(), Vec::new());
        let mut held = std::collections::BTreeMap::new();
        let mut next = 0u8;
        let mut stream = move |length: u32| -> Vec<u8> {
            (0..length).map(|_| { next = next.wrapping_mul(5).wrapping_add(1); next }).collect()
        };
        let (mut texts, mut place) = (0, 0);
        // In the end there is room and there are buffers for all.
        let end = (0..120).flat_map(|_| [(2, 699), (4, 699)]);
        for (step, length) in steps.into_iter().chain(end) {
            place = (place + 1) % 24;
            match step {
                0 | 1 if bench.drivers[TRANSMIT].outstanding() < 4 => {
                    let text = stream(length);
                    // At most four are on their way, in order.
                    texts += 1;
                    bench.writes(BUFFERS + texts % 4 * STEP, &text);
                    written.extend(text);
                    if bench.drivers[TRANSMIT].must_notify() {
                        bench.run(TRANSMIT).unwrap();
                    }
                }
                2 => {
                    bench.screen().room += length as usize;
                    if bench.screen().more {
                        bench.serve(true);
                    }
                }
                3 => {
                    let text = stream(length);
                    bench.screen().typed.extend(&text);
                    typed.extend(text);
                    bench.serve(true);
                }
                4 => {
                    let buffer = BUFFERS + (24 + place % 16) * STEP;
                    if held.len() < 8 && !held.values().any(|&used| used == buffer) {
                        held.insert(bench.drivers[RECEIVE].add(&[], &[(buffer, length)]).unwrap(), buffer);
                        if bench.drivers[RECEIVE].must_notify() {
                            bench.run(RECEIVE).unwrap();
                        }
                    }
                }
                _ => {}
            }
            while bench.drivers[TRANSMIT].take_back().is_some() {}
            while let Some((head, count)) = bench.drivers[RECEIVE].take_back() {
                let mut bytes = alloc::vec![0; count as usize];
                bench.drivers[RECEIVE].memory.read(held.remove(&head).unwrap(), &mut bytes).unwrap();
                read.extend(bytes);
            }
        }
        prop_assert_eq!(bench.drivers[TRANSMIT].outstanding(), 0);
        prop_assert!(bench.screen().shown == written, "output");
        prop_assert!(bench.screen().typed.is_empty() && read == typed, "input");
    }

    /// Whatever lies in the rings: the device does not fall over.
    #[test]
    fn a_hostile_driver_harms_itself_only(
        fill in prop::collection::vec(any::<u8>(), 0x200), small: bool, notified in prop::collection::vec(0usize..4, 1..20),
    ) {
        let mut bench = Bench::new(5000);
        bench.screen().typed.extend([7; 2000]);
        for (at, byte) in (0x1000..0x3000u64).zip(fill.iter().cycle()) {
            // Otherwise hardly any address would lie in RAM.
            let byte = if small && at % 8 > 1 { 0 } else { *byte };
            bench.drivers[0].memory.write(at, &[byte]).unwrap();
        }
        for (turn, queue) in notified.into_iter().enumerate() {
            bench.drivers[0].memory.write(bench.drivers[queue % 2].addresses.available + 2, &[turn as u8 * 3, 0]).unwrap();
            let _ = match queue {
                0 | 1 => bench.run(queue),
                _ => bench.act(|console, io| console.serve(true, io)).map(drop),
            };
        }
    }
}
