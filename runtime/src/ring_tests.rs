//! The ring against a model, against a second thread, and against hostile peers.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::mpsc;
use std::vec::Vec;

fn memory(capacity: usize) -> (Header, Vec<AtomicU8>) {
    (Header::new(capacity), (0..capacity).map(|_| AtomicU8::new(0)).collect())
}

#[test]
fn foreign_headers_are_refused() {
    let (header, data) = memory(64);
    assert!(Ring::new(&header, &data).is_some());
    assert!(Ring::new(&header, &data[..32]).is_none());
    header.version.store(2 | 4096 << 16, Ordering::Relaxed);
    assert!(Ring::new(&header, &data).is_none());
    let (header, data) = memory(48);
    assert!(Ring::new(&header, &data).is_none(), "not a power of two");
}

#[test]
fn flags_ask_for_exactly_one_wake_up() {
    let (header, data) = memory(4);
    let ring = Ring::new(&header, &data).unwrap();
    let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
    assert!(!producer.must_wake());
    assert!(consumer.prepare_wait());
    assert_eq!(producer.write(b"abcdef"), Ok(4));
    assert!(producer.must_wake());
    assert!(!producer.must_wake());
    assert!(!consumer.prepare_wait(), "there is data");
    assert!(producer.prepare_wait());
    let mut buffer = [0; 8];
    assert_eq!(consumer.read(&mut buffer[..1]), Ok(1));
    assert!(consumer.must_wake());
    assert!(!consumer.must_wake());
    assert_eq!(consumer.read(&mut buffer), Ok(3));
    assert_eq!(&buffer[..3], b"bcd");
    producer.close();
    assert!(!consumer.prepare_wait(), "closed");
}

#[test]
fn a_hostile_producer_costs_only_its_own_data() {
    let (header, data) = memory(16);
    let ring = Ring::new(&header, &data).unwrap();
    let mut consumer = Consumer::new(ring);
    for bogus in [17, 1000, u32::MAX, 1 << 31] {
        let before = header.consumed.load(Ordering::Relaxed);
        header.produced.store(before.wrapping_add(bogus), Ordering::Relaxed);
        assert_eq!(consumer.read(&mut [0; 64]), Err(Violation));
        assert_eq!(consumer.read(&mut [0; 64]), Ok(0), "resynchronized");
    }
    // Writing to the consumer's line does not move the consumer.
    header.consumed.store(12345, Ordering::Relaxed);
    assert_eq!(consumer.available(), Ok(0));
    // An honest producer that attaches now is understood.
    header.consumed.store(header.produced.load(Ordering::Relaxed), Ordering::Relaxed);
    assert_eq!(Producer::new(ring).write(b"ok"), Ok(2));
    assert_eq!(consumer.available(), Ok(2));
}

#[test]
fn a_hostile_consumer_cannot_make_the_producer_overrun() {
    let (header, data) = memory(16);
    let mut producer = Producer::new(Ring::new(&header, &data).unwrap());
    assert_eq!(producer.write(b"0123"), Ok(4));
    for bogus in [5, 20, 1 << 31, 4u32.wrapping_sub(17)] {
        header.consumed.store(bogus, Ordering::Relaxed);
        assert_eq!(producer.write(b"x"), Err(Violation));
        assert!(!producer.prepare_wait(), "never waits for a peer that lies");
    }
    header.consumed.store(4, Ordering::Relaxed);
    assert_eq!(producer.write(&[0; 99]), Ok(16));
}

