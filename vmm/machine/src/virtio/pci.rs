//! The PCI transport (4.1): one virtio device as a function of the bus.
//!
//! One base address register leads to everything, each structure on a page of its own. Interrupts are by MSI-X only: one
//! message for each queue and one for the configuration.

mod registers;

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::interrupts::Interrupts;
use super::queue::Queue;
use super::{Io, Model, Violation, feature, status};
use crate::backplane::{Backplane, VcpuSet};
use crate::bus::Width;
use crate::memory::GuestMemory;
use crate::pci::bus::{BARS, Function};
use crate::pci::config::{Config, Identity};
use crate::pci::msix;

/// Vendor of all virtio devices; the device id is the device type behind this one (4.1.2.1).
const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x1040;
/// At least 0x40: no transitional device (4.1.2.1).
const SUBSYSTEM: u16 = 0x1100;
const REVISION: u32 = 1;

/// Memory behind the base address register [`BAR`].
mod place {
    pub const COMMON: u64 = 0x0000;
    pub const ISR: u64 = 0x1000;
    pub const DEVICE: u64 = 0x2000;
    pub const NOTIFY: u64 = 0x3000;
    pub const MSIX_TABLE: u64 = 0x4000;
    pub const MSIX_PENDING: u64 = 0x5000;
    pub const SIZE: u32 = 0x8000;
    pub const PAGE: u64 = 0x1000;
}
const BAR: usize = 0;
/// Bytes from one queue's notification address to the next one's (4.1.4.4).
const NOTIFY_STEP: u32 = 4;
/// Bytes of the common configuration structure (4.1.4.3) up to where optional features' fields begin.
const COMMON_SIZE: u32 = 56;

/// Vendor-specific capability, and what each of them leads to (4.1.4).
const CAPABILITY: u8 = 0x09;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// One device on the bus.
pub struct VirtioPci<D, M> {
    model: D,
    memory: M,
    config: Config,
    queues: Vec<Queue>,
    interrupts: Interrupts,
    /// Feature words that the driver looks at, and writes.
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    generation: u8,
    /// Places of capabilities: access to the memory by configuration space (4.1.4.9), MSI-X.
    window: usize,
    msix: usize,
}

impl<D: Model<M>, M: GuestMemory> VirtioPci<D, M> {
    /// The device `model` of a machine with this RAM.
    pub fn new(model: D, memory: M, backplane: Arc<Backplane>) -> Self {
        let queues: Vec<Queue> = model.queues().iter().map(|&size| Queue::new(size)).collect();
        let mut config = Config::new(Identity {
            vendor: VENDOR,
            device: DEVICE + model.id(),
            class: model.class() | REVISION,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
        });
        config.add_memory(BAR, place::SIZE);
        let page = place::PAGE as u32;
        let mut add = |kind, at: u64, length, more: &[u8], writable: &[u8]| {
            let mut body = Vec::from([16 + more.len() as u8, kind, BAR as u8, 0, 0, 0]);
            body.extend_from_slice(&(at as u32).to_le_bytes());
            body.extend_from_slice(&u32::to_le_bytes(length));
            body.extend_from_slice(more);
            config.add_capability(CAPABILITY, &body, writable)
        };
        add(COMMON_CFG, place::COMMON, COMMON_SIZE, &[], &[]);
        add(NOTIFY_CFG, place::NOTIFY, NOTIFY_STEP * queues.len() as u32, &NOTIFY_STEP.to_le_bytes(), &[]);
        add(ISR_CFG, place::ISR, 1, &[], &[]);
        add(DEVICE_CFG, place::DEVICE, page, &[], &[]);
        // Bar, offset and length are the driver's to set; so is the data, which stands for what they name.
        let mut writable = [0xff; 18];
        writable[..2].fill(0);
        writable[3..6].fill(0);
        let window = add(PCI_CFG, 0, 0, &[0; 4], &writable);
        let interrupts = Interrupts::new(queues.len() as u16 + 1, backplane);
        let (body, writable) =
            interrupts.msix.capability(BAR as u8, place::MSIX_TABLE as u32, place::MSIX_PENDING as u32);
        let msix = config.add_capability(msix::CAPABILITY, &body, &writable);
        Self {
            model,
            memory,
            config,
            queues,
            interrupts,
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            generation: 0,
            window,
            msix,
        }
    }

    /// The device.
    pub fn model(&self) -> &D {
        &self.model
    }

    /// Whether the device may use its queues.
    fn is_ready(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK && self.config.is_bus_master()
    }

    /// The driver broke the rules: it is told so, and the device does nothing until it is reset (2.1.2).
    fn fail(&mut self, _why: Violation) {
        self.status |= status::NEEDS_RESET;
        if self.status & status::DRIVER_OK != 0 {
            self.interrupts.raise_config();
        }
    }

    fn notify(&mut self, queue: usize) {
        if queue >= self.queues.len() || !self.is_ready() {
            return;
        }
        let Self { model, queues, memory, interrupts, .. } = self;
        if let Err(violation) = model.notify(queue, &mut Io { queues, memory, interrupts }) {
            self.fail(violation);
        }
    }

