//! A bounded queue of bytes between a device and the VMM.

use alloc::collections::VecDeque;

/// Bytes in order of arrival, at most a fixed number of them, so that a guest cannot fill the VMM's memory.
#[derive(Clone, Debug)]
pub struct ByteQueue {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl ByteQueue {
    /// An empty queue for `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::with_capacity(capacity), capacity }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Appends a byte; whether it fitted.
    pub fn push(&mut self, byte: u8) -> bool {
        let fits = self.room() != 0;
        if fits {
            self.bytes.push_back(byte);
        }
        fits
    }

    /// Appends as many bytes as fit and returns how many.
    pub fn extend(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.bytes.extend(&bytes[..taken]);
        taken
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        self.bytes.pop_front()
    }

    /// The oldest byte.
    pub fn front(&self) -> Option<u8> {
        self.bytes.front().copied()
    }

    /// Moves the oldest bytes to `out` and returns how many.
    pub fn drain(&mut self, out: &mut [u8]) -> usize {
        let taken = out.len().min(self.bytes.len());
        for (slot, byte) in out.iter_mut().zip(self.bytes.drain(..taken)) {
            *slot = byte;
        }
        taken
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_bound() {
        let mut queue = ByteQueue::new(4);
        assert_eq!(queue.extend(b"abcdef"), 4);
        assert!(!queue.push(b'x'));
        let mut out = [0; 3];
        assert_eq!(queue.drain(&mut out), 3);
        assert_eq!(&out, b"abc");
        assert_eq!((queue.len(), queue.room(), queue.front()), (1, 3, Some(b'd')));
        assert_eq!((queue.pop(), queue.pop()), (Some(b'd'), None));
        assert!(queue.is_empty());
    }
}
