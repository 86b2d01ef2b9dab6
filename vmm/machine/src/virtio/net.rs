//! The network device (5.1): a queue of received frames and one of frames to send, no offloads.

use alloc::boxed::Box;

use super::queue::Chain;
use super::{Io, Model, Violation};
use crate::memory::GuestMemory;

/// Device type (5).
const ID: u16 = 1;
/// PCI class of Ethernet controllers.
const CLASS: u32 = 0x02 << 24;
/// Queues (5.1.2).
const RECEIVE: usize = 0;
const SEND: usize = 1;
/// Features (5.1.3): the device tells its address, and whether the cable is plugged in.
const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
/// Value of the status (5.1.4).
const LINK_UP: u8 = 1;
/// Bytes in front of each frame (5.1.6). The last two tell how many buffers the frame fills: one.
const HEADER: u64 = 12;
const RECEIVED: [u8; HEADER as usize] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Shortest frame: two addresses and a type.
pub const FRAME_MIN: usize = 14;
/// Longest frame: 1500 bytes with addresses, type and a VLAN tag.
pub const FRAME_MAX: usize = 1518;
/// Frames after which the network hears of those that were sent.
const BATCH: u32 = 32;

/// The network that the device is joined to.
pub trait Network: Send {
    /// Sends a frame of `FRAME_MIN` to `FRAME_MAX` bytes; false if there is no room for it.
    fn send(&mut self, frame: &[u8]) -> bool;
    /// Some frames were sent, and nothing follows soon.
    fn flush(&mut self);
    /// Copies the next frame that came; returns its length. None: there is none now.
    fn receive(&mut self, frame: &mut [u8; FRAME_MAX]) -> Option<usize>;
    /// See [`Model::idle`].
    fn idle(&mut self) -> bool;
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The guest sent.
    pub sent: u64,
    /// The guest got.
    pub received: u64,
    /// No frames, or too long, that the guest wanted to send.
    pub malformed: u64,
    /// The network had no room for them, or the guest's buffer.
    pub dropped: u64,
}

/// The device.
pub struct Net<N> {
    network: N,
    config: [u8; 8],
    /// What became of frames.
    pub counters: Counters,
    chain: Chain,
    /// A buffer of the guest's that waits for a frame.
    waiting: Option<Chain>,
    frame: Box<[u8; FRAME_MAX]>,
}

impl<N: Network> Net<N> {
    /// A device with this address at `network`.
    pub fn new(network: N, [a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self {
            network,
            config: [a, b, c, d, e, f, LINK_UP, 0],
            counters: Counters::default(),
            chain: Chain::default(),
            waiting: None,
            frame: Box::new([0; FRAME_MAX]),
        }
    }

    /// The network.
    pub fn network(&mut self) -> &mut N {
        &mut self.network
    }

    /// Frames may have come: gives them to the guest as far as it has buffers. Others stay where they are until it has.
    pub fn receive<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<(), Violation> {
        // The driver sees nothing come back meanwhile: the queue has no more than its size, and then none.
        for _ in 0..=io.queues[RECEIVE].size() {
            let mut chain = match self.waiting.take() {
                Some(chain) => chain,
                None => {
                    let mut chain = core::mem::take(&mut self.chain);
                    if !io.queues[RECEIVE].take_or_arm(io.memory, &mut chain)? {
                        self.chain = chain;
                        break;
                    }
                    chain
                }
            };
            let Some(length) = self.next_frame(&chain) else {
                self.waiting = Some(chain);
                break;
            };
            chain.writable.write(io.memory, 0, &RECEIVED);
            chain.writable.write(io.memory, HEADER, &self.frame[..length]);
            io.queues[RECEIVE].give_back(io.memory, chain.head, HEADER as u32 + length as u32);
            self.counters.received += 1;
            self.chain = core::mem::take(&mut chain);
        }
        io.publish(RECEIVE);
        Ok(())
    }

    /// The next frame that the buffer has room for, in `self.frame`.
    fn next_frame(&mut self, chain: &Chain) -> Option<usize> {
        loop {
            let length = self.network.receive(&mut self.frame)?.min(FRAME_MAX);
            if HEADER + length as u64 <= chain.writable.length() {
                return Some(length);
            }
            self.counters.dropped += 1;
        }
    }

    /// Sends what the guest has for the network.
    fn send<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<(), Violation> {
        let mut unheard = 0;
        // As for those received.
        for _ in 0..=io.queues[SEND].size() {
            if !io.queues[SEND].take_or_arm(io.memory, &mut self.chain)? {
                break;
            }
            let length = self.chain.readable.length().checked_sub(HEADER).filter(|length| *length <= FRAME_MAX as u64);
            match length.map(|length| &mut self.frame[..length as usize]) {
                Some(frame) if frame.len() >= FRAME_MIN => {
                    self.chain.readable.read(io.memory, HEADER, frame);
                    let sent = self.network.send(frame);
                    self.counters.sent += u64::from(sent);
                    self.counters.dropped += u64::from(!sent);
                }
                _ => self.counters.malformed += 1,
            }
            io.queues[SEND].give_back(io.memory, self.chain.head, 0);
            unheard += 1;
            if unheard == BATCH {
                self.network.flush();
                unheard = 0;
            }
        }
        if unheard != 0 {
            self.network.flush();
        }
        io.publish(SEND);
        Ok(())
    }
}

impl<N: Network, M: GuestMemory> Model<M> for Net<N> {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        MAC | STATUS
    }

    fn queues(&self) -> &[u16] {
        &[256, 256]
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_, M>) -> Result<(), Violation> {
        match queue {
            RECEIVE => self.receive(io),
            _ => self.send(io),
        }
    }

    fn serve(&mut self, ready: bool, io: &mut Io<'_, M>) -> Result<bool, Violation> {
        if ready {
            self.receive(io)?;
        }
        Ok(false)
    }

    fn idle(&mut self) -> bool {
        self.network.idle()
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) {
        let known = self.config.get(offset..).unwrap_or(&[]);
        bytes.iter_mut().zip(known).for_each(|(byte, known)| *byte = *known);
    }

    fn reset(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests;
