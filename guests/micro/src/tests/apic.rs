//! The local APIC in both modes: timer, interrupts to itself, priorities, HLT.
#![allow(unsafe_code)] // CR8.

use super::{Check, Outcome};
use crate::interrupts::{Exception, attempt, count};
use crate::lapic::{self, register};
use crate::{clock, cpu, ensure, say, skip};

const TIMER: u8 = 0x40;
const SELF: u8 = 0x51;

/// HLT alone.
pub const FIRST: &[Check] = &[("hlt", halt)];

/// All checks, xAPIC mode first: from x2APIC there is no direct way back.
pub const CHECKS: &[Check] = &[
    ("xapic-registers", registers),
    ("xapic-self", to_self),
    ("xapic-priority", priority),
    ("xapic-timer", halt),
    ("xapic-deadline", deadline),
    ("x2apic-registers", x2_registers),
    ("x2apic-self", || in_x2(to_self)),
    ("x2apic-priority", || in_x2(priority)),
    ("x2apic-timer", || in_x2(halt)),
    ("x2apic-deadline", || in_x2(deadline)),
];

fn in_x2(check: fn() -> Outcome) -> Outcome {
    skip!(!lapic::has_x2(), "the CPU has no x2APIC mode");
    check()
}

fn registers() -> Outcome {
    lapic::enable();
    let (base, version) = (cpu::read_msr(cpu::MSR_APIC_BASE), lapic::read(register::VERSION));
    ensure!(base & 0xf_ffff_f000 == 0xfee0_0000 && base & 1 << 8 != 0, "APIC_BASE {base:#x}");
    ensure!(version & 0xf0 == 0x10 && version >> 16 & 0xff >= 3, "version {version:#x}");
    ensure!(lapic::id() == cpu::cpuid(1, 0).ebx >> 24, "identifier {:#x}, in CPUID another", lapic::id());
    lapic::stop_timer();
    for value in [0x1_00f1, 0x2_0033, 0x1_0000] {
        lapic::write(register::TIMER, value);
        let read = lapic::read(register::TIMER);
        ensure!(read == value, "the timer's entry holds {read:#x}, not {value:#x}");
    }
    Ok(())
}

fn x2_registers() -> Outcome {
    skip!(!lapic::has_x2(), "the CPU has no x2APIC mode");
    let id = lapic::id();
    lapic::enter_x2();
    let version = lapic::read(register::VERSION);
    ensure!(lapic::is_x2(), "APIC_BASE {:#x} after switching", cpu::read_msr(cpu::MSR_APIC_BASE));
    ensure!(lapic::id() == id, "identifier {:#x}, before {id:#x}", lapic::id());
    ensure!(version & 0xf0 == 0x10, "version {version:#x}");
    for (what, msr) in [("the destination format", 0x80e), ("nothing", 0x8ff)] {
        let result = attempt(|| {
            cpu::read_msr(msr);
        });
        let vector = result.err().map(|exception| exception.vector);
        ensure!(vector == Some(Exception::PROTECTION), "reading {what} (MSR {msr:#x}) raised {vector:?}");
    }
    // SAFETY: the registers' reserved bits raise #GP; no mapping changes.
    let reserved = attempt(|| unsafe { cpu::write_msr(0x80b, 1) });
    ensure!(reserved.is_err() || super::instructions::is_translated(), "EOI takes a value other than 0");
    Ok(())
}

fn to_self() -> Outcome {
    lapic::enable();
    let before = count(SELF);
    lapic::send_to_self(SELF);
    ensure!(count(SELF) == before, "taken with interrupts off");
    ensure!(lapic::requests(SELF), "not in the requests");
    cpu::take_interrupts();
    ensure!(count(SELF) == before + 1, "taken {} times", count(SELF) - before);
    ensure!(!lapic::requests(SELF), "still in the requests");
    Ok(())
}

