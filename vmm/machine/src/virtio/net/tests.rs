extern crate std;

use super::*;
use crate::memory::VecMemory;
use crate::virtio::driver::{self, BUFFERS, Driver, STEP};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

#[derive(Default)]
struct Wire {
    sent: Vec<Vec<u8>>,
    flushes: u32,
    room: usize,
    coming: VecDeque<Vec<u8>>,
}

impl Network for Wire {
    fn send(&mut self, frame: &[u8]) -> bool {
        let fits = self.sent.len() < self.room;
        if fits {
            self.sent.push(frame.to_vec());
        }
        fits
    }
    fn flush(&mut self) {
        self.flushes += 1;
    }
    fn receive(&mut self, frame: &mut [u8; FRAME_MAX]) -> Option<usize> {
        let next = self.coming.pop_front()?;
        frame[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }
    fn idle(&mut self) -> bool {
        self.coming.is_empty()
    }
}

type Bench = driver::Bench<Net<Wire>>;

impl Bench {
    fn new() -> Self {
        Self::with(Net::new(Wire { room: 100, ..Wire::default() }, [2, 0, 0, 0, 0, 9]))
    }

    /// The guest sends `frame` in two pieces, the header with it.
    fn guest_sends(&mut self, frame: &[u8], at: u64) {
        let bytes = [&[0xaa; HEADER as usize], frame].concat();
        self.drivers[SEND].memory.write(at, &bytes).unwrap();
        let (first, second) = (20.min(bytes.len()) as u32, bytes.len().saturating_sub(20) as u32);
        self.drivers[SEND].add(&[(at, first), (at + u64::from(first), second)], &[]).unwrap();
    }

    fn comes(&mut self, frame: &[u8]) {
        self.device.network().coming.push_back(frame.to_vec());
    }
}

#[test]
fn frames_of_the_guest_go_out_without_their_headers() {
    let mut bench = Bench::new();
    bench.drivers[SEND].want_interrupt();
    for length in [14, 60, 1518] {
        bench.guest_sends(&alloc::vec![length as u8; length], BUFFERS + length as u64 * 8);
    }
    assert_eq!(bench.run(SEND), Ok(()));
    let wire = bench.device.network();
    assert_eq!(wire.sent, [alloc::vec![14; 14], alloc::vec![60; 60], alloc::vec![1518u32 as u8; 1518]]);
    assert_eq!(wire.flushes, 1, "one for all");
    assert_eq!(bench.device.counters, Counters { sent: 3, ..Counters::default() });
    for _ in 0..3 {
        assert!(bench.drivers[SEND].take_back().is_some_and(|(_, written)| written == 0));
    }
    assert_eq!(bench.interrupts.take_isr(), 1);
    bench.guest_sends(&[1; 20], BUFFERS);
    assert!(bench.drivers[SEND].must_notify(), "the device wants to hear of more");
}

#[test]
fn what_is_no_frame_or_finds_no_room_is_counted() {
    let mut bench = Bench::new();
    bench.device.network().room = 1;
    for length in [0, 13, 1519] {
        bench.guest_sends(&alloc::vec![7; length], BUFFERS + length as u64 * 8);
    }
    bench.drivers[SEND].add(&[(BUFFERS, 11)], &[]).unwrap();
    assert_eq!(bench.run(SEND), Ok(()));
    assert_eq!(bench.device.counters, Counters { malformed: 4, ..Counters::default() });
    while bench.drivers[SEND].take_back().is_some() {}
    assert_eq!(bench.drivers[SEND].outstanding(), 0, "the guest has its buffers again");
    bench.guest_sends(&[1; 60], BUFFERS);
    bench.guest_sends(&[2; 60], BUFFERS + STEP);
    assert_eq!(bench.run(SEND), Ok(()));
    assert_eq!(bench.device.network().sent, [[1; 60]]);
    assert_eq!(bench.device.counters, Counters { sent: 1, dropped: 1, malformed: 4, ..Counters::default() });
}

#[test]
fn frames_from_the_network_wait_for_buffers() {
    let mut bench = Bench::new();
    bench.drivers[RECEIVE].want_interrupt();
    bench.comes(&[1; 60]);
    bench.comes(&[2; 70]);
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.interrupts.take_isr(), 0, "no buffer yet");
    bench.buffer(0, 1530);
    assert!(bench.drivers[RECEIVE].must_notify(), "the device waits for it");
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.drivers[RECEIVE].take_back().map(|(_, written)| written), Some(72));
    assert_eq!(bench.read(0, 73), [&RECEIVED[..], &[1; 60], &[0]].concat());
    assert_eq!(bench.interrupts.take_isr(), 1);
    (1..4).for_each(|number| bench.buffer(number, 1530));
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.drivers[RECEIVE].take_back().map(|(_, written)| written), Some(82));
    assert_eq!(bench.drivers[RECEIVE].take_back(), None);
    // Two buffers are left, one of them in the device's hand.
    bench.comes(&[3; 1518]);
    bench.comes(&[4; 14]);
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.read(2, 1530), [&RECEIVED[..], &[3; 1518]].concat());
    assert_eq!(bench.read(3, 26), [&RECEIVED[..], &[4; 14]].concat());
    assert_eq!(bench.device.counters, Counters { received: 4, ..Counters::default() });
}

