//! What of an ELF file is code and constants.

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::{SHF_ALLOC, SHF_WRITE, SHT_NOBITS};
use elf::endian::LittleEndian;

/// The bytes of all sections that are loaded and never written.
pub fn constant(file: &[u8]) -> Result<u64> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).context("the kernel is no ELF file")?;
    let sections = elf.section_headers().context("the kernel has no sections")?;
    let kept = u64::from(SHF_ALLOC);
    let changing = u64::from(SHF_WRITE);
    Ok(sections
        .iter()
        .filter(|section| section.sh_flags & (kept | changing) == kept && section.sh_type != SHT_NOBITS)
        .map(|section| section.sh_size)
        .sum())
}
