//! A bounded queue of bytes from one thread to another, without a lock.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// The queue, for `CAPACITY` bytes, a power of two: one at a time writes, one at a time reads.
pub struct Pipe<const CAPACITY: usize> {
    bytes: [AtomicU8; CAPACITY],
    written: AtomicUsize,
    read: AtomicUsize,
}

impl<const CAPACITY: usize> Pipe<CAPACITY> {
    /// An empty one.
    pub const fn new() -> Self {
        const { assert!(CAPACITY.is_power_of_two()) };
        Self { bytes: [const { AtomicU8::new(0) }; CAPACITY], written: AtomicUsize::new(0), read: AtomicUsize::new(0) }
    }

    /// Whether it has bytes.
    pub fn waits(&self) -> bool {
        self.written.load(Ordering::Acquire) != self.read.load(Ordering::Relaxed)
    }

    /// How many bytes it has room for, for who writes.
    pub fn room(&self) -> usize {
        CAPACITY - self.written.load(Ordering::Relaxed).wrapping_sub(self.read.load(Ordering::Acquire))
    }

    /// Appends as much of `bytes` as fits; returns how many.
    pub fn put(&self, bytes: &[u8]) -> usize {
        let written = self.written.load(Ordering::Relaxed);
        let count = bytes.len().min(self.room());
        for (index, byte) in bytes[..count].iter().enumerate() {
            self.bytes[written.wrapping_add(index) % CAPACITY].store(*byte, Ordering::Relaxed);
        }
        self.written.store(written.wrapping_add(count), Ordering::Release);
        count
    }

    /// Copies the oldest bytes without taking them; returns how many.
    pub fn peek(&self, bytes: &mut [u8]) -> usize {
        let read = self.read.load(Ordering::Relaxed);
        let count = self.written.load(Ordering::Acquire).wrapping_sub(read).min(bytes.len());
        for (index, byte) in bytes[..count].iter_mut().enumerate() {
            *byte = self.bytes[read.wrapping_add(index) % CAPACITY].load(Ordering::Relaxed);
        }
        count
    }

    /// Takes `count` of the bytes that [`Self::peek`] copied.
    pub fn consume(&self, count: usize) {
        self.read.store(self.read.load(Ordering::Relaxed).wrapping_add(count), Ordering::Release);
    }
}