#[test]
fn two_threads_move_a_megabyte() {
    let (header, data) = memory(256);
    let (data_up, data_down) = mpsc::channel::<()>();
    let (space_up, space_down) = mpsc::channel::<()>();
    let ring = Ring::new(&header, &data).unwrap();
    let byte = |i: usize| (i ^ i >> 8 ^ i >> 16) as u8;
    const TOTAL: usize = 1 << 20;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut producer = Producer::new(ring);
            let mut sent = 0;
            while sent < TOTAL {
                let chunk: Vec<u8> = (sent..TOTAL.min(sent + 1 + sent % 300)).map(byte).collect();
                let count = producer.write(&chunk).unwrap();
                sent += count;
                if producer.must_wake() {
                    data_up.send(()).unwrap();
                }
                if count == 0 && producer.prepare_wait() {
                    space_down.recv().unwrap();
                    producer.finish_wait();
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        let mut received = 0;
        let mut buffer = [0; 200];
        while received < TOTAL {
            let count = consumer.read(&mut buffer[..1 + received % 200]).unwrap();
            for (i, &got) in buffer[..count].iter().enumerate() {
                assert_eq!(got, byte(received + i));
            }
            received += count;
            if consumer.must_wake() {
                // The producer may have finished and gone.
                let _ = space_up.send(());
            }
            if count == 0 && consumer.prepare_wait() {
                data_down.recv().unwrap();
                consumer.finish_wait();
            }
        }
    });
}

