//! The ring: a byte stream from one program to another through shared pages, version 1.
//!
//! One producer, one consumer, one header page, then `capacity` bytes of data. Indices are free-running 32-bit
//! counts of bytes; each side writes only its own line of the header:
//!
//! | offset | written by | content |
//! | --- | --- | --- |
//! | 0x00 | who sets the ring up | magic, version, header length, capacity |
//! | 0x40 | producer | bytes written, waiting for space, closed |
//! | 0x80 | consumer | bytes read, waiting for data, closed |
//!
//! Two semaphores go with a ring. A side that finds nothing to do sets its waiting flag, looks again, and only then
//! goes down on its semaphore; the other side, after moving its index, clears the flag and ups the semaphore if the
//! flag was set. Setting the flag and moving the index are each followed by a full fence before the other's word is
//! read, so one of the two sees the other: no wake-up is lost. Spurious wake-ups happen; callers loop.
//!
//! **Trust.** Neither side believes the other: geometry comes from the manifest, each side keeps its own index
//! privately, and a distance between the indices above the capacity is [`Violation`], never an access out of
//! bounds. A consumer then drops what is in the ring and goes on from the producer's index; a producer sends nothing
//! until the consumer's index makes sense again. Data is copied and never referenced in place.
//!
//! **Records.** A protocol of records of one size, a power of two, has each at a multiple of that size
//! ([`Producer::write_record`], [`Consumer::read_record`]). Honest sides move whole records only, so anything else was
//! left by a program that died or lies, and both sides go on at the next multiple.
//!
//! **A new peer.** Either program may die and have a successor, which goes on at the shared indices. Who set the ring up
//! makes it usable in between ([`Header::restore`] and the two functions after it), whatever the dead one has written.

mod copy;

use core::sync::atomic::Ordering;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicU8, AtomicU32, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, AtomicU32, fence};

/// Value of the header's magic.
pub const MAGIC: u32 = u32::from_le_bytes(*b"KNRG");
/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Length of the header; the data begins at this offset.
pub const HEADER_LENGTH: usize = 4096;
/// What fills the place of a record that a dead producer left unfinished.
const PADDING: u8 = 0xff;

/// The header as it lies in shared memory.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: AtomicU32,
    /// [`VERSION`] in bits 15:0, [`HEADER_LENGTH`] in bits 31:16.
    pub version: AtomicU32,
    /// Bytes of data, a power of two.
    pub capacity: AtomicU32,
    reserved: [u32; 13],
    produced: AtomicU32,
    producer_waits: AtomicU32,
    producer_closed: AtomicU32,
    reserved_producer: [u32; 13],
    consumed: AtomicU32,
    consumer_waits: AtomicU32,
    consumer_closed: AtomicU32,
    reserved_consumer: [u32; 13],
}

/// The other side's index is impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation;

/// Both halves of a ring's memory.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    header: &'a Header,
    data: &'a [AtomicU8],
}

impl Header {
    /// The header of an empty ring with `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self {
            magic: AtomicU32::new(MAGIC),
            version: AtomicU32::new(VERSION | (HEADER_LENGTH as u32) << 16),
            capacity: AtomicU32::new(capacity as u32),
            reserved: [0; 13],
            produced: AtomicU32::new(0),
            producer_waits: AtomicU32::new(0),
            producer_closed: AtomicU32::new(0),
            reserved_producer: [0; 13],
            consumed: AtomicU32::new(0),
            consumer_waits: AtomicU32::new(0),
            consumer_closed: AtomicU32::new(0),
            reserved_consumer: [0; 13],
        }
    }

    /// For who set the ring up, when one of its programs is gone: writes everything but the indices anew.
    pub fn restore(&self, capacity: usize) {
        self.magic.store(MAGIC, Ordering::Relaxed);
        self.version.store(VERSION | (HEADER_LENGTH as u32) << 16, Ordering::Relaxed);
        self.capacity.store(capacity as u32, Ordering::Relaxed);
        let words = [&self.producer_waits, &self.producer_closed, &self.consumer_waits, &self.consumer_closed];
        words.into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// For who set the ring up, when the producer is gone and the consumer does not arrive at its index: moves that, so
    /// that the consumer, wherever it is, has something to read or a [`Violation`] to notice, and then arrives. It may
    /// be just there; then the second call helps.
    pub fn push_consumer(&self) {
        self.produced.fetch_add(1, Ordering::AcqRel);
    }

    /// For who set the ring up, when the consumer is gone: its successor begins at the producer's index.
    pub fn skip_to_producer(&self) {
        self.consumed.store(self.produced.load(Ordering::Acquire), Ordering::Release);
    }
}

