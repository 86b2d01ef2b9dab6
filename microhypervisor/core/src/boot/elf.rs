//! The root image (NOVA 6.2.1; ELF-64 Object File Format 1.5).
//!
//! The kernel maps the program's segments from where the boot loader put the file: it neither allocates nor copies.

use super::{List, Malformed, PhysicalMemory, Window};
use abi::capability::Permissions;
use abi::{PAGE_SIZE, ROOT_UTCB_ADDRESS};

/// Most loadable segments.
pub const SEGMENTS_MAX: usize = 16;

const PAGE: u64 = PAGE_SIZE as u64;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// e_ident: magic, 64 bits, little endian, version 1.
const IDENT: u64 = u64::from_le_bytes([0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
const ET_EXEC: u64 = 2;
const EM_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;

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

const TRUNCATED: Malformed = Malformed(&"truncated: the file ends inside its headers", 0);

/// A root image that keeps the rules.
#[derive(Clone, Copy, Debug)]
pub struct RootElf {
    /// Virtual address of the entry point.
    pub entry: u64,
    segments: List<Segment, SEGMENTS_MAX>,
}

impl RootElf {
    /// Reads the headers of the file at physical addresses `start..end`. Memory that cannot be read counts as missing.
    pub fn parse(memory: &impl PhysicalMemory, start: u64, end: u64) -> Result<Self, Malformed> {
        let file = Window::new(memory, start, end.saturating_sub(start)).ok_or(TRUNCATED)?;
        let header = file.part(0, HEADER).ok_or(TRUNCATED)?;
        let require = |condition, error| if condition { Ok(()) } else { Err(error) };
        let places = [(0, 7), (16, 2), (18, 2), (24, 8), (32, 8), (54, 2), (56, 2)];
        let [ident, kind, machine, entry, table, size, count] = header.numbers(&places).ok_or(TRUNCATED)?;

        require(ident == IDENT, Malformed(&"not a 64-bit little-endian ELF file", 0))?;
        require(kind == ET_EXEC, Malformed(&"not an executable with fixed addresses (ET_EXEC)", 0))?;
        require(machine == EM_X86_64, Malformed(&"not for x86-64", 0))?;
        require(count == 0 || size == PROGRAM_HEADER, Malformed(&"program headers of unknown size", 0))?;

        let mut elf = Self { entry, segments: List::empty() };
        for index in 0..count {
            let offset = table.checked_add(index * PROGRAM_HEADER).ok_or(TRUNCATED)?;
            let header = file.part(offset, PROGRAM_HEADER).ok_or(TRUNCATED)?;
            if let Some(segment) = segment(&file, &header, index)? {
                let disjoint = |other: &Segment| {
                    segment.va + segment.pages * PAGE <= other.va || other.va + other.pages * PAGE <= segment.va
                };
                let shares = Malformed(&"segment # shares pages with another one", index);
                require(elf.segments().iter().all(disjoint), shares)?;
                require(elf.segments.push(segment), Malformed(&"more than 16 loadable segments", 0))?;
            }
        }
        let runs = |segment: &Segment| {
            segment.permissions.contains(Permissions::EXECUTE_USER)
                && entry.checked_sub(segment.va).is_some_and(|offset| offset < segment.pages * PAGE)
        };
        let outside = Malformed(&"the entry point # is not in an executable segment", entry);
        require(elf.segments().iter().any(runs), outside)?;
        Ok(elf)
    }

    /// What to map.
    pub fn segments(&self) -> &[Segment] {
        self.segments.as_slice()
    }
}

/// The pages of the segment with this program header; `None` if it takes no memory.
fn segment<M: PhysicalMemory>(file: &Window<M>, header: &Window<M>, index: u64) -> Result<Option<Segment>, Malformed> {
    let places = [(0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8)];
    let [kind, flags, offset, va, file_size, size] = header.numbers(&places).ok_or(TRUNCATED)?;
    if kind != PT_LOAD || size == 0 {
        return Ok(None);
    }
    let wrong = |words| Malformed(words, index);
    if file_size != size {
        return Err(wrong(&"segment # has different sizes in file and memory"));
    }
    let pa = file.part(offset, size).ok_or(wrong(&"truncated: the file ends inside segment #"))?.start;
    let end = va.checked_add(size).filter(|&end| end <= ROOT_UTCB_ADDRESS);
    let end = end.ok_or(wrong(&"segment # lies outside the addresses of programs"))?;
    if va % PAGE != pa % PAGE {
        return Err(wrong(&"segment # is not where the file's load address needs it within a page"));
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
