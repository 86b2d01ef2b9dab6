#![allow(unsafe_code)]
//! Interrupts: vectors to semaphores (NOVA 5.5.2), and what may interrupt the kernel itself.
//!
//! Unsafe: reads the frame that the processor pushed.

use core::sync::atomic::{AtomicU8, Ordering};

use abi::Status;
use abi::hypercall::flag;
use abi::observation::{Traced, counter};
use spin::Once;

use crate::cpu::Cpu;
use crate::fast::sysenter_entry;
use crate::object::Ref;
use crate::observation::trace;
use crate::semaphore::Sm;
use crate::{ioapic, lapic, sched};

/// Vector of global system interrupt 0.
const FIRST_VECTOR: u8 = 0x20;

/// Masked by the kernel until the next down on the semaphore.
const HELD: u8 = 1 << 7;

static SEMAPHORES: [Once<Ref<Sm>>; ioapic::MAX_PINS as usize] = [const { Once::new() }; ioapic::MAX_PINS as usize];
/// Whether a pin is level-triggered, masked ([`flag`]), held back.
static STATES: [AtomicU8; ioapic::MAX_PINS as usize] =
    [const { AtomicU8::new(flag::INT_MASKED) }; ioapic::MAX_PINS as usize];
static CONSOLE: Once<Ref<Sm>> = Once::new();

/// Binds the semaphore of a global system interrupt.
pub fn bind(gsi: u32, semaphore: Ref<Sm>) {
    if let Some(slot) = SEMAPHORES.get(gsi as usize) {
        slot.call_once(|| semaphore);
    }
}

/// Binds the console semaphore.
pub fn bind_console(semaphore: Ref<Sm>) {
    CONSOLE.call_once(|| semaphore);
}

/// Signals a line on the memory-buffer console.
pub fn signal_console() {
    if let Some(semaphore) = CONSOLE.get().and_then(|semaphore| semaphore.get()) {
        // An overflow of the counter loses nothing: the reader drains the whole buffer.
        let _ = semaphore.up(Cpu::this());
    }
}

/// assign_int: routes the interrupt of `semaphore` to `cpu`.
pub fn assign(semaphore: &Sm, cpu: u16, flags: u8) -> Result<(), Status> {
    let gsi = semaphore.interrupt().ok_or(Status::BadCap)?;
    let target = Cpu::by_number(cpu).map(|cpu| cpu.apic_id.get()).ok_or(Status::BadCpu)?;
    // An I/O APIC's entry holds eight bits of it.
    if target > 0xff {
        return Err(Status::BadCpu);
    }
    let state = STATES.get(gsi as usize).ok_or(Status::BadCap)?;
    semaphore.set_route(cpu);
    state.store(flags & (flag::INT_LEVEL | flag::INT_MASKED), Ordering::Relaxed);
    let bit = |flag: u8, bit: u32| if flags & flag != 0 { bit } else { 0 };
    let mode = bit(flag::INT_LEVEL, ioapic::LEVEL) | bit(flag::INT_MASKED, ioapic::MASKED);
    let mode = mode | bit(flag::INT_LOW, ioapic::LOW);
    ioapic::route(gsi, FIRST_VECTOR.wrapping_add(gsi as u8), target, mode);
    Ok(())
}

/// Somebody waits for interrupt `gsi` again: a level-triggered one that is held back may come.
pub fn unmask_level(gsi: u32) {
    if let Some(state) = STATES.get(gsi as usize)
        && state.load(Ordering::Relaxed) & HELD != 0
    {
        state.fetch_and(!HELD, Ordering::Relaxed);
        if state.load(Ordering::Relaxed) & flag::INT_MASKED == 0 {
            ioapic::mask(gsi, false);
        }
    }
}

/// Handles an interrupt from outside.
pub fn handle(cpu: &'static Cpu, vector: u8) {
    trace(cpu, Traced::Interrupt, vector as u16, 0, 0);
    let gsi = vector.wrapping_sub(FIRST_VECTOR) as usize;
    if let Some(state) = STATES.get(gsi).filter(|state| state.load(Ordering::Relaxed) & flag::INT_LEVEL != 0) {
        state.fetch_or(HELD, Ordering::Relaxed);
        ioapic::mask(gsi as u32, true);
    }
    if vector != lapic::SPURIOUS {
        lapic::end_of_interrupt();
    }
    let semaphore = || SEMAPHORES.get(gsi)?.get()?.get();
    cpu.counters.count(match vector {
        lapic::TIMER => counter::TIMER,
        lapic::ATTENTION => counter::ATTENTION,
        _ => counter::INTERRUPT,
    });
    match vector {
        lapic::TIMER => sched::expire(cpu),
        lapic::ATTENTION => cpu.reschedule.set(true),
        _ => drop(semaphore().map(|semaphore| semaphore.up(cpu))),
    }
}

/// What the stub for entries from the kernel passes: vector, error code and the processor's frame.
#[repr(C)]
pub struct KernelFrame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// RFLAGS.TF.
const TRAP: u64 = 1 << 8;

/// An interrupt or exception from the kernel. Only interrupts can come while it is idle and in its interrupt window.
pub extern "C" fn kernel_interrupt(frame: &mut KernelFrame) {
    let (KernelFrame { vector, error, rip, rsp, rflags, .. }, cr2) = (frame, crate::registers::cr2());
    match vector {
        2 => {}
        // A program that steps executed SYSENTER: it does no longer.
        1 if *rip == &raw const sysenter_entry as u64 => *rflags &= !TRAP,
        0..32 => crate::panic::fatal(format_args!(
            "exception {vector:#x} in the kernel: error {error:#x}, RIP {rip:#x}, RSP {rsp:#x}, CR2 {cr2:#x}, RFLAGS {rflags:#x}",
        )),
        _ => handle(Cpu::this(), *vector as u8),
    }
}
