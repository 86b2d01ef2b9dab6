//! A boot loader and firmware tables of a test's own: what no emulator's firmware hands over.
//!
//! They go into the kernel's ELF file as further segments, with an entry that loads two registers and jumps to the
//! kernel's. GRUB and QEMU start the file as they start the kernel.

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;

use crate::emulator::Emulator;

/// Little-endian bytes of integers of any size, one after the other.
macro_rules! bytes {
    ($($value:expr),* $(,)?) => {{
        let mut bytes = Vec::<u8>::new();
        $(bytes.extend_from_slice(&$value.to_le_bytes());)*
        bytes
    }};
}
pub(super) use bytes;

/// Which loader's information the kernel gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Multiboot1,
    Multiboot2,
    Pvh,
}

/// RAM of the machine in MiB.
pub const MEMORY: u32 = 256;
/// Where the boot loader's code, its information and the tables are: the memory map calls it reclaimable. Not far above
/// the kernel, for GRUB wants everything from the first segment to the last one to be free.
const OWN: u64 = 0x400_0000;
const INFORMATION: u64 = OWN + 0x1000;
const ROOT_POINTER: u64 = OWN + 0x8_0000;
const TABLES: u64 = OWN + 0x9_0000;
/// Where the root image is.
pub const MODULE: u64 = 0x410_0000;
/// The end of what the memory map calls RAM.
pub const RAM_END: u64 = 0xfe0_0000;

/// What the kernel gets to see. Tests change what a good boot loader and firmware have.
pub struct Loader {
    pub protocol: Protocol,
    /// Physical address of the information, if it is not where it is.
    pub information: Option<u32>,
    /// Base, length and type of each entry of the memory map; how many bytes an entry claims to have (Multiboot 2).
    pub map: Vec<(u64, u64, u32)>,
    pub map_stride: u32,
    /// Where the root image is, and where the information says it is.
    pub module: u64,
    pub claimed: Option<(u64, u64)>,
    pub root_pointer: Vec<u8>,
    /// The root table is the first one. The firmware's own are hidden only by the root pointer.
    pub tables: Vec<Vec<u8>>,
    /// Descriptors of UEFI's memory map.
    pub uefi: Vec<u8>,
}

impl Loader {
    /// A good one, with tables that are true for `emulator`.
    pub fn new(emulator: Emulator) -> Self {
        // Where the power management's registers are.
        let power = if emulator == Emulator::Bochs { 0xb000 } else { 0x600 };
        let mut loader = Self {
            protocol: Protocol::Multiboot2,
            information: None,
            map: vec![
                (0, 0x9_f000, 1),
                (0x9_f000, 0x6_1000, 2),
                (0x10_0000, OWN - 0x10_0000, 1),
                (OWN, MODULE - OWN, 3),
                (MODULE, RAM_END - MODULE, 1),
            ],
            map_stride: 24,
            module: MODULE,
            claimed: None,
            root_pointer: Vec::new(),
            tables: vec![Vec::new(), old_fadt(power), madt(&[LAPIC, IOAPIC]), table(b"DSDT", SOFT_OFF)],
            uefi: Vec::new(),
        };
        loader.list_tables();
        loader
    }

    /// Writes root pointer and root table anew: those of ACPI 2.0.
    pub fn list_tables(&mut self) {
        self.place_dsdt();
        let addresses: Vec<u64> = (1..self.tables.len()).map(|index| self.address(index)).collect();
        self.tables[0] = table(b"XSDT", &addresses.iter().flat_map(|address| bytes![*address]).collect::<Vec<_>>());
        self.root_pointer = root_pointer(2, 0, TABLES);
    }

    /// The same for ACPI 1.0.
    pub fn list_old_tables(&mut self) {
        self.place_dsdt();
        let addresses: Vec<u64> = (1..self.tables.len()).map(|index| self.address(index)).collect();
        self.tables[0] = table(b"RSDT", &addresses.iter().flat_map(|&a| bytes![a as u32]).collect::<Vec<_>>());
        self.root_pointer = root_pointer(0, TABLES, 0);
    }

    /// Physical address of a table.
    pub fn address(&self, index: usize) -> u64 {
        TABLES + 0x4000 * index as u64
    }

    fn place_dsdt(&mut self) {
        let Some(dsdt) = self.tables.iter().position(|table| table.starts_with(b"DSDT")) else { return };
        let address = self.address(dsdt) as u32;
        for fadt in self.tables.iter_mut().filter(|table| table.starts_with(b"FACP") && table.len() >= 44) {
            fadt[40..44].copy_from_slice(&address.to_le_bytes());
            fix(fadt, 9);
        }
    }

