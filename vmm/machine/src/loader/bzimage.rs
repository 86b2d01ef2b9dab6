//! Linux by its 64-bit boot protocol: the kernel's file is a bzImage, its CPU starts in long mode.
//!
//! Linux `Documentation/arch/x86/boot.rst` (the setup header, sections "The Real-Mode Kernel Header" and "64-bit Boot
//! Protocol") and `zero-page.rst`.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::{Entry, Fields, Images, LoadError, Mode};
use crate::memory::{GuestMemory, HIGH_RAM_BASE, Ram};
use crate::pci::bus::{ECAM, ECAM_SIZE};
use abi::utcb::gpr;

/// Where the GDT goes.
const GDT: u64 = 0x500;
/// Where the boot parameters ("zero page") go.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Where the page tables go: six pages.
const PAGE_TABLES: u64 = 0x9000;
/// Where the command line goes.
const CMDLINE: u64 = 0x2_0000;
/// First byte of the extended BIOS data area's place, reserved as on a PC.
pub const LOW_END: u64 = 0x9_fc00;
/// The firmware's place: ACPI tables.
pub const FIRMWARE: u64 = 0xe_0000;
/// End of the firmware's place.
pub const FIRMWARE_END: u64 = 0x10_0000;

/// Offsets in the setup header, which starts at [`SETUP_HEADER`] in the file and in the boot parameters.
mod field {
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const SYSSIZE: u64 = 0x1f4;
    pub const BOOT_FLAG: u64 = 0x1fe;
    pub const JUMP: u64 = 0x201;
    pub const HEADER: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    pub const END: u64 = 0x264;
}

const SETUP_HEADER: u64 = field::SETUP_SECTS;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// 2.12 brought `xloadflags`.
const VERSION_MIN: u16 = 0x020c;
/// `xloadflags`: the 64-bit entry point exists.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point lies there in the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: undefined.
const LOADER_UNDEFINED: u8 = 0xff;

/// Offsets in the boot parameters outside the setup header.
mod param {
    pub const ACPI_RSDP: u64 = 0x070;
    pub const E820_ENTRIES: u64 = 0x1e8;
    pub const E820_TABLE: u64 = 0x2d0;
}

/// Type of an E820 entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RangeType {
    /// Memory to use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// The memory map that the guest is told: address, length, type.
pub fn memory_map(ram: Ram) -> Vec<(u64, u64, RangeType)> {
    let mut map = vec![
        (0, LOW_END, RangeType::Ram),
        (LOW_END, 0xa_0000 - LOW_END, RangeType::Reserved),
        (FIRMWARE, FIRMWARE_END - FIRMWARE, RangeType::Reserved),
        (FIRMWARE_END, ram.below_4g().saturating_sub(FIRMWARE_END), RangeType::Ram),
    ];
    if ram.above_4g() != 0 {
        map.push((HIGH_RAM_BASE, ram.above_4g(), RangeType::Ram));
    }
    map
}

/// Identity-maps the first 4 GiB with pages of 2 MiB; the tables take six pages at `at`.
pub fn identity_map(memory: &impl GuestMemory, at: u64) -> Result<(), LoadError> {
    const TABLE: u64 = 0b11; // present, writable
    const LARGE: u64 = 1 << 7 | TABLE;
    memory.clear(at, 6 * 0x1000)?;
    memory.write(at, &((at + 0x1000) | TABLE).to_le_bytes())?;
    for gigabyte in 0..4 {
        let directory = at + 0x2000 + gigabyte * 0x1000;
        memory.write(at + 0x1000 + gigabyte * 8, &(directory | TABLE).to_le_bytes())?;
        for entry in 0..512 {
            let page = gigabyte << 30 | entry << 21;
            memory.write(directory + entry * 8, &(page | LARGE).to_le_bytes())?;
        }
    }
    Ok(())
}

/// What Linux is told of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    /// Guest-physical address of the ACPI root pointer.
    pub rsdp: u64,
    /// PCI's configuration space is in memory, too: Linux uses it from the beginning only if it is reserved.
    pub ecam: bool,
}

