//! The driver's side of a split virtqueue (2.7.13, 2.7.14), for tests.

extern crate std;

use alloc::sync::Arc;
use alloc::vec::Vec;
use std::collections::BTreeMap;

use super::interrupts::Interrupts;
use super::queue::{Addresses, Queue, passes};
use super::{Io, Model, Violation, feature};
use crate::backplane::Backplane;
use crate::memory::{GuestMemory, VecMemory};

/// A buffer: guest-physical address, length.
pub type Buffer = (u64, u32);

/// One queue as its driver has it.
pub struct Driver {
    /// The guest's RAM.
    pub memory: Arc<VecMemory>,
    /// Where the rings are.
    pub addresses: Addresses,
    size: u16,
    event_index: bool,
    /// Tables for indirect chains, one for each descriptor; 0: chains are direct.
    tables: u64,
    free: Vec<u16>,
    held: BTreeMap<u16, Vec<u16>>,
    available: u16,
    used: u16,
    /// The index up to which the device was notified.
    told: u16,
}

const TABLE: u64 = 0x400;

impl Driver {
    /// For a queue of `size` entries whose rings, and tables for indirect chains, begin at `base`.
    pub fn new(memory: Arc<VecMemory>, base: u64, size: u16, event_index: bool, indirect: bool) -> Self {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let tables = (used + 6 + 8 * u64::from(size)).next_multiple_of(16);
        Self {
            memory,
            addresses: Addresses { descriptors: base, available, used },
            size,
            event_index,
            tables: if indirect { tables } else { 0 },
            free: (0..size).collect(),
            held: BTreeMap::new(),
            available: 0,
            used: 0,
            told: 0,
        }
    }

    fn describe(&self, at: u64, buffer: Buffer, flags: u16, next: u16) {
        let value =
            u128::from(buffer.0) | u128::from(buffer.1) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        self.memory.write(at, &value.to_le_bytes()).unwrap();
    }

    /// Makes a chain available; None if there are not enough descriptors.
    pub fn add(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Option<u16> {
        let buffers: Vec<(Buffer, u16)> =
            readable.iter().map(|&buffer| (buffer, 0)).chain(writable.iter().map(|&buffer| (buffer, 2))).collect();
        let count = if self.tables != 0 { 1 } else { buffers.len() };
        if self.free.len() < count || buffers.is_empty() {
            return None;
        }
        let chain: Vec<u16> = self.free.split_off(self.free.len() - count);
        let head = chain[0];
        let table = if self.tables != 0 { self.tables + TABLE * u64::from(head) } else { self.addresses.descriptors };
        for (index, &(buffer, flags)) in buffers.iter().enumerate() {
            let number = |index: usize| if self.tables != 0 { index as u16 } else { chain[index] };
            let last = index + 1 == buffers.len();
            let (flags, next) = if last { (flags, 0xdead) } else { (flags | 1, number(index + 1)) };
            self.describe(table + 16 * u64::from(number(index)), buffer, flags, next);
        }
        if self.tables != 0 {
            self.describe(self.addresses.descriptors + 16 * u64::from(head), (table, 16 * buffers.len() as u32), 4, 0);
        }
        let slot = self.addresses.available + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write(slot, &head.to_le_bytes()).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write(self.addresses.available + 2, &self.available.to_le_bytes()).unwrap();
        self.held.insert(head, chain);
        Some(head)
    }

    fn read_u16(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Whether the device wants to be notified of what was added since the last call.
    pub fn must_notify(&mut self) -> bool {
        let before = core::mem::replace(&mut self.told, self.available);
        match self.event_index {
            true => {
                let event = self.read_u16(self.addresses.used + 4 + 8 * u64::from(self.size));
                passes(event, before, self.available)
            }
            false => self.available != before && self.read_u16(self.addresses.used) & 1 == 0,
        }
    }

    /// Takes back a chain: its first descriptor, and how many bytes were written.
    pub fn take_back(&mut self) -> Option<(u16, u32)> {
        if self.read_u16(self.addresses.used + 2) == self.used {
            return None;
        }
        let entry = self.addresses.used + 4 + 8 * u64::from(self.used % self.size);
        let value = self.memory.read_u32(entry).unwrap();
        let written = self.memory.read_u32(entry + 4).unwrap();
        self.used = self.used.wrapping_add(1);
        self.free.append(&mut self.held.remove(&(value as u16)).expect("it was made available"));
        Some((value as u16, written))
    }

    /// Asks for an interrupt when the next chain comes back.
    pub fn want_interrupt(&self) {
        let at = self.addresses.available + 4 + 2 * u64::from(self.size);
        self.memory.write(at, &self.used.to_le_bytes()).unwrap();
    }

    /// Asks for no interrupts, where the feature for indices was not agreed on.
    pub fn silence(&self, quiet: bool) {
        self.memory.write(self.addresses.available, &u16::from(quiet).to_le_bytes()).unwrap();
    }

    /// Chains with the device.
    pub fn outstanding(&self) -> usize {
        self.held.len()
    }
}

/// Where a [`Bench`]'s buffers for the device begin, and how far they are apart.
pub const BUFFERS: u64 = 0x8000;
/// See above.
pub const STEP: u64 = 0x1000;

/// A device whose first queue is for what it receives, with its driver: two queues of 8 entries.
pub struct Bench<D> {
    /// The driver's sides.
    pub drivers: [Driver; 2],
    /// The device's sides.
    pub queues: [Queue; 2],
    /// Interrupts of the device.
    pub interrupts: Interrupts,
    /// The device.
    pub device: D,
}

impl<D: Model<Arc<VecMemory>>> Bench<D> {
    /// A bench with `device`.
    pub fn with(device: D) -> Self {
        let memory = Arc::new(VecMemory::new(0x4_0000));
        let drivers = [0x1000, 0x2000].map(|base| Driver::new(memory.clone(), base, 8, true, false));
        let queues = [0, 1].map(|index: usize| {
            let mut queue = Queue::new(8);
            queue.addresses = drivers[index].addresses;
            queue.enable(&memory, feature::COMMON).unwrap();
            queue
        });
        Self { drivers, queues, interrupts: Interrupts::new(3, Arc::new(Backplane::new(1))), device }
    }

    /// Has the device do something with its queues.
    pub fn act<R>(&mut self, act: impl FnOnce(&mut D, &mut Io<'_, Arc<VecMemory>>) -> R) -> R {
        let Self { drivers, queues, interrupts, device } = self;
        act(device, &mut Io { queues, memory: &drivers[0].memory, interrupts })
    }

    /// The driver notifies the device of `queue`.
    pub fn run(&mut self, queue: usize) -> Result<(), Violation> {
        self.act(|device, io| device.notify(queue, io))
    }

    /// Gives the device buffer `number`.
    pub fn buffer(&mut self, number: u64, length: u32) {
        self.drivers[0].add(&[], &[(BUFFERS + number * STEP, length)]).unwrap();
    }

    /// What is in it.
    pub fn read(&self, number: u64, length: usize) -> Vec<u8> {
        let mut bytes = alloc::vec![0; length];
        self.drivers[0].memory.read(BUFFERS + number * STEP, &mut bytes).unwrap();
        bytes
    }
}
