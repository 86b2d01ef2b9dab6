//! Multiboot 1 images: small kernels that start in 32-bit protected mode.
//!
//! Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (boot information). An image says
//! where it goes either by the address fields of its header or by the program headers of its ELF, 32 or 64 bits.

use alloc::format;

use super::{Entry, Fields, Images, LoadError, Mode};
use crate::memory::GuestMemory;
use abi::utcb::gpr;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies in this much of the file, aligned to four bytes.
const SEARCH: u64 = 8192;
/// EAX at entry.
pub const BOOT_MAGIC: u64 = 0x2bad_b002;
/// Header flag: the address fields are valid.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Header flags below this bit that the loader does not know are refused.
const FLAGS_KNOWN: u32 = 0b11;
/// Where the boot information goes.
const INFO: u64 = 0x7000;
/// Where the module list goes.
const MODULES: u64 = 0x7200;
/// Where the memory map goes.
const MEMORY_MAP: u64 = 0x7800;
/// Where the command line goes.
const CMDLINE: u64 = 0x8000;
/// Longest command line.
const CMDLINE_MAX: usize = 0xfff;
/// Where the loader's name goes.
const NAME: u64 = 0x9000;
/// Boot information: memory sizes, command line, modules, memory map, loader's name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// Most modules.
const MODULES_MAX: usize = 64;

/// Puts the image and its boot information into the guest's memory, which must be zero.
pub fn load(memory: &impl GuestMemory, images: &Images<'_>) -> Result<Entry, LoadError> {
    let file = Fields(images.kernel, "kernel");
    let header = find_header(&file)?;
    let flags = file.u32(header + 4)?;
    if flags & 0xffff & !FLAGS_KNOWN != 0 {
        return Err(LoadError::Unsupported("the kernel's multiboot header wants something unknown"));
    }
    let (rip, end) =
        if flags & FLAG_ADDRESSES != 0 { load_by_addresses(memory, &file, header)? } else { load_elf(memory, &file)? };

    if images.cmdline.len() > CMDLINE_MAX {
        return Err(LoadError::LongCommandLine { limit: CMDLINE_MAX, found: images.cmdline.len() });
    }
    memory.write(CMDLINE, images.cmdline.as_bytes())?;
    memory.write(NAME, b"Kilonova\0")?;

    let mut at = end;
    let modules = &images.initrds[..images.initrds.len().min(MODULES_MAX)];
    for (index, module) in modules.iter().enumerate() {
        at = at.next_multiple_of(0x1000);
        memory.write(at, module)?;
        let entry = MODULES + index as u64 * 16;
        memory.write(entry, &(at as u32).to_le_bytes())?;
        at += module.len() as u64;
        memory.write(entry + 4, &(at as u32).to_le_bytes())?;
    }

    let map = super::bzimage::memory_map(memory.ram());
    for (index, &(base, length, kind)) in map.iter().enumerate() {
        let entry = MEMORY_MAP + index as u64 * 24;
        memory.write(entry, &20u32.to_le_bytes())?;
        memory.write(entry + 4, &base.to_le_bytes())?;
        memory.write(entry + 12, &length.to_le_bytes())?;
        memory.write(entry + 20, &(kind as u32).to_le_bytes())?;
    }
    let words = [
        (0, INFO_FLAGS),
        (4, 639),
        (8, (memory.ram().below_4g().saturating_sub(1 << 20) >> 10) as u32),
        (16, CMDLINE as u32),
        (20, modules.len() as u32),
        (24, MODULES as u32),
        (44, map.len() as u32 * 24),
        (48, MEMORY_MAP as u32),
        (64, NAME as u32),
    ];
    for (offset, word) in words {
        memory.write(INFO + offset, &word.to_le_bytes())?;
    }

    let mut registers = [0; 16];
    registers[gpr::RAX] = BOOT_MAGIC;
    registers[gpr::RBX] = INFO;
    let description = format!("multiboot image, entry {rip:#x}, end {end:#x}, {} modules", modules.len());
    Ok(Entry { rip, gpr: registers, mode: Mode::Protected, description })
}

fn find_header(file: &Fields<'_>) -> Result<u64, LoadError> {
    for at in (0..SEARCH).step_by(4) {
        let (Ok(magic), Ok(flags), Ok(checksum)) = (file.u32(at), file.u32(at + 4), file.u32(at + 8)) else { break };
        if magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0 {
            return Ok(at);
        }
    }
    Err(LoadError::Unsupported("the kernel has no multiboot header"))
}

/// Returns entry point and end of the image.
fn load_by_addresses(memory: &impl GuestMemory, file: &Fields<'_>, header: u64) -> Result<(u64, u64), LoadError> {
    let address = |index: u64| file.u32(header + 12 + index * 4).map(u64::from);
    let (header_at, load_at, load_end, bss_end, entry) =
        (address(0)?, address(1)?, address(2)?, address(3)?, address(4)?);
    let offset = header_at
        .checked_sub(load_at)
        .and_then(|before| header.checked_sub(before))
        .ok_or(LoadError::Unsupported("the addresses in the kernel's multiboot header contradict each other"))?;
    let length = match load_end {
        0 => (file.0.len() as u64).saturating_sub(offset),
        end => end
            .checked_sub(load_at)
            .ok_or(LoadError::Unsupported("the addresses in the kernel's multiboot header contradict each other"))?,
    };
    check_place(load_at)?;
    memory.write(load_at, file.bytes(offset, length)?)?;
    let end = bss_end.max(load_at + length);
    memory.clear(load_at + length, end - load_at - length)?;
    Ok((entry, end))
}

