//! Buffers of one size in the memory for DMA.

use ::device::dma::Area;
use alloc::vec::Vec;
use virtio_drivers::{Error, Result};

/// Bytes of a buffer: header and longest frame, and pages hold a whole number.
pub const LENGTH: usize = 2048;

/// Who has a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Driver,
    /// The device, under this token.
    Device(u16),
}

/// Some buffers.
pub struct Buffers {
    area: Area,
    owners: Vec<Owner>,
    /// The buffer under each token.
    tokens: Vec<Option<u16>>,
    free: Vec<u16>,
}

impl Buffers {
    /// `count` buffers for a queue of as many descriptors, at most 2^15.
    pub fn new(count: usize) -> Result<Self> {
        let area = Area::new(count * LENGTH).ok_or(Error::DmaError)?;
        let free = (0..count as u16).rev().collect();
        Ok(Self { area, owners: alloc::vec![Owner::Driver; count], tokens: alloc::vec![None; count], free })
    }

    /// A buffer that the device does not have; the one that came back last.
    pub fn free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Number of buffers that the device does not have.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// The free buffer `index`.
    pub fn bytes(&mut self, index: u16) -> &mut [u8] {
        assert!(self.owners[usize::from(index)] == Owner::Driver);
        self.area.buffer(usize::from(index) * LENGTH, LENGTH)
    }

    /// Hands the buffer that [`Self::free`] returned to the device by `add`, which returns a token.
    pub fn lend(&mut self, add: impl FnOnce(&mut [u8]) -> Result<u16>) -> Result<()> {
        let index = self.free().ok_or(Error::QueueFull)?;
        let token = add(self.bytes(index))?;
        self.owners[usize::from(index)] = Owner::Device(token);
        self.tokens[usize::from(token)] = Some(index);
        self.free.pop();
        Ok(())
    }

    /// Takes the buffer back that the device has under `token`; `pop` gets it before, to take it out of the queue.
    /// `None` if the device has no such buffer.
    pub fn take_back<T>(&mut self, token: u16, pop: impl FnOnce(&mut [u8]) -> T) -> Option<(u16, T)> {
        let index = self.tokens.get_mut(usize::from(token))?.take()?;
        self.owners[usize::from(index)] = Owner::Driver;
        self.free.push(index);
        Some((index, pop(self.bytes(index))))
    }
}
