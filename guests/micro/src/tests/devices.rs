//! Ports, the I/O APIC with the interval timer, device memory.
#![allow(unsafe_code)] // Device memory by unusual instructions.

use core::arch::asm;

use super::{Check, Outcome};
use crate::interrupts::count;
use crate::{clock, cpu, ensure, lapic, say, skip};

/// Ports and interrupts.
pub const CHECKS: &[Check] =
    &[("ports", ports), ("string-ports", string_ports), ("pm-timer", pm_timer), ("ioapic", ioapic)];

/// Device memory.
pub const MMIO: &[Check] = &[("mmio", device_memory)];

/// Nothing.
pub const NOTHING: &[Check] = &[("badmmio", nothing)];

/// COM1's scratch register: keeps a byte.
const SCRATCH: u16 = 0x3ff;
const DELAY: u16 = 0x80;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const PCI_ADDRESS: u16 = 0xcf8;
/// Nobody's.
const NOBODY: u16 = 0xf00;

fn ports() -> Outcome {
    for value in [0x5a, 0xa5] {
        cpu::out8(SCRATCH, value);
        let read = cpu::in8(SCRATCH);
        ensure!(read == value, "COM1's scratch register holds {read:#x}, not {value:#x}");
    }
    cpu::out8(DELAY, 0);
    cpu::out32(PCI_ADDRESS, 0x8000_0000);
    let read = cpu::in32(PCI_ADDRESS);
    ensure!(read == 0x8000_0000, "the PCI address register holds {read:#x}");
    cpu::out32(PCI_ADDRESS, 0);
    // The last CMOS register is free for use.
    for value in [0x33, 0xcc] {
        cpu::out8(CMOS_INDEX, 0x7f);
        cpu::out8(CMOS_DATA, value);
        cpu::out8(CMOS_INDEX, 0x7f);
        let read = cpu::in8(CMOS_DATA);
        ensure!(read == value, "CMOS holds {read:#x}, not {value:#x}");
    }
    let nobody = (cpu::in8(NOBODY), cpu::in16(NOBODY), cpu::in32(NOBODY));
    ensure!(nobody == (u8::MAX, u16::MAX, u32::MAX), "a port of nobody reads {nobody:x?}");
    Ok(())
}

fn string_ports() -> Outcome {
    cpu::out_bytes(DELAY, &[0; 300]);
    cpu::out8(SCRATCH, 0x5a);
    let mut bytes = [0; 300];
    cpu::in_bytes(SCRATCH, &mut bytes);
    ensure!(bytes == [0x5a; 300], "REP INSB from COM1's scratch register reads other bytes");
    cpu::out_bytes(SCRATCH, b"the last one counts");
    ensure!(cpu::in8(SCRATCH) == b's', "after REP OUTSB COM1's scratch register holds {:#x}", cpu::in8(SCRATCH));
    // None at all.
    cpu::out_bytes(SCRATCH, b"");
    let mut memory = *b"ABCDEFGH";
    let start = memory.as_mut_ptr();
    // Backwards: the byte before the last two comes last.
    // SAFETY: it reads the last three bytes of the array; the direction flag is cleared again.
    unsafe {
        asm!("std", "rep outsb", "cld", in("dx") SCRATCH, inout("rsi") start.add(7) => _, inout("rcx") 3usize => _,
            options(nostack));
    }
    ensure!(cpu::in8(SCRATCH) == b'F', "backwards REP OUTSB ended with {:#x}", cpu::in8(SCRATCH));
    // SAFETY: it writes the first byte of the array.
    unsafe { asm!("insb", in("dx") SCRATCH, inout("rdi") start => _, options(nostack)) };
    ensure!(&memory == b"FBCDEFGH", "INSB left {memory:x?}");
    Ok(())
}

fn pm_timer() -> Outcome {
    let ticks = clock::per_millisecond();
    say!("TSC: {ticks} kHz by the power-management timer");
    ensure!(ticks > 1000, "the TSC makes {ticks} ticks in a millisecond");
    let crystal = cpu::cpuid(0x15, 0);
    let hypervisor = cpu::cpuid(0x4000_0010, 0);
    let mut told = [0; 2];
    if cpu::cpuid(0, 0).eax >= 0x15 && crystal.eax != 0 {
        told[0] = u64::from(crystal.ecx) * u64::from(crystal.ebx) / u64::from(crystal.eax) / 1000;
    }
    if cpu::cpuid(0x4000_0000, 0).eax >= 0x4000_0010 {
        told[1] = hypervisor.eax.into();
    }
    for told in told.into_iter().filter(|told| *told != 0) {
        ensure!(told.abs_diff(ticks) * 50 < ticks, "CPUID tells {told} kHz, measured {ticks} kHz");
    }
    Ok(())
}

const IOAPIC: usize = 0xfec0_0000;
/// The interval timer's.
const PIN: u32 = 2;
const TIMER: u8 = 0x60;

fn read_ioapic(register: u32) -> u32 {
    // SAFETY: no RAM there.
    unsafe { cpu::write_device(IOAPIC, register) };
    cpu::read_device(IOAPIC + 0x10)
}

fn write_ioapic(register: u32, value: u32) {
    // SAFETY: no RAM there.
    unsafe {
        cpu::write_device(IOAPIC, register);
        cpu::write_device(IOAPIC + 0x10, value);
    }
}