impl<'a> Ring<'a> {
    /// The ring with this header and data; `None` if the length of `data` is not a power of two up to 2^30 or the
    /// header is another protocol's.
    pub fn new(header: &'a Header, data: &'a [AtomicU8]) -> Option<Self> {
        let fits = data.len().is_power_of_two() && data.len() <= 1 << 30;
        let same = header.magic.load(Ordering::Relaxed) == MAGIC
            && header.version.load(Ordering::Relaxed) == VERSION | (HEADER_LENGTH as u32) << 16
            && header.capacity.load(Ordering::Relaxed) as usize == data.len();
        (fits && same).then_some(Self { header, data })
    }

    /// Bytes that the ring can hold.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// Bytes written and not yet read, by the two shared indices: for an observer, who must not rely on it.
    pub fn backlog(&self) -> usize {
        let consumed = self.header.consumed.load(Ordering::Acquire);
        let produced = self.header.produced.load(Ordering::Acquire);
        (produced.wrapping_sub(consumed) as usize).min(self.data.len())
    }

    /// Whether the producer has closed the ring.
    pub fn closed(&self) -> bool {
        self.header.producer_closed.load(Ordering::Acquire) != 0
    }

    fn slot(&self, index: u32) -> &AtomicU8 {
        &self.data[index as usize & (self.data.len() - 1)]
    }

    /// The data from `index` on, in two pieces: to the end of the memory, and from its beginning.
    fn pieces(&self, index: u32) -> (&'a [AtomicU8], &'a [AtomicU8]) {
        let (before, after) = self.data.split_at(index as usize & (self.data.len() - 1));
        (after, before)
    }

    /// Copies `bytes`, at most the capacity, to `index`.
    fn store(&self, index: u32, bytes: &[u8]) {
        let (first, second) = self.pieces(index);
        let (bytes, rest) = bytes.split_at(bytes.len().min(first.len()));
        copy::store(first, bytes);
        copy::store(second, rest);
    }

    /// Fills `buffer`, at most the capacity, from `index`.
    fn load(&self, index: u32, buffer: &mut [u8]) {
        let (first, second) = self.pieces(index);
        let (buffer, rest) = buffer.split_at_mut(buffer.len().min(first.len()));
        copy::load(buffer, first);
        copy::load(rest, second);
    }
}

/// The writing end.
pub struct Producer<'a> {
    ring: Ring<'a>,
    produced: u32,
}

impl<'a> Producer<'a> {
    /// The writing end of `ring`, which goes on where its predecessor stopped.
    pub fn new(ring: Ring<'a>) -> Self {
        Self { produced: ring.header.produced.load(Ordering::Relaxed), ring }
    }

