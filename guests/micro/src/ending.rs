//! How a micro guest ends: by power-off, by reset, or badly.
#![allow(unsafe_code)] // A jump into nothing.

use crate::{console, cpu, interrupts};

/// ACPI fixed hardware, and what powers off: SLP_EN with a sleep type, which is 5 in our virtual machines, 0 in QEMU's
/// q35 and in Bochs.
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPES: [u16; 2] = [5, 0];
/// QEMU's `isa-debug-exit`: the emulator ends with twice the value plus one.
const DEBUG_EXIT: u16 = 0xf4;
const RESET_CONTROL: u16 = 0xcf9;

/// Tells the verdict and powers off.
pub fn finish(passed: bool) -> ! {
    console::close(passed);
    let power_off = |kind: u16| cpu::out16(PM1A_CONTROL, kind << 10 | SLEEP_ENABLE);
    power_off(SLEEP_TYPES[0]);
    // So this is QEMU itself: an exit status is better than none.
    cpu::out32(DEBUG_EXIT, u32::from(!passed));
    power_off(SLEEP_TYPES[1]);
    cpu::stop()
}

/// Resets the machine.
pub fn reset() -> ! {
    cpu::out8(RESET_CONTROL, 2);
    cpu::out8(RESET_CONTROL, 6);
    cpu::stop()
}

/// Ends in a triple fault.
pub fn triple_fault() -> ! {
    interrupts::load(0, 0);
    // SAFETY: it never returns.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// Jumps to where there is neither RAM nor a device.
pub fn jump_into_nothing() -> ! {
    const NOTHING: usize = 0x7ff0_0000;
    // SAFETY: it never returns.
    unsafe { core::arch::asm!("jmp {}", in(reg) NOTHING, options(noreturn)) }
}
