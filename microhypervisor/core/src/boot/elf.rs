//! The root image (NOVA 6.2.1; ELF-64 Object File Format 1.5).
//!
//! The kernel maps the program's segments from where the boot loader put the file: it neither allocates nor copies.

use super::{List, PhysicalMemory, Window};
use abi::capability::Permissions;
use abi::{PAGE_SIZE, ROOT_UTCB_ADDRESS};
use core::fmt;

/// Most loadable segments.
pub const SEGMENTS_MAX: usize = 16;

const PAGE: u64 = PAGE_SIZE as u64;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// e_ident: magic, 64 bits, little endian, version 1.
const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// Pages of the root program to map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address, page-aligned.
    pub va: u64,
    /// Physical address, page-aligned.
    pub pa: u64,
    /// Number of pages.
    pub pages: u64,
    /// Access according to the segment's flags.
    pub permissions: Permissions,
}

/// Why an image cannot be the root program. Numbers are indices of program headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// The file ends inside its headers.
    Truncated,
    /// Not a 64-bit little-endian ELF file.
    NotElf64,
    /// Not an executable with fixed addresses (ET_EXEC).
    NotExecutable,
    /// For another architecture.
    NotX86,
    /// Program headers of unknown size.
    HeaderSize,
    /// More than [`SEGMENTS_MAX`] loadable segments.
    TooManySegments,
    /// The file ends inside a segment.
    SegmentTruncated(u16),
    /// Sizes in file and memory differ.
    Size(u16),
    /// Virtual and physical address differ modulo the page size.
    Alignment(u16),
    /// Outside the addresses that programs can use.
    Address(u16),
    /// Shares pages with another segment.
    Overlap(u16),
    /// The entry point lies in no executable segment.
    Entry(u64),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "truncated: the file ends inside its headers"),
            Self::NotElf64 => write!(f, "not a 64-bit little-endian ELF file"),
            Self::NotExecutable => write!(f, "not an executable with fixed addresses (ET_EXEC)"),
            Self::NotX86 => write!(f, "not for x86-64"),
            Self::HeaderSize => write!(f, "program headers of unknown size"),
            Self::TooManySegments => write!(f, "more than {SEGMENTS_MAX} loadable segments"),
            Self::SegmentTruncated(n) => write!(f, "truncated: the file ends inside segment {n}"),
            Self::Size(n) => write!(f, "segment {n} has different sizes in file and memory"),
            Self::Alignment(n) => write!(f, "segment {n} is not where the file's load address needs it within a page"),
            Self::Address(n) => write!(f, "segment {n} lies outside the addresses of programs"),
            Self::Overlap(n) => write!(f, "segment {n} shares pages with another one"),
            Self::Entry(entry) => write!(f, "the entry point {entry:#x} is not in an executable segment"),
        }
    }
}

/// A root image that keeps the rules.
#[derive(Clone, Copy, Debug)]
pub struct RootElf {
    /// Virtual address of the entry point.
    pub entry: u64,
    segments: List<Segment, SEGMENTS_MAX>,
}

impl RootElf {
    /// Reads the headers of the file at physical addresses `start..end`. Memory that cannot be read counts as missing.
    pub fn parse(memory: &impl PhysicalMemory, start: u64, end: u64) -> Result<Self, ElfError> {
        let file = Window::new(memory, start, end.saturating_sub(start)).ok_or(ElfError::Truncated)?;
        let header = file.part(0, HEADER).ok_or(ElfError::Truncated)?;
        let u16_at = |offset| header.u16(offset).ok_or(ElfError::Truncated);
        let u64_at = |offset| header.u64(offset).ok_or(ElfError::Truncated);
        let require = |condition, error| if condition { Ok(()) } else { Err(error) };

        require(header.array(0) == Some(IDENT), ElfError::NotElf64)?;
        require(u16_at(16)? == ET_EXEC, ElfError::NotExecutable)?;
        require(u16_at(18)? == EM_X86_64, ElfError::NotX86)?;
        let (entry, table, count) = (u64_at(24)?, u64_at(32)?, u16_at(56)?);
        require(count == 0 || u64::from(u16_at(54)?) == PROGRAM_HEADER, ElfError::HeaderSize)?;

        let mut elf = Self { entry, segments: List::new() };
        for index in 0..count {
            let offset = table.checked_add(u64::from(index) * PROGRAM_HEADER).ok_or(ElfError::Truncated)?;
            let header = file.part(offset, PROGRAM_HEADER).ok_or(ElfError::Truncated)?;
            if let Some(segment) = segment(&file, &header, index)? {
                let disjoint = |other: &Segment| {
                    segment.va + segment.pages * PAGE <= other.va || other.va + other.pages * PAGE <= segment.va
                };
                require(elf.segments().iter().all(disjoint), ElfError::Overlap(index))?;
                require(elf.segments.push(segment), ElfError::TooManySegments)?;
            }
        }
        let runs = |segment: &Segment| {
            segment.permissions.contains(Permissions::EXECUTE_USER)
                && entry.checked_sub(segment.va).is_some_and(|offset| offset < segment.pages * PAGE)
        };
        require(elf.segments().iter().any(runs), ElfError::Entry(entry))?;
        Ok(elf)
    }

    /// What to map.
    pub fn segments(&self) -> &[Segment] {
        self.segments.as_slice()
    }
}

/// The pages of the segment with this program header; `None` if it takes no memory.
fn segment<M: PhysicalMemory>(file: &Window<M>, header: &Window<M>, index: u16) -> Result<Option<Segment>, ElfError> {
    let u32_at = |offset| header.u32(offset).ok_or(ElfError::Truncated);
    let u64_at = |offset| header.u64(offset).ok_or(ElfError::Truncated);
    let (kind, flags) = (u32_at(0)?, u32_at(4)?);
    let (offset, va, file_size, size) = (u64_at(8)?, u64_at(16)?, u64_at(32)?, u64_at(40)?);
    if kind != PT_LOAD || size == 0 {
        return Ok(None);
    }
    if file_size != size {
        return Err(ElfError::Size(index));
    }
    let pa = file.part(offset, size).ok_or(ElfError::SegmentTruncated(index))?.start;
    let end = va.checked_add(size).filter(|&end| end <= ROOT_UTCB_ADDRESS).ok_or(ElfError::Address(index))?;
    if va % PAGE != pa % PAGE {
        return Err(ElfError::Alignment(index));
    }
    let permissions = [Permissions::EXECUTE_USER, Permissions::WRITE, Permissions::READ];
    let permissions = permissions.into_iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0);
    let first = va & !(PAGE - 1);
    Ok(Some(Segment {
        va: first,
        pa: pa & !(PAGE - 1),
        pages: (end - first).div_ceil(PAGE),
        permissions: permissions.map(|(_, permission)| permission).collect(),
    }))
}