    /// The ring.
    pub fn ring(&self) -> Ring<'a> {
        self.ring
    }

    /// The byte that was written last, as far as the consumer can be believed not to have read it.
    pub fn last(&self) -> Option<u8> {
        let waits = self.ring.backlog() != 0;
        waits.then(|| self.ring.slot(self.produced.wrapping_sub(1)).load(Ordering::Relaxed))
    }

    /// Bytes that can be written now.
    pub fn space(&self) -> Result<usize, Violation> {
        let used = self.produced.wrapping_sub(self.ring.header.consumed.load(Ordering::Acquire)) as usize;
        self.ring.capacity().checked_sub(used).ok_or(Violation)
    }

    /// Writes as much of `bytes` as fits and returns how much that was. The caller asks [`Self::must_wake`] afterwards,
    /// of a violation, too: the consumer then sees this side's index, and both agree again.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let count = self.checked_space()?.min(bytes.len());
        self.ring.store(self.produced, &bytes[..count]);
        self.advance(count);
        Ok(count)
    }

    /// Writes all of `parts`, one after the other, or nothing if they do not fit; whether they did. The consumer sees
    /// all at once. Otherwise as [`Self::write`].
    pub fn write_whole(&mut self, parts: &[&[u8]]) -> Result<bool, Violation> {
        let length = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        if length > self.checked_space()? {
            return Ok(false);
        }
        let mut at = self.produced;
        for part in parts {
            self.ring.store(at, part);
            at = at.wrapping_add(part.len() as u32);
        }
        self.advance(length);
        Ok(true)
    }

    /// Writes a record, at a multiple of its size, or nothing if it does not fit; whether it did. Otherwise as
    /// [`Self::write`].
    pub fn write_record<const N: usize>(&mut self, record: &[u8; N]) -> Result<bool, Violation> {
        const { assert!(N.is_power_of_two()) };
        let padding = (self.produced.wrapping_neg() & (N as u32 - 1)) as usize;
        self.write_whole(&[&[PADDING; N][..padding], record])
    }

    fn checked_space(&self) -> Result<usize, Violation> {
        self.space().inspect_err(|_| self.ring.header.produced.store(self.produced, Ordering::Release))
    }

    fn advance(&mut self, count: usize) {
        self.produced = self.produced.wrapping_add(count as u32);
        self.ring.header.produced.store(self.produced, Ordering::Release);
    }

    /// Whether the data semaphore must be upped now.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        let waits = &self.ring.header.consumer_waits;
        waits.load(Ordering::Relaxed) != 0 && waits.swap(0, Ordering::AcqRel) != 0
    }

    /// Announces that the caller will wait for space. True if it must go down on the space semaphore; false if there
    /// is space, or the consumer misbehaves, and it should look again.
    pub fn prepare_wait(&self) -> bool {
        self.ring.header.producer_waits.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let wait = self.space() == Ok(0);
        if !wait {
            self.finish_wait();
        }
        wait
    }

    /// Takes the announcement back, after waiting or giving up.
    pub fn finish_wait(&self) {
        self.ring.header.producer_waits.store(0, Ordering::Relaxed);
    }

    /// Tells the consumer that nothing follows. The caller ups the data semaphore.
    pub fn close(&mut self) {
        self.ring.header.producer_closed.store(1, Ordering::Release);
    }
}

/// The reading end.
pub struct Consumer<'a> {
    ring: Ring<'a>,
    consumed: u32,
}

impl<'a> Consumer<'a> {
    /// The reading end of `ring`, which goes on where its predecessor stopped.
    pub fn new(ring: Ring<'a>) -> Self {
        Self { consumed: ring.header.consumed.load(Ordering::Relaxed), ring }
    }