fn priority() -> Outcome {
    lapic::enable();
    let class = u64::from(SELF >> 4);
    for (threshold, taken) in [(15, false), (class, false), (class - 1, true), (0, true)] {
        let before = count(SELF);
        // SAFETY: only interrupts depend on it.
        unsafe { cpu::write_cr8(threshold) };
        let priority = lapic::read(register::TASK_PRIORITY);
        lapic::send_to_self(SELF);
        cpu::take_interrupts();
        let early = count(SELF) - before;
        // SAFETY: as above.
        unsafe { cpu::write_cr8(0) };
        cpu::take_interrupts();
        let all = count(SELF) - before;
        ensure!(u64::from(priority) == threshold << 4, "CR8 {threshold:#x}, but the APIC has {priority:#x}");
        ensure!(early == taken.into() && all == 1, "CR8 {threshold:#x}: taken {early} times, {all} below it");
    }
    lapic::write(register::TASK_PRIORITY, 0x70);
    let cr8 = cpu::cr8();
    lapic::write(register::TASK_PRIORITY, 0);
    ensure!(cr8 == 7, "CR8 {cr8:#x}, but the APIC has 0x70");
    Ok(())
}

/// The least and the most that a wait of 5 ms may take: the emulator's machine may have other things to do. (On a busy one
/// one wait of 200 took 0.7 s.)
fn check_wait(waited: u64, wanted: u64) -> Outcome {
    let (waited, wanted) = (clock::microseconds(waited), clock::microseconds(wanted));
    say!("waited {waited} us for {wanted} us");
    ensure!(waited * 100 >= wanted * 98, "too early");
    ensure!(waited < wanted + 5_000_000, "too late");
    Ok(())
}

/// Halts until a vector was taken once more; returns how often the CPU woke.
fn halt_for(vector: u8, before: u32) -> u32 {
    let mut woken = 0;
    while count(vector) == before {
        cpu::halt();
        woken += 1;
    }
    woken
}

fn halt() -> Outcome {
    if !lapic::is_x2() {
        lapic::enable();
    }
    // The bus clock: how far the timer counts in a known time.
    let wanted = clock::ticks(5);
    lapic::one_shot(TIMER | 1, u32::MAX);
    let start = cpu::tsc();
    while cpu::tsc() - start < wanted {}
    let bus_ticks = u32::MAX - lapic::read(register::CURRENT_COUNT);
    lapic::stop_timer();
    ensure!(bus_ticks > 100, "the timer counts {bus_ticks} in 5 ms");
    say!("the APIC's timer counts {bus_ticks} in 5 ms, in which the TSC counts {wanted}");
    let (before, start) = (count(TIMER), cpu::tsc());
    lapic::one_shot(TIMER, bus_ticks);
    let woken = halt_for(TIMER, before);
    let waited = cpu::tsc() - start;
    ensure!(woken == 1, "woke {woken} times");
    ensure!(lapic::read(register::CURRENT_COUNT) == 0, "the timer goes on");
    check_wait(waited, wanted)
}

fn deadline() -> Outcome {
    skip!(!lapic::has_deadline(), "the CPU has no TSC-deadline mode");
    lapic::enable();
    let wanted = clock::ticks(5);
    for _ in 0..3 {
        let (before, start) = (count(TIMER), cpu::tsc());
        lapic::deadline(TIMER, start + wanted);
        let armed = cpu::read_msr(cpu::MSR_TSC_DEADLINE);
        ensure!(armed == start + wanted || armed == 0, "the deadline is {armed}, not {}", start + wanted);
        let woken = halt_for(TIMER, before);
        let waited = cpu::tsc() - start;
        ensure!(woken == 1, "woke {woken} times");
        ensure!(cpu::read_msr(cpu::MSR_TSC_DEADLINE) == 0, "the deadline is still armed");
        check_wait(waited, wanted)?;
    }
    // A deadline in the past comes at once.
    let before = count(TIMER);
    lapic::deadline(TIMER, 1);
    halt_for(TIMER, before);
    lapic::stop_timer();
    Ok(())
}
