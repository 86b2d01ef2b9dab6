//! Ethernet frames between programs: records in the byte rings of [`crate::ring`].
//!
//! A record is a header of 8 bytes (length of the frame as `u16`, little-endian, then zeros), the frame without its
//! checksum, and zeros up to a multiple of 8. A port has a ring each way.
//!
//! A producer moves its index by whole records only, so between two programs of good will a ring holds whole records
//! or nothing, even when one of them dies. Anything else is a [`Violation`]: the consumer drops what is in the ring
//! and goes on at the producer's index, where a successor of the offender will begin.
//!
//! A full ring drops the frame, as Ethernet does; who sends counts it.

use crate::ring::{Consumer, Producer, Violation};

/// Bytes of a record before its frame.
pub const HEADER: usize = 8;
/// Shortest frame: two addresses and a type.
pub const FRAME_MIN: usize = 14;
/// Longest frame: 1500 bytes with addresses, type and a VLAN tag.
pub const FRAME_MAX: usize = 1518;
/// Bytes of data of each ring of a port.
pub const RING_CAPACITY: usize = 256 << 10;

const SPACE: usize = record_length(FRAME_MAX);

/// Bytes of the record of a frame of `length` bytes.
pub const fn record_length(length: usize) -> usize {
    HEADER + length.next_multiple_of(8)
}

/// A record outside any ring: where frames are put together and looked at.
#[derive(Clone)]
#[repr(C, align(8))]
pub struct Record {
    bytes: [u8; SPACE],
    length: usize,
}

/// What frames are written to: the producing end of a ring.
pub trait Output {
    /// Writes all of `parts` with one move of the index, or nothing if they do not fit; whether they did.
    fn queue(&mut self, parts: &[&[u8]]) -> Result<bool, Violation>;
    /// Wakes the consumer if it waits: after one or many frames, and after a violation.
    fn notify(&mut self);
}

/// What frames are read from: the consuming end of a ring.
pub trait Input {
    /// Bytes that can be read now. On [`Violation`] everything in the ring has been dropped.
    fn available(&mut self) -> Result<usize, Violation>;
    /// Copies the next bytes into `buffer` without taking them; returns how many.
    fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Violation>;
    /// Takes `count` bytes, and wakes the producer.
    fn consume(&mut self, count: usize);
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Record {
    /// A record without a frame.
    pub const fn new() -> Self {
        Self { bytes: [0; SPACE], length: 0 }
    }

    /// The frame; empty if there is none.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[HEADER..HEADER + self.length]
    }

    /// Where to put the bytes of a frame; [`Self::set_length`] makes them one.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER..HEADER + FRAME_MAX]
    }

    /// The first `length` bytes of the buffer are the frame. False, and no frame, if it is too short or too long.
    pub fn set_length(&mut self, length: usize) -> bool {
        let fits = (FRAME_MIN..=FRAME_MAX).contains(&length);
        self.length = if fits { length } else { 0 };
        self.bytes[..HEADER].copy_from_slice(&(self.length as u64).to_le_bytes());
        // What another frame left behind this one is not this one's receiver's to see.
        self.bytes[HEADER + self.length..record_length(self.length)].fill(0);
        fits
    }

    /// Copies `frame`; false, and no frame, if it is too short or too long.
    pub fn set(&mut self, frame: &[u8]) -> bool {
        if frame.len() <= FRAME_MAX {
            self.bytes[HEADER..HEADER + frame.len()].copy_from_slice(frame);
        }
        self.set_length(frame.len())
    }

    /// Sends the frame; false if the ring is too full, or there is no frame. The consumer is woken by
    /// [`Output::notify`] only.
    pub fn send<O: Output>(&self, output: &mut O) -> Result<bool, Violation> {
        match self.length {
            0 => Ok(false),
            length => output.queue(&[&self.bytes[..record_length(length)]]),
        }
    }

    /// Takes the next frame; false if there is none. On [`Violation`] the ring is empty, and so is this record.
    pub fn receive<I: Input>(&mut self, input: &mut I) -> Result<bool, Violation> {
        self.length = 0;
        let length = receive(input, &mut self.bytes)?;
        // The header has come a second time, and may be another by now: what counts is what has been checked.
        Ok(length.is_some_and(|length| self.set_length(length)))
    }
}

