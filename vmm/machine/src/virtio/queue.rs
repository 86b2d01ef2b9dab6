//! Split virtqueues, the device's side (2.7).
//!
//! The driver makes chains of descriptors available, the device takes them in order ([`Queue::take`]) and gives them back in
//! any order ([`Queue::give_back`]). Each side may do without being told: [`Queue::arm`] and [`Queue::disarm`] say whether
//! the device wants to be notified, [`Queue::publish`] whether the driver wants an interrupt.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use super::{Violation, feature};
use crate::memory::GuestMemory;
use crate::virtio::interrupts::NO_VECTOR;

/// Largest size of a queue here; the specification's is 32768.
pub const SIZE_MAX: u16 = 256;
/// Most descriptors of a chain. The driver may use no more than the queue's size (2.7.5.3.1); those of an indirect table
/// are the device's to limit.
pub const CHAIN_MAX: usize = 1024;
/// Bytes of a descriptor (2.7.5), and of an entry of the used ring (2.7.8).
const DESCRIPTOR: u64 = 16;
const USED_ENTRY: u64 = 8;
/// Bytes in front of the entries of both rings: flags and index.
const HEADER: u64 = 4;
const INDEX: u64 = 2;
/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: no interrupts. Of the used ring: no notifications.
const QUIET: u16 = 1;

/// A piece of the guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it begins, as [`crate::memory::Ram::offset`] tells it.
    pub offset: u64,
    /// Its bytes.
    pub length: u32,
}

/// Pieces of the guest's RAM, one behind the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Segments {
    list: Vec<Segment>,
    length: u64,
}

impl Segments {
    /// All bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The pieces.
    pub fn list(&self) -> &[Segment] {
        &self.list
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.list.clear();
        self.length = 0;
    }

    fn push(&mut self, segment: Segment) {
        if segment.length != 0 {
            self.list.push(segment);
            self.length += u64::from(segment.length);
        }
    }

    /// The pieces of `length` bytes from byte `from` on; less where there are less.
    pub fn range(&self, from: u64, length: u64) -> impl Iterator<Item = Segment> {
        let (mut skip, mut left) = (from, length);
        self.list.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.length.into());
            skip -= skipped;
            let length = left.min(u64::from(segment.length) - skipped);
            left -= length;
            (length != 0).then_some(Segment { offset: segment.offset + skipped, length: length as u32 })
        })
    }

    /// Copies from the guest, from byte `from` on; returns how many bytes there were.
    pub fn read(&self, memory: &impl GuestMemory, from: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for segment in self.range(from, bytes.len() as u64) {
            let next = done + segment.length as usize;
            memory.load(segment.offset, &mut bytes[done..next]);
            done = next;
        }
        done
    }

    /// Copies to the guest, from byte `from` on; returns how many bytes found room.
    pub fn write(&self, memory: &impl GuestMemory, from: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        for segment in self.range(from, bytes.len() as u64) {
            let next = done + segment.length as usize;
            memory.store(segment.offset, &bytes[done..next]);
            done = next;
        }
        done
    }
}

/// A chain of descriptors that the driver made available.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Its first descriptor: what it is given back by.
    pub head: u16,
    /// What the device reads.
    pub readable: Segments,
    /// What the device writes.
    pub writable: Segments,
}

impl Chain {
    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

/// The parts of an enabled queue, as offsets in the guest's RAM.
#[derive(Clone, Copy, Debug)]
struct Rings {
    descriptors: u64,
    available: u64,
    used: u64,
}

/// Addresses as the driver set them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring, "driver area".
    pub available: u64,
    /// Used ring, "device area".
    pub used: u64,
}

/// One queue.
#[derive(Clone, Debug)]
pub struct Queue {
    most: u16,
    size: u16,
    vector: u16,
    /// Where the driver put it.
    pub addresses: Addresses,
    rings: Option<Rings>,
    event_index: bool,
    indirect: bool,
    /// Entries of the available ring that were taken.
    taken: u16,
    /// The driver's index, as last seen.
    available: u16,
    /// Entries that were written to the used ring.
    written: u16,
    /// Those that the driver can see.
    published: u16,
    armed: bool,
}