    /// Device reset (2.4).
    fn reset_device(&mut self) {
        self.model.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        self.interrupts.reset();
        (self.device_select, self.driver_select, self.driver_features) = (0, 0, 0);
        (self.queue_select, self.status) = (0, 0);
    }

    fn features(&self) -> u64 {
        self.model.features() | feature::COMMON
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset_device();
        }
        let mut more = value & !self.status & !status::NEEDS_RESET;
        let agreed = self.driver_features & feature::VERSION_1 != 0 && self.driver_features & !self.features() == 0;
        if more & status::FEATURES_OK != 0 && !agreed {
            more &= !status::FEATURES_OK;
        }
        // Not before features were agreed on (3.1.1).
        if (self.status | more) & status::FEATURES_OK == 0 {
            more &= !status::DRIVER_OK;
        }
        self.status |= more;
        if more & status::DRIVER_OK != 0 {
            self.model.start(self.driver_features);
            // What was made available before is not lost.
            (0..self.queues.len()).for_each(|queue| self.notify(queue));
        }
    }

    /// The access that the capability for that means (4.1.4.9): offset and width, if they are possible.
    fn window_access(&self) -> Option<(u64, Width)> {
        let (bar, offset, length) = (
            self.config.read(self.window as u16 + 4, Width::Byte) as usize,
            u64::from(self.config.dword(self.window + 8)),
            self.config.dword(self.window + 12),
        );
        let width = Width::from_bytes(length as usize).filter(|&width| width <= Width::Dword)?;
        let possible = bar == BAR && offset < place::SIZE.into() && offset.is_multiple_of(length.into());
        possible.then_some((offset, width))
    }

    fn is_window_data(&self, register: u16) -> bool {
        usize::from(register) & !3 == self.window + 16
    }
}

impl<D: Model<M>, M: GuestMemory + Send> Function for VirtioPci<D, M> {
    fn sizes(&self) -> [u64; BARS] {
        self.config.sizes()
    }

    fn place(&mut self, bar: usize, address: u64) {
        self.config.place(bar, address);
    }

    fn base(&self, bar: usize) -> Option<u64> {
        self.config.base(bar)
    }

    fn read_config(&mut self, register: u16, width: Width) -> u32 {
        if self.is_window_data(register)
            && let Some((offset, width)) = self.window_access()
        {
            let value = self.read(BAR, offset, width) as u32;
            self.config.write(self.window as u16 + 16, Width::Dword, value);
        }
        self.config.read(register, width)
    }

    fn write_config(&mut self, register: u16, width: Width, value: u32) {
        self.config.write(register, width, value);
        self.interrupts.allowed = self.config.is_bus_master();
        if usize::from(register) & !3 == self.msix {
            self.interrupts.write_control((self.config.dword(self.msix) >> 16) as u16);
        }
        if self.is_window_data(register)
            && let Some((offset, width)) = self.window_access()
        {
            let value = u64::from(self.config.dword(self.window + 16)) & width.ones();
            self.write(BAR, offset, width, value);
        }
    }

    fn read(&mut self, _bar: usize, offset: u64, width: Width) -> u64 {
        let within = offset % place::PAGE;
        match offset - within {
            place::COMMON => self.read_common(within, width),
            place::ISR if within == 0 => self.interrupts.take_isr().into(),
            place::DEVICE => {
                let mut bytes = [0; 8];
                self.model.read_config(within as usize, &mut bytes[..width.bytes()]);
                u64::from_le_bytes(bytes)
            }
            place::MSIX_TABLE => self.interrupts.msix.read(within, width),
            place::MSIX_PENDING => self.interrupts.msix.read_pending(within, width),
            _ => 0,
        }
    }

    fn write(&mut self, _bar: usize, offset: u64, width: Width, value: u64) {
        let within = offset % place::PAGE;
        match offset - within {
            // The address says which queue; the value says the same (4.1.5.2).
            place::NOTIFY => self.notify((within / u64::from(NOTIFY_STEP)) as usize),
            place::COMMON => self.write_common(within, width, value),
            place::DEVICE => self.model.write_config(within as usize, &value.to_le_bytes()[..width.bytes()]),
            place::MSIX_TABLE => self.interrupts.write_table(within, width, value),
            _ => {}
        }
    }

    fn serve(&mut self) {
        let ready = self.is_ready();
        let Self { model, queues, memory, interrupts, .. } = self;
        match model.serve(ready, &mut Io { queues, memory, interrupts }) {
            Ok(false) => {}
            Ok(true) => {
                self.generation = self.generation.wrapping_add(1);
                if self.status & status::DRIVER_OK != 0 {
                    self.interrupts.raise_config();
                }
            }
            Err(violation) => self.fail(violation),
        }
    }

    fn idle(&mut self) -> bool {
        self.model.idle()
    }

    fn take_wakes(&mut self) -> VcpuSet {
        self.interrupts.take_wakes()
    }

    fn reset(&mut self) {
        self.reset_device();
        self.interrupts.msix.reset();
        self.config.reset();
        self.interrupts.allowed = false;
    }
}

#[cfg(test)]
mod tests;
