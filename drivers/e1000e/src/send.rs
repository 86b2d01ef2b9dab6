//! Frames to the network. Descriptor n has buffer n for ever.

use crate::spec::{self, BUFFER, Controller, DESCRIPTOR};
use crate::start::set_queue;
use core::sync::atomic::{Ordering, fence};
use device::dma::Area;
use device::registers::Registers;
use nic::{Misbehaviour, Transmit};
use runtime::net::{FRAME_MAX, HEADER};

/// Descriptors; one fewer can have frames.
pub const COUNT: usize = 128;

const _: () = assert!(HEADER + FRAME_MAX <= BUFFER);

/// The sending half of a controller.
pub struct Transmitter<R> {
    controller: Controller<R>,
    queue: Area,
    buffers: Area,
    /// The descriptor of the next frame.
    next: usize,
    /// The oldest one whose frame may not have been sent.
    oldest: usize,
    /// The controller has not heard of the last ones.
    due: bool,
}

impl<R: Registers> Transmitter<R> {
    pub(crate) fn new(controller: Controller<R>) -> Option<Self> {
        let (queue, buffers) = (Area::new(COUNT * DESCRIPTOR)?, Area::new(COUNT * BUFFER)?);
        set_queue(&controller, spec::TX, queue.device(0), COUNT);
        Some(Self { controller, queue, buffers, next: 0, oldest: 0, due: false })
    }

    fn full(&self) -> bool {
        (self.next + 1) % COUNT == self.oldest
    }

    /// Finds out what has been sent.
    fn reclaim(&mut self) {
        while self.oldest != self.next && self.queue.load(self.oldest * DESCRIPTOR + 8) & spec::TX_DONE != 0 {
            self.oldest = (self.oldest + 1) % COUNT;
        }
        // Buffers are written after their descriptors were read.
        fence(Ordering::Acquire);
    }
}

impl<R: Registers> Transmit for Transmitter<R> {
    fn can_send(&mut self) -> Result<bool, Misbehaviour> {
        if self.full() {
            self.reclaim();
        }
        Ok(!self.full())
    }

    fn send<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<Option<usize>, E>) -> Result<bool, E> {
        if self.full() {
            return Ok(false);
        }
        let start = self.next * BUFFER;
        let Some(length) = fill(self.buffers.buffer(start, BUFFER))? else { return Ok(false) };
        self.queue.store(self.next * DESCRIPTOR, self.buffers.device(start + HEADER));
        self.queue.store(self.next * DESCRIPTOR + 8, length.min(FRAME_MAX) as u64 | spec::TX_COMMAND);
        self.next = (self.next + 1) % COUNT;
        self.due = true;
        Ok(true)
    }

    fn ring(&mut self) {
        if core::mem::take(&mut self.due) {
            fence(Ordering::Release);
            self.controller.write(spec::TX + spec::TAIL, self.next as u32);
        }
    }

    fn await_buffer(&mut self) -> Result<bool, Misbehaviour> {
        self.controller.write(spec::IMS, spec::TXQ0);
        self.can_send()
    }
}
