//! A storm of random accesses, repeatable by its seed: nothing of it may harm more than this virtual machine, and what
//! is left out here are only the accesses that would rightly end it.
#![allow(unsafe_code)] // Writes to everything.

use core::arch::asm;

use super::Outcome;
use crate::interrupts::{attempt, count};
use crate::random::Random;
use crate::words::Words;
use crate::{cpu, ensure, lapic, say};

/// Ports with something behind them, where half of the accesses go.
const PORTS: [u16; 28] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x70, 0x71, 0x80, 0x2f8, 0x3fb, 0x402, 0x4d0, 0x4d1,
    0x510, 0x511, 0x600, 0x602, 0x608, 0xcf8, 0xcfc, 0xcfd, 0xe90, 0xe94,
];

/// Ports whose writing ends the machine, or spoils what the test has to say: keyboard controller (reset), fast reset,
/// debug exit, COM1, power management, execution channel, reset control.
const NOT_WRITTEN: [(u16, u16); 7] =
    [(0x64, 0x64), (0x92, 0x92), (0xf4, 0xf7), (0x3f8, 0x3ff), (0x600, 0x60b), (0xe90, 0xe9f), (0xcf9, 0xcf9)];

/// Registers with something behind them, as ranges.
const REGISTERS: [(u32, u32); 12] = [
    (0x0, 0x1ff),
    (0x174, 0x176),
    (0x200, 0x2ff),
    (0x400, 0x4ff),
    (0x6e0, 0x6e0),
    (0x800, 0x83f),
    (0xc80, 0xdff),
    (0x4000_0000, 0x4000_00ff),
    (0x4b56_4d00, 0x4b56_4d0f),
    (0xc000_0080, 0xc000_0104),
    (0xc001_0000, 0xc001_0140),
    (0xc001_1000, 0xc001_1040),
];

/// Device memory: local APIC, I/O APIC, nothing.
const PLACES: [u64; 3] = [0xfee0_0000, 0xfec0_0000, 0xfe00_0000];

/// Where things may be written.
static mut SCRATCH: [u64; 512] = [0; 512];

/// Makes random accesses, then sees whether the machine still works.
pub fn storm(words: Words) -> Outcome {
    let (rounds, seed) = (words.number("rounds").unwrap_or(10_000), words.number("seed").unwrap_or(1));
    let mut random = Random(seed);
    lapic::enable();
    let mut refused = edges();
    let strict = words.number("strict").is_some();
    let trace = words.number("trace").unwrap_or(u64::MAX);
    for round in 0..rounds {
        let kind = random.below(16);
        if round >= trace {
            say!("hostile round {round}: kind {kind}, random state {:#x}", random.0);
        }
        let result = match kind {
            0..3 => port(&mut random),
            3..5 => string(&mut random),
            5..8 => register(&mut random),
            8..12 => memory(&mut random),
            12 => attempt(|| {
                cpu::cpuid(random.any() as u32, random.any() as u32);
            }),
            13..15 => control(&mut random, strict),
            _ => instruction(&mut random),
        };
        refused += u64::from(result.is_err());
    }
    calm_down();
    say!("hostile {rounds} rounds, {refused} ended by exceptions, {} NMIs, seed {seed}", count(2));
    ensure!(cpu::cpuid(0, 0).eax > 0, "CPUID fails");
    cpu::out8(0x80, 0);
    Ok(())
}

type Attempted = Result<(), crate::interrupts::Exception>;

/// Brings the registers that matter to the rest of the program back.
fn calm_down() {
    const FS_GS: [u32; 2] = [0xc000_0100, 0xc000_0101];
    // SAFETY: the program uses none of this.
    unsafe {
        FS_GS.iter().for_each(|index| cpu::write_msr(*index, 0));
        cpu::write_cr8(0);
    }
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
}

fn port(random: &mut Random) -> Attempted {
    let port = if random.below(2) == 0 { random.of(&PORTS) } else { random.next() as u16 };
    let (value, width) = (random.any() as u32, random.below(3));
    let write = random.below(2) == 0;
    let last = port.saturating_add((1 << width) - 1);
    let ending = NOT_WRITTEN.iter().any(|(first, end)| port <= *end && last >= *first);
    attempt(|| match (write && !ending, width) {
        (false, 0) => drop(cpu::in8(port)),
        (false, 1) => drop(cpu::in16(port)),
        (false, _) => drop(cpu::in32(port)),
        (true, 0) => cpu::out8(port, value as u8),
        (true, 1) => cpu::out16(port, value as u16),
        (true, _) => cpu::out32(port, value),
    })
}

