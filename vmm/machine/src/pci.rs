//! PCI configuration mechanism #1 and the one function on the bus: a host bridge.
//!
//! PCI Local Bus Specification 3.0, 3.2.2.3.2 (mechanism #1), 6.1 (header). Operating systems take the mechanism for
//! absent when no function answers, so the host bridge is there; it has no registers of its own.

/// Vendor and device of the host bridge: Red Hat's "QEMU PCIe Host bridge", which no driver quirk matches.
const HOST_BRIDGE: u32 = 0x0008_1b36;
/// Host bridge, no programming interface, revision 0.
const CLASS: u32 = 0x0600_0000;

const ENABLE: u32 = 1 << 31;

/// The configuration address register and the bus behind it.
#[derive(Clone, Debug, Default)]
pub struct Pci {
    address: u32,
}

impl Pci {
    /// Power-on values.
    pub fn reset(&mut self) {
        self.address = 0;
    }

    /// Reads the double word at 0xcf8.
    pub fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes the double word at 0xcf8.
    pub fn write_address(&mut self, value: u32) {
        self.address = value & (ENABLE | 0x00ff_fffc);
    }

    /// Reads `bytes` bytes at an offset from 0xcfc.
    pub fn read_data(&self, offset: u16, bytes: usize) -> u32 {
        let ones = u32::MAX >> (32 - 8 * bytes.clamp(1, 4));
        let value = match (self.address & ENABLE != 0, self.address >> 8 & 0xffff) {
            (true, 0) => match self.address & 0xfc {
                0x00 => HOST_BRIDGE,
                0x08 => CLASS,
                _ => 0,
            },
            _ => u32::MAX,
        };
        value >> (8 * (offset & 3)) & ones
    }

    /// Writes at an offset from 0xcfc: nothing there can be written.
    pub fn write_data(&mut self, _offset: u16, _bytes: usize, _value: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_a_host_bridge_and_nothing_else() {
        let mut pci = Pci::default();
        assert_eq!(pci.read_data(0, 4), u32::MAX);
        pci.write_address(0x8000_0000);
        assert_eq!(pci.read_address(), 0x8000_0000);
        assert_eq!(pci.read_data(0, 4), HOST_BRIDGE);
        assert_eq!(pci.read_data(2, 2), 8);
        pci.write_address(0x8000_0008);
        assert_eq!(pci.read_data(2, 2), 0x600);
        pci.write_address(0x8000_0800);
        assert_eq!((pci.read_data(0, 4), pci.read_data(3, 1)), (u32::MAX, 0xff));
        pci.reset();
        assert_eq!(pci.read_address(), 0);
    }
}
