//! The block device (5.2): one queue of requests, which a service behind two rings and a data window carries out.
//!
//! The vCPU that notifies the device copies what is to be written into the window and sends requests; a thread takes
//! completions ([`Model::serve`]), copies what was read into the guest's memory and gives the chains back. When as many
//! requests are on their way as may be, or the window is full, further ones wait in the queue. While some are, the thread
//! will look at the queue again, so the driver need not notify the device.
//!
//! A reset leaves requests behind that the service still works on. They touch the window only; no other request is begun
//! before they have ended, so that an old write does not overtake a new one.

mod pages;

use alloc::vec::Vec;

use super::queue::{Chain, Segment, Segments};
use super::{Io, Model, Violation};
use crate::memory::GuestMemory;
use pages::Pages;

/// Device type (5).
const ID: u16 = 2;
/// PCI class: mass storage.
const CLASS: u32 = 0x0180 << 16;
/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Most requests on their way; tags are below it.
pub const IN_FLIGHT: usize = 128;
/// While that many are, the driver is not asked to notify the device.
const QUIET_FROM: usize = 4;
/// Most pieces of data of a request.
const SEGMENTS_MAX: u32 = 126;
/// Bytes of the device's identification (5.2.6).
const NAME: usize = 20;

/// Feature bits (5.2.3).
mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
}

/// Request types and their outcomes (5.2.6).
mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const HEADER: u64 = 16;
    pub const OK: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

/// Offset of the cache's mode in the device configuration (5.2.4).
const WRITEBACK: usize = 32;

/// What the service is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// From the disk to the window.
    Read,
    /// From the window to the disk; `durable`: when it ends.
    Write {
        /// It is on the medium when it is acknowledged.
        durable: bool,
    },
    /// What was acknowledged becomes durable.
    Flush,
}

/// A request to the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// First sector.
    pub sector: u64,
    /// Place in the window.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// What the disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Disk {
    /// Its size.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// What was acknowledged is durable only after a flush.
    pub cached: bool,
}

/// What the service says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It is there, or there again: it will see all requests that have not ended.
    Ready(Disk),
    /// A request has ended.
    Done {
        /// What [`Backend::submit`] returned.
        tag: u32,
        /// Whether it was carried out.
        ok: bool,
    },
}

/// The way to the service.
pub trait Backend<M>: Send {
    /// Bytes of the window.
    fn window(&self) -> u64;
    /// Copies from the guest to the window.
    fn copy_in(&mut self, at: u64, memory: &M, segment: Segment);
    /// Copies from the window to the guest.
    fn copy_out(&mut self, at: u64, memory: &M, segment: Segment);
    /// Accepts a request; its tag, below [`IN_FLIGHT`] and not in use. `None` if no more are possible now.
    fn submit(&mut self, request: Request) -> Option<u32>;
    /// Sends what was accepted.
    fn send(&mut self);
    /// What the service said next.
    fn poll(&mut self) -> Option<Event>;
    /// See [`Model::idle`].
    fn idle(&mut self) -> bool;
}

/// A request on its way.
#[derive(Clone, Debug, Default)]
struct Slot {
    state: State,
    head: u16,
    /// Where its data goes in the guest's memory, if it is a read; behind that its status.
    writable: Segments,
    read: u64,
    offset: u64,
    length: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Free,
    Busy,
    /// The device was reset since: nobody waits for it.
    Orphan,
}

/// What became of a chain.
#[derive(PartialEq, Eq)]
enum Begun {
    OnItsWay,
    /// Done already: bytes written.
    Ended(u32),
    /// It has to wait.
    NoRoom,
}

/// The device.
pub struct Block<B> {
    backend: B,
    disk: Disk,
    name: [u8; NAME],
    slots: Vec<Slot>,
    pages: Pages,
    chain: Chain,
    /// `chain` was taken and waits for room.
    waits: bool,
    in_flight: usize,
    orphans: usize,
    features: u64,
    writeback: bool,
    size_max: u32,
}

