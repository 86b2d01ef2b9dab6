//! Bad input from below: firmware tables, boot loaders and root programs that break their rules. Each is refused with a
//! line that says why, or survived; then a virtual machine runs to its end.

use anyhow::{Context, Result};

use super::boot::Outcome;
use super::loader::{IOAPIC, LAPIC, Loader, MEMORY, MODULE, Protocol, RAM_END, bytes, fix, madt, table};
use super::{Lab, Test};
use crate::emulator::Emulator;

/// What the kernel reads is the same everywhere.
const QEMU: &[Emulator] = &[Emulator::Qemu];

pub const TESTS: &[Test] = &[
    Test::new("firmware::all boot protocols", protocols),
    Test::new("firmware::memory that is no RAM", no_ram),
    Test::new("firmware::absurd memory maps", absurd_maps).only(QEMU),
    Test::new("firmware::boot information that is none", no_information).only(QEMU),
    Test::new("firmware::ACPI 1.0", old_tables),
    Test::new("firmware::a MADT with bad entries", bad_madt).only(QEMU),
    Test::new("firmware::ACPI tables that are broken", broken_tables).only(QEMU),
    Test::new("firmware::a UEFI memory map", uefi_map),
    Test::new("firmware::a root image off a page border", misplaced_root).only(QEMU),
    Test::new("firmware::a root image that breaks a rule", broken_roots).only(QEMU),
];

/// Boots the smallest system by a boot loader of this test's own.
fn boot(lab: &Lab, change: impl Fn(&mut Loader)) -> Result<Outcome> {
    let start = |kernel: &[u8], bundle: Vec<u8>| {
        let mut loader = Loader::new(lab.emulator);
        change(&mut loader);
        loader.file(kernel, bundle)
    };
    lab.boot("micro").memory(MEMORY).loader(&start).run()
}

/// Everything works, and these lines told what was wrong.
fn survived(lab: &Lab, lines: &[&str], change: impl Fn(&mut Loader)) -> Result<()> {
    let outcome = boot(lab, change)?;
    outcome.status(0)?;
    for line in lines {
        outcome.says(line)?;
    }
    if lines.is_empty() {
        outcome.never_says("ACPI:")?;
    }
    Ok(())
}

/// The kernel stops with a line that begins and goes on like this.
fn refused(lab: &Lab, begins: &str, goes_on: &str, change: impl Fn(&mut Loader)) -> Result<()> {
    let outcome = boot(lab, change)?;
    outcome.fatal(&format!("kilonova: fatal: {begins}"))?;
    outcome.says(goes_on).map(|_| ())
}

fn protocols(lab: &Lab) -> Result<()> {
    for protocol in [Protocol::Multiboot1, Protocol::Multiboot2, Protocol::Pvh] {
        survived(lab, &[], |loader| loader.protocol = protocol).with_context(|| format!("by {protocol:?}"))?;
    }
    Ok(())
}

fn no_ram(lab: &Lab) -> Result<()> {
    let gap = "but the memory map has no RAM at 0x400000";
    refused(lab, "the kernel is at 0x200000..", gap, |loader| loader.map.push((0x40_0000, 0x1000, 2)))?;
    let end = format!("..0x20000000, but the memory map has no RAM at {RAM_END:#x}");
    refused(lab, &format!("the root image is at {MODULE:#x}"), &end, |loader| {
        loader.claimed = Some((MODULE, 0x2000_0000));
    })?;
    refused(lab, "the root image at 0x300000..0x301000", "overlaps the kernel", |loader| {
        loader.claimed = Some((0x30_0000, 0x30_1000));
    })?;
    refused(lab, "PVH information: the first module", "at 0x1000, has no end behind its start", |loader| {
        loader.protocol = Protocol::Pvh;
        loader.claimed = Some((0x1000, 0x1000));
    })
}

