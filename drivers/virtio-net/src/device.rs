//! The device from reset to work.

use crate::receive::Receiver;
use crate::send::Transmitter;
use ::device::registers::Registers;
use alloc::boxed::Box;
use virtio::transport::PciTransport;
use virtio_drivers::Result;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

/// Queue of received frames (5.1.2).
pub const RECEIVE_QUEUE: u16 = 0;
/// Queue of frames to send.
pub const SEND_QUEUE: u16 = 1;
/// Bytes of the header before each frame: without offloads, all zeros on sending (5.1.6).
pub const HEADER: usize = 12;

/// `VIRTIO_NET_F_MAC`: the device has an address.
const MAC: u64 = 1 << 5;
/// `VIRTIO_F_EVENT_IDX`: each side says which buffer it wants to hear of.
const EVENT_IDX: u64 = 1 << 29;

/// A device that works: both directions, each for a thread of its own.
pub struct Device<R> {
    /// Its address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Frames from the network.
    pub receiver: Receiver<R>,
    /// Frames to the network.
    pub transmitter: Transmitter<R>,
}

impl<R: Registers + Clone> Device<R> {
    /// Starts the device behind `transport`. It takes all frames on its network, whatever their address.
    pub fn start(mut transport: PciTransport<R>) -> Result<Self> {
        let features = transport.begin(MAC | EVENT_IDX)?;
        let events = features & EVENT_IDX != 0;
        let mac = match features & MAC {
            0 => None,
            _ => Some(transport.read_consistent(|| transport.read_config_space(0))?),
        };
        let queue = Box::new(VirtQueue::new(&mut transport, RECEIVE_QUEUE, false, events)?);
        let mut receiver = Receiver::new(queue, transport.bell(RECEIVE_QUEUE))?;
        let queue = Box::new(VirtQueue::new(&mut transport, SEND_QUEUE, false, events)?);
        let transmitter = Transmitter::new(queue, transport.bell(SEND_QUEUE))?;
        transport.finish()?;
        receiver.refill()?;
        Ok(Self { mac, receiver, transmitter })
    }
}
