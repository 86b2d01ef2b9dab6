//! A ring with its two semaphores, as the manifest hands it to the program.
#![allow(unsafe_code)]

use crate::manifest::{RingEntry, Role};
use crate::ring::{Consumer, HEADER_LENGTH, Header, Producer, Ring, Violation};
use crate::sync::Semaphore;
use core::sync::atomic::AtomicU8;

/// The ring in the memory of `entry`; `None` if it was not set up as a ring.
fn attach(entry: &RingEntry) -> Option<Ring<'static>> {
    let length = (entry.memory.length as usize).checked_sub(HEADER_LENGTH)?;
    // SAFETY: the manifest says that these pages are mapped, for ever, as a ring: all accesses to them, here and in
    // the peer, go through atomics.
    unsafe {
        let header = &*(entry.memory.address as *const Header);
        let data = (entry.memory.address as usize + HEADER_LENGTH) as *const AtomicU8;
        Ring::new(header, core::slice::from_raw_parts(data, length))
    }
}

/// The producing end of a ring.
pub struct Sender {
    ring: Producer<'static>,
    data: Semaphore,
    space: Semaphore,
}

impl Sender {
    /// The ring `name` that this program produces; `None` if the manifest has none.
    pub fn open(name: &str) -> Option<Self> {
        Self::from_entry(crate::manifest().ring(name, Role::Producer)?)
    }

    /// The ring of this entry.
    pub fn from_entry(entry: &RingEntry) -> Option<Self> {
        let data = Semaphore::from_selector(entry.sel_data);
        let space = Semaphore::from_selector(entry.sel_space);
        Some(Self { ring: Producer::new(attach(entry)?), data, space })
    }

    /// Sends as much of `bytes` as fits now; returns how much that was.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let written = self.ring.write(bytes);
        if written != Ok(0) && self.ring.must_wake() {
            self.data.up();
        }
        written
    }

    /// Sends all of `parts`, one after the other, or nothing if they do not fit; whether they did. The other side sees
    /// all at once, and is woken by [`Self::notify`] only.
    pub fn queue_whole(&mut self, parts: &[&[u8]]) -> Result<bool, Violation> {
        self.ring.write_whole(parts)
    }

    /// Sends a record at a multiple of its size, or nothing if it does not fit; whether it did. The other side is woken
    /// by [`Self::notify`] only.
    pub fn queue_record<const N: usize>(&mut self, record: &[u8; N]) -> Result<bool, Violation> {
        self.ring.write_record(record)
    }

    /// Wakes the other side if it waits for data: after one or many records, and after a violation.
    pub fn notify(&mut self) {
        if self.ring.must_wake() {
            self.data.up();
        }
    }

    /// The byte that was sent last, unless it has been read.
    pub fn last(&self) -> Option<u8> {
        self.ring.last()
    }

    /// Waits until there is space for at least a byte, or until `deadline` (ticks; 0: for ever). False if time ran out.
    pub fn wait(&mut self, deadline: u64) -> Result<bool, Violation> {
        while self.ring.space()? == 0 {
            if !self.ring.prepare_wait() {
                continue;
            }
            let woken = self.space.wait(deadline);
            self.ring.finish_wait();
            if woken != Ok(true) {
                return Ok(self.ring.space()? != 0);
            }
        }
        Ok(true)
    }

    /// Announces interest in space without waiting: true if the space semaphore will be upped, false if there is
    /// space already. For programs that wait on one semaphore for several rings.
    pub fn prepare_wait(&self) -> bool {
        self.ring.prepare_wait()
    }

    /// Sends all of `bytes`, waiting for space until `deadline` (0: for ever); false if time ran out.
    pub fn send_all(&mut self, mut bytes: &[u8], deadline: u64) -> Result<bool, Violation> {
        loop {
            let count = self.send(bytes)?;
            bytes = &bytes[count..];
            if bytes.is_empty() {
                return Ok(true);
            }
            if !self.wait(deadline)? {
                return Ok(false);
            }
        }
    }

    /// Bytes that can be sent now.
    pub fn space(&self) -> Result<usize, Violation> {
        self.ring.space()
    }

    /// Bytes that the other side has not read yet, as far as it can be believed.
    pub fn backlog(&self) -> usize {
        self.ring.ring().backlog()
    }
}

/// The consuming end of a ring.
pub struct Receiver {
    ring: Consumer<'static>,
    data: Semaphore,
    space: Semaphore,
}

impl Receiver {
    /// The ring `name` that this program consumes; `None` if the manifest has none.
    pub fn open(name: &str) -> Option<Self> {
        Self::from_entry(crate::manifest().ring(name, Role::Consumer)?)
    }

    /// The ring of this entry.
    pub fn from_entry(entry: &RingEntry) -> Option<Self> {
        let data = Semaphore::from_selector(entry.sel_data);
        let space = Semaphore::from_selector(entry.sel_space);
        Some(Self { ring: Consumer::new(attach(entry)?), data, space })
    }

    /// Takes what is there, at most `buffer`; returns how many bytes.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
        let count = self.ring.peek(buffer)?;
        self.consume(count);
        Ok(count)
    }

    /// Takes the next record, if there is one. The other side, if it waits for space, is woken by [`Self::notify`] only.
    pub fn take_record<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Violation> {
        self.ring.read_record()
    }

    /// Wakes the other side if it waits for space: after one or many records.
    pub fn notify(&mut self) {
        if self.ring.must_wake() {
            self.space.up();
        }
    }

    /// Bytes that can be received now.
    pub fn available(&mut self) -> Result<usize, Violation> {
        self.ring.available()
    }

    /// Copies what is there, at most `buffer`, without taking it; returns how many bytes.
    pub fn peek(&mut self, buffer: &mut [u8]) -> Result<usize, Violation> {
        self.ring.peek(buffer)
    }

    /// Takes `count` bytes that [`Self::peek`] returned.
    pub fn consume(&mut self, count: usize) {
        self.ring.consume(count);
        if count != 0 && self.ring.must_wake() {
            self.space.up();
        }
    }

    /// Waits until there is data, or until `deadline` (ticks; 0: for ever). False if time ran out or the ring is
    /// closed and empty.
    pub fn wait(&mut self, deadline: u64) -> Result<bool, Violation> {
        while self.ring.available()? == 0 {
            if !self.ring.prepare_wait() {
                if self.ring.ring().closed() && self.ring.available()? == 0 {
                    return Ok(false);
                }
                continue;
            }
            let woken = self.data.wait(deadline);
            self.ring.finish_wait();
            if woken != Ok(true) {
                return Ok(self.ring.available()? != 0);
            }
        }
        Ok(true)
    }

    /// The producer's position, for [`Self::prepare_wait_since`].
    pub fn position(&self) -> u32 {
        self.ring.position()
    }

    /// Announces interest in more data than there was at `position`, without waiting: true if the data semaphore will
    /// be upped, false if more has come already. For programs that wait on one semaphore for several rings.
    pub fn prepare_wait_since(&self, position: u32) -> bool {
        self.ring.prepare_wait_since(position)
    }
}

impl crate::block::Link for (Sender, Receiver) {
    fn send(&mut self, record: &crate::block::RequestRecord) -> Result<bool, Violation> {
        self.0.queue_record(record)
    }
    fn receive(&mut self) -> Result<Option<crate::block::CompletionRecord>, Violation> {
        self.1.take_record()
    }
}
