#![allow(unsafe_code)]
//! Interrupts: vectors to semaphores (NOVA 5.5.2), and what may interrupt the kernel itself.
//!
//! Unsafe: reads the frame that the processor pushed.

use core::sync::atomic::{AtomicU8, Ordering};

use ::iommu::entry::{self, Interrupt};
use abi::Status;
use abi::hypercall::flag;
use abi::observation::{Traced, counter};
use spin::Once;

use crate::cpu::Cpu;
use crate::fast::sysenter_entry;
use crate::object::Ref;
use crate::observation::trace;
use crate::semaphore::Sm;
use crate::{ioapic, iommu, lapic, sched};

/// Vector of interrupt 0. Numbers of interrupts: those of pins, which are global system interrupts; messages; faults of
/// devices.
const FIRST_VECTOR: u8 = 0x20;
/// Number of the interrupt by which IOMMUs announce faults, behind 64 messages.
pub const FAULTS: u32 = ioapic::MAX_PINS + 64;
/// Number by which the semaphore of the memory-buffer console is kept among them.
pub const CONSOLE: u32 = FAULTS + 1;
const NUMBERS: usize = CONSOLE as usize + 1;

/// Masked by the kernel until the next down on the semaphore.
const HELD: u8 = 1 << 7;

static SEMAPHORES: [Once<Ref<Sm>>; NUMBERS] = [const { Once::new() }; NUMBERS];
/// Whether an interrupt is level-triggered, masked ([`flag`]), held back.
static STATES: [AtomicU8; NUMBERS] = [const { AtomicU8::new(flag::INT_MASKED) }; NUMBERS];

#[inline(always)]
fn semaphore(number: usize) -> Result<&'static Sm, Status> {
    SEMAPHORES.get(number).and_then(Once::get).ok_or(Status::BadCap)?.find()
}

/// Binds the semaphore of interrupt `number`.
pub fn bind(number: u32, semaphore: Ref<Sm>) {
    SEMAPHORES.get(number as usize).inspect(|slot| _ = slot.call_once(|| semaphore));
}

/// Signals a line on the memory-buffer console.
pub fn signal_console() {
    // An overflow of the counter loses nothing: the reader drains the whole buffer.
    let _ = semaphore(CONSOLE as usize).and_then(|semaphore| semaphore.up(Cpu::this()));
}

/// assign_int: routes the interrupt of `semaphore` to `cpu`. Returns the message by which `device` raises it; pins have
/// none.
pub fn assign(semaphore: &Sm, cpu: u16, device: u16, flags: u8) -> Result<(u32, u32), Status> {
    let number = semaphore.interrupt.ok_or(Status::BadCap)?;
    let destination = Cpu::by_number(cpu).map(|cpu| cpu.apic_id.get()).ok_or(Status::BadCpu)?;
    let state = STATES.get(number as usize).ok_or(Status::BadCap)?;
    let (vector, pin) = (FIRST_VECTOR.wrapping_add(number as u8), number < ioapic::MAX_PINS);
    let kept = flags & (flag::INT_MASKED | if pin { flag::INT_LEVEL } else { 0 });
    let (level, masked) = (kept & flag::INT_LEVEL != 0, kept & flag::INT_MASKED != 0);
    let source = if pin { iommu::ioapic(ioapic::id(number)) } else { Some(device) };
    let wanted = Interrupt { vector, destination, source, level };
    let remapped = number != FAULTS && iommu::remap(number, &wanted, masked && !pin);
    // Otherwise there are eight bits for it.
    if !remapped && destination > 0xff && number != FAULTS {
        return Err(Status::BadCpu);
    }
    semaphore.route.store(cpu as u32, Ordering::Relaxed);
    state.store(kept, Ordering::Relaxed);
    if pin {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let mode = bit(level, ioapic::LEVEL) | bit(masked, ioapic::MASKED);
        let place = if remapped { entry::redirection(number as u16) } else { destination << 24 };
        ioapic::route(number, vector, place, mode | bit(flags & flag::INT_LOW != 0, ioapic::LOW));
        return Ok((0, 0));
    }
    if number == FAULTS {
        iommu::announce_faults(&wanted);
    }
    Ok(if remapped { entry::message(number as u16) } else { wanted.plain_message() })
}

/// Somebody waits for interrupt `gsi` again: a level-triggered one that is held back may come.
pub fn unmask_level(gsi: u32) {
    if let Some(state) = STATES.get(gsi as usize)
        && state.load(Ordering::Relaxed) & HELD != 0
        && state.fetch_and(!HELD, Ordering::Relaxed) & flag::INT_MASKED == 0
    {
        ioapic::mask(gsi, false);
    }
}

/// Handles an interrupt from outside.
pub fn handle(cpu: &'static Cpu, vector: u8) {
    trace(cpu, Traced::Interrupt, vector as u16, 0, 0);
    let gsi = vector.wrapping_sub(FIRST_VECTOR) as usize;
    let Some(state) = STATES.get(gsi) else { return handle_own(cpu, vector) };
    let flags = state.load(Ordering::Relaxed);
    if flags & flag::INT_LEVEL != 0 {
        state.fetch_or(HELD, Ordering::Relaxed);
        ioapic::mask(gsi as u32, true);
    }
    if gsi == FAULTS as usize {
        iommu::mask_faults();
    }
    lapic::end_of_interrupt();
    cpu.counters().count(counter::INTERRUPT);
    if flags & flag::INT_MASKED == 0 {
        let _ = semaphore(gsi).and_then(|semaphore| semaphore.up(cpu));
    }
}

/// Handles an interrupt of the kernel's own, or a spurious one.
fn handle_own(cpu: &'static Cpu, vector: u8) {
    if vector != lapic::SPURIOUS {
        lapic::end_of_interrupt();
    }
    match vector {
        lapic::TIMER => sched::expire(cpu),
        lapic::ATTENTION => cpu.reschedule.set(true),
        _ => return cpu.counters().count(counter::INTERRUPT),
    }
    cpu.counters().count(if vector == lapic::TIMER { counter::TIMER } else { counter::ATTENTION });
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
    let (KernelFrame { vector, error, rip, rsp, rflags, .. }, cr2) = (frame, crate::registers::Cr2::read_raw());
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