impl<B> Block<B> {
    /// A disk whose service said what it is; it tells the driver `name`.
    pub fn new<M>(backend: B, disk: Disk, name: &str) -> Self
    where
        B: Backend<M>,
    {
        let mut identification = [0; NAME];
        identification.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        let window = backend.window();
        Self {
            disk,
            name: identification,
            slots: (0..IN_FLIGHT).map(|_| Slot::default()).collect(),
            pages: Pages::new(window),
            chain: Chain::default(),
            waits: false,
            in_flight: 0,
            orphans: 0,
            features: 0,
            writeback: true,
            // So that the largest request finds room.
            size_max: u32::try_from(window / u64::from(SEGMENTS_MAX)).unwrap_or(u32::MAX) & !0xfff,
            backend,
        }
    }

    /// The driver wants every write to be durable (5.2.6.2).
    fn writes_through(&self) -> bool {
        let without = self.features & feature::FLUSH == 0;
        let chosen = self.features & feature::CONFIG_WCE != 0 && !self.writeback;
        self.disk.cached && (without || chosen)
    }

    /// Begins what the queue has.
    fn begin_all<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<(), Violation>
    where
        B: Backend<M>,
    {
        // A driver that keeps to the rules has no more available while nothing is published.
        let mut budget = 2 * io.queues[0].size();
        while self.orphans == 0 && budget != 0 {
            if !self.waits && !self.next(io)? {
                break;
            }
            budget -= 1;
            match self.begin(io.memory)? {
                Begun::OnItsWay => self.waits = false,
                Begun::Ended(written) => {
                    self.waits = false;
                    io.queues[0].give_back(io.memory, self.chain.head, written);
                }
                Begun::NoRoom => {
                    self.waits = true;
                    break;
                }
            }
        }
        self.backend.send();
        Ok(())
    }

    /// Takes the next chain. Where none is: whether the driver is to notify the device of the next depends on whether the
    /// device will look by itself.
    fn next<M: GuestMemory>(&mut self, io: &mut Io<'_, M>) -> Result<bool, Violation> {
        let queue = &mut io.queues[0];
        if self.in_flight < QUIET_FROM {
            return queue.take_or_arm(io.memory, &mut self.chain);
        }
        queue.disarm(io.memory);
        queue.take(io.memory, &mut self.chain)
    }

    /// Begins what [`Block::chain`] asks for.
    fn begin<M: GuestMemory>(&mut self, memory: &M) -> Result<Begun, Violation>
    where
        B: Backend<M>,
    {
        let mut header = [0; request::HEADER as usize];
        let whole = self.chain.readable.read(memory, 0, &mut header) == header.len();
        if !whole || self.chain.writable.length() == 0 {
            return Err(Violation::Request);
        }
        let value = u128::from_le_bytes(header);
        let (kind, sector) = (value as u32, (value >> 64) as u64);
        let (given, wanted) = (self.chain.readable.length() - request::HEADER, self.chain.writable.length() - 1);
        Ok(match kind {
            request::IN => self.transfer(memory, Operation::Read, sector, wanted),
            request::OUT if self.disk.read_only => self.end(memory, 0, request::FAILED),
            request::OUT => self.transfer(memory, Operation::Write { durable: self.writes_through() }, sector, given),
            // Nothing is volatile.
            request::FLUSH if !self.disk.cached => self.end(memory, 0, request::OK),
            request::FLUSH => self.submit(Request { operation: Operation::Flush, sector: 0, offset: 0, length: 0 }),
            request::GET_ID => {
                let written = self.chain.writable.write(memory, 0, &self.name[..NAME.min(wanted as usize)]);
                self.end(memory, written, request::OK)
            }
            _ => self.end(memory, 0, request::UNSUPPORTED),
        })
    }

    /// The chain's request has ended, with `written` bytes of data.
    fn end<M: GuestMemory>(&self, memory: &M, written: usize, status: u8) -> Begun {
        self.chain.writable.write(memory, self.chain.writable.length() - 1, &[status]);
        Begun::Ended(written as u32 + 1)
    }

