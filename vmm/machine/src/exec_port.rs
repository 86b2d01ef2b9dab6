//! The execution channel: where an agent in the guest hands out a command's output and status.
//!
//! | port | access | meaning |
//! | --- | --- | --- |
//! | 0x0e90 | OUT byte, also REP OUTSB | next byte of the agent's frames |
//! | 0x0e94 | IN double word | [`MAGIC`] when the channel exists |
//! | 0x0e98 | OUT double word | a milestone for the VMM's statistics |
//!
//! The device carries bytes and looks at none of them. Its queue is bounded; the VMM drains it before it lets the guest
//! write on, so that nothing is lost.

use crate::byte_queue::ByteQueue;

/// The first port.
pub const PORT: u16 = 0xe90;
/// Where the magic is read.
pub const MAGIC_PORT: u16 = 0xe94;
/// Where milestones are written.
pub const MARK_PORT: u16 = 0xe98;
/// "KNVX", least significant byte first.
pub const MAGIC: u32 = u32::from_le_bytes(*b"KNVX");

/// Bytes that may wait for the VMM.
const CAPACITY: usize = 16384;

/// The channel of a virtual machine; without one the ports are as if nobody were there, but for the mark.
#[derive(Clone, Debug)]
pub struct ExecPort {
    queue: Option<ByteQueue>,
    lost: u64,
}

impl ExecPort {
    /// A channel, or, with `exists` false, none.
    pub fn new(exists: bool) -> Self {
        Self { queue: exists.then(|| ByteQueue::new(CAPACITY)), lost: 0 }
    }

    /// Reads at an offset from [`PORT`].
    pub fn read(&self, offset: u16, bytes: usize) -> u32 {
        let ones = u32::MAX >> (32 - 8 * bytes.clamp(1, 4));
        if self.queue.is_some() && offset == MAGIC_PORT - PORT && bytes == 4 { MAGIC } else { ones }
    }

    /// Bytes that still fit. Without a channel everything fits: it vanishes.
    pub fn room(&self) -> usize {
        self.queue.as_ref().map_or(usize::MAX, ByteQueue::room)
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, ByteQueue::len)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes; returns how many were taken. The others may be offered again after a drain.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        self.queue.as_mut().map_or(bytes.len(), |queue| queue.extend(bytes))
    }

    /// Appends a byte that cannot be offered again; a full queue loses it.
    pub fn write(&mut self, byte: u8) {
        self.lost += 1 - self.send(&[byte]) as u64;
    }

    /// Takes bytes, oldest first.
    pub fn drain(&mut self, out: &mut [u8]) -> usize {
        self.queue.as_mut().map_or(0, |queue| queue.drain(out))
    }

    /// Bytes lost because the VMM let the guest write into a full queue.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_bytes() {
        let mut exec = ExecPort::new(true);
        assert_eq!(exec.read(4, 4), 0x5856_4e4b);
        assert_eq!((exec.read(4, 1), exec.read(0, 4)), (0xff, u32::MAX));
        assert_eq!(exec.send(b"frame"), 5);
        let mut out = [0; 8];
        assert_eq!(exec.drain(&mut out), 5);
        assert_eq!(&out[..5], b"frame");
        assert_eq!(exec.send(&[0; CAPACITY + 1]), CAPACITY);
        exec.write(1);
        assert_eq!((exec.room(), exec.lost(), exec.is_empty()), (0, 1, false));
    }

    #[test]
    fn may_be_absent() {
        let mut exec = ExecPort::new(false);
        assert_eq!(exec.read(4, 4), u32::MAX);
        assert_eq!(exec.send(b"x"), 1);
        assert_eq!((exec.len(), exec.drain(&mut [0; 1])), (0, 0));
    }
}