#[test]
fn a_queue_that_is_full_at_once_is_heard_of_again() {
    let mut bench = Bench::new();
    for number in 0..8 {
        bench.comes(&[1; 60]);
        bench.buffer(number, 1530);
        bench.drivers[SEND].add(&[(BUFFERS, 72)], &[]).unwrap();
    }
    for queue in [RECEIVE, SEND] {
        assert!(bench.drivers[queue].must_notify());
        assert_eq!(bench.run(queue), Ok(()));
        (0..8).for_each(|_| assert!(bench.drivers[queue].take_back().is_some()));
    }
    bench.comes(&[1; 60]);
    bench.buffer(0, 1530);
    bench.drivers[SEND].add(&[(BUFFERS, 72)], &[]).unwrap();
    assert_eq!(bench.drivers.each_mut().map(Driver::must_notify), [true; 2]);
}

#[test]
fn a_buffer_that_is_too_small_costs_the_frame_alone() {
    let mut bench = Bench::new();
    bench.buffer(0, 72);
    bench.comes(&[1; 61]);
    bench.comes(&[2; 60]);
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.device.counters, Counters { received: 1, dropped: 1, ..Counters::default() });
    assert_eq!(bench.read(0, 72), [&RECEIVED[..], &[2; 60]].concat());
}

#[test]
fn a_reset_forgets_the_buffer_in_hand() {
    let mut bench = Bench::new();
    bench.buffer(0, 1530);
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert!(bench.device.waiting.is_some());
    Model::<Arc<VecMemory>>::reset(&mut bench.device);
    bench.queues[RECEIVE].reset();
    bench.comes(&[1; 60]);
    assert_eq!(bench.run(RECEIVE), Ok(()));
    assert_eq!(bench.read(0, 72), [0; 72]);
    assert_eq!(bench.device.network().coming.len(), 1, "it waits for the driver");
}

#[test]
fn the_configuration_has_address_and_link() {
    let net = Net::new(Wire::default(), [2, 0, 0, 0, 0, 9]);
    let read = |offset, length| {
        let mut bytes = alloc::vec![0; length];
        Model::<Arc<VecMemory>>::read_config(&net, offset, &mut bytes);
        bytes
    };
    assert_eq!(read(0, 8), [2, 0, 0, 0, 0, 9, 1, 0]);
    assert_eq!(
        (read(5, 4), read(6, 2), read(4096, 4)),
        (alloc::vec![9, 1, 0, 0], alloc::vec![1, 0], alloc::vec![0; 4])
    );
}