fn absurd_maps(lab: &Lab) -> Result<()> {
    // RAM twice, in pieces that overlap, around the end of the address space, empty, out of order.
    survived(lab, &[], |loader| {
        let ram =
            [(u64::MAX - 0xfff, 0x2000, 2), (0x4000_0000, 0, 1), (0x10_0000, 0x10_0000, 1), (0x18_0000, 0x800_0000, 1)];
        loader.map.splice(0..0, ram);
        loader.map.reverse();
    })?;
    // What the firmware keeps inside of what it calls RAM.
    survived(lab, &[], |loader| {
        loader.map =
            vec![(0, RAM_END, 1), (0x9_f000, 0x6_1000, 2), (0x400_0000, 0x10_0000, 3), (0xe00_0000, 0x10_0000, 2)];
    })?;
    let absurd = "has absurdly small or many entries";
    refused(lab, "multiboot2 information: the memory map at ", absurd, |loader| loader.map_stride = 0)?;
    refused(lab, "multiboot2 information: the memory map at ", absurd, |loader| loader.map_stride = 8)?;
    refused(lab, "PVH information: the memory map at ", absurd, |loader| {
        loader.protocol = Protocol::Pvh;
        loader.map.resize(1025, (0, 0, 2));
    })?;
    refused(lab, "too little memory: ", "the machine has 0 MiB", |loader| loader.map = vec![(0, RAM_END, 2)])
}

fn no_information(lab: &Lab) -> Result<()> {
    for (protocol, address, line) in [
        // Nobody answers there.
        (Protocol::Multiboot2, 0xd000_0000, "multiboot2 information: the item at 0xd0000008 does not fit"),
        (Protocol::Multiboot2, 0xffff_fffc, "multiboot2 information: the item at 0xfffffffc does not fit"),
        (Protocol::Multiboot2, MODULE as u32, "multiboot2 information: the item at "),
        (Protocol::Multiboot1, 0xffff_fff0, "multiboot information: physical address 0xfffffff0 cannot be read"),
        (Protocol::Pvh, MODULE as u32, "PVH information: wrong signature 0x464c457f"),
    ] {
        refused(lab, line, "", |loader| {
            loader.protocol = protocol;
            loader.information = Some(address);
        })?;
    }
    Ok(())
}

fn old_tables(lab: &Lab) -> Result<()> {
    survived(lab, &[], Loader::list_old_tables)
}

fn bad_madt(lab: &Lab) -> Result<()> {
    let entry = "has an entry of impossible length";
    for bad in [&[0, 0, 0, 0][..], &[0, 1], &[0, 7, 1, 1, 1, 0, 0], &[9, 200, 0, 0], &[1, 11, 0], &[0]] {
        survived(lab, &[entry], |loader| loader.tables[2] = madt(&[LAPIC, IOAPIC, bad, IOAPIC]))
            .with_context(|| format!("with {bad:?}"))?;
    }
    // One in RAM, one in the kernel, one with interrupts beyond all numbers, and the same one a second time.
    let ioapic = |address: u32, gsi: u32| [vec![1, 12, 1, 0], bytes![address, gsi]].concat();
    let many = [ioapic(0x800_0000, 24), ioapic(0x40_0010, 48), ioapic(0xfec0_0000, u32::MAX), ioapic(0xfec0_0000, 0)];
    survived(lab, &["has an I/O APIC where none can be"], |loader| {
        let mut entries = vec![LAPIC, IOAPIC];
        entries.extend(many.iter().map(Vec::as_slice));
        loader.tables[2] = madt(&entries);
    })
}

fn broken_tables(lab: &Lab) -> Result<()> {
    // The loader's copy of the root pointer is wrong: the firmware's own is found.
    survived(lab, &["ACPI: table RSDP at 0x", "has a wrong checksum"], |loader| loader.root_pointer[20] ^= 1)?;
    // Entries that lead nowhere, to the root table itself, and twice to the same.
    survived(lab, &["ACPI: table ???? at 0x1000000000000 cannot be read"], |loader| {
        let entries = [1 << 48, 0x409_0000, loader.address(2), loader.address(2), loader.address(1)];
        loader.tables[0] = table(b"XSDT", &entries.iter().flat_map(|entry: &u64| bytes![*entry]).collect::<Vec<_>>());
    })?;
    let timer = "no ACPI power-management timer: the clocks cannot be measured";
    refused(lab, timer, "ACPI: table FACP is absent", |loader| loader.tables[0] = table(b"XSDT", &[]))?;
    refused(lab, timer, "ACPI: table FACP at 0x4094000 has an impossible length", |loader| {
        loader.tables[1] = table(b"FACP", &[0; 60]);
    })?;
    refused(lab, timer, "ACPI: table XSDT at 0x4090000 has an impossible length", |loader| {
        loader.tables[0][4..8].copy_from_slice(&[0xff; 4]);
        fix(&mut loader.tables[0], 9);
    })
}

