//! Virtio devices: what they have in common, by "Virtual I/O Device (VIRTIO) Version 1.2" of OASIS, to which all section
//! numbers in these modules refer.
//!
//! - [`queue`]: split virtqueues, the device's side;
//! - [`pci`]: the PCI transport, which holds one device and is a function of the bus;
//! - the devices, each a [`Model`]: [`entropy`], [`block`], [`net`], [`console`].
//!
//! **Trust.** A guest may write anything anywhere at any time. Every descriptor is copied once and checked in its copy; its
//! address and length become an offset in the guest's RAM or the device stops ([`Violation`], 2.1.2). No walk is longer
//! than [`queue::CHAIN_MAX`].
//!
//! **Who runs what.** A device with its queues is behind one lock. The vCPU that notifies it holds that while the device
//! takes what it finds; so does the thread that brings answers from a service. Neither takes another lock meanwhile.

pub mod block;
pub mod console;
pub mod entropy;
pub mod interrupts;
pub mod net;
pub mod pci;
pub mod queue;

#[cfg(test)]
pub mod driver;

use crate::memory::GuestMemory;
use interrupts::Interrupts;
use queue::Queue;

/// Feature bits for all devices (6).
pub mod feature {
    /// Descriptors may lead to tables of descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Each side says at which index it wants to be told.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// This specification, not one before version 1.0.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device here offers.
    pub const COMMON: u64 = INDIRECT | EVENT_INDEX | VERSION_1;
}

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has agreed to features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device has met what it cannot go on from.
    pub const NEEDS_RESET: u8 = 64;
}

/// The driver broke the rules: the device stops until it is reset (2.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A ring is not aligned or not in RAM.
    Ring,
    /// More entries are available than the ring has.
    Index,
    /// There is no descriptor of this number.
    Descriptor,
    /// A buffer is not in RAM.
    Buffer,
    /// A chain is endless or too long.
    Chain,
    /// A buffer to be read follows one to be written.
    Order,
    /// An indirect table where none may be, or of an impossible length.
    Indirect,
    /// A request without room for its header or its answer.
    Request,
}

/// What a device works with: its queues, the guest's RAM, its interrupts.
pub struct Io<'a, M> {
    /// The queues, those that the driver has not enabled among them.
    pub queues: &'a mut [Queue],
    /// The guest's RAM.
    pub memory: &'a M,
    /// The interrupts.
    pub interrupts: &'a mut Interrupts,
}

impl<M: GuestMemory> Io<'_, M> {
    /// Makes what was given back to a queue visible to the driver, and interrupts it if it wants to be.
    pub fn publish(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        if queue.publish(self.memory) {
            self.interrupts.raise(queue.vector());
        }
    }
}

/// One kind of device.
pub trait Model<M: GuestMemory>: Send {
    /// Device type (5).
    fn id(&self) -> u16;
    /// PCI class (31:24), subclass (23:16), programming interface (15:8).
    fn class(&self) -> u32;
    /// Features beside [`feature::COMMON`].
    fn features(&self) -> u64;
    /// The largest size of each queue: powers of two, at most [`queue::SIZE_MAX`].
    fn queues(&self) -> &[u16];
    /// The driver is ready, with these features.
    fn start(&mut self, _features: u64) {}
    /// The driver says that a queue has something, or may have, as when it has just become ready.
    fn notify(&mut self, queue: usize, io: &mut Io<'_, M>) -> Result<(), Violation>;
    /// Looks at what a service has for the device. Without `ready` the driver is not: only what ends is seen to. Returns
    /// whether the configuration has changed.
    fn serve(&mut self, _ready: bool, _io: &mut Io<'_, M>) -> Result<bool, Violation> {
        Ok(false)
    }
    /// Nobody will look until the service wakes somebody. False if it has said something since the last look.
    fn idle(&mut self) -> bool {
        true
    }
    /// Reads the device configuration: copies from `offset` on; what is behind its end stays zero.
    fn read_config(&self, _offset: usize, _bytes: &mut [u8]) {}
    /// Writes the device configuration.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}
    /// The device was reset: it touches no memory of the guest for what it was asked before.
    fn reset(&mut self) {}
}
