//! What operations cost that leave a virtual machine, by the TSC: in an emulator whose TSC counts instructions that is all
//! that anybody executes for one of them.
//!
//! Each is done in batches; the cheapest batch is one that no timer of a host disturbed. Around each batch are marks, which
//! do nothing, for tools that count between them: a NOP that holds the operation's number, and 1 or 2 for begin or end.
#![allow(unsafe_code)] // Exits on purpose.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::Outcome;
use crate::further::{self, Job, PONG, ping};
use crate::interrupts::{attempt, count};
use crate::words::Words;
use crate::{cpu, ensure, lapic, say};

/// Operations in a batch.
const BATCH: u64 = 16;
/// Vectors of the interrupts that this CPU sends to itself, and of its timer.
const SELF: u8 = 0x51;
const TIMER: u8 = 0x40;
/// COM1's scratch register: a device, which remembers one byte and does nothing else.
const SCRATCH: u16 = 0x3ff;
/// The I/O APIC's index register.
const IOAPIC: usize = 0xfec0_0000;
/// The LAPIC's version register, by memory.
const LAPIC_VERSION: usize = 0xfee0_0030;
/// Alignment-check mask, and page-size extensions: bits that mean nothing to this program.
const CR0_AM: u64 = 1 << 18;
const CR4_PSE: u64 = 1 << 4;
/// Where memory is that nobody has touched, and how far apart pages are taken from it: as far as a large page is long.
const UNTOUCHED: usize = 32 << 20;
const LARGE_PAGE: usize = 2 << 20;
/// What the virtual machine has to have beyond [`UNTOUCHED`].
const TOUCHES: u64 = 2 * BATCH;

static IS_AMD: AtomicBool = AtomicBool::new(false);
static APIC_BASE: AtomicU64 = AtomicU64::new(0);

/// Something that leaves the virtual machine.
struct Operation {
    name: &'static str,
    measure: fn(u64) -> Cost,
    /// Whether this machine has it.
    exists: fn() -> bool,
}

/// TSC ticks of a batch.
#[derive(Clone, Copy)]
struct Cost {
    least: u64,
    sum: u64,
    batches: u64,
}

/// All, in the order in which they are done: first those that want the LAPIC in memory.
const OPERATIONS: &[Operation] = &[
    Operation { name: "nothing", measure: |batches| measure::<1>(batches, || {}), exists: || true },
    Operation { name: "cpuid", measure: |batches| measure::<2>(batches, cpuid), exists: || true },
    Operation { name: "vmcall", measure: |batches| measure::<3>(batches, call), exists: has_hypercalls },
    Operation { name: "out", measure: |batches| measure::<4>(batches, || cpu::out8(SCRATCH, 0)), exists: || true },
    Operation { name: "in", measure: |batches| measure::<5>(batches, || _ = cpu::in8(SCRATCH)), exists: || true },
    Operation { name: "mmio.read", measure: |batches| measure::<6>(batches, || read(IOAPIC)), exists: || true },
    Operation { name: "mmio.write", measure: |batches| measure::<7>(batches, || write(IOAPIC)), exists: || true },
    Operation {
        name: "lapic.read",
        measure: |batches| measure::<8>(batches, || read(LAPIC_VERSION)),
        exists: is_xapic,
    },
    Operation { name: "rdmsr", measure: |batches| measure::<9>(batches, read_msr), exists: || true },
    Operation { name: "wrmsr", measure: |batches| measure::<10>(batches, write_msr), exists: note_base },
    Operation { name: "cr0", measure: |batches| measure::<11>(batches, change_cr0), exists: || true },
    Operation { name: "cr4", measure: |batches| measure::<12>(batches, change_cr4), exists: || true },
    Operation { name: "page", measure: |batches| measure::<13>(batches.min(TOUCHES / BATCH), touch), exists: || true },
    Operation { name: "ipi.self", measure: |batches| measure::<14>(batches, to_self), exists: enter_x2 },
    Operation { name: "ipi.halted", measure: |batches| measure::<15>(batches, to_self_halted), exists: lapic::is_x2 },
    Operation { name: "deadline", measure: |batches| measure::<16>(batches, deadline), exists: lapic::has_deadline },
    Operation { name: "ipi.wake", measure: |batches| measure::<17>(batches, wake), exists: start_other },
];

/// Measures all, in `batches` batches, or the one that `only=NAME` names.
pub fn check(words: Words, batches: u64) -> Outcome {
    ensure!(batches > 0, "none to measure");
    lapic::enable();
    let only = words.iter().find(|(word, _)| *word == "only").and_then(|(_, name)| name);
    ensure!(
        only.is_none_or(|only| OPERATIONS.iter().any(|operation| operation.name == only)),
        "there is no {}",
        only.unwrap_or_default()
    );
    let nothing = (OPERATIONS[0].measure)(batches);
    for operation in OPERATIONS {
        if only.is_some_and(|only| only != operation.name) {
            continue;
        }
        if !(operation.exists)() {
            say!("exits {}: this machine has it not", operation.name);
            continue;
        }
        let Cost { least, sum, batches } = (operation.measure)(batches);
        let least = least.saturating_sub(nothing.least) / BATCH;
        let mean = (sum / batches).saturating_sub(nothing.least) / BATCH;
        say!("exits {}: {least} TSC ticks each, {mean} on average", operation.name);
    }
    Ok(())
}