impl Queue {
    /// A queue of at most `most` entries, not enabled.
    pub fn new(most: u16) -> Self {
        Self {
            most,
            size: most,
            vector: NO_VECTOR,
            addresses: Addresses::default(),
            rings: None,
            event_index: false,
            indirect: false,
            taken: 0,
            available: 0,
            written: 0,
            published: 0,
            armed: true,
        }
    }

    /// As made.
    pub fn reset(&mut self) {
        *self = Self::new(self.most);
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The driver wants a smaller queue. A number that is no power of two leaves the queue as it was (4.1.5.1.3).
    pub fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.most && !self.enabled() {
            self.size = size;
        }
    }

    /// The message that says that the queue has something for the driver.
    pub fn vector(&self) -> u16 {
        self.vector
    }

    /// Sets the message.
    pub fn set_vector(&mut self, vector: u16) {
        self.vector = vector;
    }

    /// Whether it works.
    pub fn enabled(&self) -> bool {
        self.rings.is_some()
    }

    /// The driver enables the queue.
    pub fn enable(&mut self, memory: &impl GuestMemory, features: u64) -> Result<(), Violation> {
        let (size, Addresses { descriptors, available, used }) = (u64::from(self.size), self.addresses);
        let find = |gpa: u64, length: u64, align: u64| {
            let aligned = gpa.is_multiple_of(align);
            memory.ram().offset(gpa, length).filter(|_| aligned).ok_or(Violation::Ring)
        };
        // Behind the entries each ring has room for an index (2.7.10), which the feature decides about.
        self.rings = Some(Rings {
            descriptors: find(descriptors, DESCRIPTOR * size, 16)?,
            available: find(available, HEADER + 2 * size + 2, 2)?,
            used: find(used, HEADER + USED_ENTRY * size + 2, 4)?,
        });
        self.event_index = features & feature::EVENT_INDEX != 0;
        self.indirect = features & feature::INDIRECT != 0;
        Ok(())
    }

    /// Takes the next chain into `chain`; false if there is none.
    pub fn take(&mut self, memory: &impl GuestMemory, chain: &mut Chain) -> Result<bool, Violation> {
        let Some(rings) = self.rings else { return Ok(false) };
        if !self.look(memory, rings)? {
            return Ok(false);
        }
        let slot = u64::from(self.taken % self.size);
        let head = memory.load_u16(rings.available + HEADER + 2 * slot);
        self.taken = self.taken.wrapping_add(1);
        chain.clear();
        chain.head = head;
        self.walk(memory, rings, chain)?;
        Ok(true)
    }

    /// As [`Queue::take`]; if there is none, the device is notified of the next one.
    pub fn take_or_arm(&mut self, memory: &impl GuestMemory, chain: &mut Chain) -> Result<bool, Violation> {
        Ok(self.take(memory, chain)? || (self.arm(memory) && self.take(memory, chain)?))
    }

    /// Whether anything is available.
    fn look(&mut self, memory: &impl GuestMemory, rings: Rings) -> Result<bool, Violation> {
        if self.taken == self.available {
            self.available = memory.load_u16(rings.available + INDEX);
            // The entries are read after it.
            fence(Ordering::Acquire);
        }
        match self.available.wrapping_sub(self.taken) {
            0 => Ok(false),
            waiting if waiting <= self.size => Ok(true),
            _ => Err(Violation::Index),
        }
    }

