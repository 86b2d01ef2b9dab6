//! The debug console: one port that firmware and micro guests write text to, as QEMU's `isa-debugcon`.

use crate::byte_queue::ByteQueue;

/// The port.
pub const PORT: u16 = 0x402;
/// What it reads as, by which software recognizes it.
pub const PRESENT: u8 = 0xe9;

/// Bytes that may wait for the VMM; what comes then is lost.
const CAPACITY: usize = 4096;

/// The console.
#[derive(Clone, Debug)]
pub struct DebugPort {
    queue: ByteQueue,
}

impl Default for DebugPort {
    fn default() -> Self {
        Self { queue: ByteQueue::new(CAPACITY) }
    }
}

impl DebugPort {
    /// Takes a byte.
    pub fn write(&mut self, byte: u8) {
        self.queue.push(byte);
    }

    /// Whether bytes wait.
    pub fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Hands out bytes, oldest first.
    pub fn drain(&mut self, out: &mut [u8]) -> usize {
        self.queue.drain(out)
    }
}
