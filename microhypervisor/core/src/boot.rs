//! What the kernel reads before it runs anything: the boot loader's information, the firmware's tables, the root image.
//!
//! None of it is trusted: every length and address is checked, every loop is bounded by what it walks through.

pub mod acpi;
pub mod elf;
pub mod memory_map;
pub mod multiboot1;
pub mod multiboot2;
pub mod pvh;

pub use crate::reason::Reason as Malformed;
use memory_map::{MemoryMap, UefiMap};

/// Access to physical memory during boot.
pub trait PhysicalMemory {
    /// Copies the bytes from physical address `address` on into `buffer`; false if some cannot be read.
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool;
}

/// What a boot loader handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootInformation {
    /// Physical range of the first module: the root image.
    pub module: Option<(u64, u64)>,
    /// Physical address of the ACPI root pointer, or of the loader's copy of it.
    pub rsdp: Option<u64>,
    /// The loader's memory map; without entries if there is none.
    pub map: MemoryMap,
    /// The memory map of UEFI firmware.
    pub uefi: Option<UefiMap>,
}

/// The range of a module, if it has an end behind its start.
fn module(start: u64, end: u64) -> Result<Option<(u64, u64)>, Malformed> {
    let wrong = Malformed(&"the first module, at #, has no end behind its start", start);
    if start < end { Ok(Some((start, end))) } else { Err(wrong) }
}

/// A range of physical memory. Offsets count from its start; whatever lies outside reads as `None`.
pub struct Window<'a, M> {
    memory: &'a M,
    start: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl<'a, M: PhysicalMemory> Window<'a, M> {
    /// `None` if the range wraps around the end of the address space.
    pub fn new(memory: &'a M, start: u64, len: u64) -> Option<Self> {
        start.checked_add(len)?;
        Some(Self { memory, start, len })
    }

    /// The `len` bytes from `offset` on.
    pub fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self { memory: self.memory, start: self.start + offset, len })
    }

    /// The number of `bytes` bytes, at most 8, at `offset`. (Not inlined, for the kernel's size.)
    #[inline(never)]
    pub fn number(&self, offset: u64, bytes: usize) -> Option<u64> {
        let part = self.part(offset, bytes as u64)?;
        let mut number = [0; 8];
        self.memory.read(part.start, number.get_mut(..bytes)?).then_some(u64::from_le_bytes(number))
    }

    /// The numbers at these places: offset, bytes. All of them at once are less code than one after the other.
    pub fn numbers<const N: usize>(&self, places: &[(u8, u8); N]) -> Option<[u64; N]> {
        let mut numbers = [0; N];
        self.fill(places, &mut numbers).map(|()| numbers)
    }

    #[inline(never)]
    fn fill(&self, places: &[(u8, u8)], numbers: &mut [u64]) -> Option<()> {
        places.iter().zip(numbers).try_for_each(|((offset, bytes), number)| {
            *number = self.number(u64::from(*offset), usize::from(*bytes))?;
            Some(())
        })
    }

    /// The sum of all bytes.
    fn sum(&self) -> Option<u8> {
        (0..self.len).try_fold(0u8, |sum, offset| Some(sum.wrapping_add(self.number(offset, 1)? as u8)))
    }
}

/// A list of at most `N` items.
#[derive(Clone, Copy, Debug)]
pub struct List<T, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy + Default, const N: usize> List<T, N> {
    /// An empty one.
    pub fn empty() -> Self {
        Self { items: [T::default(); N], len: 0 }
    }

    /// False if there is no room.
    pub fn push(&mut self, item: T) -> bool {
        let Some(slot) = self.items.get_mut(self.len) else { return false };
        *slot = item;
        self.len += 1;
        true
    }

    /// What was pushed.
    pub fn as_slice(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests;
