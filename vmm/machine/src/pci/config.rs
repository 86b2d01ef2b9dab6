//! The configuration space of a function: header type 0, base address registers, capabilities.
//!
//! PCI Local Bus Specification 3.0, 6.1 to 6.3, 6.7. A table says which bits the guest may write; nothing else follows
//! from a write but where the function's memory lies, which the bus asks for.

use crate::bus::Width;
use crate::pci::bus::BARS;

/// Bytes of the space.
pub const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// First byte for capabilities: the header ends there.
const CAPABILITIES_AT: usize = 0x40;
/// Command: memory accesses are answered, the function may write memory itself, no INTx.
const MEMORY_ENABLE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTX_DISABLE: u16 = 1 << 10;
/// Status: there are capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class (31:24), subclass (23:16), programming interface (15:8), revision (7:0).
    pub class: u32,
    /// Vendor id of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The space. Interrupts are messages only: the interrupt pin is 0.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    sizes: [u64; BARS],
    /// Whether the next register holds bits 63:32 of the address.
    wide: [bool; BARS],
    /// As firmware leaves them.
    placed: [u64; BARS],
    /// Where the next capability goes, and the byte that points to it.
    next: usize,
    link: usize,
    /// What is writable, as at power-on.
    initial: [u8; SIZE],
}