proptest! {
    #[test]
    fn behaves_as_a_queue(start: u32, steps in prop::collection::vec((any::<bool>(), 0usize..40), 0..200)) {
        let (header, data) = memory(32);
        header.produced.store(start, Ordering::Relaxed);
        header.consumed.store(start, Ordering::Relaxed);
        let ring = Ring::new(&header, &data).unwrap();
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        let mut model = VecDeque::new();
        let mut next = 0u8;
        for (write, count) in steps {
            if write {
                let bytes: Vec<u8> = (0..count).map(|i| next.wrapping_add(i as u8)).collect();
                let written = producer.write(&bytes).unwrap();
                prop_assert_eq!(written, count.min(32 - model.len()));
                model.extend(&bytes[..written]);
                next = next.wrapping_add(written as u8);
            } else {
                let mut buffer = [0; 40];
                let read = consumer.read(&mut buffer[..count]).unwrap();
                prop_assert_eq!(read, count.min(model.len()));
                let expected: Vec<u8> = model.drain(..read).collect();
                prop_assert_eq!(&buffer[..read], &expected[..]);
            }
            prop_assert_eq!(ring.backlog(), model.len());
        }
    }

    #[test]
    fn whole_parts_or_nothing(start: u32, steps in prop::collection::vec((0usize..40, 0usize..40), 0..100)) {
        let (header, data) = memory(64);
        header.produced.store(start, Ordering::Relaxed);
        header.consumed.store(start, Ordering::Relaxed);
        let ring = Ring::new(&header, &data).unwrap();
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        let mut model = VecDeque::new();
        for (i, (first, second)) in steps.into_iter().enumerate() {
            let (a, b) = (std::vec![i as u8; first], std::vec![!i as u8; second]);
            let fits = first + second <= 64 - model.len();
            prop_assert_eq!(producer.write_whole(&[&a, &b]), Ok(fits));
            if fits {
                model.extend(a.iter().chain(&b));
            }
            let mut buffer = [0; 40];
            let read = consumer.read(&mut buffer[..second]).unwrap();
            let expected: Vec<u8> = model.drain(..read).collect();
            prop_assert_eq!(&buffer[..read], &expected[..]);
        }
    }

    #[test]
    fn records_find_their_place_again(start: u32, junk in 0usize..40, steps in prop::collection::vec(any::<bool>(), 0..60)) {
        let (header, data) = memory(64);
        header.produced.store(start, Ordering::Relaxed);
        header.consumed.store(start, Ordering::Relaxed);
        let ring = Ring::new(&header, &data).unwrap();
        // What a dead program left.
        Producer::new(ring).write(&std::vec![0xee; junk]).unwrap();
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        for _ in 0..8 {
            let _ = consumer.read_record::<16>().unwrap();
        }
        prop_assert_eq!(ring.backlog(), 0, "a dead producer's rest does not stay");
        let (mut model, mut next) = (VecDeque::new(), 0u8);
        let mut skipped = false;
        for write in steps {
            if write {
                if producer.write_record(&[next; 16]).unwrap() {
                    model.push_back(next);
                    next += 1;
                } else {
                    prop_assert!(model.len() >= 3);
                }
            } else {
                let mut record = consumer.read_record::<16>().unwrap();
                // The record that the dead program began.
                if !skipped && record.is_some_and(|r| r[15] == PADDING) {
                    record = consumer.read_record::<16>().unwrap();
                }
                skipped = true;
                prop_assert_eq!(record.map(|r| (r[0], r[15])), model.pop_front().map(|n| (n, n)));
            }
        }
    }

    #[test]
    fn any_indices_at_all_stay_in_bounds(indices in prop::collection::vec((any::<u32>(), any::<u32>()), 1..50)) {
        let (header, data) = memory(32);
        let ring = Ring::new(&header, &data).unwrap();
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        for (produced, consumed) in indices {
            header.consumed.store(consumed, Ordering::Relaxed);
            let _ = producer.write(&[1; 64]);
            header.produced.store(produced, Ordering::Relaxed);
            let _ = consumer.read(&mut [0; 64]);
            header.consumed.store(consumed, Ordering::Relaxed);
            let _ = (producer.write_record(&[3; 32]), producer.write_whole(&[&[1; 9], &[2; 9]]));
            header.produced.store(produced, Ordering::Relaxed);
            let _ = consumer.read_record::<32>();
            let _ = (producer.prepare_wait(), consumer.prepare_wait(), ring.backlog());
        }
    }

    #[test]
    fn a_dead_producer_has_a_successor(
        words: [u32; 8],
        read in 0usize..40,
        sane: bool,
    ) {
        let (header, data) = memory(32);
        let ring = Ring::new(&header, &data).unwrap();
        let (mut dead, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        dead.write(&[1; 20]).unwrap();
        consumer.read(&mut [0; 40][..read]).unwrap();
        if !sane {
            scribble(&header, words);
        }
        header.restore(32);
        let mut everything = [0; 64];
        for _ in 0..2 {
            let _ = consumer.read(&mut everything);
            if ring.backlog() != 0 {
                header.push_consumer();
            }
        }
        let _ = consumer.read(&mut everything);
        prop_assert_eq!(ring.backlog(), 0);
        let mut successor = Producer::new(Ring::new(&header, &data).unwrap());
        prop_assert_eq!(successor.write(b"hello"), Ok(5));
        prop_assert_eq!(successor.last(), Some(b'o'));
        prop_assert_eq!(consumer.read(&mut everything), Ok(5));
        prop_assert_eq!((&everything[..5], successor.last()), (&b"hello"[..], None));
    }

    #[test]
    fn a_dead_consumer_has_a_successor(words: [u32; 8], written in 0usize..40, sane: bool) {
        let (header, data) = memory(32);
        let ring = Ring::new(&header, &data).unwrap();
        let mut producer = Producer::new(ring);
        producer.write(&[1; 40][..written]).unwrap();
        if !sane {
            scribble(&header, words);
        }
        header.restore(32);
        header.skip_to_producer();
        let mut successor = Consumer::new(Ring::new(&header, &data).unwrap());
        // What the producer writes first may be lost, what it writes then is not.
        let _ = producer.write(b"lost?");
        let mut buffer = [0; 64];
        let _ = successor.read(&mut buffer);
        prop_assert_eq!(producer.write(b"hello"), Ok(5));
        prop_assert_eq!(successor.read(&mut buffer), Ok(5));
        prop_assert_eq!(&buffer[..5], b"hello");
    }
}

/// Overwrites everything that a program could.
fn scribble(header: &Header, words: [u32; 8]) {
    let targets = [
        &header.magic,
        &header.capacity,
        &header.produced,
        &header.producer_waits,
        &header.producer_closed,
        &header.consumed,
        &header.consumer_waits,
        &header.consumer_closed,
    ];
    targets.into_iter().zip(words).for_each(|(target, word)| target.store(word, Ordering::Relaxed));
}
