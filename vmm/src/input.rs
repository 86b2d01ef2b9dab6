//! Console input on its way from its ring to the serial port: a thread leaves it here, the first vCPU takes it.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use runtime::channel::Receiver;
use runtime::sync::sleep_until;
use runtime::time;

/// Bytes of console input on their way; a power of two.
const CAPACITY: usize = 256;
/// How long the input thread waits when the guest takes nothing, in milliseconds.
const RETRY_MS: u64 = 10;

/// The queue: one writes, one reads.
pub struct Input {
    bytes: [AtomicU8; CAPACITY],
    written: AtomicUsize,
    read: AtomicUsize,
}

impl Input {
    /// An empty one.
    pub const fn new() -> Self {
        Self { bytes: [const { AtomicU8::new(0) }; CAPACITY], written: AtomicUsize::new(0), read: AtomicUsize::new(0) }
    }

    /// Whether input waits.
    pub fn waits(&self) -> bool {
        self.written.load(Ordering::Acquire) != self.read.load(Ordering::Relaxed)
    }

    /// Offers waiting input to `take`, which returns how many bytes it took.
    pub fn offer(&self, take: impl FnOnce(&[u8]) -> usize) {
        let read = self.read.load(Ordering::Relaxed);
        let count = self.written.load(Ordering::Acquire).wrapping_sub(read).min(CAPACITY);
        let mut bytes = [0; CAPACITY];
        for (index, byte) in bytes[..count].iter_mut().enumerate() {
            *byte = self.bytes[read.wrapping_add(index) % CAPACITY].load(Ordering::Relaxed);
        }
        let taken = take(&bytes[..count]).min(count);
        self.read.store(read.wrapping_add(taken), Ordering::Release);
    }

    /// Appends as much of `bytes` as fits; returns how many.
    fn put(&self, bytes: &[u8]) -> usize {
        let written = self.written.load(Ordering::Relaxed);
        let room = CAPACITY - written.wrapping_sub(self.read.load(Ordering::Acquire));
        let count = bytes.len().min(room);
        for (index, byte) in bytes[..count].iter().enumerate() {
            self.bytes[written.wrapping_add(index) % CAPACITY].store(*byte, Ordering::Relaxed);
        }
        self.written.store(written.wrapping_add(count), Ordering::Release);
        count
    }

    /// The input thread: `tell` makes the first vCPU look. Ends with the ring: a broken or closed one ends the input,
    /// not the machine.
    pub fn pass(&self, mut ring: Receiver, tell: impl Fn()) {
        let mut buffer = [0; CAPACITY];
        while ring.wait(0) == Ok(true) {
            let Ok(count) = ring.peek(&mut buffer) else { return };
            let count = self.put(&buffer[..count]);
            ring.consume(count);
            tell();
            if count == 0 {
                sleep_until(time::now() + time::ticks_from_ms(RETRY_MS));
            }
        }
    }
}
