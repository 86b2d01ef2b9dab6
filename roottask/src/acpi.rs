//! The three facts that the root task needs of ACPI: how to switch the machine off, how ISA interrupts are wired, and
//! where the tables are. ACPI specification 6.5: RSDP 5.2.5.3, FADT 5.2.9, MADT 5.2.12.5, `\_S5` 7.4.2, AML 20.2.
//!
//! `\_S5` is a constant package in every firmware's DSDT, so a search for its definition is enough; the AML around it
//! is not interpreted. Should a firmware compute it, [`sleep_values`] finds nothing and the machine is halted instead.

/// Reads physical memory: `length` bytes at an address, `None` if that cannot be.
pub trait PhysicalMemory {
    /// The bytes.
    fn read(&mut self, address: u64, length: usize) -> Option<&'static [u8]>;
}

/// Longest table that is believed.
const TABLE_MAX: usize = 4 << 20;
const TABLE_HEADER: usize = 36;

fn le(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, &b| value << 8 | b as u64))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)) == 0
}

fn table(memory: &mut impl PhysicalMemory, address: u64) -> Option<&'static [u8]> {
    let header = memory.read(address, TABLE_HEADER)?;
    let length = le(header, 4, 4)? as usize;
    if !(TABLE_HEADER..=TABLE_MAX).contains(&length) {
        return None;
    }
    memory.read(address, length).filter(|table| sums_to_zero(table))
}

/// The table with this signature, by way of the root pointer at `rsdp`.
pub fn find(memory: &mut impl PhysicalMemory, rsdp: u64, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let pointer = memory.read(rsdp, 20).filter(|p| p.starts_with(b"RSD PTR ") && sums_to_zero(p))?;
    let extended = if pointer[15] >= 2 { le(memory.read(rsdp, 36)?, 24, 8)? } else { 0 };
    let (root, size) = if extended != 0 { (extended, 8) } else { (le(pointer, 16, 4)?, 4) };
    let root = table(memory, root)?;
    root[TABLE_HEADER..].chunks_exact(size).find_map(|entry| {
        let address = le(entry, 0, size)?;
        memory.read(address, 4).filter(|found| *found == signature)?;
        table(memory, address)
    })
}

/// The first two values of `\_S5` (SLP_TYPa, SLP_TYPb), from the DSDT.
pub fn sleep_values(memory: &mut impl PhysicalMemory, rsdp: u64) -> Option<(u8, u8)> {
    let fadt = find(memory, rsdp, b"FACP")?;
    let extended = if fadt.len() >= 148 { le(fadt, 140, 8)? } else { 0 };
    let address = if extended != 0 { extended } else { le(fadt, 40, 4)? };
    s5_in(table(memory, address)?)
}

/// Where an ISA interrupt arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Global system interrupt.
    pub gsi: u32,
    /// Level-triggered rather than edge-triggered.
    pub level: bool,
    /// Active low rather than high.
    pub low: bool,
}

/// The wiring of an ISA interrupt, by the overrides in `madt`.
pub fn isa_wire(madt: Option<&[u8]>, irq: u8) -> Wire {
    let mut wire = Wire { gsi: irq as u32, level: false, low: false };
    let mut rest = madt.and_then(|t| t.get(44..)).unwrap_or(&[]);
    while let [kind, length, ..] = *rest {
        let Some(entry) = rest.get(..length as usize).filter(|e| e.len() >= 2) else { break };
        if let (2, [_, _, 0, source, g0, g1, g2, g3, flags, _]) = (kind, entry)
            && *source == irq
        {
            wire.gsi = u32::from_le_bytes([*g0, *g1, *g2, *g3]);
            wire.low = flags & 3 == 3;
            wire.level = flags >> 2 & 3 == 3;
        }
        rest = &rest[entry.len()..];
    }
    wire
}

/// Finds `Name (\_S5, Package () {a, b, ...})` in AML.
fn s5_in(aml: &[u8]) -> Option<(u8, u8)> {
    const NAME_OP: u8 = 0x08;
    const ROOT: u8 = 0x5c;
    const PACKAGE_OP: u8 = 0x12;
    (0..aml.len()).find_map(|at| {
        let rest = aml[at..].strip_prefix(&[NAME_OP])?;
        let rest = rest.strip_prefix(&[ROOT]).unwrap_or(rest);
        let rest = rest.strip_prefix(b"_S5_")?.strip_prefix(&[PACKAGE_OP])?;
        // PkgLength: bits 7:6 of the first byte count the bytes that follow (20.2.4).
        let length_bytes = 1 + (*rest.first()? >> 6) as usize;
        let rest = rest.get(length_bytes..)?;
        let count = *rest.first()?;
        let (a, rest) = integer(rest.get(1..)?)?;
        let b = if count > 1 { integer(rest)?.0 } else { 0 };
        Some((a, b))
    })
}

