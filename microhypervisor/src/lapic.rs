#![allow(unsafe_code)]
//! The local APIC: end of interrupt, the timer, and interrupts between CPUs (Intel SDM vol. 3A, chapter 11).
//!
//! Unsafe: memory-mapped registers, or model-specific registers in x2APIC mode.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::registers::{APIC_BASE, TSC_DEADLINE, rdmsr, wrmsr};
use crate::vcpu::register::cpuid;

/// Vector of the timer.
pub const TIMER: u8 = 0xf8;
/// Vector by which CPUs call each other's attention.
pub const ATTENTION: u8 = 0xf9;
/// Vector of spurious interrupts.
pub const SPURIOUS: u8 = 0xff;

const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const EOI: u32 = 0x0b;
const SPURIOUS_VECTOR: u32 = 0x0f;
const ERROR_STATUS: u32 = 0x28;
const COMMAND: u32 = 0x30;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const LVT_ERROR: u32 = 0x37;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;

const MASKED: u32 = 1 << 16;
const ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;
/// Command: asks a CPU for its attention.
pub const CALL_ATTENTION: u32 = ATTENTION as u32 | ASSERT;
/// Command: INIT, after which a CPU waits for [`START_UP`].
pub const INIT: u32 = 5 << 8 | ASSERT;
/// Command: a CPU starts in real mode at the physical page, below 1 MiB, whose number is added.
pub const START_UP: u32 = 6 << 8 | ASSERT;
const MODE_DEADLINE: u32 = 2 << 17;
const X2APIC_ENABLE: u64 = 1 << 10;
const APIC_ENABLE: u64 = 1 << 11;

static X2APIC: AtomicBool = AtomicBool::new(false);
/// Whether the timer takes an absolute system time.
static DEADLINE: AtomicBool = AtomicBool::new(false);
/// LAPIC timer ticks per system-time tick, as a 32.32 fixed-point number.
static RATIO: AtomicU64 = AtomicU64::new(0);

fn register(index: u32) -> *mut u32 {
    (crate::space::DEVICES + (index as u64) * 16) as *mut u32
}

fn read(index: u32) -> u32 {
    // SAFETY: `init` has mapped the registers or found x2APIC mode; the registers used exist in every LAPIC.
    unsafe {
        if X2APIC.load(Ordering::Relaxed) { rdmsr(0x800 + index) as u32 } else { register(index).read_volatile() }
    }
}

#[inline(always)]
fn write_here(index: u32, value: u32) {
    // SAFETY: as for `read`; values are legal.
    unsafe {
        if X2APIC.load(Ordering::Relaxed) {
            wrmsr(0x800 + index, value as u64)
        } else {
            register(index).write_volatile(value)
        }
    }
}

/// The same, where a call is no matter.
#[inline(never)]
fn write(index: u32, value: u32) {
    write_here(index, value);
}

/// Physical address of the registers.
pub fn address() -> u64 {
    // SAFETY: every processor with long mode has this register.
    unsafe { rdmsr(APIC_BASE) & 0xf_ffff_ffff_f000 }
}

/// CPUID leaf 1 ECX: x2APIC; timer in TSC-deadline mode.
const CPUID_X2APIC: u32 = 1 << 21;
const CPUID_TSC_DEADLINE: u32 = 1 << 24;

/// Chooses the mode of all LAPICs: the one that the firmware left this in, or x2APIC if one of `ids` needs it.
pub fn choose_mode(ids: &[u32]) {
    let features = cpuid(1)[2];
    let wide = ids.iter().any(|id| *id >= 255) && features & CPUID_X2APIC != 0;
    // SAFETY: every processor with long mode has this register.
    X2APIC.store(wide || unsafe { rdmsr(APIC_BASE) } & X2APIC_ENABLE != 0, Ordering::Relaxed);
    DEADLINE.store(features & CPUID_TSC_DEADLINE != 0, Ordering::Relaxed);
}

/// Whether LAPIC `id` can be addressed in the chosen mode.
pub fn reaches(id: u32) -> bool {
    X2APIC.load(Ordering::Relaxed) || id < 255
}

/// Enables the LAPIC in the chosen mode. Its page must be mapped.
pub fn init() {
    // SAFETY: the two bits may be set together only in xAPIC mode, hence one after the other (11.12.5).
    unsafe {
        let base = rdmsr(APIC_BASE) | APIC_ENABLE;
        wrmsr(APIC_BASE, base);
        if X2APIC.load(Ordering::Relaxed) {
            wrmsr(APIC_BASE, base | X2APIC_ENABLE);
        }
    }
    write(SPURIOUS_VECTOR, SPURIOUS as u32 | 1 << 8);
    write(TASK_PRIORITY, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, 4 << 8); // NMI
    write(LVT_ERROR, MASKED);
    write(ERROR_STATUS, 0);
    write(DIVIDE, 0b1011); // by 1
    choose_timer();
}

fn choose_timer() {
    write(LVT_TIMER, TIMER as u32 | if DEADLINE.load(Ordering::Relaxed) { MODE_DEADLINE } else { 0 });
}

/// Identifier of this CPU's LAPIC.
pub fn id() -> u32 {
    if X2APIC.load(Ordering::Relaxed) { read(ID) } else { read(ID) >> 24 }
}

/// Starts counting down from the largest value, for calibration.
pub fn start_counting() {
    write(LVT_TIMER, MASKED);
    write(INITIAL_COUNT, u32::MAX);
}

/// Ticks since [`start_counting`].
pub fn counted() -> u32 {
    u32::MAX - read(CURRENT_COUNT)
}

/// Sets the rate of the timer: `lapic` of its ticks take as long as `stc` ticks of system time.
pub fn set_rate(lapic: u32, stc: u64) {
    RATIO.store((((lapic as u64) << 32) / stc.max(1)).max(1), Ordering::Relaxed);
    write(INITIAL_COUNT, 0);
    choose_timer();
}

/// Programs the timer for absolute system time `deadline`; earlier if that is too far away for its counter.
pub fn set_timer(now: u64, deadline: u64) {
    if DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: deadline mode was found by CPUID; zero would disarm, hence at least 1.
        unsafe { wrmsr(TSC_DEADLINE, deadline.max(1)) };
        return;
    }
    let ticks = (deadline.saturating_sub(now) as u128 * RATIO.load(Ordering::Relaxed) as u128) >> 32;
    write_here(INITIAL_COUNT, ticks.clamp(1, u32::MAX as u128) as u32);
}

/// Sends the interrupt that `command` describes (11.6.1) to LAPIC `id`, and waits until it has left.
pub fn send(id: u32, command: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: what the kernel wrote before must be seen by whom it interrupts, and this write is not ordered
        // after others by itself (11.12.3). The command is legal.
        unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            wrmsr(0x800 + COMMAND, (id as u64) << 32 | command as u64)
        };
        return;
    }
    write(COMMAND + 1, id << 24);
    write(COMMAND, command);
    while read(COMMAND) & PENDING != 0 {
        core::hint::spin_loop();
    }
}

/// Stops all other CPUs, for the end.
pub fn stop_others() {
    const OTHERS: u32 = 3 << 18;
    if crate::cpu::count() > 1 {
        send(0, INIT | OTHERS);
    }
}

/// End of interrupt.
pub fn end_of_interrupt() {
    write_here(EOI, 0);
}
