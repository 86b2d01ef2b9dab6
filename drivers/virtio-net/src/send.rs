//! Frames to the network.
#![allow(unsafe_code)]

use crate::buffers::{Buffers, LENGTH};
use crate::device::HEADER;
use ::device::registers::Registers;
use alloc::boxed::Box;
use core::sync::atomic::{Ordering, fence};
use nic::{Misbehaviour, Transmit};
use runtime::net::{FRAME_MAX, HEADER as RECORD_HEADER};
use virtio::dma::Region;
use virtio::transport::{Bell, wants_bell};
use virtio_drivers::Result;
use virtio_drivers::queue::VirtQueue;

/// Buffers for frames under way.
pub const COUNT: usize = 128;
/// Free buffers below which the device is asked which it has sent: not after each frame, which would also mean an
/// interrupt for each.
const LOW: usize = COUNT / 4;
/// Place in a buffer of a record whose frame lies behind the device's header.
const RECORD: usize = HEADER - RECORD_HEADER;

const _: () = assert!(HEADER + FRAME_MAX <= LENGTH);

/// The sending half of a device.
pub struct Transmitter<R> {
    queue: Box<VirtQueue<Region, COUNT>>,
    buffers: Buffers,
    bell: Bell<R>,
    /// The device wants to hear of new buffers.
    due: bool,
}

impl<R: Registers> Transmitter<R> {
    pub(crate) fn new(queue: Box<VirtQueue<Region, COUNT>>, bell: Bell<R>) -> Result<Self> {
        Ok(Self { queue, buffers: Buffers::new(COUNT)?, bell, due: false })
    }

    /// Takes back what the device has sent. False if there was nothing; then it interrupts when there is.
    pub fn reclaim(&mut self) -> core::result::Result<bool, Misbehaviour> {
        let mut any = false;
        loop {
            let Some(token) = self.queue.peek_used() else { return Ok(any) };
            let queue = &mut self.queue;
            // SAFETY: the buffer is the one that was added under this token.
            let pop = |bytes: &mut [u8]| unsafe { queue.pop_used(token, &[bytes], &mut []) };
            let (_, popped) = self.buffers.take_back(token, pop).ok_or(Misbehaviour)?;
            popped.map_err(|_| Misbehaviour)?;
            any = true;
            // The wish for an interrupt was written with this buffer: before the device is looked at again.
            fence(Ordering::SeqCst);
        }
    }
}

impl<R: Registers> Transmit for Transmitter<R> {
    fn can_send(&mut self) -> core::result::Result<bool, Misbehaviour> {
        if self.buffers.free_count() < LOW {
            self.reclaim()?;
        }
        Ok(self.buffers.free_count() != 0)
    }

    fn send<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> core::result::Result<Option<usize>, E>,
    ) -> core::result::Result<bool, E> {
        let Some(index) = self.buffers.free() else { return Ok(false) };
        let bytes = self.buffers.bytes(index);
        let Some(length) = fill(&mut bytes[RECORD..])? else { return Ok(false) };
        bytes[..HEADER].fill(0);
        let queue = &mut self.queue;
        // SAFETY: buffers last for ever, and only `take_back` makes this one accessible again.
        let lent = self.buffers.lend(|bytes| unsafe { queue.add(&[&bytes[..HEADER + length]], &mut []) });
        // There are as many descriptors as buffers.
        debug_assert!(lent.is_ok());
        self.due |= wants_bell(&self.queue);
        Ok(true)
    }

    fn ring(&mut self) {
        if core::mem::take(&mut self.due) {
            self.bell.ring();
        }
    }

    fn await_buffer(&mut self) -> core::result::Result<bool, Misbehaviour> {
        self.reclaim()
    }
}
