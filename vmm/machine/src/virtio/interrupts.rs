//! A device's interrupts: by MSI-X, and the ISR status for drivers that look there (4.1.4.5).

use alloc::sync::Arc;

use crate::backplane::{Backplane, VcpuSet};
use crate::interrupt::Message;
use crate::pci::msix::Msix;

/// No vector (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue's; the configuration's.
const QUEUE: u8 = 1;
const CONFIGURATION: u8 = 2;

/// The interrupts of one device.
pub struct Interrupts {
    /// The messages.
    pub msix: Msix,
    /// The message for changes of the configuration.
    pub config_vector: u16,
    isr: u8,
    /// Whether the function may send messages.
    pub allowed: bool,
    backplane: Arc<Backplane>,
    wakes: VcpuSet,
}

impl Interrupts {
    /// With `vectors` messages.
    pub fn new(vectors: u16, backplane: Arc<Backplane>) -> Self {
        let msix = Msix::new(vectors);
        Self { msix, config_vector: NO_VECTOR, isr: 0, allowed: false, backplane, wakes: VcpuSet::EMPTY }
    }

    /// Device reset (2.4): MSI-X is the bus's, and stays.
    pub fn reset(&mut self) {
        (self.config_vector, self.isr) = (NO_VECTOR, 0);
    }

    /// `vector` as the driver may set it: one that does not exist becomes none (4.1.5.1.2.1).
    pub fn checked(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    /// Reads the ISR status, which clears it.
    pub fn take_isr(&mut self) -> u8 {
        core::mem::take(&mut self.isr)
    }

    /// A queue has something for the driver.
    pub fn raise(&mut self, vector: u16) {
        self.isr |= QUEUE;
        self.fire(vector);
    }

    /// The configuration has changed.
    pub fn raise_config(&mut self) {
        self.isr |= CONFIGURATION;
        self.fire(self.config_vector);
    }

    /// Sends a message, if the function may.
    pub fn fire(&mut self, vector: u16) {
        if self.allowed
            && let Some(message) = self.msix.fire(vector)
        {
            self.send(&message);
        }
    }

    /// The guest wrote the table of messages.
    pub fn write_table(&mut self, offset: u64, width: crate::bus::Width, value: u64) {
        let Self { msix, backplane, wakes, .. } = self;
        msix.write(offset, width, value, |message| *wakes = wakes.union(backplane.send(&message, None)));
    }

    /// The guest wrote message control.
    pub fn write_control(&mut self, control: u16) {
        let Self { msix, backplane, wakes, .. } = self;
        msix.set_control(control, |message| *wakes = wakes.union(backplane.send(&message, None)));
    }

    fn send(&mut self, message: &Message) {
        self.wakes = self.wakes.union(self.backplane.send(message, None));
    }

    /// The vCPUs that have to look.
    pub fn take_wakes(&mut self) -> VcpuSet {
        core::mem::take(&mut self.wakes)
    }
}
