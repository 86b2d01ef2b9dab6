//! Frames from the network. Descriptor n has buffer n for ever.

use crate::spec::{self, BUFFER, Controller, DESCRIPTOR};
use crate::start::set_queue;
use core::sync::atomic::{Ordering, fence};
use device::dma::Area;
use device::registers::Registers;
use nic::{Misbehaviour, Receive};

/// Descriptors: one fewer waits for frames, for a full queue and an empty one would look the same (7.1.9).
pub const COUNT: usize = 256;
/// Buffers after which the controller hears of them.
const BATCH: usize = 32;

/// The receiving half of a controller.
pub struct Receiver<R> {
    controller: Controller<R>,
    queue: Area,
    buffers: Area,
    /// The descriptor that the controller fills next.
    next: usize,
    /// Buffers given back that it has not heard of.
    untold: usize,
    /// The rest of a frame that is longer than a buffer is dropped.
    dropping: bool,
}

impl<R: Registers> Receiver<R> {
    pub(crate) fn new(controller: Controller<R>) -> Option<Self> {
        let (queue, buffers) = (Area::new(COUNT * DESCRIPTOR)?, Area::new(COUNT * BUFFER)?);
        for index in 0..COUNT {
            queue.store(index * DESCRIPTOR, buffers.device(index * BUFFER));
        }
        set_queue(&controller, spec::RX, queue.device(0), COUNT);
        Some(Self { controller, queue, buffers, next: 0, untold: 0, dropping: false })
    }

    /// Gives the controller, which has just been enabled, its buffers.
    pub(crate) fn offer_all(&self) {
        self.controller.write(spec::RX + spec::TAIL, COUNT as u32 - 1);
    }

    fn done(&self) -> Option<u64> {
        let written = self.queue.load(self.next * DESCRIPTOR + 8);
        // The frame is read after its descriptor.
        fence(Ordering::Acquire);
        (written & spec::RX_DONE != 0).then_some(written)
    }

    /// Tells the controller that all buffers but the last one that it filled are its again.
    fn tell(&mut self) {
        if core::mem::take(&mut self.untold) != 0 {
            fence(Ordering::Release);
            self.controller.write(spec::RX + spec::TAIL, ((self.next + COUNT - 1) % COUNT) as u32);
        }
    }
}

impl<R: Registers> Receive for Receiver<R> {
    fn next(&mut self, deliver: impl FnOnce(&[u8])) -> Result<bool, Misbehaviour> {
        let Some(written) = self.done() else { return Ok(false) };
        let length = (written & 0xffff) as usize;
        if length > BUFFER {
            return Err(Misbehaviour);
        }
        let whole = written & spec::RX_END != 0 && !self.dropping;
        self.dropping = written & spec::RX_END == 0;
        if whole && written & spec::RX_ERRORS == 0 {
            deliver(self.buffers.buffer(self.next * BUFFER, length));
        }
        // What is there has the device's address no more: a frame with a status takes its place (7.1.4).
        self.queue.store(self.next * DESCRIPTOR, self.buffers.device(self.next * BUFFER));
        self.queue.store(self.next * DESCRIPTOR + 8, 0);
        self.next = (self.next + 1) % COUNT;
        self.untold += 1;
        if self.untold == BATCH {
            self.tell();
        }
        Ok(true)
    }

    fn look_again(&mut self) -> bool {
        self.tell();
        // The cause of what has been seen already would interrupt for nothing; that of what comes from here on stays.
        self.controller.write(spec::ICR, spec::RXQ0);
        if self.done().is_some() {
            return true;
        }
        self.controller.write(spec::IMS, spec::RXQ0);
        self.done().is_some()
    }
}
