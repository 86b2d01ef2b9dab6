//! The transport over PCI for modern devices (VirtIO 1.2, 4.1), with an MSI-X vector for each queue.
//!
//! Unlike the crate's it needs no access to the configuration space, which a driver program may only read; it tells
//! the device which interrupt belongs to which queue; and it accepts `VIRTIO_F_ACCESS_PLATFORM`, without which a device
//! behind an IOMMU does not work. A queue's [`Bell`] can be rung apart from the transport, from another thread.

use crate::capability::Structures;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use device::registers::{Place, Registers};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, Hal, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Offsets in the common configuration (4.1.4.3), with the registers' sizes.
mod common {
    pub const DEVICE_FEATURE_SELECT: (u32, usize) = (0x00, 4);
    pub const DEVICE_FEATURE: (u32, usize) = (0x04, 4);
    pub const DRIVER_FEATURE_SELECT: (u32, usize) = (0x08, 4);
    pub const DRIVER_FEATURE: (u32, usize) = (0x0c, 4);
    pub const CONFIG_MSIX_VECTOR: (u32, usize) = (0x10, 2);
    pub const DEVICE_STATUS: (u32, usize) = (0x14, 1);
    pub const CONFIG_GENERATION: (u32, usize) = (0x15, 1);
    pub const QUEUE_SELECT: (u32, usize) = (0x16, 2);
    pub const QUEUE_SIZE: (u32, usize) = (0x18, 2);
    pub const QUEUE_MSIX_VECTOR: (u32, usize) = (0x1a, 2);
    pub const QUEUE_ENABLE: (u32, usize) = (0x1c, 2);
    pub const QUEUE_NOTIFY_OFF: (u32, usize) = (0x1e, 2);
    pub const QUEUE_DESC: u32 = 0x20;
    pub const QUEUE_DRIVER: u32 = 0x28;
    pub const QUEUE_DEVICE: u32 = 0x30;
}

/// No interrupt.
pub const NO_VECTOR: u16 = 0xffff;
/// `VIRTIO_F_VERSION_1`: the device is a modern one.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: the device's accesses go through the IOMMU.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Looks at the status until a device that does not finish its reset is given up.
const RESET_LOOKS: u32 = 1_000_000;

/// A device.
pub struct PciTransport<R> {
    registers: R,
    structures: Structures,
    kind: DeviceType,
    /// MSI-X vector of each queue; [`NO_VECTOR`] for those beyond.
    vectors: Vec<u16>,
    /// The device did not do as it was told: no reset, or no vector.
    broken: bool,
}

/// The bell of one queue.
#[derive(Clone)]
pub struct Bell<R> {
    registers: R,
    place: Place,
    queue: u16,
}

impl<R: Registers> Bell<R> {
    /// Tells the device that there are buffers in the queue.
    pub fn ring(&self) {
        self.registers.write(self.place, 2, self.queue.into());
    }
}

/// Whether the device wants to hear of the buffers that were added just now. To be asked after each addition: the crate's
/// answer is right for one only, and the index must have been seen by the device before (2.7.21).
pub fn wants_bell<H: Hal, const N: usize>(queue: &VirtQueue<H, N>) -> bool {
    fence(Ordering::SeqCst);
    queue.should_notify()
}

impl<R: Registers> PciTransport<R> {
    /// The device with these structures. Queue n interrupts by vector `vectors[n]`.
    pub fn new(registers: R, structures: Structures, kind: DeviceType, vectors: Vec<u16>) -> Self {
        Self { registers, structures, kind, vectors, broken: false }
    }