/// Sends `frame` without a record; false if it is too short or too long, or the ring is too full. The consumer is
/// woken by [`Output::notify`] only.
pub fn send<O: Output>(output: &mut O, frame: &[u8]) -> Result<bool, Violation> {
    let length = frame.len();
    if !(FRAME_MIN..=FRAME_MAX).contains(&length) {
        return Ok(false);
    }
    output.queue(&[&(length as u64).to_le_bytes(), frame, &[0; 8][..length.wrapping_neg() & 7]])
}

/// Takes the next frame, which begins at byte [`HEADER`] of `space` then; returns its length, `None` if there is none.
/// `space` has at least [`HEADER`] + [`FRAME_MAX`] bytes; those before the frame are anything. On [`Violation`] the
/// ring is empty.
pub fn receive<I: Input>(input: &mut I, space: &mut [u8]) -> Result<Option<usize>, Violation> {
    let available = input.available()?;
    if available == 0 {
        return Ok(None);
    }
    let taken = take(input, available, space);
    input.consume(taken.map_or(available, record_length));
    taken.map(Some).ok_or(Violation)
}

/// Copies the record that the `available` bytes begin with; returns its frame's length, `None` if they are no record.
fn take<I: Input>(input: &mut I, available: usize, space: &mut [u8]) -> Option<usize> {
    let mut header = [0; HEADER];
    if input.peek(&mut header) != Ok(HEADER) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(header)).ok()?;
    if !(FRAME_MIN..=FRAME_MAX).contains(&length) || record_length(length) > available {
        return None;
    }
    let record = space.get_mut(..HEADER + length)?;
    (input.peek(record) == Ok(HEADER + length)).then_some(length)
}

impl Output for Producer<'_> {
    fn queue(&mut self, parts: &[&[u8]]) -> Result<bool, Violation> {
        self.write_whole(parts)
    }
    /// There is no semaphore: whoever has one asks [`Producer::must_wake`].
    fn notify(&mut self) {}
}

impl Input for Consumer<'_> {
    fn available(&mut self) -> Result<usize, Violation> {
        Consumer::available(self)
    }
    fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
        Consumer::peek(self, buffer)
    }
    fn consume(&mut self, count: usize) {
        Consumer::consume(self, count);
    }
}

#[cfg(target_os = "none")]
impl Output for crate::channel::Sender {
    fn queue(&mut self, parts: &[&[u8]]) -> Result<bool, Violation> {
        self.queue_whole(parts)
    }
    fn notify(&mut self) {
        crate::channel::Sender::notify(self);
    }
}

