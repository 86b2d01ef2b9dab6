//! CPUID, model-specific registers, control registers, exceptions.
#![allow(unsafe_code)] // Provokes exceptions.

use core::arch::asm;

use super::{Check, Outcome};
use crate::interrupts::{Exception, attempt};
use crate::{cpu, ensure, say, skip};

/// What everything else needs.
pub const FIRST: &[Check] = &[("cpuid", cpuid)];

/// The other checks.
pub const CHECKS: &[Check] = &[
    ("msr", msr),
    ("unknown-msr", unknown_msr),
    ("control-registers", control_registers),
    ("undefined-instruction", undefined_instruction),
    ("page-fault", page_fault),
    ("general-protection", general_protection),
    ("xsetbv", xsetbv),
];

/// What QEMU without acceleration, which refuses no value of a control register, fails fatally even as the host.
pub const REFUSED: &[Check] = &[("refused-control-bits", refused_control_bits)];

const HYPERVISOR: u32 = 0x4000_0000;

fn text(words: [u32; 3], bytes: &mut [u8; 12]) -> &str {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    core::str::from_utf8(bytes).unwrap_or("?").trim_end_matches('\0')
}

/// Whether QEMU translates the instructions of this very machine: it is lenient where hardware is not.
pub fn is_translated() -> bool {
    let leaf = cpu::cpuid(HYPERVISOR, 0);
    cpu::cpuid(1, 0).ecx & 1 << 31 != 0 && text([leaf.ebx, leaf.ecx, leaf.edx], &mut [0; 12]) == "TCGTCGTCGTCG"
}

fn cpuid() -> Outcome {
    let leaf = cpu::cpuid(0, 0);
    let hypervisor = cpu::cpuid(HYPERVISOR, 0);
    let features = cpu::cpuid(1, 0);
    say!(
        "CPU {}, last leaf {:#x}; hypervisor {}, last leaf {:#x}",
        text([leaf.ebx, leaf.edx, leaf.ecx], &mut [0; 12]),
        leaf.eax,
        text([hypervisor.ebx, hypervisor.ecx, hypervisor.edx], &mut [0; 12]),
        hypervisor.eax
    );
    ensure!((1..0x100).contains(&leaf.eax), "last leaf {:#x}", leaf.eax);
    ensure!(features.edx & 1 << 9 != 0, "no APIC: leaf 1 EDX {:#x}", features.edx);
    ensure!(cpu::cpuid(0x8000_0001, 0).edx & 1 << 29 != 0, "no 64-bit mode, in which this runs");
    let xsave = cpu::cr4() & 1 << 18 != 0;
    ensure!((features.ecx & 1 << 27 != 0) == xsave, "OSXSAVE is not CR4's: leaf 1 ECX {:#x}", features.ecx);
    Ok(())
}

/// Registers that keep any canonical address.
const BASES: [(u32, &str); 5] = [
    (0xc000_0100, "FS_BASE"),
    (0xc000_0101, "GS_BASE"),
    (0xc000_0102, "KERNEL_GS_BASE"),
    (0xc000_0082, "LSTAR"),
    (0x176, "SYSENTER_EIP"),
];

fn msr() -> Outcome {
    for (index, name) in BASES {
        let old = cpu::read_msr(index);
        for value in [0x1234_5678, 0xffff_8000_dead_b000] {
            // SAFETY: the program uses none of these registers.
            unsafe { cpu::write_msr(index, value) };
            let read = cpu::read_msr(index);
            ensure!(read == value, "{name} holds {read:#x}, not {value:#x}");
        }
        // SAFETY: it is what was there.
        unsafe { cpu::write_msr(index, old) };
    }
    const PAT: u32 = 0x277;
    let (old, value) = (cpu::read_msr(PAT), 0x0001_0406_0007_0406);
    // SAFETY: entry 0, the only one in use, stays write-back.
    unsafe { cpu::write_msr(PAT, value) };
    let read = cpu::read_msr(PAT);
    // SAFETY: it is what was there.
    unsafe { cpu::write_msr(PAT, old) };
    ensure!(read == value, "PAT holds {read:#x}, not {value:#x}");
    let efer = cpu::read_msr(cpu::MSR_EFER);
    ensure!(efer & 0x500 == 0x500, "EFER {efer:#x} without LME and LMA");
    ensure!(efer & 1 << 12 == 0 || is_translated(), "EFER {efer:#x} with SVME, which nobody set");
    let (before, msr, after) = (cpu::tsc(), cpu::read_msr(0x10), cpu::tsc());
    ensure!(
        before < msr && msr < after || is_translated(),
        "the TSC by MSR, {msr}, is not between {before} and {after}"
    );
    Ok(())
}

fn expect(what: &str, result: Result<(), Exception>, vector: u8) -> Result<Exception, super::Stop> {
    match result {
        Err(exception) if exception.vector == vector => Ok(exception),
        Err(exception) => {
            Err(super::Stop::Failed(crate::console::Text::of(format_args!("{what} raised {exception}, not {vector}"))))
        }
        Ok(()) => Err(super::Stop::Failed(crate::console::Text::of(format_args!("{what} raised nothing")))),
    }
}

fn unknown_msr() -> Outcome {
    skip!(is_translated(), "this QEMU reads unknown registers as 0");
    for index in [0x1234_5678, 0x480, 0xc001_0117] {
        let read = attempt(|| {
            cpu::read_msr(index);
        });
        expect("RDMSR", read, Exception::PROTECTION)?;
        // SAFETY: there is no such register.
        let write = attempt(|| unsafe { cpu::write_msr(index, 0) });
        expect("WRMSR", write, Exception::PROTECTION)?;
    }
    Ok(())
}