/// Of which the kernel takes what the runtime services keep, and nothing else.
fn uefi_map(lab: &Lab) -> Result<()> {
    let descriptor = |kind: u32, start: u64, pages: u64| bytes![kind, 0u32, start, 0u64, pages, 1u64 << 63, 0u64];
    survived(lab, &[], |loader| {
        let kept = [descriptor(6, 0x700_0000, 16), descriptor(5, 0x702_0000, u64::MAX), descriptor(7, 0, 0xff)];
        loader.uefi = kept.concat();
        // As every firmware's other map says.
        loader.map.push((0x700_0000, 0x1_0000, 2));
    })?;
    refused(lab, "firmware and devices keep more than 64 ranges of memory", "", |loader| {
        loader.uefi = (0..64).flat_map(|n| descriptor(6, 0x700_0000 + (n << 16), 1)).collect();
    })
}

fn misplaced_root(lab: &Lab) -> Result<()> {
    refused(lab, "root image: segment 0 is not where the file's load address needs it within a page", "", |loader| {
        loader.module += 16;
    })
}

/// Where in an ELF file's header its fields are, and in a program header's (ELF-64 Object File Format 1.5).
const CLASS: usize = 4;
const TYPE: usize = 16;
const MACHINE: usize = 18;
const ENTRY: usize = 24;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_SIZE: usize = 54;
const OFFSET: usize = 8;
const ADDRESS: usize = 16;
const FILE_SIZE: usize = 32;
const MEMORY_SIZE: usize = 40;

fn broken_roots(lab: &Lab) -> Result<()> {
    let root = lab.programs.stripped("roottask")?;
    let at = u64::from_le_bytes(root[PROGRAM_HEADERS..][..8].try_into()?) as usize;
    // The first segments that are loaded.
    let mut loads = (0..).map(|index| at + 56 * index).filter(|&header| root[header..][..4] == [1, 0, 0, 0]);
    let (first, second) = (loads.next().context("one")?, loads.next().context("two")?);
    let number = (first - at) / 56;
    let size = u64::from_le_bytes(root[first + FILE_SIZE..][..8].try_into()?);
    let place = u64::from_le_bytes(root[first + ADDRESS..][..8].try_into()?);
    let segment = |what: &str| format!("segment {number} {what}");
    let outside = segment("lies outside the addresses of programs");
    let sizes = segment("has different sizes in file and memory");
    let cut = format!("truncated: the file ends inside segment {number}");
    let cases: [(usize, Vec<u8>, &str); 13] = [
        (CLASS, vec![1], "not a 64-bit little-endian ELF file"),
        (CLASS + 1, vec![2], "not a 64-bit little-endian ELF file"),
        (TYPE, vec![3], "not an executable with fixed addresses (ET_EXEC)"),
        (MACHINE, vec![183], "not for x86-64"),
        (ENTRY, bytes![place - 1], "the entry point "),
        (PROGRAM_HEADERS, bytes![u64::MAX - 7], "truncated: the file ends inside its headers"),
        (PROGRAM_HEADER_SIZE, vec![32], "program headers of unknown size"),
        (first + MEMORY_SIZE, bytes![size + 4096], &sizes),
        (first + OFFSET, bytes![u64::MAX - 4095], &cut),
        (first + ADDRESS, bytes![place + 1], &segment("is not where the file's load address needs it within a page")),
        (first + ADDRESS, bytes![0x7fff_ffff_e000u64], &outside),
        (first + ADDRESS, bytes![0xffff_ffff_8020_0000u64], &outside),
        (second + ADDRESS, bytes![place], "segment "),
    ];
    for (offset, value, line) in cases {
        lab.boot("micro")
            .alter(&|mut bundle| {
                bundle[offset..offset + value.len()].copy_from_slice(&value);
                bundle
            })
            .run()?
            .fatal(&format!("kilonova: fatal: root image: {line}"))
            .with_context(|| format!("with {value:x?} at {offset:#x}"))?;
    }
    Ok(())
}
