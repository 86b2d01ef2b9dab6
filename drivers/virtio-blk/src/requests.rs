//! Requests in the device's queue (5.2.6): a header, data of a client's window, a status.
#![allow(unsafe_code)]

use crate::identity::{Error, Identity};
use ::device::dma::{self, Area};
use ::device::registers::Registers;
use alloc::boxed::Box;
use alloc::vec::Vec;
use block::{Action, Command};
use core::sync::atomic::{Ordering, fence};
use virtio::dma::Region;
use virtio::transport::{Bell, PciTransport, wants_bell};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

/// The queue (5.2.2).
const QUEUE: u16 = 0;
/// Descriptors of the queue: what most devices have at least.
pub const ENTRIES: usize = 128;
/// Most requests at once, of three descriptors each.
pub const DEPTH: u16 = ENTRIES as u16 / 3;

/// Bytes of a request's header, which its status follows.
const HEADER: usize = 16;
/// Bytes between two requests' headers.
const STRIDE: usize = 32;
/// Not a status of the standard: what a device that wrote none leaves.
const NO_STATUS: u64 = 0xff;

/// The device did what no device may: it gave a request back that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misbehaviour;

/// A request that the device has.
#[derive(Clone, Copy)]
struct Running {
    id: u16,
    command: Command,
}

/// What came of a request.
pub struct Ended {
    /// Its name.
    pub id: u16,
    /// What it was.
    pub command: Command,
    /// Its status, 0 if all went well.
    pub status: u8,
    /// The device says that it wrote all that it should.
    pub whole: bool,
}

/// The queue and what is in it.
pub struct Requests<R> {
    queue: Box<VirtQueue<Region, ENTRIES>>,
    bell: Bell<R>,
    /// Headers and status bytes, by name.
    area: Area,
    /// The request under each of the queue's tokens.
    tokens: Vec<Option<Running>>,
    /// The device wants to hear of new requests.
    due: bool,
    /// Requests have been taken back since the last look at an empty queue.
    taken: bool,
}

impl<R: Registers + Clone> Requests<R> {
    pub fn new(transport: &mut PciTransport<R>, identity: &Identity) -> Result<Self, Error> {
        let entries = transport.max_queue_size(QUEUE);
        if entries < ENTRIES as u32 {
            return Err(Error::Queue(entries));
        }
        let queue = Box::new(VirtQueue::new(transport, QUEUE, false, identity.events)?);
        let area = Area::new(STRIDE * usize::from(DEPTH)).ok_or(virtio_drivers::Error::DmaError)?;
        let tokens = alloc::vec![None; ENTRIES];
        Ok(Self { queue, bell: transport.bell(QUEUE), area, tokens, due: false, taken: false })
    }
}

impl<R: Registers> Requests<R> {
    /// Puts a request into the queue, under a name below [`DEPTH`] that none there has.
    pub fn push(&mut self, id: u16, command: &Command) {
        let kind = match command.action {
            Action::Read => 0,
            Action::Write => 1,
            Action::Flush => 4,
        };
        let at = STRIDE * usize::from(id);
        self.area.store(at, kind);
        self.area.store(at + 8, command.sector);
        self.area.store(at + HEADER, NO_STATUS);
        let queue = &mut self.queue;
        // SAFETY: header and status are left alone until the request's end; the window is never touched.
        let added = with_buffers(&mut self.area, id, command, |from, to| unsafe { queue.add(from, to) });
        let Ok(token) = added else { panic!("no descriptors are left for {} requests", DEPTH) };
        self.tokens[usize::from(token)] = Some(Running { id, command: *command });
        self.due |= wants_bell(&self.queue);
    }

    /// Tells the device of what has been put into the queue.
    pub fn ring(&mut self) {
        if core::mem::take(&mut self.due) {
            self.bell.ring();
        }
    }

    /// The next request that the device has ended. After `None` it interrupts when there is one.
    pub fn pop(&mut self) -> Result<Option<Ended>, Misbehaviour> {
        let mut token = self.queue.peek_used();
        if token.is_none() && core::mem::take(&mut self.taken) {
            // The wish for an interrupt was written with the last request: before the device is looked at again.
            fence(Ordering::SeqCst);
            token = self.queue.peek_used();
        }
        let Some(token) = token else { return Ok(None) };
        let running = self.tokens.get_mut(usize::from(token)).and_then(Option::take);
        let Running { id, command } = running.ok_or(Misbehaviour)?;
        let queue = &mut self.queue;
        // SAFETY: these are the buffers that were added under this token.
        let popped = with_buffers(&mut self.area, id, &command, |from, to| unsafe { queue.pop_used(token, from, to) });
        let written = popped.map_err(|_| Misbehaviour)?;
        self.taken = true;
        let data = if command.action == Action::Read { command.length } else { 0 };
        let status = self.area.load(STRIDE * usize::from(id) + HEADER) as u8;
        Ok(Some(Ended { id, command, status, whole: written.checked_sub(data) == Some(1) }))
    }
}

/// Calls `work` with the buffers of a request: those that the device reads, and those that it writes.
fn with_buffers<T>(
    area: &mut Area,
    id: u16,
    command: &Command,
    work: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> T,
) -> T {
    let (header, status) = area.buffer(STRIDE * usize::from(id), STRIDE).split_at_mut(HEADER);
    let status = &mut status[..1];
    if command.action == Action::Flush {
        return work(&[header], &mut [status]);
    }
    let length = command.length as usize;
    let Some(start) = dma::program_address(command.address, length) else {
        panic!("a request for {:#x}, where no window is", command.address)
    };
    // SAFETY: mapped for ever. The client and the device may change it at any time, which nobody notices: the queue
    // takes address and length, and reads and writes nothing.
    let data = unsafe { core::slice::from_raw_parts_mut(start, length) };
    match command.action {
        Action::Read => work(&[header], &mut [data, status]),
        _ => work(&[header, data], &mut [status]),
    }
}
