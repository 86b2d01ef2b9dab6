//! Program images: what to map where, and which function an address is in.

use crate::frames::PAGE;
use core::fmt;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_LOAD, STT_FUNC};
use elf::endian::LittleEndian;

/// Lowest and highest address of a program: the root task puts other things above.
const ADDRESSES: core::ops::Range<u64> = 0x10000..0x1000_0000;

/// Why an image cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an ELF file at all.
    NotElf,
    /// Headers or segments lie beyond the end of the file.
    Truncated,
    /// Not an executable for x86-64.
    WrongKind,
    /// A segment lies outside the addresses of programs, shares a page with another, or is writable and executable.
    BadSegment(u64),
    /// The entry point is not in an executable segment.
    BadEntry(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => write!(f, "is not an ELF file"),
            Self::Truncated => write!(f, "is a truncated ELF file"),
            Self::WrongKind => write!(f, "is not an x86-64 executable"),
            Self::BadSegment(address) => write!(f, "has an impossible segment at {address:#x}"),
            Self::BadEntry(address) => write!(f, "has its entry at {address:#x}, where no code is"),
        }
    }
}

/// One loadable segment, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Virtual address of its first byte.
    pub address: u64,
    /// Length in memory; what `data` does not cover is zero.
    pub length: u64,
    /// Content.
    pub data: &'a [u8],
    /// Whether the program may write it.
    pub writable: bool,
    /// Whether the program may execute it.
    pub executable: bool,
}

/// A program image.
pub struct Image<'a> {
    elf: ElfBytes<'a, LittleEndian>,
    bytes: &'a [u8],
}

