//! The console device (5.3) with one port: a queue of what comes, one of what goes out, emergency output.
//!
//! Nothing is lost on the way out: a buffer comes back when all of it has found room at the terminal. What comes waits
//! there until the driver has buffers.

use super::queue::Chain;
use super::{Io, Model, Violation};
use crate::memory::GuestMemory;

/// Device type (5).
const ID: u16 = 3;
/// PCI class of communication controllers of no particular kind.
const CLASS: u32 = 0x07 << 24 | 0x80 << 16;
/// Queues (5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Feature (5.3.3): a byte can be written to the configuration, also while no driver is ready.
const EMERGENCY_WRITE: u64 = 1 << 2;
/// Where that is in the configuration (5.3.4). What is in front of it belongs to features that are not offered.
const EMERGENCY: usize = 8;
/// Bytes copied at a time.
const PIECE: usize = 256;

/// What is on the other side.
pub trait Terminal: Send {
    /// A driver has become ready, or is no more: from now on what is typed is its, or is not.
    fn attend(&mut self, present: bool);
    /// How many bytes of output it has room for now.
    fn room(&mut self) -> usize;
    /// Takes output: no more than there is room for.
    fn put(&mut self, bytes: &[u8]);
    /// Output was put, and nothing follows soon. With `more` the device has further output, and is to be served as soon
    /// as there is room.
    fn flush(&mut self, more: bool);
    /// Copies what was typed; returns how many bytes that are, and keeps the others.
    fn get(&mut self, bytes: &mut [u8]) -> usize;
}

/// The device.
pub struct Console<T> {
    terminal: T,
    chain: Chain,
    /// A buffer of the driver's that waits for input.
    waiting: Option<Chain>,
    /// Output that waits for room, from this byte on.
    stalled: Option<(Chain, u64)>,
}

impl<T: Terminal> Console<T> {
    /// A device at `terminal`.
    pub fn new(terminal: T) -> Self {
        Self { terminal, chain: Chain::default(), waiting: None, stalled: None }
    }

    /// Gives the driver what was typed, as far as it has buffers.
    fn receive<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<(), Violation> {
        // The driver sees nothing come back meanwhile: the queue has no more than its size, and then none.
        for _ in 0..=io.queues[RECEIVE].size() {
            let Some(chain) = self.buffer_for_input(io)? else { break };
            let mut bytes = [0; PIECE];
            let most = chain.writable.length().min(PIECE as u64) as usize;
            let count = self.terminal.get(&mut bytes[..most]);
            if count == 0 {
                self.waiting = Some(chain);
                break;
            }
            chain.writable.write(io.memory, 0, &bytes[..count]);
            io.queues[RECEIVE].give_back(io.memory, chain.head, count as u32);
            self.chain = chain;
        }
        io.publish(RECEIVE);
        Ok(())
    }

    fn buffer_for_input<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<Option<Chain>, Violation> {
        if let Some(chain) = self.waiting.take() {
            return Ok(Some(chain));
        }
        if !io.queues[RECEIVE].take_or_arm(io.memory, &mut self.chain)? {
            return Ok(None);
        }
        // The device only writes here (5.3.6.1).
        if self.chain.readable.length() != 0 || self.chain.writable.length() == 0 {
            return Err(Violation::Request);
        }
        Ok(Some(core::mem::take(&mut self.chain)))
    }

    /// Puts out what the driver has, as far as there is room.
    fn transmit<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<(), Violation> {
        // No more than that, however fast the terminal may be.
        let mut room = self.terminal.room();
        // As for input.
        for _ in 0..=io.queues[TRANSMIT].size() {
            let Some((chain, done)) = self.next_output(io)? else { break };
            let end = self.copy_out(io.memory, &chain, done, room);
            room -= (end - done) as usize;
            if end < chain.readable.length() {
                self.stalled = Some((chain, end));
                break;
            }
            io.queues[TRANSMIT].give_back(io.memory, chain.head, 0);
            self.chain = chain;
        }
        self.terminal.flush(self.stalled.is_some());
        io.publish(TRANSMIT);
        Ok(())
    }

    fn next_output<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<Option<(Chain, u64)>, Violation> {
        if let Some(stalled) = self.stalled.take() {
            return Ok(Some(stalled));
        }
        if !io.queues[TRANSMIT].take_or_arm(io.memory, &mut self.chain)? {
            return Ok(None);
        }
        // The device only reads here (5.3.6.1).
        if self.chain.writable.length() != 0 {
            return Err(Violation::Request);
        }
        Ok(Some((core::mem::take(&mut self.chain), 0)))
    }

    /// Puts out a chain from byte `from` on, at most `most` bytes. Returns where it stopped.
    fn copy_out(&mut self, memory: &impl GuestMemory, chain: &Chain, from: u64, most: usize) -> u64 {
        let end = chain.readable.length().min(from + most as u64);
        let mut at = from;
        while at < end {
            let mut bytes = [0; PIECE];
            let piece = &mut bytes[..(end - at).min(PIECE as u64) as usize];
            chain.readable.read(memory, at, piece);
            self.terminal.put(piece);
            at += piece.len() as u64;
        }
        end
    }
}

impl<T: Terminal, M: GuestMemory> Model<M> for Console<T> {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        EMERGENCY_WRITE
    }

    fn queues(&self) -> &[u16] {
        &[16, 64]
    }

    fn start(&mut self, _features: u64) {
        self.terminal.attend(true);
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_, M>) -> Result<(), Violation> {
        match queue {
            RECEIVE => self.receive(io),
            _ => self.transmit(io),
        }
    }

    fn serve(&mut self, ready: bool, io: &mut Io<'_, M>) -> Result<bool, Violation> {
        if ready {
            self.receive(io)?;
            if self.stalled.is_some() {
                self.transmit(io)?;
            }
        }
        Ok(false)
    }

    /// Emergency output. Where there is no room it is lost: a write to the configuration cannot wait.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if offset == EMERGENCY && self.terminal.room() != 0 {
            self.terminal.put(&bytes[..bytes.len().min(1)]);
            self.terminal.flush(false);
        }
    }

    fn reset(&mut self) {
        self.terminal.attend(false);
        self.waiting = None;
        self.stalled = None;
    }
}

#[cfg(test)]
mod tests;