    fn transfer<M: GuestMemory>(&mut self, memory: &M, operation: Operation, sector: u64, length: u64) -> Begun
    where
        B: Backend<M>,
    {
        let end = sector.checked_add(length / SECTOR);
        let possible = length.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.disk.sectors);
        if !possible || length > self.pages.bytes() {
            return self.end(memory, 0, request::FAILED);
        }
        if length == 0 {
            return self.end(memory, 0, request::OK);
        }
        let Some(offset) = self.pages.take(length) else { return Begun::NoRoom };
        let begun = self.submit(Request { operation, sector, offset, length: length as u32 });
        if begun == Begun::NoRoom {
            self.pages.give_back(offset, length);
        } else if operation != Operation::Read {
            let mut at = offset;
            for segment in self.chain.readable.range(request::HEADER, length) {
                self.backend.copy_in(at, memory, segment);
                at += u64::from(segment.length);
            }
        }
        begun
    }

    fn submit<M>(&mut self, request: Request) -> Begun
    where
        B: Backend<M>,
    {
        let Some(tag) = self.backend.submit(request) else { return Begun::NoRoom };
        let Some(slot) = self.slots.get_mut(tag as usize) else { return Begun::NoRoom };
        slot.state = State::Busy;
        slot.head = self.chain.head;
        slot.read = if request.operation == Operation::Read { request.length.into() } else { 0 };
        (slot.offset, slot.length) = (request.offset, request.length);
        // The chain's own list is filled anew.
        core::mem::swap(&mut slot.writable, &mut self.chain.writable);
        self.in_flight += 1;
        Begun::OnItsWay
    }

    /// A request has ended.
    fn finish<M: GuestMemory>(&mut self, tag: u32, ok: bool, io: &mut Io<'_, M>)
    where
        B: Backend<M>,
    {
        let Some(slot) = self.slots.get_mut(tag as usize) else { return };
        let state = core::mem::take(&mut slot.state);
        if state != State::Free && slot.length != 0 {
            self.pages.give_back(slot.offset, slot.length.into());
        }
        match state {
            State::Free => {}
            State::Orphan => self.orphans -= 1,
            State::Busy => {
                self.in_flight -= 1;
                let mut at = slot.offset;
                for segment in slot.writable.range(0, if ok { slot.read } else { 0 }) {
                    self.backend.copy_out(at, io.memory, segment);
                    at += u64::from(segment.length);
                }
                let status = if ok { request::OK } else { request::FAILED };
                slot.writable.write(io.memory, slot.writable.length() - 1, &[status]);
                io.queues[0].give_back(io.memory, slot.head, (at - slot.offset) as u32 + 1);
            }
        }
    }

    fn configuration(&self) -> [u8; WRITEBACK + 1] {
        let mut bytes = [0; WRITEBACK + 1];
        bytes[..8].copy_from_slice(&self.disk.sectors.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.size_max.to_le_bytes());
        bytes[12..16].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        bytes[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        bytes[WRITEBACK] = self.writeback.into();
        bytes
    }
}

impl<B: Backend<M>, M: GuestMemory> Model<M> for Block<B> {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        let read_only = if self.disk.read_only { feature::RO } else { 0 };
        let cache = if self.disk.cached { feature::FLUSH | feature::CONFIG_WCE } else { 0 };
        feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE | read_only | cache
    }

    fn queues(&self) -> &[u16] {
        &[256]
    }

    fn start(&mut self, features: u64) {
        self.features = features;
    }

    fn notify(&mut self, _queue: usize, io: &mut Io<'_, M>) -> Result<(), Violation> {
        self.begin_all(io)?;
        io.publish(0);
        Ok(())
    }

    fn serve(&mut self, ready: bool, io: &mut Io<'_, M>) -> Result<bool, Violation> {
        let mut changed = false;
        while let Some(event) = self.backend.poll() {
            match event {
                Event::Ready(disk) => {
                    // Features stay what the driver was told.
                    changed |= self.disk.sectors != disk.sectors;
                    self.disk.sectors = disk.sectors;
                }
                Event::Done { tag, ok } => self.finish(tag, ok, io),
            }
        }
        match ready {
            true => self.begin_all(io)?,
            false => self.backend.send(),
        }
        io.publish(0);
        Ok(changed)
    }

    fn idle(&mut self) -> bool {
        self.backend.idle()
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) {
        let configuration = self.configuration();
        let from = configuration.get(offset..).unwrap_or_default();
        bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if let (WRITEBACK, [mode]) = (offset, bytes) {
            self.writeback = *mode != 0;
        }
    }

    fn reset(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.state == State::Busy) {
            slot.state = State::Orphan;
            self.orphans += 1;
        }
        (self.in_flight, self.waits, self.features, self.writeback) = (0, false, 0, true);
    }
}

#[cfg(test)]
mod tests;
