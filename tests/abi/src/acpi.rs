//! The few facts of ACPI that tests need: tables by their signature, the sleep values (ACPI 6.5, 5.2, 7.4.2).

use alloc::vec::Vec;

use crate::entry::hip;
use crate::memory::{self, PAGE, map_physical};
use crate::spec::{cache, hip as page, perm};

/// Longest table that is read.
const LONGEST: usize = 1 << 20;

/// Copies physical memory, if it can be had.
pub fn read(physical: u64, length: usize) -> Option<Vec<u8>> {
    let first = physical & !(PAGE - 1);
    let count = (physical + length as u64 - first).div_ceil(PAGE);
    let order = count.next_power_of_two().trailing_zeros();
    let window = memory::address(order);
    for index in 0..count {
        map_physical(first + index * PAGE, window + index * PAGE, 0, perm::R, cache::WB).ok()?;
    }
    let start = window + physical - first;
    Some((0..length as u64).map(|offset| memory::peek_byte(start + offset)).collect())
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at + size)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn table(physical: u64) -> Option<Vec<u8>> {
    let length = number(&read(physical, 36)?, 4, 4)? as usize;
    if length > LONGEST { None } else { read(physical, length) }
}

/// The table with this signature.
pub fn find(signature: &[u8; 4]) -> Option<Vec<u8>> {
    let rsdp = hip(page::ACPI_RSDP);
    if rsdp == page::NOT_PRESENT {
        return None;
    }
    let pointer = read(rsdp, 36)?;
    let extended = if pointer[15] >= 2 { number(&pointer, 24, 8)? } else { 0 };
    let (root, size) = if extended != 0 { (extended, 8) } else { (number(&pointer, 16, 4)?, 4) };
    let root = table(root)?;
    root.get(36..)?.chunks_exact(size).find_map(|entry| {
        let physical = number(entry, 0, size)?;
        read(physical, 4).filter(|found| found == signature)?;
        table(physical)
    })
}

/// A field of the FADT.
pub fn fadt(offset: usize, size: usize) -> Option<u64> {
    number(&find(b"FACP")?, offset, size)
}

/// The first two values of a sleep state's package. It is a constant in every firmware, so a search is enough.
pub fn sleep_values(state: u8) -> Option<(u64, u64)> {
    let aml = table(fadt(40, 4)?)?;
    let name = [b'_', b'S', b'0' + state, b'_', 0x12];
    let at = aml.windows(name.len()).position(|window| window == name)? + name.len();
    let length_bytes = 1 + usize::from(aml.get(at)? >> 6);
    let mut rest = aml.get(at + length_bytes + 1..)?;
    let mut values = [0; 2];
    for value in &mut values {
        let (size, skip) = match *rest.first()? {
            small @ 0..=1 => {
                *value = u64::from(small);
                (0, 1)
            }
            0x0a => (1, 1),
            0x0b => (2, 1),
            0x0c => (4, 1),
            _ => return None,
        };
        if size > 0 {
            *value = number(rest, skip, size)?;
        }
        rest = rest.get(skip + size..)?;
    }
    Some((values[0] & 7, values[1] & 7))
}