/// Marks a place for tools.
fn mark<const NUMBER: u8, const WHAT: u8>() {
    // SAFETY: a NOP with a displacement that nobody uses.
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80, {}, {}, 0x4b, 0x4d", const NUMBER, const WHAT,
            options(nomem, nostack, preserves_flags));
    }
}

fn measure<const NUMBER: u8>(batches: u64, operation: impl Fn()) -> Cost {
    operation();
    let mut cost = Cost { least: u64::MAX, sum: 0, batches };
    for _ in 0..batches {
        mark::<NUMBER, 1>();
        let start = cpu::tsc();
        for _ in 0..BATCH {
            operation();
        }
        let ticks = cpu::tsc() - start;
        mark::<NUMBER, 2>();
        cost.least = cost.least.min(ticks);
        cost.sum += ticks;
    }
    cost
}

fn cpuid() {
    cpu::cpuid(0, 0);
}

/// Whether anybody takes hypercalls; notes the vendor.
fn has_hypercalls() -> bool {
    // "AuthenticAMD" begins so.
    IS_AMD.store(cpu::cpuid(0, 0).ebx == u32::from_le_bytes(*b"Auth"), Ordering::Relaxed);
    attempt(call).is_ok()
}

/// A hypercall that does not exist, in the vendor's way.
fn call() {
    const NONE: u64 = u32::MAX as u64;
    // SAFETY: the answer comes in RAX.
    unsafe {
        match IS_AMD.load(Ordering::Relaxed) {
            true => asm!("vmmcall", inout("rax") NONE => _, options(nomem, nostack)),
            false => asm!("vmcall", inout("rax") NONE => _, options(nomem, nostack)),
        }
    }
}

fn read(address: usize) {
    cpu::read_device(address);
}

fn write(address: usize) {
    // SAFETY: it is no RAM.
    unsafe { cpu::write_device(address, 0) };
}

fn is_xapic() -> bool {
    !lapic::is_x2()
}

fn read_msr() {
    cpu::read_msr(cpu::MSR_APIC_BASE);
}

/// Notes what is there already.
fn note_base() -> bool {
    APIC_BASE.store(cpu::read_msr(cpu::MSR_APIC_BASE), Ordering::Relaxed);
    true
}

/// Writes what is there already.
fn write_msr() {
    let value = APIC_BASE.load(Ordering::Relaxed);
    // SAFETY: nothing changes.
    unsafe { cpu::write_msr(cpu::MSR_APIC_BASE, value) };
}

/// Changes it and changes it back at the next time.
fn change_cr0() {
    let value = cpu::cr0() ^ CR0_AM;
    // SAFETY: the bit concerns programs of ring 3.
    unsafe { cpu::write_cr0(value) };
}

fn change_cr4() {
    let value = cpu::cr4() ^ CR4_PSE;
    // SAFETY: the bit concerns page tables of 32-bit mode.
    unsafe { cpu::write_cr4(value) };
}

/// Touches the next page that nobody has touched.
fn touch() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let index = NEXT.fetch_add(1, Ordering::Relaxed);
    cpu::read_device(UNTOUCHED + index * LARGE_PAGE);
}

fn enter_x2() -> bool {
    if lapic::has_x2() && !lapic::is_x2() {
        lapic::enter_x2();
    }
    lapic::is_x2()
}

/// An interrupt to itself, taken and acknowledged.
fn to_self() {
    let before = count(SELF);
    lapic::send_to_self(SELF);
    while count(SELF) == before {
        cpu::take_interrupts();
    }
}

/// The same, taken out of HLT.
fn to_self_halted() {
    let before = count(SELF);
    lapic::send_to_self(SELF);
    while count(SELF) == before {
        cpu::halt();
    }
}

/// A deadline that has passed: from its programming to the end of the interrupt.
fn deadline() {
    let before = count(TIMER);
    lapic::deadline(TIMER, 1);
    while count(TIMER) == before {
        cpu::take_interrupts();
    }
}

/// Starts the second CPU, which answers then.
fn start_other() -> bool {
    if further::cpus() < 2 || !lapic::is_x2() {
        return false;
    }
    let before = further::starts(1);
    further::tell(1, Job::Answer);
    further::init(1);
    further::start_up(1);
    further::wait(|| further::starts(1) != before)
}

/// Wakes another CPU, which wakes this one.
fn wake() {
    let before = count(PONG);
    lapic::send(1, u32::from(ping(1)) | 1 << 14);
    while count(PONG) == before {
        cpu::halt();
    }
}
