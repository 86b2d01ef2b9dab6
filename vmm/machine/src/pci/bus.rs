//! The bus: which function answers in configuration space, and which at an address of memory.
//!
//! All vCPUs share it without a lock of its own. Each function is behind a lock ([`Slot`]); where its memory lies is in a
//! table of atomics, so that an access finds its function by one look through a few numbers. Whoever holds a function's
//! lock takes no other one of the machine; whoever holds the board's may take a function's.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::backplane::VcpuSet;
use crate::bus::Width;
use crate::memory::LOW_RAM_MAX;

/// Vendor and device of the host bridge: Red Hat's "QEMU PCIe Host bridge", which no driver quirk matches.
const HOST_BRIDGE: u32 = 0x0008_1b36;
/// Host bridge, no programming interface, revision 0.
const HOST_BRIDGE_CLASS: u32 = 0x0600_0000;

/// Where functions' memory is put: the hole below 4 GiB, up to ECAM.
pub const MEMORY: u64 = LOW_RAM_MAX;
/// Configuration space in memory: 4 KiB for each function of bus 0.
pub const ECAM: u64 = 0xe000_0000;
/// Length of that.
pub const ECAM_SIZE: u64 = 1 << 20;
/// Where functions' memory is put that does not fit there; RAM ends below it.
pub const HIGH_MEMORY: u64 = 1 << 38;
/// Length of that.
pub const HIGH_MEMORY_SIZE: u64 = 1 << 38;
/// Pieces of memory from this size on go there, if they can.
const LARGE: u64 = 128 << 20;
/// Base address registers of a function.
pub const BARS: usize = 6;
/// Most functions beside the host bridge: each is the only one of its device.
pub const FUNCTIONS_MAX: usize = 31;
/// In [`Window::base`]: it answers nowhere; no address of a guest is near.
const NOWHERE: u64 = 1 << 63;

/// One function. Widths are up to a double word in configuration space, where accesses lie within one.
pub trait Function: Send {
    /// Bytes behind each base address register: powers of two, at least 4 KiB, or 0.
    fn sizes(&self) -> [u64; BARS];
    /// Whether what is behind a register can be above 4 GiB.
    fn is_wide(&self, _bar: usize) -> bool {
        false
    }
    /// Puts what is behind a register at an address, as firmware does; it stays there at a reset.
    fn place(&mut self, bar: usize, address: u64);
    /// Where that answers now, if it does.
    fn base(&self, bar: usize) -> Option<u64>;
    /// Reads configuration space.
    fn read_config(&mut self, register: u16, width: Width) -> u32;
    /// Writes configuration space.
    fn write_config(&mut self, register: u16, width: Width, value: u32);
    /// Reads memory, `offset` bytes behind a base address.
    fn read(&mut self, bar: usize, offset: u64, width: Width) -> u64;
    /// Writes memory.
    fn write(&mut self, bar: usize, offset: u64, width: Width, value: u64);
    /// An interrupt of the machine's that is the function's, as a thread of the monitor's was told.
    fn interrupt(&mut self, _number: u16) {}
    /// Looks at what a service has for the function; a thread of the monitor's calls this.
    fn serve(&mut self) {}
    /// Nobody will look until the service wakes that thread. False if it has said something since the last look.
    fn idle(&mut self) -> bool {
        true
    }
    /// The vCPUs that have to look because of what was done.
    fn take_wakes(&mut self) -> VcpuSet;
    /// Power-on values.
    fn reset(&mut self);
}

/// A function behind its lock.
pub trait Slot: Send + Sync {
    /// Runs `access` with the function.
    fn with(&self, access: &mut dyn FnMut(&mut dyn Function));
}

/// Where an access in configuration space goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Bus (15:8), device (7:3), function (2:0).
    pub id: u16,
    /// Offset in the function's configuration space.
    pub register: u16,
}

/// What lies at an address of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Configuration space.
    Config(Address),
    /// A function's memory.
    Memory {
        /// Index of the function.
        slot: usize,
        /// Which base address register.
        bar: usize,
        /// Bytes behind its base.
        offset: u64,
    },
}

struct Window {
    base: AtomicU64,
    size: u64,
    slot: usize,
    bar: usize,
}

/// The bus. Function `n` of the list is device `n + 1`; device 0 is the host bridge.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Box<dyn Slot>>,
    windows: Vec<Window>,
    /// Whether something lies in [`HIGH_MEMORY`].
    high: bool,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bus({} functions)", self.slots.len())
    }
}

impl Bus {
    /// A bus with these functions, at most [`FUNCTIONS_MAX`] of them; places their memory.
    pub fn new(mut slots: Vec<Box<dyn Slot>>) -> Self {
        slots.truncate(FUNCTIONS_MAX);
        let mut windows = Vec::new();
        let (mut low, mut high) = (MEMORY, HIGH_MEMORY);
        for (slot, function) in slots.iter().enumerate() {
            function.with(&mut |function| {
                for (bar, &size) in function.sizes().iter().enumerate().filter(|(_, size)| **size != 0) {
                    let large = size >= LARGE && function.is_wide(bar);
                    let next = if large { &mut high } else { &mut low };
                    let at = next.next_multiple_of(size);
                    *next = at + size;
                    function.place(bar, at);
                    windows.push(Window { base: AtomicU64::new(NOWHERE), size, slot, bar });
                }
            });
        }
        debug_assert!(low <= ECAM && high <= HIGH_MEMORY + HIGH_MEMORY_SIZE);
        Self { slots, windows, high: high != HIGH_MEMORY }
    }

    /// Whether some function's memory is above 4 GiB.
    pub fn is_high(&self) -> bool {
        self.high
    }

    /// The functions.
    pub fn slots(&self) -> impl Iterator<Item = &dyn Slot> {
        self.slots.iter().map(|slot| &**slot)
    }

