//! A device's registers and the memory that it shares with its driver, as the manifest names them.
#![allow(unsafe_code)]

use crate::hardware::Hardware;
use core::ptr::{read_volatile, write_volatile};
use runtime::manifest::RegionEntry;
use runtime::sync::sleep_until;
use runtime::time;

/// A mapped region, accessed in volatile words within its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    start: u64,
    length: u64,
    device: u64,
}

/// A type that a device understands: the integers.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl Mapping {
    /// The writable region `name` of the manifest.
    pub fn open(name: &str) -> Option<Self> {
        let RegionEntry { writable, memory, device, .. } = *runtime::manifest().region(name)?;
        (writable != 0).then_some(Self { start: memory.address, length: memory.length, device })
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its address for the device.
    pub fn device(&self) -> u64 {
        self.device
    }

    fn at<T: Word>(&self, offset: u64) -> *mut T {
        let size = size_of::<T>() as u64;
        let inside = offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.length);
        assert!(inside, "an access at {offset:#x} of {:#x} bytes", self.length);
        (self.start + offset) as *mut T
    }

    /// Reads the word at `offset`, a multiple of its size.
    pub fn read<T: Word>(&self, offset: u64) -> T {
        // SAFETY: `at` checked the bounds of a region that the manifest says is mapped, for ever; no reference to it
        // exists, and a word has no invalid values.
        unsafe { read_volatile(self.at(offset)) }
    }

    /// Writes the word at `offset`, a multiple of its size.
    pub fn write<T: Word>(&self, offset: u64, value: T) {
        // SAFETY: as above; regions are the device's and this program's alone.
        unsafe { write_volatile(self.at(offset), value) }
    }
}

/// A real controller.
pub struct Controller {
    registers: Mapping,
    memory: Mapping,
}

impl Controller {
    /// The program's controller, whose registers lie in the region `registers`.
    pub fn open(registers: &str) -> Self {
        let (Some(registers), Some(memory)) = (Mapping::open(registers), Mapping::open("dma")) else {
            panic!("no {registers} or no DMA memory in the manifest")
        };
        Self { registers, memory }
    }
}

impl Hardware for Controller {
    fn read(&mut self, register: u64) -> u32 {
        self.registers.read(register)
    }
    fn write(&mut self, register: u64, value: u32) {
        // Stores before this one are seen first: the memory is cached, the registers are not, and x86 keeps the order.
        self.registers.write(register, value);
    }
    fn load(&self, offset: u64) -> u64 {
        self.memory.read(offset)
    }
    fn store(&mut self, offset: u64, value: u64) {
        self.memory.write(offset, value);
    }
    fn address(&self) -> u64 {
        self.memory.device()
    }
    fn length(&self) -> u64 {
        self.memory.length()
    }
    fn pause(&mut self) {
        sleep_until(time::now() + time::ticks_from_ms(1));
    }
}