/// Puts the kernel, its initial RAM disks and its boot parameters into the guest's memory, which must be zero.
pub fn load(memory: &impl GuestMemory, images: &Images<'_>, firmware: Firmware) -> Result<Entry, LoadError> {
    let file = Fields(images.kernel, "kernel");
    if file.u16(field::BOOT_FLAG)? != BOOT_FLAG || file.u32(field::HEADER)? != MAGIC {
        return Err(LoadError::Unsupported("the kernel is no Linux bzImage"));
    }
    let version = file.u16(field::VERSION)?;
    if version < VERSION_MIN {
        return Err(LoadError::Unsupported("the kernel speaks a boot protocol before 2.12"));
    }
    if file.u16(field::XLOADFLAGS)? & XLF_KERNEL_64 == 0 {
        return Err(LoadError::Unsupported("the kernel has no 64-bit entry point"));
    }
    let setup_sectors = match file.u8(field::SETUP_SECTS)? {
        0 => 4,
        sectors => sectors as u64,
    };
    let setup_size = (setup_sectors + 1) * 512;
    let body = file.bytes(setup_size, file.u32(field::SYSSIZE)? as u64 * 16)?;
    if (body.len() as u64) < ENTRY_64 {
        return Err(LoadError::Unsupported("the kernel has no 64-bit entry point"));
    }

    let ram = memory.ram();
    let load_at = file.u64(field::PREF_ADDRESS)?;
    let footprint = (file.u32(field::INIT_SIZE)? as u64).max(body.len() as u64);
    let kernel_end = load_at.saturating_add(footprint);
    if load_at < FIRMWARE_END {
        return Err(LoadError::Unsupported("the kernel wants to lie below 1 MiB"));
    }
    if kernel_end > ram.below_4g() {
        return Err(LoadError::TooLittleMemory { what: "kernel", needed: kernel_end, found: ram.size() });
    }
    memory.write(load_at, body)?;

    // The boot parameters: the setup header as in the file, up to where its jump instruction leads.
    let header_end = (field::HEADER + file.u8(field::JUMP)? as u64).clamp(field::END, 0x290);
    memory.clear(BOOT_PARAMS, 0x1000)?;
    memory.write(BOOT_PARAMS + SETUP_HEADER, file.bytes(SETUP_HEADER, header_end - SETUP_HEADER)?)?;
    let put = |at: u64, bytes: &[u8]| memory.write(BOOT_PARAMS + at, bytes);
    put(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED])?;
    put(param::ACPI_RSDP, &firmware.rsdp.to_le_bytes())?;

    let limit = (file.u32(field::CMDLINE_SIZE)? as usize).min((LOW_END - CMDLINE) as usize - 1);
    if images.cmdline.len() > limit {
        return Err(LoadError::LongCommandLine { limit, found: images.cmdline.len() });
    }
    memory.write(CMDLINE, images.cmdline.as_bytes())?;
    memory.write(CMDLINE + images.cmdline.len() as u64, &[0])?;
    put(field::CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes())?;

    let top = ram.below_4g().min(file.u32(field::INITRD_ADDR_MAX)? as u64 + 1);
    let (initrd_at, initrd_size) = place_initrds(memory, images.initrds, kernel_end, top)?;
    put(field::RAMDISK_IMAGE, &(initrd_at as u32).to_le_bytes())?;
    put(field::RAMDISK_SIZE, &(initrd_size as u32).to_le_bytes())?;

    let mut map = memory_map(ram);
    if firmware.ecam {
        map.push((ECAM, ECAM_SIZE, RangeType::Reserved));
        map.sort_by_key(|&(base, ..)| base);
    }
    put(param::E820_ENTRIES, &[map.len() as u8])?;
    for (index, &(base, length, kind)) in map.iter().enumerate() {
        let at = param::E820_TABLE + index as u64 * 20;
        put(at, &base.to_le_bytes())?;
        put(at + 8, &length.to_le_bytes())?;
        put(at + 16, &(kind as u32).to_le_bytes())?;
    }

    identity_map(memory, PAGE_TABLES)?;
    // Null, null, flat 64-bit code, flat data.
    const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
        memory.write(GDT + index as u64 * 8, &descriptor.to_le_bytes())?;
    }

    let mut registers = [0; 16];
    registers[gpr::RSI] = BOOT_PARAMS;
    Ok(Entry {
        rip: load_at + ENTRY_64,
        gpr: registers,
        mode: Mode::Long { cr3: PAGE_TABLES, gdt: (GDT, DESCRIPTORS.len() as u32 * 8 - 1) },
        description: format!(
            "Linux, boot protocol {}.{}, {} KiB at {load_at:#x}, initial RAM disk {} KiB at {initrd_at:#x}",
            version >> 8,
            version & 0xff,
            body.len() >> 10,
            initrd_size >> 10
        ),
    })
}