    /// The kernel's file with all of this in it.
    pub fn file(&self, kernel: &[u8], module: Vec<u8>) -> Result<Vec<u8>> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(kernel).context("the kernel is no ELF file")?;
        let loads = elf.segments().context("the kernel has no segments")?.iter().filter(|s| s.p_type == PT_LOAD);
        let mut pieces: Vec<Piece> = loads
            .map(|s| Piece {
                flags: s.p_flags,
                virtual_address: s.p_vaddr,
                address: s.p_paddr,
                size: s.p_memsz,
                content: kernel[s.p_offset as usize..][..s.p_filesz as usize].to_vec(),
            })
            .collect();
        let (start, end) = self.claimed.unwrap_or((self.module, self.module + module.len() as u64));
        let (magic, information) = match self.protocol {
            Protocol::Multiboot1 => (0x2bad_b002u32, self.multiboot1(start as u32, end as u32)),
            Protocol::Multiboot2 => (0x36d7_6289, self.multiboot2(start as u32, end as u32)),
            Protocol::Pvh => (0x336e_c578, self.pvh(start, end)),
        };
        // mov $magic, %eax; mov $information, %ebx; mov $entry, %ecx; jmp *%ecx
        let code = [
            [&[0xb8][..], &magic.to_le_bytes()].concat(),
            [&[0xbb][..], &self.information.unwrap_or(INFORMATION as u32).to_le_bytes()].concat(),
            [&[0xb9][..], &(elf.ehdr.e_entry as u32).to_le_bytes(), &[0xff, 0xe1]].concat(),
        ];
        pieces.push(Piece::new(OWN, code.concat()));
        pieces.push(Piece::new(INFORMATION, information));
        pieces.push(Piece::new(ROOT_POINTER, self.root_pointer.clone()));
        pieces.extend((0..).zip(&self.tables).map(|(index, table)| Piece::new(self.address(index), table.clone())));
        pieces.push(Piece::new(self.module, module));
        pieces.retain(|piece| piece.size != 0);
        Ok(executable(&pieces))
    }

    /// Entries as all loaders have them.
    fn entries(&self) -> Vec<u8> {
        self.map.iter().flat_map(|&(base, length, kind)| bytes![base, length, kind, 0u32]).collect()
    }

    /// Multiboot Specification 0.6.96, 3.3. It has no root pointer.
    fn multiboot1(&self, start: u32, end: u32) -> Vec<u8> {
        let (list, map) = (INFORMATION as u32 + 64, INFORMATION as u32 + 128);
        let size = 24 * self.map.len() as u32;
        let mut information = bytes![0x48u32, 0u32, 0u32, 0u32, 0u32, 1u32, list, 0u64, 0u64, size, map];
        information.resize(64, 0);
        information.extend(bytes![start, end, 0u32, 0u32]);
        information.resize(128, 0);
        information.extend(self.map.iter().flat_map(|&(base, length, kind)| bytes![20u32, base, length, kind]));
        information
    }

    /// Multiboot2 Specification 2.0, 3.6.
    fn multiboot2(&self, start: u32, end: u32) -> Vec<u8> {
        let tag = |kind: u32, payload: &[u8]| {
            let mut tag = [&bytes![kind, payload.len() as u32 + 8], payload].concat();
            tag.resize(tag.len().next_multiple_of(8), 0);
            tag
        };
        let pointer = if self.root_pointer.len() > 20 { 15 } else { 14 };
        let mut tags = vec![
            tag(3, &bytes![start, end, 0u32]),
            tag(6, &[bytes![self.map_stride, 0u32], self.entries()].concat()),
            tag(pointer, &self.root_pointer),
        ];
        if !self.uefi.is_empty() {
            tags.push(tag(17, &[&bytes![48u32, 1u32], &self.uefi[..]].concat()));
        }
        tags.push(tag(0, &[]));
        let tags = tags.concat();
        [bytes![tags.len() as u32 + 8, 0u32], tags].concat()
    }

    /// Xen's `arch-x86/hvm/start_info.h`.
    fn pvh(&self, start: u64, end: u64) -> Vec<u8> {
        let (list, map) = (INFORMATION + 64, INFORMATION + 128);
        let entries = self.map.len() as u32;
        let mut information = bytes![0x336e_c578u32, 1u32, 0u32, 1u32, list, 0u64, ROOT_POINTER, map, entries, 0u32];
        information.resize(64, 0);
        information.extend(bytes![start, end.wrapping_sub(start), 0u64, 0u64]);
        information.resize(128, 0);
        information.extend(self.entries());
        information
    }
}