#[cfg(target_os = "none")]
impl Input for crate::channel::Receiver {
    fn available(&mut self) -> Result<usize, Violation> {
        crate::channel::Receiver::available(self)
    }
    fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
        crate::channel::Receiver::peek(self, buffer)
    }
    fn consume(&mut self, count: usize) {
        crate::channel::Receiver::consume(self, count);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ring::{Header, Ring};
    use core::sync::atomic::AtomicU8;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn memory(capacity: usize) -> (Header, Vec<AtomicU8>) {
        (Header::new(capacity), (0..capacity).map(|_| AtomicU8::new(0)).collect())
    }

    fn record(frame: &[u8]) -> Record {
        let mut record = Record::new();
        assert!(record.set(frame));
        record
    }

    #[test]
    fn a_record_is_header_frame_and_zeros() {
        let mut record = record(&[0xee; 20]);
        assert!(record.set(&[7; 15]));
        let mut expected = Vec::from([15, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([7; 15]);
        expected.push(0);
        assert_eq!(record.bytes[..record_length(15)], expected, "nothing of the longer frame is left");
        assert_eq!(record.frame(), [7; 15]);
        for bad in [0, 1, FRAME_MIN - 1, FRAME_MAX + 1, 5000] {
            assert!(!record.set(&std::vec![1; bad]), "{bad}");
            let (header, data) = memory(8192);
            let mut out = Producer::new(Ring::new(&header, &data).unwrap());
            assert_eq!((send(&mut out, &std::vec![1; bad]), out.space()), (Ok(false), Ok(8192)));
            assert_eq!(record.frame(), []);
        }
    }

    #[test]
    fn a_full_ring_takes_no_part_of_a_frame() {
        let (header, data) = memory(64);
        let ring = Ring::new(&header, &data).unwrap();
        let (mut out, mut input) = (Producer::new(ring), Consumer::new(ring));
        assert_eq!(record(&[1; 40]).send(&mut out), Ok(true));
        assert_eq!(record(&[2; 14]).send(&mut out), Ok(false), "24 bytes do not fit in 16");
        assert_eq!(Record::new().send(&mut out), Ok(false), "no frame");
        let mut got = Record::new();
        assert_eq!(got.receive(&mut input), Ok(true));
        assert_eq!(got.frame(), [1; 40]);
        assert_eq!(got.receive(&mut input), Ok(false));
        assert_eq!(got.frame(), []);
    }

    #[test]
    fn impossible_records_empty_the_ring() {
        let short = |length: u64| length.to_le_bytes().to_vec();
        let padded = |length: u64| [short(length), std::vec![9; 40]].concat();
        let cases = [
            short(0),
            short(64),
            short(64)[..5].to_vec(),
            padded(13),
            padded(41),
            padded(FRAME_MAX as u64 + 1),
            padded(1 << 16 | 20),
            padded(u64::MAX),
        ];
        for case in cases {
            let (header, data) = memory(4096);
            let ring = Ring::new(&header, &data).unwrap();
            let (mut out, mut input) = (Producer::new(ring), Consumer::new(ring));
            assert_eq!(out.write(&case), Ok(case.len()));
            let mut got = record(&[5; 60]);
            assert_eq!(got.receive(&mut input), Err(Violation), "{case:?}");
            assert_eq!(got.frame(), []);
            assert_eq!(got.receive(&mut input), Ok(false), "{case:?}");
            assert_eq!(record(&[3; 33]).send(&mut out), Ok(true));
            assert_eq!(got.receive(&mut input), Ok(true), "a good frame afterwards");
            assert_eq!(got.frame(), [3; 33]);
        }
    }

    /// An input whose length changes between two looks, as a hostile peer's may.
    struct Changing(u64);

    impl Input for Changing {
        fn available(&mut self) -> Result<usize, Violation> {
            Ok(4096)
        }
        fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
            buffer.fill(0xff);
            buffer[..HEADER].copy_from_slice(&self.0.to_le_bytes());
            self.0 = 0xffff;
            Ok(buffer.len())
        }
        fn consume(&mut self, count: usize) {
            assert_eq!(count, record_length(100));
        }
    }

    #[test]
    fn a_length_counts_as_it_was_checked() {
        let mut record = Record::new();
        assert_eq!(record.receive(&mut Changing(100)), Ok(true));
        assert_eq!(record.frame(), [0xff; 100]);
        assert_eq!(record.bytes[..HEADER], 100u64.to_le_bytes());
    }

    proptest! {
        #[test]
        fn frames_arrive_in_order_or_not_at_all(
            frames in proptest::collection::vec((FRAME_MIN..FRAME_MAX + 1, any::<u8>(), any::<bool>(), any::<bool>()), 1..80),
        ) {
            let (header, data) = memory(4096);
            let ring = Ring::new(&header, &data).unwrap();
            let (mut out, mut input) = (Producer::new(ring), Consumer::new(ring));
            let mut waiting = std::collections::VecDeque::new();
            let mut got = Record::new();
            for (length, byte, take, direct) in frames {
                let frame = std::vec![byte; length];
                let used: usize = waiting.iter().map(|f: &Vec<u8>| record_length(f.len())).sum();
                let fits = used + record_length(length) <= 4096;
                let sent = if direct { send(&mut out, &frame) } else { record(&frame).send(&mut out) };
                prop_assert_eq!(sent, Ok(fits));
                if fits {
                    waiting.push_back(frame);
                }
                if take {
                    let expected = waiting.pop_front();
                    prop_assert_eq!(got.receive(&mut input), Ok(expected.is_some()));
                    prop_assert_eq!(got.frame(), expected.as_deref().unwrap_or(&[]));
                }
            }
        }

        #[test]
        fn any_bytes_are_frames_or_violations(bytes in proptest::collection::vec(0u8..40, 0..600)) {
            let (header, data) = memory(1024);
            let ring = Ring::new(&header, &data).unwrap();
            let (mut out, mut input) = (Producer::new(ring), Consumer::new(ring));
            prop_assert_eq!(out.write(&bytes), Ok(bytes.len()));
            let mut got = Record::new();
            while got.receive(&mut input) == Ok(true) {
                prop_assert!((FRAME_MIN..=FRAME_MAX).contains(&got.frame().len()));
            }
            prop_assert_eq!(input.available(), Ok(0));
        }
    }
}