    /// Whether there is anything beside the host bridge; without that there is no ECAM either.
    pub fn has_functions(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Who answers at an address of memory.
    #[inline]
    pub fn find(&self, gpa: u64) -> Option<Target> {
        for window in &self.windows {
            let offset = gpa.wrapping_sub(window.base.load(Ordering::Relaxed));
            if offset < window.size {
                return Some(Target::Memory { slot: window.slot, bar: window.bar, offset });
            }
        }
        let offset = gpa.wrapping_sub(ECAM);
        let there = self.has_functions() && offset < ECAM_SIZE;
        there.then_some(Target::Config(Address { id: (offset >> 12) as u16, register: (offset & 0xfff) as u16 }))
    }

    /// Reads memory. Returns the value, and who has to look because of it.
    pub fn read(&self, target: Target, width: Width) -> (u64, VcpuSet) {
        match target {
            Target::Config(address) => (self.read_ecam(address, width), VcpuSet::EMPTY),
            Target::Memory { slot, bar, offset } => {
                let mut result = (width.ones(), VcpuSet::EMPTY);
                self.slots[slot].with(&mut |function| {
                    result = (function.read(bar, offset, width), function.take_wakes());
                });
                result
            }
        }
    }

    /// Writes memory. Returns who has to look because of it.
    pub fn write(&self, target: Target, width: Width, value: u64) -> VcpuSet {
        match target {
            Target::Config(address) => self.write_ecam(address, width, value),
            Target::Memory { slot, bar, offset } => {
                let mut wakes = VcpuSet::EMPTY;
                self.slots[slot].with(&mut |function| {
                    function.write(bar, offset, width, value);
                    wakes = function.take_wakes();
                });
                wakes
            }
        }
    }

    /// An access that leaves its double word is none of PCI Express's: reads ones, writes nothing.
    fn read_ecam(&self, address: Address, width: Width) -> u64 {
        let high = Address { register: address.register + 4, ..address };
        match width {
            Width::Qword if address.register.is_multiple_of(8) => {
                u64::from(self.read_config(address, Width::Dword))
                    | u64::from(self.read_config(high, Width::Dword)) << 32
            }
            _ if usize::from(address.register & 3) + width.bytes() > 4 => width.ones(),
            _ => self.read_config(address, width).into(),
        }
    }

    fn write_ecam(&self, address: Address, width: Width, value: u64) -> VcpuSet {
        let high = Address { register: address.register + 4, ..address };
        match width {
            Width::Qword if address.register.is_multiple_of(8) => self
                .write_config(address, Width::Dword, value as u32)
                .union(self.write_config(high, Width::Dword, (value >> 32) as u32)),
            _ if usize::from(address.register & 3) + width.bytes() > 4 => VcpuSet::EMPTY,
            _ => self.write_config(address, width, value as u32),
        }
    }

    /// The function with this number. Each is function 0 of its device, on bus 0.
    fn function(&self, id: u16) -> Option<usize> {
        let slot = (usize::from(id) >> 3).checked_sub(1)?;
        (id & 7 == 0 && slot < self.slots.len()).then_some(slot)
    }

    /// Reads configuration space, at most a double word, within one.
    pub fn read_config(&self, address: Address, width: Width) -> u32 {
        let ones = width.ones() as u32;
        // Extended configuration space is for functions with a PCI Express capability: none here.
        if address.register >= 0x100 {
            return ones;
        }
        if address.id == 0 {
            let value = match address.register & 0xfc {
                0x00 => HOST_BRIDGE,
                0x08 => HOST_BRIDGE_CLASS,
                _ => 0,
            };
            return value >> (8 * (address.register & 3)) & ones;
        }
        let Some(slot) = self.function(address.id) else { return ones };
        let mut value = ones;
        self.slots[slot].with(&mut |function| value = function.read_config(address.register, width) & ones);
        value
    }

    /// Writes configuration space. Returns who has to look because of it.
    pub fn write_config(&self, address: Address, width: Width, value: u32) -> VcpuSet {
        let mut wakes = VcpuSet::EMPTY;
        if let Some(slot) = self.function(address.id).filter(|_| address.register < 0x100) {
            self.slots[slot].with(&mut |function| {
                function.write_config(address.register, width, value);
                self.look_up(slot, function);
                wakes = function.take_wakes();
            });
        }
        wakes
    }

    /// Notes where a function's memory answers now.
    fn look_up(&self, slot: usize, function: &dyn Function) {
        for window in self.windows.iter().filter(|window| window.slot == slot) {
            window.base.store(function.base(window.bar).unwrap_or(NOWHERE), Ordering::Relaxed);
        }
    }

    /// Tells a function of an interrupt. Returns who has to look because of it.
    pub fn interrupt(&self, slot: usize, number: u16) -> VcpuSet {
        let mut wakes = VcpuSet::EMPTY;
        if let Some(slot) = self.slots.get(slot) {
            slot.with(&mut |function| {
                function.interrupt(number);
                wakes = function.take_wakes();
            });
        }
        wakes
    }

    /// Has a function look at what its service has for it. Returns who has to look because of it.
    pub fn serve(&self, slot: usize) -> VcpuSet {
        let mut wakes = VcpuSet::EMPTY;
        if let Some(slot) = self.slots.get(slot) {
            slot.with(&mut |function| {
                function.serve();
                wakes = function.take_wakes();
            });
        }
        wakes
    }

    /// Resets all functions.
    pub fn reset(&self) {
        for (slot, function) in self.slots.iter().enumerate() {
            function.with(&mut |function| {
                function.reset();
                self.look_up(slot, function);
                let _ = function.take_wakes();
            });
        }
    }
}

#[cfg(test)]
mod tests;