/// A part of physical memory, and what a loader puts there.
struct Piece {
    flags: u32,
    virtual_address: u64,
    address: u64,
    size: u64,
    content: Vec<u8>,
}

impl Piece {
    fn new(address: u64, content: Vec<u8>) -> Self {
        Self { flags: 7, virtual_address: address, address, size: content.len() as u64, content }
    }
}

/// Where an ELF file's header says where the section headers are.
const SECTION_HEADERS: usize = 40;

/// An ELF file with these segments that is entered at [`OWN`], by its header and by its PVH note.
fn executable(pieces: &[Piece]) -> Vec<u8> {
    let count = pieces.len() as u16 + 1;
    let note = [bytes![4u32, 4u32, 18u32], b"Xen\0".to_vec(), bytes![OWN as u32]].concat();
    let mut file = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    file.extend(bytes![2u16, 62u16, 1u32, OWN, 64u64, 0u64, 0u32, 64u16, 56u16, count, 64u16, 1u16, 0u16]);
    let offset = 64 + 56 * u64::from(count);
    let size = note.len() as u64;
    file.extend(bytes![PT_NOTE, 4u32, offset, 0u64, 0u64, size, size, 4u64]);
    let mut contents = note;
    for piece in pieces {
        // The header by which GRUB knows the kernel has to be within 32 KiB, and aligned.
        contents.resize((offset as usize + contents.len()).next_multiple_of(4096) - offset as usize, 0);
        let at = offset + contents.len() as u64;
        let Piece { flags, virtual_address, address, size, content } = piece;
        file.extend(bytes![PT_LOAD, *flags, at, *virtual_address, *address, content.len() as u64, *size, 4096u64]);
        contents.extend(content);
    }
    file.extend(contents);
    // GRUB insists on a table of sections: one that is empty.
    let sections = file.len() as u64;
    file[SECTION_HEADERS..SECTION_HEADERS + 8].copy_from_slice(&sections.to_le_bytes());
    file.extend([0; 64]);
    file
}

/// A processor with the APIC id 0.
pub const LAPIC: &[u8] = &[0, 8, 0, 0, 1, 0, 0, 0];
/// The I/O APIC that every PC has.
pub const IOAPIC: &[u8] = &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
/// `Name (_S5, Package () {0, 0, 0, 0})`.
const SOFT_OFF: &[u8] = b"\x08_S5_\x12\x06\x04\0\0\0\0";

/// Makes the sum of `bytes` zero by the byte at `offset`.
pub fn fix(bytes: &mut [u8], offset: usize) {
    bytes[offset] = 0;
    bytes[offset] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

/// An ACPI table (ACPI Specification 6.5, 5.2.6).
pub fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table =
        [&signature[..], &bytes![36 + body.len() as u32], &[1, 0], b"TEST  BADTABLE\0\0\0\0TEST\0\0\0\0", body]
            .concat();
    fix(&mut table, 9);
    table
}

/// A MADT with these entries (5.2.12).
pub fn madt(entries: &[&[u8]]) -> Vec<u8> {
    table(b"APIC", &[bytes![0xfee0_0000u32, 1u32], entries.concat()].concat())
}

/// The FADT of ACPI 1.0, with the registers of the emulated chipsets (5.2.9).
fn old_fadt(power: u32) -> Vec<u8> {
    let mut fadt = [0; 116];
    for (offset, port) in [(48, 0xb2), (56, power), (64, power + 4), (76, power + 8)] {
        fadt[offset..offset + 4].copy_from_slice(&port.to_le_bytes());
    }
    fadt[88..92].copy_from_slice(&[4, 2, 0, 4]);
    table(b"FACP", &fadt[36..])
}

/// A root pointer (5.2.5.3).
fn root_pointer(revision: u8, rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut pointer = [&b"RSD PTR \0TESTER"[..], &[revision], &bytes![rsdt as u32]].concat();
    fix(&mut pointer, 8);
    if revision >= 2 {
        pointer.extend(bytes![36u32, xsdt, 0u32]);
        fix(&mut pointer, 32);
    }
    pointer
}
