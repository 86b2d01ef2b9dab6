//! The entropy device (5.4): one queue, whose buffers it fills with random bytes.

use super::queue::Chain;
use super::{Io, Model, Violation};
use crate::memory::GuestMemory;

/// Device type (5).
const ID: u16 = 4;
/// PCI class of what fits nowhere.
const CLASS: u32 = 0xff << 24;
/// Most bytes for one buffer: the device may use less than all of it (5.4.6.1), and others wait meanwhile.
const MOST: usize = 1024;

/// Where the bytes come from: a whole buffer of them, or none.
pub trait Source: Send {
    /// Fills `bytes`. False if there are none now.
    fn fill(&mut self, bytes: &mut [u8]) -> bool;
}

/// The device.
pub struct Entropy<S> {
    source: S,
    chain: Chain,
}

impl<S: Source> Entropy<S> {
    /// With this source.
    pub fn new(source: S) -> Self {
        Self { source, chain: Chain::default() }
    }
}

impl<S: Source, M: GuestMemory> Model<M> for Entropy<S> {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[8]
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_, M>) -> Result<(), Violation> {
        let Self { source, chain } = self;
        let mut answered = 0;
        // The driver sees nothing come back meanwhile: the queue has no more than its size, and then none, which the device
        // asks to be notified of. Only a driver that lies has more.
        while answered <= io.queues[queue].size() && io.queues[queue].take_or_arm(io.memory, chain)? {
            answered += 1;
            let mut bytes = [0; MOST];
            let count = chain.writable.length().min(MOST as u64) as usize;
            let filled = if source.fill(&mut bytes[..count]) { count } else { 0 };
            chain.writable.write(io.memory, 0, &bytes[..filled]);
            io.queues[queue].give_back(io.memory, chain.head, filled as u32);
        }
        io.publish(queue);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