fn control_registers() -> Outcome {
    const PAGE_GLOBAL: u64 = 1 << 7;
    const TASK_SWITCHED: u64 = 1 << 3;
    let (cr0, cr3, cr4) = (cpu::cr0(), cpu::cr3(), cpu::cr4());
    // SAFETY: none of these bits concerns this program, and all are restored.
    unsafe {
        cpu::write_cr4(cr4 ^ PAGE_GLOBAL);
        let read = cpu::cr4();
        cpu::write_cr4(cr4);
        ensure!(read == cr4 ^ PAGE_GLOBAL, "CR4 {read:#x} after toggling PGE in {cr4:#x}");
        cpu::write_cr0(cr0 ^ TASK_SWITCHED);
        let read = cpu::cr0();
        cpu::write_cr0(cr0);
        ensure!(read == cr0 ^ TASK_SWITCHED, "CR0 {read:#x} after toggling TS in {cr0:#x}");
        cpu::write_cr2(0x1234_5678_9000);
        ensure!(cpu::cr2() == 0x1234_5678_9000, "CR2 {:#x}", cpu::cr2());
        cpu::write_cr3(cr3);
    }
    ensure!((cpu::cr0(), cpu::cr3(), cpu::cr4()) == (cr0, cr3, cr4), "a control register is not as before");
    Ok(())
}

fn refused_control_bits() -> Outcome {
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    for (what, value) in [("CR4 without PAE", cr4 & !PHYSICAL_ADDRESS_EXTENSION), ("CR4 bit 63", cr4 | 1 << 63)] {
        // SAFETY: #GP leaves everything as it is.
        expect(what, attempt(|| unsafe { cpu::write_cr4(value) }), Exception::PROTECTION)?;
    }
    // SAFETY: #GP leaves everything as it is.
    expect("CR0 without PG", attempt(|| unsafe { cpu::write_cr0(cr0 & !(1 << 31)) }), Exception::PROTECTION)?;
    ensure!((cpu::cr0(), cpu::cr4()) == (cr0, cr4), "a control register is not as before");
    Ok(())
}

fn undefined_instruction() -> Outcome {
    // SAFETY: it raises an exception.
    expect("UD2", attempt(|| unsafe { asm!("ud2") }), Exception::UNDEFINED)?;
    Ok(())
}

fn page_fault() -> Outcome {
    const UNMAPPED: u64 = 0x1_2345_6789;
    let read = attempt(|| {
        // SAFETY: it raises an exception.
        unsafe { asm!("mov {0}, [{0}]", inout(reg) UNMAPPED => _) }
    });
    let exception = expect("reading where nothing is mapped", read, Exception::PAGE)?;
    ensure!(exception.address == UNMAPPED && exception.error == 0, "{exception}");
    // SAFETY: it raises an exception.
    let write = attempt(|| unsafe { asm!("mov [{0}], {0}", in(reg) UNMAPPED + 8) });
    let exception = expect("writing where nothing is mapped", write, Exception::PAGE)?;
    ensure!(exception.address == UNMAPPED + 8 && exception.error == 2, "{exception}");
    Ok(())
}

fn general_protection() -> Outcome {
    let read = attempt(|| {
        // SAFETY: it raises an exception.
        unsafe { asm!("mov {0}, [{0}]", inout(reg) 1u64 << 63 => _) }
    });
    expect("a non-canonical address", read, Exception::PROTECTION)?;
    // SAFETY: it raises an exception.
    let load = attempt(|| unsafe { asm!("mov ds, {0:e}", in(reg) 0x48) });
    let exception = expect("a selector beyond the table", load, Exception::PROTECTION)?;
    ensure!(exception.error == 0x48, "{exception}");
    Ok(())
}

fn xsetbv() -> Outcome {
    const OSXSAVE: u64 = 1 << 18;
    skip!(cpu::cpuid(1, 0).ecx & 1 << 26 == 0, "the CPU has no XSAVE");
    let cr4 = cpu::cr4();
    // SAFETY: the program uses no such state.
    unsafe {
        cpu::write_cr4(cr4 & !OSXSAVE);
        expect("XSETBV without CR4.OSXSAVE", attempt(|| cpu::xsetbv(0, 1)), Exception::UNDEFINED)?;
        cpu::write_cr4(cr4 | OSXSAVE);
        let osxsave = cpu::cpuid(1, 0).ecx & 1 << 27 != 0;
        let mask = cpu::cpuid(0xd, 0).eax;
        let before = cpu::xgetbv(0);
        expect("XCR0 without x87", attempt(|| cpu::xsetbv(0, 2)), Exception::PROTECTION)?;
        expect("XCR0 with AVX without SSE", attempt(|| cpu::xsetbv(0, 5)), Exception::PROTECTION)?;
        expect("a register that does not exist", attempt(|| cpu::xsetbv(7, 1)), Exception::PROTECTION)?;
        let kept = cpu::xgetbv(0);
        cpu::xsetbv(0, (mask & 7).into());
        let (read, size) = (cpu::xgetbv(0), cpu::cpuid(0xd, 0).ebx);
        cpu::xsetbv(0, 1);
        let small = cpu::cpuid(0xd, 0).ebx;
        cpu::write_cr4(cr4);
        ensure!(osxsave, "CPUID does not show OSXSAVE");
        ensure!(before == kept, "XCR0 was {before:#x} and is {kept:#x} after refused values");
        ensure!(read == (mask & 7).into(), "XCR0 is {read:#x}, not {:#x}", mask & 7);
        ensure!(small == 576 && size >= small, "leaf 0xd: {small} bytes for x87, {size} for {mask:#x}");
    }
    Ok(())
}