/// Puts the RAM disks as high as possible below `top`; returns where and how many bytes they are together.
fn place_initrds(memory: &impl GuestMemory, initrds: &[&[u8]], bottom: u64, top: u64) -> Result<(u64, u64), LoadError> {
    let size = initrds.iter().fold(0u64, |sum, initrd| sum.next_multiple_of(4) + initrd.len() as u64);
    if size == 0 {
        return Ok((0, 0));
    }
    let at = top.saturating_sub(size) & !0xfff;
    if at < bottom.next_multiple_of(0x1000) {
        let needed = bottom.next_multiple_of(0x1000) + size.next_multiple_of(0x1000);
        return Err(LoadError::TooLittleMemory { what: "initial RAM disk", needed, found: memory.ram().size() });
    }
    let mut offset = 0u64;
    for initrd in initrds {
        offset = offset.next_multiple_of(4);
        memory.write(at + offset, initrd)?;
        offset += initrd.len() as u64;
    }
    Ok((at, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    fn kernel() -> Vec<u8> {
        let mut file = vec![0u8; 512 * 2 + 0x1000];
        let mut put = |at: u64, bytes: &[u8]| file[at as usize..][..bytes.len()].copy_from_slice(bytes);
        put(field::SETUP_SECTS, &[1]);
        put(field::SYSSIZE, &0x100u32.to_le_bytes());
        put(field::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
        put(0x200, &[0xeb, 0x6a]);
        put(field::HEADER, b"HdrS");
        put(field::VERSION, &0x020fu16.to_le_bytes());
        put(field::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(field::XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
        put(field::CMDLINE_SIZE, &2047u32.to_le_bytes());
        put(field::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
        put(field::INIT_SIZE, &0x10_0000u32.to_le_bytes());
        file[1024..].fill(0x90);
        file
    }

    fn try_load(kernel: &[u8], size: u64, initrds: &[&[u8]], cmdline: &str) -> Result<(VecMemory, Entry), LoadError> {
        let memory = VecMemory::new(size);
        let entry = load(&memory, &Images { kernel, initrds, cmdline }, Firmware { rsdp: 0xe_0000, ecam: true })?;
        Ok((memory, entry))
    }

    #[test]
    fn a_kernel_and_two_initrds() {
        let (memory, entry) = try_load(&kernel(), 32 << 20, &[b"abcde", b"xyz"], "console=ttyS0").unwrap();
        assert_eq!(entry.rip, 0x100_0200);
        assert_eq!(entry.rsi(), BOOT_PARAMS);
        assert_eq!(memory.read_u32(BOOT_PARAMS + field::RAMDISK_SIZE), Ok(11));
        let at = memory.read_u32(BOOT_PARAMS + field::RAMDISK_IMAGE).unwrap() as u64;
        assert_eq!(at, (32 << 20) - 0x1000);
        let mut bytes = [0; 11];
        memory.read(at, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abcde\0\0\0xyz");
        assert_eq!(memory.read_u64(BOOT_PARAMS + param::ACPI_RSDP), Ok(0xe_0000));
        assert_eq!(memory.read_u32(0x100_0000), Ok(0x9090_9090));
        assert_eq!(memory.read_u64(PAGE_TABLES + 0x2000 + 8), Ok(0x20_0083));
        let mut text = [0; 14];
        memory.read(CMDLINE, &mut text).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
    }

    #[test]
    fn bad_images_are_told_apart() {
        let say = |result: Result<(VecMemory, Entry), LoadError>| result.err().unwrap().to_string();
        assert_eq!(say(try_load(&[], 32 << 20, &[], "")), "the kernel is truncated: 0 bytes, 512 are needed");
        assert_eq!(say(try_load(&[0; 4096], 32 << 20, &[], "")), "the kernel is no Linux bzImage");
        let whole = kernel();
        assert_eq!(
            say(try_load(&whole[..3000], 32 << 20, &[], "")),
            "the kernel is truncated: 3000 bytes, 5120 are needed"
        );
        assert_eq!(
            say(try_load(&whole, 16 << 20, &[], "")),
            "too little memory for the kernel: the machine has 16 MiB, 17 MiB are needed"
        );
        assert_eq!(
            say(try_load(&whole, 18 << 20, &[&vec![0; 2 << 20]], "")),
            "too little memory for the initial RAM disk: the machine has 18 MiB, 19 MiB are needed"
        );
        let long = "x".repeat(3000);
        assert_eq!(
            say(try_load(&whole, 32 << 20, &[], &long)),
            "the command line has 3000 bytes, the kernel takes 2047"
        );
    }

    #[test]
    fn the_map_has_no_overlap() {
        for size in [4 << 20, 512 << 20, 5 << 30] {
            let map = memory_map(Ram::new(size));
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0x1f1usize..0x268, value: u8, cut in 0usize..5120) {
            let mut file = kernel();
            file[at] = value;
            let _ = try_load(&file, 18 << 20, &[b"initrd"], "");
            let _ = try_load(&file[..cut], 18 << 20, &[b"initrd"], "");
        }
    }
}
