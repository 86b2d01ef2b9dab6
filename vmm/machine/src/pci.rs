//! PCI: one bus with a host bridge and the functions behind it, reached by configuration mechanism #1 and by ECAM.
//!
//! PCI Local Bus Specification 3.0, 3.2.2.3.2 (mechanism #1), 6.1 (header); PCI Express Base Specification 3.0, 7.2.2
//! (enhanced configuration access). Operating systems take the mechanism for absent when no function answers, so the host
//! bridge is always there; it has no registers of its own.

pub mod bus;
pub mod config;
pub mod msix;
pub mod passthrough;

use alloc::sync::Arc;

use crate::backplane::VcpuSet;
use crate::bus::Width;
use bus::{Address, Bus};

const ENABLE: u32 = 1 << 31;

/// The configuration address register and the bus behind it.
#[derive(Clone, Debug, Default)]
pub struct Pci {
    address: u32,
    bus: Arc<Bus>,
}

impl Pci {
    /// Mechanism #1 in front of `bus`.
    pub fn new(bus: Arc<Bus>) -> Self {
        Self { address: 0, bus }
    }

    /// Power-on values, also of the functions.
    pub fn reset(&mut self) {
        self.address = 0;
        self.bus.reset();
    }

    /// Reads the double word at 0xcf8.
    pub fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes the double word at 0xcf8.
    pub fn write_address(&mut self, value: u32) {
        self.address = value & (ENABLE | 0x00ff_fffc);
    }

    /// What an access at an offset from 0xcfc means.
    fn selected(&self, offset: u16) -> Option<Address> {
        let id = (self.address >> 8) as u16;
        (self.address & ENABLE != 0).then_some(Address { id, register: (self.address & 0xfc) as u16 | offset & 3 })
    }

    /// Reads at an offset from 0xcfc. An access lies within a double word.
    pub fn read_data(&self, offset: u16, width: Width) -> u32 {
        match self.selected(offset) {
            Some(address) => self.bus.read_config(address, width),
            None => width.ones() as u32,
        }
    }

    /// Writes at an offset from 0xcfc. Returns who has to look because of it.
    pub fn write_data(&mut self, offset: u16, width: Width, value: u32) -> VcpuSet {
        match self.selected(offset) {
            Some(address) => self.bus.write_config(address, width, value),
            None => VcpuSet::EMPTY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_a_host_bridge_and_nothing_else() {
        let mut pci = Pci::default();
        assert_eq!(pci.read_data(0, Width::Dword), u32::MAX);
        pci.write_address(0x8000_0000);
        assert_eq!(pci.read_address(), 0x8000_0000);
        assert_eq!(pci.read_data(0, Width::Dword), 0x0008_1b36);
        assert_eq!(pci.read_data(2, Width::Word), 8);
        pci.write_address(0x8000_0008);
        assert_eq!(pci.read_data(2, Width::Word), 0x600);
        pci.write_address(0x8000_0800);
        assert_eq!((pci.read_data(0, Width::Dword), pci.read_data(3, Width::Byte)), (u32::MAX, 0xff));
        pci.reset();
        assert_eq!(pci.read_address(), 0);
    }
}
