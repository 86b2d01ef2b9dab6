//! Frames from the network.
#![allow(unsafe_code)]

use crate::buffers::Buffers;
use crate::device::HEADER;
use ::device::registers::Registers;
use alloc::boxed::Box;
use core::sync::atomic::{Ordering, fence};
use nic::{Misbehaviour, Receive};
use virtio::dma::Region;
use virtio::transport::{Bell, wants_bell};
use virtio_drivers::Result;
use virtio_drivers::queue::VirtQueue;

/// Buffers that wait for frames.
pub const COUNT: usize = 256;

/// The receiving half of a device.
pub struct Receiver<R> {
    queue: Box<VirtQueue<Region, COUNT>>,
    buffers: Buffers,
    bell: Bell<R>,
    /// The device wants to hear of new buffers.
    due: bool,
}

impl<R: Registers> Receiver<R> {
    pub(crate) fn new(queue: Box<VirtQueue<Region, COUNT>>, bell: Bell<R>) -> Result<Self> {
        Ok(Self { queue, buffers: Buffers::new(COUNT)?, bell, due: false })
    }

    /// Gives all free buffers to the device.
    pub fn refill(&mut self) -> Result<()> {
        while self.buffers.free().is_some() {
            self.lend()?;
        }
        self.ring();
        Ok(())
    }

    fn lend(&mut self) -> Result<()> {
        // SAFETY: buffers last for ever, and only `take_back` makes this one accessible again.
        self.buffers.lend(|bytes| unsafe { self.queue.add(&[], &mut [bytes]) })?;
        self.due |= wants_bell(&self.queue);
        Ok(())
    }

    fn ring(&mut self) {
        if core::mem::take(&mut self.due) {
            self.bell.ring();
        }
    }
}

impl<R: Registers> Receive for Receiver<R> {
    fn next(&mut self, deliver: impl FnOnce(&[u8])) -> core::result::Result<bool, Misbehaviour> {
        let Some(token) = self.queue.peek_used() else { return Ok(false) };
        let queue = &mut self.queue;
        // SAFETY: the buffer is the one that was added under this token.
        let pop = |bytes: &mut [u8]| unsafe { queue.pop_used(token, &[], &mut [bytes]) };
        let (index, length) = self.buffers.take_back(token, pop).ok_or(Misbehaviour)?;
        let length = length.map_err(|_| Misbehaviour)? as usize;
        let frame = self.buffers.bytes(index).get(HEADER..length).ok_or(Misbehaviour)?;
        deliver(frame);
        self.lend().map_err(|_| Misbehaviour)?;
        Ok(true)
    }

    fn look_again(&mut self) -> bool {
        self.ring();
        // The wish for an interrupt was written with the last buffer: before the device is looked at again.
        fence(Ordering::SeqCst);
        self.queue.can_pop()
    }
}
