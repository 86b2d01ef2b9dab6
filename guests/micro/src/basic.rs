//! The first test: every kind of exit once, and what it must show.

use crate::console::has_exec;
use crate::cpu::{cpuid, in8, in32, out_string, out8, rdmsr, rdtsc, read32, wait_for_interrupt, write32, wrmsr};
use crate::interrupts::{count, try_rdmsr};
use crate::println;
use crate::verdict::{Check, check};

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const VECTOR: u8 = 0x40;
const PM_TIMER: u16 = 0x608;
/// Ticks of the PM timer a second.
const PM_HERTZ: u64 = 3_579_545;

/// Runs it.
pub fn run() -> Check {
    identification()?;
    registers()?;
    lapic()?;
    ioapic()?;
    ports()?;
    timer_in_memory()?;
    timer_by_deadline()
}

fn identification() -> Check {
    let [max, b, c, d] = cpuid(0, 0);
    let mut name = [0; 12];
    for (word, bytes) in [b, d, c].iter().zip(name.chunks_mut(4)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    println!("CPU {}, {max:#x} leaves", core::str::from_utf8(&name).unwrap_or("?"));
    check(cpuid(1, 0)[3] & 1 << 9 != 0, "CPUID shows no APIC")?;
    check(rdtsc() < rdtsc(), "the TSC stands still")
}

fn registers() -> Check {
    let base = rdmsr(APIC_BASE);
    check(base & 0xf_ffff_f000 == LAPIC, "IA32_APIC_BASE is not 0xfee00000")?;
    check(base & 1 << 8 != 0, "IA32_APIC_BASE does not say bootstrap processor")?;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    wrmsr(KERNEL_GS_BASE, 0x1234_5678_9abc);
    check(rdmsr(KERNEL_GS_BASE) == 0x1234_5678_9abc, "IA32_KERNEL_GS_BASE does not keep its value")?;
    wrmsr(KERNEL_GS_BASE, 0);
    if hypervisor() {
        check(try_rdmsr(0x4000_1234).is_none(), "a register that does not exist raises no #GP")?;
    }
    Ok(())
}

/// Whether this is our monitor or KVM: QEMU without acceleration ignores unknown registers.
fn hypervisor() -> bool {
    cpuid(0x4000_0000, 0)[1] == u32::from_le_bytes(*b"KVMK")
}

fn lapic() -> Check {
    let version = read32(LAPIC + 0x30);
    check(version & 0xff >= 0x10 && version & 0xff < 0x20, "LAPIC version is wrong")?;
    write32(LAPIC + 0x80, 0x20);
    check(read32(LAPIC + 0x80) == 0x20, "LAPIC task priority does not keep its value")?;
    write32(LAPIC + 0x80, 0);
    write32(LAPIC + 0xf0, 0x1ff);
    check(read32(LAPIC + 0xf0) == 0x1ff, "LAPIC cannot be enabled")
}

fn ioapic() -> Check {
    write32(IOAPIC, 1);
    check(read32(IOAPIC + 0x10) >> 16 & 0xff == 23, "IOAPIC has not 24 pins")
}

fn ports() -> Check {
    out8(0x3ff, 0x5a);
    check(in8(0x3ff) == 0x5a, "the serial port's scratch register does not keep its value")?;
    check(in8(0x1e3) == 0xff, "a port without a device does not read as ones")?;
    let before = in32(PM_TIMER);
    let start = rdtsc();
    while in32(PM_TIMER) == before {
        check(rdtsc() - start < 1 << 34, "the PM timer stands still")?;
    }
    if has_exec() {
        // A frame with nothing in it: the channel's reader skips it.
        out_string(0xe90, &[1, 0, 0, 0, 0]);
    }
    Ok(())
}

/// Milliseconds between two readings of the PM timer, which has 24 bits at least.
fn milliseconds(start: u32, end: u32) -> u64 {
    (end.wrapping_sub(start) & 0xff_ffff) as u64 * 1000 / PM_HERTZ
}

/// HLT until the LAPIC's one-shot timer, programmed through memory.
fn timer_in_memory() -> Check {
    println!("halting until the LAPIC timer");
    let before = count(VECTOR);
    write32(LAPIC + 0x3e0, 0xb);
    write32(LAPIC + 0x320, VECTOR as u32);
    let start = in32(PM_TIMER);
    write32(LAPIC + 0x380, 1_000_000);
    while count(VECTOR) == before {
        wait_for_interrupt();
    }
    check(count(VECTOR) == before + 1, "the one-shot timer came more than once")?;
    check(read32(LAPIC + 0x390) == 0, "the one-shot timer counts on")?;
    println!("woken after {} ms", milliseconds(start, in32(PM_TIMER)));
    Ok(())
}

/// HLT until a TSC deadline in x2APIC mode, where both exist.
fn timer_by_deadline() -> Check {
    let features = cpuid(1, 0)[2];
    if features & 1 << 21 == 0 || features & 1 << 24 == 0 {
        println!("no x2APIC or no TSC deadline: not tested");
        return Ok(());
    }
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 1 << 10);
    check(rdmsr(0x803) & 0xff == read_version(), "x2APIC version is wrong")?;
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x832, 2 << 17 | VECTOR as u64);
    for round in 1..=10 {
        let before = count(VECTOR);
        let deadline = rdtsc() + 1_000_000 * round;
        wrmsr(TSC_DEADLINE, deadline);
        while count(VECTOR) == before {
            wait_for_interrupt();
        }
        check(rdtsc() >= deadline, "the deadline timer came too early")?;
        check(rdmsr(TSC_DEADLINE) == 0, "the deadline is still armed")?;
    }
    Ok(())
}

fn read_version() -> u64 {
    rdmsr(0x803) & 0xff
}