    /// The ring.
    pub fn ring(&self) -> Ring<'a> {
        self.ring
    }

    /// Bytes that can be read now. On [`Violation`] everything in the ring has been dropped.
    pub fn available(&mut self) -> Result<usize, Violation> {
        let produced = self.ring.header.produced.load(Ordering::Acquire);
        let available = produced.wrapping_sub(self.consumed) as usize;
        if available > self.ring.capacity() {
            self.consumed = produced;
            self.ring.header.consumed.store(produced, Ordering::Release);
            return Err(Violation);
        }
        Ok(available)
    }

    /// Copies the next bytes into `buffer` without taking them from the ring; returns how many.
    pub fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
        let count = self.available()?.min(buffer.len());
        self.ring.load(self.consumed, &mut buffer[..count]);
        Ok(count)
    }

    /// Takes the next record, which lies at a multiple of its size; `None` if there is none. Drops parts of records.
    /// The caller asks [`Self::must_wake`] afterwards.
    pub fn read_record<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Violation> {
        const { assert!(N.is_power_of_two()) };
        let available = self.available()?;
        let padding = (self.consumed.wrapping_neg() & (N as u32 - 1)) as usize;
        if available < padding + N {
            // Nothing, or what an honest producer never leaves behind.
            if available != 0 {
                self.consume(available);
            }
            return Ok(None);
        }
        let mut record = [0; N];
        self.ring.load(self.consumed.wrapping_add(padding as u32), &mut record);
        self.consume(padding + N);
        Ok(Some(record))
    }

    /// Takes `count` bytes that [`Self::peek`] returned. The caller asks [`Self::must_wake`] afterwards.
    pub fn consume(&mut self, count: usize) {
        self.consumed = self.consumed.wrapping_add(count as u32);
        self.ring.header.consumed.store(self.consumed, Ordering::Release);
    }

    /// Reads into `buffer`; returns how many bytes. The caller asks [`Self::must_wake`] afterwards.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
        let count = self.peek(buffer)?;
        self.consume(count);
        Ok(count)
    }

    /// Whether the space semaphore must be upped now.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        let waits = &self.ring.header.producer_waits;
        waits.load(Ordering::Relaxed) != 0 && waits.swap(0, Ordering::AcqRel) != 0
    }

    /// Announces that the caller will wait for data. True if it must go down on the data semaphore; false if there
    /// is data, or the producer has closed the ring or misbehaves, and it should look again.
    pub fn prepare_wait(&mut self) -> bool {
        self.ring.header.consumer_waits.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let wait = self.available() == Ok(0) && !self.ring.closed();
        if !wait {
            self.finish_wait();
        }
        wait
    }

    /// The producer's index as it is now, for [`Self::prepare_wait_since`].
    pub fn position(&self) -> u32 {
        self.ring.header.produced.load(Ordering::Acquire)
    }

    /// As [`Self::prepare_wait`], for a consumer that leaves data in the ring until more comes: true if the producer
    /// has not moved since `position`, which was taken before the consumer last looked.
    pub fn prepare_wait_since(&self, position: u32) -> bool {
        self.ring.header.consumer_waits.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let wait = self.position() == position;
        if !wait {
            self.finish_wait();
        }
        wait
    }

    /// Takes the announcement back, after waiting or giving up.
    pub fn finish_wait(&self) {
        self.ring.header.consumer_waits.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "ring_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
mod interleaved {
    //! All interleavings of one transfer through a full ring.
    use super::*;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;
    use std::vec::Vec;

    #[derive(Default)]
    struct Semaphore(Mutex<u32>, Condvar);

    impl Semaphore {
        fn up(&self) {
            *self.0.lock().unwrap() += 1;
            self.1.notify_one();
        }
        fn down(&self) {
            let mut count = self.0.lock().unwrap();
            while *count == 0 {
                count = self.1.wait(count).unwrap();
            }
            *count -= 1;
        }
    }

    #[test]
    fn no_wake_up_is_lost() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let memory = Arc::new((Header::new(1), [AtomicU8::new(0)]));
            let signals = Arc::new((Semaphore::default(), Semaphore::default()));
            let (memory2, signals2) = (memory.clone(), signals.clone());
            let producer = thread::spawn(move || {
                let mut end = Producer::new(Ring::new(&memory2.0, &memory2.1).unwrap());
                for byte in [7u8, 9] {
                    while end.write(&[byte]) == Ok(0) {
                        if end.prepare_wait() {
                            signals2.1.down();
                            end.finish_wait();
                        }
                    }
                    if end.must_wake() {
                        signals2.0.up();
                    }
                }
            });
            let mut end = Consumer::new(Ring::new(&memory.0, &memory.1).unwrap());
            let mut got = Vec::new();
            while got.len() < 2 {
                let mut buffer = [0; 1];
                if end.read(&mut buffer) == Ok(1) {
                    got.push(buffer[0]);
                    if end.must_wake() {
                        signals.1.up();
                    }
                } else if end.prepare_wait() {
                    signals.0.down();
                    end.finish_wait();
                }
            }
            assert_eq!(got, [7, 9]);
            producer.join().unwrap();
        });
    }
}