fn check_place(at: u64) -> Result<(), LoadError> {
    if at < 1 << 20 { Err(LoadError::Unsupported("the kernel wants to lie below 1 MiB")) } else { Ok(()) }
}

/// Loads by physical addresses of the program headers; returns entry point and end of the image.
fn load_elf(memory: &impl GuestMemory, file: &Fields<'_>) -> Result<(u64, u64), LoadError> {
    if file.u32(0)? != u32::from_le_bytes(*b"\x7fELF") {
        return Err(LoadError::Unsupported("the kernel has a multiboot header without addresses, but is no ELF"));
    }
    let wide = match file.u8(4)? {
        1 => false,
        2 => true,
        _ => return Err(LoadError::Unsupported("the kernel's ELF class is unknown")),
    };
    let word = |at32: u64, at64: u64| if wide { file.u64(at64) } else { file.u32(at32).map(u64::from) };
    let entry = word(24, 24)?;
    let table = word(28, 32)?;
    let (size, count) = if wide { (file.u16(54)?, file.u16(56)?) } else { (file.u16(42)?, file.u16(44)?) };
    let mut end = 0;
    for index in 0..count as u64 {
        let header = table.saturating_add(index * size as u64);
        let word = |at32: u64, at64: u64| {
            if wide {
                file.u64(header.saturating_add(at64))
            } else {
                file.u32(header.saturating_add(at32)).map(u64::from)
            }
        };
        const PT_LOAD: u32 = 1;
        if file.u32(header)? != PT_LOAD {
            continue;
        }
        let (offset, at, in_file, in_memory) = (word(4, 8)?, word(12, 24)?, word(16, 32)?, word(20, 40)?);
        if in_memory == 0 {
            continue;
        }
        check_place(at)?;
        memory.write(at, file.bytes(offset, in_file)?)?;
        memory.clear(at.saturating_add(in_file), in_memory.saturating_sub(in_file))?;
        end = end.max(at + in_memory.max(in_file));
    }
    if end == 0 {
        return Err(LoadError::Unsupported("the kernel's ELF loads nothing"));
    }
    Ok((entry, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn by_addresses() -> Vec<u8> {
        let flags = FLAG_ADDRESSES | 2;
        let sum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let mut file = vec![0; 0x100];
        file.extend(words(&[HEADER_MAGIC, flags, sum, 0x10_0100, 0x10_0000, 0, 0x10_3000, 0x10_0120]));
        file.extend([0xf4; 16]);
        file
    }

    fn elf32() -> Vec<u8> {
        let mut file = vec![0u8; 0x200];
        file[..5].copy_from_slice(b"\x7fELF\x01");
        file[24..32].copy_from_slice(&words(&[0x10_0010, 52]));
        file[42..46].copy_from_slice(&[32, 0, 1, 0]);
        file[52..84].copy_from_slice(&words(&[1, 0x100, 0x10_0000, 0x10_0000, 0x100, 0x200, 7, 0x1000]));
        file[0x100..0x10c].copy_from_slice(&words(&[HEADER_MAGIC, 0, 0u32.wrapping_sub(HEADER_MAGIC)]));
        file
    }

    fn try_load(kernel: &[u8]) -> Result<(VecMemory, Entry), LoadError> {
        let memory = VecMemory::new(4 << 20);
        let entry = load(&memory, &Images { kernel, initrds: &[b"one", b"two"], cmdline: "basic" })?;
        Ok((memory, entry))
    }

    #[test]
    fn both_ways_to_load() {
        let (memory, entry) = try_load(&by_addresses()).unwrap();
        assert_eq!((entry.rip, entry.gpr[gpr::RAX], entry.mode), (0x10_0120, BOOT_MAGIC, Mode::Protected));
        assert_eq!(memory.read_u32(0x10_0120), Ok(0xf4f4_f4f4));
        assert_eq!(memory.read_u32(MODULES), Ok(0x10_3000));
        assert_eq!(memory.read_u32(0x10_4000), Ok(u32::from_le_bytes(*b"two\0")));
        assert_eq!(memory.read_u32(CMDLINE), Ok(u32::from_le_bytes(*b"basi")));
        let (memory, entry) = try_load(&elf32()).unwrap();
        assert_eq!(entry.rip, 0x10_0010);
        assert_eq!(memory.read_u32(0x10_0000), Ok(HEADER_MAGIC));
        assert_eq!(memory.read_u32(MODULES), Ok(0x10_1000));
    }

    #[test]
    fn bad_images() {
        assert_eq!(try_load(&[0; 64]).err().unwrap().to_string(), "the kernel has no multiboot header");
        assert!(matches!(try_load(&elf32()[..0x180]), Err(LoadError::Truncated { needed: 0x200, .. })));
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..0x110, value: u32, cut in 0usize..0x200) {
            for mut file in [by_addresses(), elf32()] {
                let end = file.len();
                let at = at & !3;
                file[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let _ = try_load(&file);
                let _ = try_load(&file[..cut.min(end)]);
            }
        }
    }
}