impl<'a> Image<'a> {
    /// Checks headers and segments.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let image = Self::parse(bytes)?;
        let mut last_page = 0;
        let mut entry_found = false;
        let mut count = 0;
        for segment in image.segments() {
            let segment = segment?;
            let end = segment.address.checked_add(segment.length).ok_or(ImageError::BadSegment(segment.address))?;
            let overlaps = segment.address / PAGE < last_page;
            let both = segment.writable && segment.executable;
            if segment.address < ADDRESSES.start || end > ADDRESSES.end || overlaps || both {
                return Err(ImageError::BadSegment(segment.address));
            }
            last_page = end.div_ceil(PAGE);
            entry_found |= segment.executable && (segment.address..end).contains(&image.entry());
            count += 1;
        }
        match (count, entry_found) {
            (1.., true) => Ok(image),
            _ => Err(ImageError::BadEntry(image.entry())),
        }
    }

    /// Reads the headers alone, without judging the segments.
    fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        if bytes.get(..4) != Some(b"\x7fELF") {
            return Err(ImageError::NotElf);
        }
        let elf = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|_| ImageError::Truncated)?;
        if elf.ehdr.e_machine != EM_X86_64 || elf.ehdr.e_type != ET_EXEC {
            return Err(ImageError::WrongKind);
        }
        Ok(Self { elf, bytes })
    }

    /// Length of the ELF file that `bytes` begins with: the end of the last segment, section or header table.
    pub fn file_length(bytes: &'a [u8]) -> Result<usize, ImageError> {
        let image = Self::parse(bytes)?;
        let header = &image.elf.ehdr;
        let table = |offset: u64, count: u16, size: u16| offset.saturating_add(count as u64 * size as u64);
        let mut end = table(header.e_phoff, header.e_phnum, header.e_phentsize);
        end = end.max(table(header.e_shoff, header.e_shnum, header.e_shentsize));
        for segment in image.elf.segments().into_iter().flat_map(|table| table.iter()) {
            end = end.max(segment.p_offset.saturating_add(segment.p_filesz));
        }
        for section in image.elf.section_headers().into_iter().flat_map(|table| table.iter()) {
            if section.sh_type != elf::abi::SHT_NOBITS {
                end = end.max(section.sh_offset.saturating_add(section.sh_size));
            }
        }
        usize::try_from(end).ok().filter(|&end| end <= bytes.len()).ok_or(ImageError::Truncated)
    }

    /// Address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.elf.ehdr.e_entry
    }

    /// The loadable segments that occupy memory.
    pub fn segments(&self) -> impl Iterator<Item = Result<Segment<'a>, ImageError>> {
        let table = self.elf.segments();
        let bytes = self.bytes;
        table.into_iter().flat_map(|t| t.iter()).filter(|s| s.p_type == PT_LOAD && s.p_memsz != 0).map(move |s| {
            let start = usize::try_from(s.p_offset).map_err(|_| ImageError::Truncated)?;
            let length = usize::try_from(s.p_filesz).map_err(|_| ImageError::Truncated)?;
            let end = start.checked_add(length).ok_or(ImageError::Truncated)?;
            let data = bytes.get(start..end).ok_or(ImageError::Truncated)?;
            if s.p_filesz > s.p_memsz || s.p_flags & PF_R == 0 {
                return Err(ImageError::BadSegment(s.p_vaddr));
            }
            Ok(Segment {
                address: s.p_vaddr,
                length: s.p_memsz,
                data,
                writable: s.p_flags & PF_W != 0,
                executable: s.p_flags & PF_X != 0,
            })
        })
    }

    /// The mangled name of the function that `address` is in and the distance from its start, if the image has symbols.
    pub fn symbol(&self, address: u64) -> Option<(&'a str, u64)> {
        let (symbols, names) = self.elf.symbol_table().ok()??;
        let function = symbols
            .iter()
            .filter(|s| s.st_symtype() == STT_FUNC && s.st_value <= address && address - s.st_value < s.st_size.max(1))
            .max_by_key(|s| s.st_value)?;
        let bytes = names.get_raw(function.st_name as usize).ok()?;
        Some((core::str::from_utf8(bytes).ok()?, address - function.st_value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// An executable with one segment of code at 4 MiB and one of data.
    fn sample() -> Vec<u8> {
        let mut bytes = std::vec![0; 0x300];
        bytes[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(24, &0x400010u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 2, 0, 64, 0]);
        for (i, (flags, offset, address, file, memory)) in
            [(5u32, 0x100u64, 0x400000u64, 0x100u64, 0x100u64), (6, 0x200, 0x401000, 0x100, 0x3000)].iter().enumerate()
        {
            let at = 64 + i * 56;
            put(at, &1u32.to_le_bytes());
            put(at + 4, &flags.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 16, &address.to_le_bytes());
            put(at + 32, &file.to_le_bytes());
            put(at + 40, &memory.to_le_bytes());
        }
        bytes
    }

    fn changed(at: usize, value: u64) -> Option<ImageError> {
        let mut bytes = sample();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        Image::new(&bytes).err()
    }

    #[test]
    fn segments_are_checked() {
        let bytes = sample();
        let image = Image::new(&bytes).unwrap();
        let segments: Vec<_> = image.segments().map(Result::unwrap).collect();
        assert_eq!((segments.len(), segments[1].length, segments[1].data.len()), (2, 0x3000, 0x100));
        assert!(segments[0].executable && !segments[0].writable);
        assert_eq!(Image::file_length(&bytes), Ok(0x300));
        assert_eq!(changed(80, 0x1000), Some(ImageError::BadSegment(0x1000)), "too low");
        assert_eq!(changed(80, u64::MAX - 3), Some(ImageError::BadSegment(u64::MAX - 3)));
        assert_eq!(changed(136, 0x400800), Some(ImageError::BadSegment(0x400800)), "same page");
        assert_eq!(changed(24, 0x500000), Some(ImageError::BadEntry(0x500000)));
        assert_eq!(changed(24, 0x401000), Some(ImageError::BadEntry(0x401000)), "data is no code");
        assert_eq!(changed(64, 0x7_0000_0001), Some(ImageError::BadSegment(0x400000)), "writable code");
        assert_eq!(changed(96, 0x900), Some(ImageError::Truncated));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = sample();
        assert_eq!(Image::new(b"#!/bin/sh").err(), Some(ImageError::NotElf));
        for length in 4..bytes.len() {
            assert_eq!(Image::new(&bytes[..length]).err(), Some(ImageError::Truncated), "{length}");
            assert_eq!(Image::file_length(&bytes[..length]).err(), Some(ImageError::Truncated), "{length}");
        }
    }

    proptest! {
        #[test]
        fn damaged_images_do_no_harm(changes in prop::collection::vec((0usize..0x300, any::<u8>()), 1..20)) {
            let mut bytes = sample();
            for (at, value) in changes {
                bytes[at] = value;
            }
            let _ = Image::file_length(&bytes);
            if let Ok(image) = Image::new(&bytes) {
                let _ = (image.symbol(0x400010), image.segments().count());
            }
        }
    }
}