impl Config {
    /// Without memory and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            sizes: [0; BARS],
            wide: [false; BARS],
            placed: [0; BARS],
            next: CAPABILITIES_AT,
            link: CAPABILITIES,
            initial: [0; SIZE],
        };
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        config.put(0x08, &identity.class.to_le_bytes());
        config.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &(MEMORY_ENABLE | BUS_MASTER | INTX_DISABLE).to_le_bytes());
        config.allow(CACHE_LINE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..][..bytes.len()].copy_from_slice(bytes);
        self.initial[at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..][..mask.len()].copy_from_slice(mask);
    }

    /// Adds memory of `size` bytes, a power of two, behind a register: 32-bit addresses, not to be prefetched.
    pub fn add_memory(&mut self, bar: usize, size: u32) {
        self.sizes[bar] = size.into();
        self.allow(BAR0 + 4 * bar, &(!(size - 1)).to_le_bytes());
    }

    /// Adds memory of `size` bytes, a power of two, behind a register and the one after it: 64-bit addresses.
    pub fn add_wide_memory(&mut self, bar: usize, size: u64, prefetchable: bool) {
        const WIDE: u8 = 2 << 1;
        const PREFETCHABLE: u8 = 1 << 3;
        (self.sizes[bar], self.wide[bar]) = (size, true);
        self.put(BAR0 + 4 * bar, &[WIDE | if prefetchable { PREFETCHABLE } else { 0 }]);
        self.allow(BAR0 + 4 * bar, &(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability: its id, what follows the link, and which bits of that can be written (zeros behind its end).
    /// Returns its place.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.link, &[at as u8]);
        self.put(STATUS, &[HAS_CAPABILITIES]);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Power-on values; memory is where it was placed.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
        for bar in 0..BARS {
            if self.sizes[bar] != 0 {
                self.put_address(bar);
            }
        }
    }

    fn put_address(&mut self, bar: usize) {
        let at = BAR0 + 4 * bar;
        let kind = self.initial[at] & 0xf;
        let bytes = (self.placed[bar] | u64::from(kind)).to_le_bytes();
        let length = if self.wide[bar] { 8 } else { 4 };
        self.bytes[at..][..length].copy_from_slice(&bytes[..length]);
    }

    /// Whether the memory of a register can be above 4 GiB.
    pub fn is_wide(&self, bar: usize) -> bool {
        self.wide[bar]
    }

    /// Bytes of memory behind each register.
    pub fn sizes(&self) -> [u64; BARS] {
        self.sizes
    }

    /// Puts memory at an address.
    pub fn place(&mut self, bar: usize, address: u64) {
        self.placed[bar] = address;
        self.put_address(bar);
    }

    /// Where the memory of a register answers.
    pub fn base(&self, bar: usize) -> Option<u64> {
        let enabled = self.command() & MEMORY_ENABLE != 0 && self.sizes[bar] != 0;
        let high = if self.wide[bar] { u64::from(self.dword(BAR0 + 4 * bar + 4)) << 32 } else { 0 };
        enabled.then(|| high | u64::from(self.dword(BAR0 + 4 * bar) & !0xf))
    }

    /// Whether the function may read and write memory by itself, and so send messages.
    pub fn is_bus_master(&self) -> bool {
        self.command() & BUS_MASTER != 0
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// The double word at `at`.
    pub fn dword(&self, at: usize) -> u32 {
        let bytes = &self.bytes[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// A read by the guest. Beyond the end: ones.
    pub fn read(&self, register: u16, width: Width) -> u32 {
        match self.bytes.get(usize::from(register)..usize::from(register) + width.bytes().min(4)) {
            Some(bytes) => bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)),
            None => width.ones() as u32,
        }
    }

    /// A write by the guest.
    pub fn write(&mut self, register: u16, width: Width, value: u32) {
        let bytes = value.to_le_bytes();
        for (index, &byte) in bytes[..width.bytes().min(4)].iter().enumerate() {
            let at = usize::from(register) + index;
            if let (Some(old), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> Config {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1044,
            class: 0x00ff_0001,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut config = Config::new(identity);
        config.add_memory(1, 0x4000);
        config.place(1, 0xc000_4000);
        assert_eq!(config.add_capability(0x09, &[6, 1, 2, 3], &[0, 0, 0xf0]), 0x40);
        assert_eq!(config.add_capability(0x11, &[7; 10], &[]), 0x48);
        config
    }

    #[test]
    fn the_size_of_memory_shows_when_ones_are_written() {
        let mut config = config();
        assert_eq!(config.base(1), None, "memory accesses are not enabled yet");
        config.write(0x14, Width::Dword, u32::MAX);
        assert_eq!(config.read(0x14, Width::Dword), 0xffff_c000);
        config.write(0x10, Width::Dword, u32::MAX);
        assert_eq!(config.read(0x10, Width::Dword), 0, "nothing is behind this register");
        config.write(0x14, Width::Dword, 0xd000_0000);
        config.write(0x04, Width::Word, 0xffff);
        assert_eq!(config.read(0x04, Width::Word), 0x406);
        assert_eq!((config.base(0), config.base(1)), (None, Some(0xd000_0000)));
        assert!(config.is_bus_master());
        config.reset();
        assert_eq!((config.base(1), config.read(0x14, Width::Dword)), (None, 0xc000_4000));
    }

    #[test]
    fn wide_memory_takes_two_registers() {
        let mut config = config();
        config.add_wide_memory(4, 1 << 34, true);
        config.place(4, 0x40_0000_0000);
        assert_eq!((config.read(0x20, Width::Dword), config.read(0x24, Width::Dword)), (0xc, 0x40));
        for register in [0x20, 0x24] {
            config.write(register, Width::Dword, u32::MAX);
        }
        assert_eq!((config.read(0x20, Width::Dword), config.read(0x24, Width::Dword)), (0xc, 0xffff_fffc));
        config.write(0x24, Width::Dword, 0x48);
        config.write(0x04, Width::Word, 2);
        assert_eq!(config.base(4), Some(0x48_0000_0000));
        config.reset();
        assert_eq!((config.read(0x20, Width::Dword), config.read(0x24, Width::Dword)), (0xc, 0x40));
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut config = config();
        assert_eq!(config.read(0x06, Width::Byte), 0x10);
        assert_eq!(config.read(0x34, Width::Byte), 0x40);
        assert_eq!(config.read(0x40, Width::Dword), 0x0106_4809);
        assert_eq!(config.read(0x48, Width::Dword), 0x0707_0011);
        config.write(0x44, Width::Dword, u32::MAX);
        assert_eq!(config.read(0x44, Width::Dword), 0x3f2);
        assert_eq!(config.read(0x3d, Width::Byte), 0, "no interrupt pin");
    }

    proptest! {
        #[test]
        fn what_cannot_be_written_stays(writes in prop::collection::vec((0u16..300, 0usize..3, any::<u32>()), 0..50)) {
            let mut config = config();
            let before = config.clone();
            for (register, width, value) in writes {
                config.write(register, [Width::Byte, Width::Word, Width::Dword][width], value);
            }
            for at in 0..SIZE {
                let mask = before.writable[at];
                prop_assert_eq!(config.bytes[at] & !mask, before.bytes[at] & !mask);
            }
        }
    }
}