    /// Resets the device and agrees on features: `wanted` as far as offered, which are returned. Fails if the device is
    /// not a modern one, or does not agree.
    pub fn begin(&mut self, wanted: u64) -> Result<u64> {
        self.set_status(DeviceStatus::empty());
        self.set_status(DeviceStatus::ACKNOWLEDGE);
        let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.set_status(driver);
        let offered = self.read_device_features();
        if offered & VERSION_1 == 0 || self.broken {
            self.set_status(driver | DeviceStatus::FAILED);
            return Err(Error::Unsupported);
        }
        let agreed = offered & (wanted | VERSION_1 | ACCESS_PLATFORM);
        self.write_driver_features(agreed);
        self.set_status(driver | DeviceStatus::FEATURES_OK);
        if !self.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(Error::Unsupported);
        }
        self.put(common::CONFIG_MSIX_VECTOR, NO_VECTOR.into());
        Ok(agreed)
    }

    /// Ends the initialization: the device works from now on. Fails if it did not take the interrupts.
    pub fn finish(&mut self) -> Result<()> {
        if self.broken {
            return Err(Error::IoError);
        }
        self.finish_init();
        Ok(())
    }

    fn get(&self, (offset, size): (u32, usize)) -> u32 {
        self.registers.read(self.structures.common.plus(offset), size)
    }

    fn put(&self, (offset, size): (u32, usize), value: u32) {
        self.registers.write(self.structures.common.plus(offset), size, value);
    }

    fn put_address(&self, offset: u32, address: u64) {
        self.put((offset, 4), address as u32);
        self.put((offset + 4, 4), (address >> 32) as u32);
    }

    fn device_place(&self, offset: usize, size: usize) -> Result<Place> {
        let (place, length) = self.structures.device.ok_or(Error::ConfigSpaceMissing)?;
        let end = offset.checked_add(size).ok_or(Error::ConfigSpaceTooSmall)?;
        if end > length as usize {
            return Err(Error::ConfigSpaceTooSmall);
        }
        Ok(place.plus(offset as u32))
    }
}

impl<R: Registers> PciTransport<R> {
    fn bell_place(&self, queue: u16) -> Place {
        self.put(common::QUEUE_SELECT, queue.into());
        let distance = self.get(common::QUEUE_NOTIFY_OFF).saturating_mul(self.structures.notify_multiplier);
        self.structures.notify.plus(distance)
    }

    /// The bell of `queue`.
    pub fn bell(&self, queue: u16) -> Bell<R>
    where
        R: Clone,
    {
        Bell { registers: self.registers.clone(), place: self.bell_place(queue), queue }
    }
}

impl<R: Registers> Transport for PciTransport<R> {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        [0, 1]
            .map(|half| {
                self.put(common::DEVICE_FEATURE_SELECT, half);
                u64::from(self.get(common::DEVICE_FEATURE)) << (32 * half)
            })
            .into_iter()
            .sum()
    }

    fn write_driver_features(&mut self, features: u64) {
        for half in [0, 1] {
            self.put(common::DRIVER_FEATURE_SELECT, half);
            self.put(common::DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.put(common::QUEUE_SELECT, queue.into());
        self.get(common::QUEUE_SIZE)
    }

    fn notify(&mut self, queue: u16) {
        self.registers.write(self.bell_place(queue), 2, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.get(common::DEVICE_STATUS))
    }

    /// A reset is waited for (4.1.4.3.2).
    fn set_status(&mut self, status: DeviceStatus) {
        self.put(common::DEVICE_STATUS, status.bits());
        if status.is_empty() {
            self.broken = !(0..RESET_LOOKS).any(|_| self.get_status().is_empty());
        }
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.put(common::QUEUE_SELECT, queue.into());
        self.put(common::QUEUE_SIZE, size);
        let vector = self.vectors.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR);
        self.put(common::QUEUE_MSIX_VECTOR, vector.into());
        // A device without resources for it says so by NO_VECTOR (4.1.5.1.2).
        self.broken |= self.get(common::QUEUE_MSIX_VECTOR) != u32::from(vector);
        self.put_address(common::QUEUE_DESC, descriptors);
        self.put_address(common::QUEUE_DRIVER, driver_area);
        self.put_address(common::QUEUE_DEVICE, device_area);
        self.put(common::QUEUE_ENABLE, 1);
    }

    /// A queue of this transport stops only with the whole device.
    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.put(common::QUEUE_SELECT, queue.into());
        self.get(common::QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.registers.read(self.structures.isr, 1))
    }

    fn read_config_generation(&self) -> u32 {
        self.get(common::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let place = self.device_place(offset, bytes.len())?;
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.registers.read(place.plus(i as u32), 1) as u8;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        let bytes = value.as_bytes();
        let place = self.device_place(offset, bytes.len())?;
        for (i, byte) in bytes.iter().enumerate() {
            self.registers.write(place.plus(i as u32), 1, (*byte).into());
        }
        Ok(())
    }
}
