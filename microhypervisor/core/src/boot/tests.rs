//! The parsers against good input, against each rule broken, and against bytes changed at random.

mod acpi;
mod elf;
mod fuzz;
mod loaders;
mod memory_map;

use super::*;
use std::{cell::Cell, vec::Vec};

/// Physical memory with holes, which counts the accesses.
#[derive(Clone, Default)]
struct Ram {
    regions: Vec<(u64, Vec<u8>)>,
    reads: Cell<usize>,
}

impl Ram {
    fn with(address: u64, bytes: impl Into<Vec<u8>>) -> Self {
        Self::default().and(address, bytes)
    }

    fn and(mut self, address: u64, bytes: impl Into<Vec<u8>>) -> Self {
        self.regions.push((address, bytes.into()));
        self
    }
}

impl PhysicalMemory for Ram {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        assert!(address.checked_add(buffer.len() as u64).is_some());
        let found = self.regions.iter().find_map(|(start, bytes)| {
            let offset = address.checked_sub(*start)? as usize;
            bytes.get(offset..offset + buffer.len())
        });
        if let Some(bytes) = found {
            buffer.copy_from_slice(bytes);
        }
        found.is_some()
    }
}

/// A parser of boot information.
type Parse = fn(&Ram, u64, &mut BootInformation) -> Result<(), Malformed>;

/// What it finds.
fn read_by(parse: Parse, memory: &Ram, address: u64) -> Result<BootInformation, Malformed> {
    let mut found = BootInformation::default();
    parse(memory, address, &mut found).map(|()| found)
}

/// Little-endian bytes of integers of any size, one after the other.
macro_rules! bytes {
    ($($value:expr),* $(,)?) => {{
        let mut bytes = std::vec::Vec::<u8>::new();
        $(bytes.extend_from_slice(&$value.to_le_bytes());)*
        bytes
    }};
}
use bytes;

/// Overwrites what is at `offset`.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}