/// An integer constant at the start of AML (20.2.3); its low byte, and what follows.
fn integer(aml: &[u8]) -> Option<(u8, &[u8])> {
    let (prefix, rest) = aml.split_first()?;
    let size = match prefix {
        0x00 => return Some((0, rest)),
        0x01 => return Some((1, rest)),
        0xff => return Some((0xff, rest)),
        0x0a => 1,
        0x0b => 2,
        0x0c => 4,
        0x0e => 8,
        _ => return None,
    };
    Some((*rest.first()?, rest.get(size..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Memory(Vec<(u64, &'static [u8])>);

    impl PhysicalMemory for Memory {
        fn read(&mut self, address: u64, length: usize) -> Option<&'static [u8]> {
            self.0.iter().find_map(|&(base, bytes)| {
                let at = address.checked_sub(base)? as usize;
                bytes.get(at..at + length)
            })
        }
    }

    fn sealed(mut bytes: Vec<u8>, checksum: usize) -> &'static [u8] {
        bytes[checksum] = 0;
        bytes[checksum] = bytes.iter().fold(0u8, |sum, &b| sum.wrapping_sub(b));
        bytes.leak()
    }

    fn table_of(signature: &[u8; 4], body: &[u8]) -> &'static [u8] {
        let mut bytes = std::vec![0; TABLE_HEADER];
        bytes[..4].copy_from_slice(signature);
        bytes.extend(body);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        sealed(bytes, 9)
    }

    fn machine(dsdt: &[u8]) -> Memory {
        let mut rsdp = b"RSD PTR \0OEMOEM\0".to_vec();
        rsdp.extend(0x1000u32.to_le_bytes());
        let mut fadt = std::vec![0; 80];
        fadt[4..8].copy_from_slice(&0x3000u32.to_le_bytes());
        Memory(std::vec![
            (0xf0000, sealed(rsdp, 8)),
            (0x1000, table_of(b"RSDT", &[0x00, 0x50, 0, 0, 0x00, 0x20, 0, 0])),
            (0x2000, table_of(b"FACP", &fadt)),
            (0x3000, table_of(b"DSDT", dsdt)),
        ])
    }

    #[test]
    fn s5_is_found_through_the_tables() {
        // QEMU: Name (_S5, Package (4) {0, 0, 0, 0}); others use byte constants or a root prefix.
        let qemu = b"\x10\x05xyz\x08_S5_\x12\x06\x04\x00\x00\x00\x00";
        assert_eq!(sleep_values(&mut machine(qemu), 0xf0000), Some((0, 0)));
        let bytes = b"\x08\\_S5_\x12\x0a\x04\x0a\x05\x0a\x07\x00\x00";
        assert_eq!(sleep_values(&mut machine(bytes), 0xf0000), Some((5, 7)));
        let long = b"\x08_S5_\x12\x47\x00\x02\x0b\x03\x00\x01";
        assert_eq!(sleep_values(&mut machine(long), 0xf0000), Some((3, 1)));
        assert_eq!(sleep_values(&mut machine(b"_S5_\x08_S5_\x12"), 0xf0000), None);
        assert_eq!(sleep_values(&mut machine(qemu), 0xe0000), None);
    }

    #[test]
    fn interrupt_overrides_are_followed() {
        let mut madt = std::vec![0; 44];
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        madt.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        madt.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0f, 0]);
        assert_eq!(isa_wire(Some(&madt), 0), Wire { gsi: 2, level: false, low: false });
        assert_eq!(isa_wire(Some(&madt), 9), Wire { gsi: 9, level: true, low: true });
        assert_eq!(isa_wire(Some(&madt), 4).gsi, 4);
        assert_eq!(isa_wire(None, 4).gsi, 4);
        madt.extend([2, 0]);
        assert_eq!(isa_wire(Some(&madt), 4).gsi, 4, "an entry of length 0 ends the list");
    }
}