/// String accesses, forwards and backwards, to memory and to where none is mapped.
fn string(random: &mut Random) -> Attempted {
    let port = random.of(&[0x40u16, 0x61, 0x71, 0x80, 0x3fd, 0x402, 0x608, 0xe94, 0xf00, 0xffff]);
    let count = random.below(64) as usize;
    let mapped = random.below(8) != 0;
    let start = if mapped { &raw mut SCRATCH as u64 + 1024 + random.below(1024) } else { 1 << 47 | random.next() };
    let (backwards, kind) = (random.below(4) == 0, random.below(4));
    let result = attempt(|| {
        // SAFETY: at most 256 bytes to either side of the middle of the scratch memory, or an exception.
        unsafe {
            if backwards {
                asm!("std", options(nostack));
            }
            match kind {
                0 if !(0xe00..=0xeff).contains(&port) => {
                    asm!("rep outsb", in("dx") port, inout("rsi") start => _, inout("rcx") count => _);
                }
                1 => asm!("rep insw", in("dx") port, inout("rdi") start => _, inout("rcx") count => _),
                2 => asm!("rep insd", in("dx") port, inout("rdi") start => _, inout("rcx") count => _),
                _ => asm!("rep insb", in("dx") port, inout("rdi") start => _, inout("rcx") count => _),
            }
            asm!("cld", options(nostack));
        }
    });
    // SAFETY: as Rust wants it.
    unsafe { asm!("cld", options(nostack)) };
    result
}

fn register(random: &mut Random) -> Attempted {
    let (first, last) = random.of(&REGISTERS);
    let index =
        if random.below(8) == 0 { random.next() as u32 } else { first + (random.next() as u32) % (last - first + 1) };
    let value = random.any();
    match random.below(2) {
        0 => write_register(index, value),
        _ => attempt(|| _ = cpu::read_msr(index)),
    }
}

/// Writes what a register may just still hold, or no longer, to all of them. Returns how many writes were refused.
fn edges() -> u64 {
    const EDGES: [u64; 5] = [1 << 31, 1 << 32, 1 << 47, 1 << 63, u64::MAX];
    let writes = REGISTERS
        .into_iter()
        .flat_map(|(first, last)| first..=last)
        .flat_map(|index| EDGES.map(|value| (index, value)));
    writes.map(|(index, value)| u64::from(write_register(index, value).is_err())).sum()
}

fn write_register(index: u32, value: u64) -> Attempted {
    let value = match index {
        // The clock pages go where they may.
        0x11 | 0x12 | 0x4b56_4d00 | 0x4b56_4d01 => ((&raw const SCRATCH as u64 & !63) + 64) | value & 1,
        // 64-bit mode stays.
        cpu::MSR_EFER => 0x500 ^ value & 0x3000,
        // Interrupt command, self-IPI.
        0x830 => command(value as u32).into(),
        0x83f => 0x30 | value & 0xc0,
        // The local vector table could be told to send INIT, too.
        0x82f..0x838 => value & !0x0500,
        _ => value,
    };
    // SAFETY: what remains concerns nothing that this program uses.
    attempt(|| unsafe { cpu::write_msr(index, value) })
}

/// An interrupt command without INIT, SIPI and SMI, which would rightly stop the CPU.
fn command(value: u32) -> u32 {
    let mode = value >> 8 & 7;
    if matches!(mode, 0 | 1 | 4) { value } else { value & !0x700 }
}

fn memory(random: &mut Random) -> Attempted {
    let place = random.of(&PLACES);
    let offset = if random.below(4) == 0 { random.below(0x1000) } else { random.below(0x100) << 4 };
    let (address, mut value, kind) = (place + offset, random.any(), random.below(10));
    match place {
        // The I/O APIC could be told to send INIT, too; and so could the local vector table.
        0xfec0_0000 => value &= !0x0500,
        _ if offset & !0xf == 0x300 => value = command(value as u32).into(),
        _ => value &= !0x0500,
    }
    let scratch = &raw mut SCRATCH as u64;
    attempt(|| {
        // SAFETY: no RAM at the address, and only scratch memory elsewhere.
        unsafe {
            match kind {
                0 => asm!("mov {}, [{}]", out(reg_byte) _, in(reg) address),
                1 => asm!("mov {:x}, [{}]", out(reg) _, in(reg) address),
                2 => asm!("mov {}, [{}]", out(reg) _, in(reg) address),
                3 => asm!("mov [{}], {}", in(reg) address, in(reg_byte) value as u8),
                4 => asm!("mov [{}], {}", in(reg) address, in(reg) value),
                5 => asm!("xchg [{}], {:e}", in(reg) address, inout(reg) value => _),
                6 => asm!("movsd", inout("rsi") address => _, inout("rdi") scratch => _),
                7 => asm!("mov [{}], {:e}", in(reg) address, in(reg) value),
                _ => asm!("mov {:e}, [{}]", out(reg) _, in(reg) address),
            }
        }
    })
}