fn ioapic() -> Outcome {
    const MASKED: u32 = 1 << 16;
    let version = read_ioapic(1);
    let pins = version >> 16 & 0xff;
    ensure!(version & 0xff >= 0x11 && pins >= 23, "version {version:#x}");
    lapic::enable();
    let entry = 0x10 + 2 * PIN;
    write_ioapic(entry, MASKED | u32::from(TIMER));
    write_ioapic(entry + 1, lapic::id() << 24);
    let read = read_ioapic(entry);
    ensure!(read & 0x1_00ff == MASKED | u32::from(TIMER), "the entry holds {read:#x}");
    for _ in 0..2 {
        let before = count(TIMER);
        write_ioapic(entry, TIMER.into());
        let start = cpu::tsc();
        // Channel 0, both bytes, mode 0: one edge after 5 ms.
        cpu::out8(0x43, 0x30);
        cpu::out8(0x40, 5966u16 as u8);
        cpu::out8(0x40, (5966u16 >> 8) as u8);
        while count(TIMER) == before {
            cpu::halt();
        }
        let waited = clock::microseconds(cpu::tsc() - start);
        write_ioapic(entry, MASKED | u32::from(TIMER));
        ensure!((4900..500_000).contains(&waited), "the interval timer needed {waited} us for 5000");
        ensure!(count(TIMER) == before + 1, "it came {} times", count(TIMER) - before);
    }
    Ok(())
}

/// The local APIC's task priority and version registers: memory that keeps a value, and one that does not.
fn device_memory() -> Outcome {
    const PRIORITY: usize = 0xfee0_0080;
    const VERSION: usize = 0xfee0_0030;
    skip!(lapic::is_x2(), "the local APIC has no memory in x2APIC mode");
    lapic::enable();
    let expected = cpu::read_device(VERSION);
    let priority = || cpu::read_device(PRIORITY);
    let mut ram = [0u32; 4];
    // SAFETY: the registers change nothing in memory; the string copies stay within the array.
    unsafe {
        asm!("mov dword ptr [{}], 0x20", in(reg) PRIORITY, options(nostack));
        ensure!(priority() == 0x20, "MOV of an immediate: {:#x}", priority());
        asm!("or dword ptr [{}], 0x10", in(reg) PRIORITY, options(nostack));
        ensure!(priority() == 0x30, "OR: {:#x}", priority());
        asm!("add dword ptr [{}], 0x10", in(reg) PRIORITY, options(nostack));
        ensure!(priority() == 0x40, "ADD: {:#x}", priority());
        asm!("and dword ptr [{}], 0x60", in(reg) PRIORITY, options(nostack));
        ensure!(priority() == 0x40, "AND: {:#x}", priority());
        asm!("xor dword ptr [{}], 0x30", in(reg) PRIORITY, options(nostack));
        ensure!(priority() == 0x70, "XOR: {:#x}", priority());
        let mut value = 0x50u32;
        asm!("xchg [{}], {:e}", in(reg) PRIORITY, inout(reg) value, options(nostack));
        ensure!((value, priority()) == (0x70, 0x50), "XCHG: {value:#x}, {:#x}", priority());
        let (mut equal, mut wide): (u8, u64);
        asm!("cmp dword ptr [{}], 0x50", "sete {}", in(reg) PRIORITY, out(reg_byte) equal, options(nostack));
        ensure!(equal == 1, "CMP");
        asm!("test dword ptr [{}], 0x40", "setz {}", in(reg) PRIORITY, out(reg_byte) equal, options(nostack));
        ensure!(equal == 0, "TEST");
        asm!("mov {:e}, [{} + {}*4 - 0x100]", out(reg) wide, in(reg) VERSION, in(reg) 0x40usize, options(nostack));
        ensure!(wide == expected.into(), "MOV by scaled index: {wide:#x}");
        asm!("rep movsd", inout("rsi") VERSION => _, inout("rdi") ram.as_mut_ptr() => _, inout("rcx") 1usize => _,
            options(nostack));
        ensure!(ram[0] == expected, "MOVSD from the device: {:#x}", ram[0]);
        ram[1] = 0x10;
        asm!("movsd", inout("rsi") ram.as_ptr().add(1) => _, inout("rdi") PRIORITY => _, options(nostack));
        ensure!(priority() == 0x10, "MOVSD to the device: {:#x}", priority());
        asm!("stosd", inout("rdi") PRIORITY => _, in("eax") 0u32, options(nostack));
        ensure!(priority() == 0, "STOSD: {:#x}", priority());
    }
    Ok(())
}

/// Beyond a small machine's RAM, below the devices.
fn nothing() -> Outcome {
    const NOTHING: usize = 0xfe00_0000;
    for offset in [0, 4, 0xff8, 0x1000] {
        let address = NOTHING + offset;
        let (byte, word, long, quad): (u8, u16, u32, u64);
        // SAFETY: there is neither RAM nor a device.
        unsafe {
            asm!("mov {}, [{}]", out(reg_byte) byte, in(reg) address, options(nostack));
            asm!("mov {:x}, [{}]", out(reg) word, in(reg) address, options(nostack));
            asm!("mov {:e}, [{}]", out(reg) long, in(reg) address, options(nostack));
            asm!("mov {}, [{}]", out(reg) quad, in(reg) address, options(nostack));
            asm!("mov [{}], {}", in(reg) address, in(reg_byte) 0x12u8, options(nostack));
            asm!("mov [{}], {}", in(reg) address, in(reg) 0x1234_5678_9abc_def0u64, options(nostack));
        }
        let ones = (byte, word, long, quad) == (u8::MAX, u16::MAX, u32::MAX, u64::MAX);
        let zeros = (byte, word, long, quad) == (0, 0, 0, 0);
        ensure!(ones || zeros, "{address:#x} reads {byte:x} {word:x} {long:x} {quad:x}");
    }
    Ok(())
}