    /// Copies and checks the descriptors of a chain.
    fn walk(&self, memory: &impl GuestMemory, rings: Rings, chain: &mut Chain) -> Result<(), Violation> {
        let (mut table, mut size, mut index) = (rings.descriptors, u32::from(self.size), chain.head);
        let mut direct = true;
        for _ in 0..CHAIN_MAX {
            if u32::from(index) >= size {
                return Err(Violation::Descriptor);
            }
            let mut bytes = [0; DESCRIPTOR as usize];
            memory.load(table + DESCRIPTOR * u64::from(index), &mut bytes);
            let descriptor = Descriptor::decode(bytes);
            if descriptor.flags & INDIRECT != 0 {
                // One table, no table of tables, nothing behind it (2.7.5.3.1).
                if !(self.indirect && direct) || descriptor.flags & NEXT != 0 {
                    return Err(Violation::Indirect);
                }
                (table, size) = descriptor.table(memory)?;
                (index, direct) = (0, false);
                continue;
            }
            descriptor.add_to(memory, chain)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(Violation::Chain)
    }

    /// Gives a chain back, with `written` bytes in its writable part. The driver sees it when it is published.
    pub fn give_back(&mut self, memory: &impl GuestMemory, head: u16, written: u32) {
        let Some(rings) = self.rings else { return };
        let entry = u64::from(head) | u64::from(written) << 32;
        let slot = u64::from(self.written % self.size);
        memory.store(rings.used + HEADER + USED_ENTRY * slot, &entry.to_le_bytes());
        self.written = self.written.wrapping_add(1);
    }

    /// Whether anything was given back that the driver cannot see yet.
    pub fn holds_back(&self) -> bool {
        self.published != self.written
    }

    /// How many chains were given back that the driver cannot see yet.
    pub fn held_back(&self) -> u16 {
        self.written.wrapping_sub(self.published)
    }

    /// Makes what was given back visible. True if the driver wants an interrupt for it (2.7.7).
    pub fn publish(&mut self, memory: &impl GuestMemory) -> bool {
        let Some(rings) = self.rings.filter(|_| self.holds_back()) else { return false };
        // The entries are written before it.
        fence(Ordering::Release);
        memory.store_u16(rings.used + INDEX, self.written);
        let before = core::mem::replace(&mut self.published, self.written);
        // It must be there before the driver's wish is read: the driver does the same the other way round.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = memory.load_u16(rings.available + HEADER + 2 * u64::from(self.size));
            passes(event, before, self.written)
        } else {
            memory.load_u16(rings.available) & QUIET == 0
        }
    }

    /// Asks to be notified of the next chain. True if there is one already: take it first.
    pub fn arm(&mut self, memory: &impl GuestMemory) -> bool {
        let Some(rings) = self.rings else { return false };
        if self.event_index {
            memory.store_u16(rings.used + HEADER + USED_ENTRY * u64::from(self.size), self.taken);
        } else if !self.armed {
            memory.store_u16(rings.used, 0);
        }
        self.armed = true;
        fence(Ordering::SeqCst);
        memory.load_u16(rings.available + INDEX) != self.taken
    }

    /// Asks not to be notified, as the device looks by itself. The index of the last wish stays behind, so that the driver
    /// does not pass it, but once in 65536 chains.
    pub fn disarm(&mut self, memory: &impl GuestMemory) {
        let Some(rings) = self.rings.filter(|_| self.armed) else { return };
        if !self.event_index {
            memory.store_u16(rings.used, QUIET);
        }
        self.armed = false;
    }
}

/// Whether an index that moved from `before` to `now` passed `event` (2.7.10.1).
pub fn passes(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn decode(bytes: [u8; DESCRIPTOR as usize]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self {
            address: value as u64,
            length: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        }
    }

    /// The table that it leads to: its place, and how many descriptors it has.
    fn table(&self, memory: &impl GuestMemory) -> Result<(u64, u32), Violation> {
        let length = u64::from(self.length);
        if length == 0 || !length.is_multiple_of(DESCRIPTOR) {
            return Err(Violation::Indirect);
        }
        let table = memory.ram().offset(self.address, length).ok_or(Violation::Buffer)?;
        Ok((table, (length / DESCRIPTOR) as u32))
    }

    fn add_to(&self, memory: &impl GuestMemory, chain: &mut Chain) -> Result<(), Violation> {
        let offset = memory.ram().offset(self.address, self.length.into()).ok_or(Violation::Buffer)?;
        let segment = Segment { offset, length: self.length };
        match self.flags & WRITE != 0 {
            true => chain.writable.push(segment),
            // Also one of no bytes: whether it counts would depend on the device.
            false if chain.writable.length() != 0 => return Err(Violation::Order),
            false => chain.readable.push(segment),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
