//! Loaders: they put a guest's image into its RAM and say in which state its CPU starts.
//!
//! Images are untrusted: every length is checked, and an error says what is wrong with which file.

pub mod bzimage;
pub mod multiboot1;

use alloc::string::String;
use core::fmt;

use abi::utcb::{Architectural, DescriptorTable, Segment, gpr};

use crate::memory::NotRam;

/// Why an image cannot be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// The file ends too early.
    Truncated {
        /// What ends too early.
        what: &'static str,
        /// Bytes that it would need.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The file is something else, or wants something that does not exist here.
    Unsupported(&'static str),
    /// The machine has too little RAM.
    TooLittleMemory {
        /// For what.
        what: &'static str,
        /// Bytes of RAM that would do.
        needed: u64,
        /// Bytes of RAM that there are.
        found: u64,
    },
    /// The command line is longer than the kernel takes.
    LongCommandLine {
        /// Bytes that the kernel takes.
        limit: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// A part of the image lies where the machine has no RAM.
    Placement(NotRam),
}

impl From<NotRam> for LoadError {
    fn from(error: NotRam) -> Self {
        LoadError::Placement(error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Truncated { what, needed, found } => {
                write!(f, "the {what} is truncated: {found} bytes, {needed} are needed")
            }
            LoadError::Unsupported(why) => f.write_str(why),
            LoadError::TooLittleMemory { what, needed, found } => write!(
                f,
                "too little memory for the {what}: the machine has {} MiB, {} MiB are needed",
                found >> 20,
                needed.div_ceil(1 << 20)
            ),
            LoadError::LongCommandLine { limit, found } => {
                write!(f, "the command line has {found} bytes, the kernel takes {limit}")
            }
            LoadError::Placement(error) => write!(f, "the image does not fit: {error}"),
        }
    }
}

/// What to start, as bytes of the files.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The kernel.
    pub kernel: &'a [u8],
    /// Initial RAM disks, placed one behind the other, each aligned to 4 bytes.
    pub initrds: &'a [&'a [u8]],
    /// Command line.
    pub cmdline: &'a str,
}

/// How the CPU starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Instruction pointer.
    pub rip: u64,
    /// General registers, numbered as in instruction encodings.
    pub gpr: [u64; 16],
    /// CPU mode.
    pub mode: Mode,
    /// What is told to whom reads the log.
    pub description: String,
}

/// CPU mode at entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Protected mode, 32 bits, no paging.
    Protected,
    /// Long mode, 64 bits, with these page tables and this GDT.
    Long {
        /// Page-map level 4.
        cr3: u64,
        /// GDT: address and limit.
        gdt: (u64, u32),
    },
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Value of IA32_PAT after reset.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Selector of flat code in the loaders' GDTs; the one behind it is flat data.
pub const CODE_SELECTOR: u16 = 0x10;

impl Entry {
    /// Writes the complete initial state of a vCPU.
    pub fn apply(&self, state: &mut Architectural) {
        *state = Architectural::default();
        state.gpr = self.gpr;
        state.rip = self.rip;
        state.rflags = 2;
        let flat = |selector, access| Segment { selector, access, limit: u32::MAX, base: 0 };
        // Type 0xb (code, read, accessed), 0x3 (data, write, accessed), S, P, G; D/B for 32 bits, L for 64.
        let (code, data) = match self.mode {
            Mode::Protected => (0xc9b, 0xc93),
            Mode::Long { .. } => (0xa9b, 0xc93),
        };
        state.cs = flat(CODE_SELECTOR, code);
        let data = flat(CODE_SELECTOR + 8, data);
        (state.ss, state.ds, state.es, state.fs, state.gs) = (data, data, data, data, data);
        state.tr = Segment { selector: 0, access: 0x8b, limit: 0xffff, base: 0 };
        state.ldtr = Segment { selector: 0, access: 0x1082, limit: 0xffff, base: 0 };
        state.cr0 = CR0_PE | CR0_ET | CR0_NE;
        state.pat = PAT_RESET;
        state.xcr0 = 1;
        state.dr7 = 0x400;
        if let Mode::Long { cr3, gdt: (base, limit) } = self.mode {
            state.cr0 |= CR0_PG;
            state.cr3 = cr3;
            state.cr4 = CR4_PAE;
            state.efer = EFER_LME | EFER_LMA;
            state.gdtr = DescriptorTable { reserved: 0, limit, base };
        }
    }

    /// The value of a general register, by its index in [`abi::utcb::gpr`].
    pub fn register(&self, index: usize) -> u64 {
        self.gpr.get(index).copied().unwrap_or(0)
    }

    /// RSI: Linux' boot parameters.
    pub fn rsi(&self) -> u64 {
        self.register(gpr::RSI)
    }
}

/// Reads little-endian numbers from a file, checked.
pub(crate) struct Fields<'a>(pub &'a [u8], pub &'static str);

impl Fields<'_> {
    fn truncated(&self, needed: u64) -> LoadError {
        LoadError::Truncated { what: self.1, needed, found: self.0.len() as u64 }
    }

    pub fn bytes(&self, at: u64, length: u64) -> Result<&[u8], LoadError> {
        let end = at.saturating_add(length);
        usize::try_from(end).ok().and_then(|end| self.0.get(at as usize..end)).ok_or_else(|| self.truncated(end))
    }

    pub fn u8(&self, at: u64) -> Result<u8, LoadError> {
        Ok(self.bytes(at, 1)?[0])
    }

    pub fn u16(&self, at: u64) -> Result<u16, LoadError> {
        Ok(self.bytes(at, 2)?.iter().rev().fold(0, |value, &byte| value << 8 | byte as u16))
    }

    pub fn u32(&self, at: u64) -> Result<u32, LoadError> {
        Ok(self.bytes(at, 4)?.iter().rev().fold(0, |value, &byte| value << 8 | byte as u32))
    }

    pub fn u64(&self, at: u64) -> Result<u64, LoadError> {
        Ok(self.bytes(at, 8)?.iter().rev().fold(0, |value, &byte| value << 8 | byte as u64))
    }
}