/// CR0: MP, EM, TS, NE, WP, AM.
const CR0_BITS: u64 = 0x5_002e;
/// Everything but CD and NW.
const STRICT0: u64 = !(1 << 30 | 1 << 29);
/// Everything but PCIDE, which CR3's flags would mean something else with.
const STRICT4: u64 = !(1 << 17);

/// The bits of CR4 that this CPU has, without those that this program's mapping depends on.
fn cr4_bits() -> u64 {
    // VME, PVI, TSD, DE, PSE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT.
    const ALWAYS: u64 = 0x7df;
    let features = cpu::cpuid(7, 0);
    let bit = |register: u32, feature: u32, bit: u32| u64::from(register >> feature & 1) << bit;
    let (fsgsbase, smep, smap) = (bit(features.ebx, 0, 16), bit(features.ebx, 7, 20), bit(features.ebx, 20, 21));
    ALWAYS | bit(features.ecx, 2, 11) | fsgsbase | smep | smap
}

/// Control registers. QEMU without acceleration takes values that hardware refuses, and then the next entry into the
/// virtual machine fails: only with `strict` do all bits change.
fn control(random: &mut Random, strict: bool) -> Attempted {
    let (cr0, cr3, cr4) = (cpu::cr0(), cpu::cr3(), cpu::cr4());
    let value = random.any();
    let kind = random.below(6);
    // CR3's flags that choose caching and, without CR4.PCIDE, mean nothing else.
    let cr3_flags = value & 0x18;
    let (changed0, changed4) = if strict { (STRICT0, STRICT4) } else { (CR0_BITS, cr4_bits()) };
    let result = attempt(|| {
        // SAFETY: what keeps this program running raises an exception when changed, or is restored.
        unsafe {
            match kind {
                0 => cpu::write_cr0(cr0 ^ value & changed0),
                1 => cpu::write_cr4(cr4 ^ value & changed4),
                2 => cpu::write_cr8(value & 0xf),
                3 => cpu::write_cr3(cr3 | cr3_flags),
                4 => cpu::write_cr2(value),
                _ => cpu::xsetbv(value as u32 & 1, value >> 1),
            }
        }
    });
    // SAFETY: it is what was there.
    unsafe {
        cpu::write_cr0(cr0);
        cpu::write_cr4(cr4);
        cpu::write_cr3(cr3);
    }
    result
}

/// Instructions that a hypervisor has to think about.
fn instruction(random: &mut Random) -> Attempted {
    let (kind, scratch) = (random.below(16), &raw mut SCRATCH as u64);
    let value = random.any();
    attempt(|| {
        // SAFETY: they raise exceptions, or change nothing that this program uses.
        unsafe {
            match kind {
                0 => asm!("vmcall", inout("rax") value => _, in("rcx") value),
                1 => asm!("vmmcall", inout("rax") value => _, in("rcx") value),
                2 => asm!("wbinvd"),
                3 => asm!("invlpg [{}]", in(reg) value),
                4 => asm!("rdpmc", in("ecx") value as u32, out("eax") _, out("edx") _),
                5 => asm!("vmxon [{}]", in(reg) scratch),
                6 => asm!("vmptrst [{}]", in(reg) scratch),
                7 => asm!("vmrun", in("rax") scratch),
                8 => asm!("vmload", in("rax") scratch),
                9 => asm!("clgi"),
                10 => asm!("stgi"),
                11 => asm!("rsm"),
                12 => asm!("int3"),
                13 => asm!("monitor", in("rax") scratch, in("ecx") 0, in("edx") 0),
                14 => asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") _),
                _ => asm!("sgdt [{}]", in(reg) scratch),
            }
        }
    })
}
