//! The local APIC, by memory (xAPIC) or by MSRs (x2APIC).
//!
//! Intel SDM vol. 3A, chapter 11; 11.12 (x2APIC).
#![allow(unsafe_code)] // Its registers.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;
use crate::interrupts::SPURIOUS;

const BASE: usize = 0xfee0_0000;
const MSR_BASE: u32 = 0x800;
const GLOBAL_ENABLE: u64 = 1 << 11;
const X2_ENABLE: u64 = 1 << 10;

/// Registers, by their offsets in memory.
pub mod register {
    /// Identifier.
    pub const ID: u32 = 0x20;
    /// Version.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TASK_PRIORITY: u32 = 0x80;
    /// End of interrupt.
    pub const END: u32 = 0xb0;
    /// Spurious vector, and software enable (bit 8).
    pub const SPURIOUS: u32 = 0xf0;
    /// First of the eight registers of requested vectors.
    pub const REQUESTED: u32 = 0x200;
    /// Interrupt command.
    pub const COMMAND: u32 = 0x300;
    /// Its upper half: the destination.
    pub const COMMAND_HIGH: u32 = 0x310;
    /// Logical destination.
    pub const LOGICAL: u32 = 0xd0;
    /// Timer entry of the local vector table.
    pub const TIMER: u32 = 0x320;
    /// Timer: initial count.
    pub const INITIAL_COUNT: u32 = 0x380;
    /// Timer: current count.
    pub const CURRENT_COUNT: u32 = 0x390;
    /// Timer: divider.
    pub const DIVIDER: u32 = 0x3e0;
    /// Self-IPI (x2APIC only).
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Whether registers are MSRs.
static X2: AtomicBool = AtomicBool::new(false);

/// Whether the CPU has x2APIC mode.
pub fn has_x2() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether the timer has the TSC-deadline mode.
pub fn has_deadline() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 24 != 0
}

/// Whether it is in x2APIC mode.
pub fn is_x2() -> bool {
    X2.load(Ordering::Relaxed)
}

/// Switches it on, in its present mode.
pub fn enable() {
    let base = cpu::read_msr(cpu::MSR_APIC_BASE);
    X2.store(base & X2_ENABLE != 0, Ordering::Relaxed);
    // SAFETY: enabling changes no mapping.
    unsafe { cpu::write_msr(cpu::MSR_APIC_BASE, base | GLOBAL_ENABLE) };
    write(register::SPURIOUS, 1 << 8 | u32::from(SPURIOUS));
    write(register::TASK_PRIORITY, 0);
}

/// Changes to x2APIC mode.
pub fn enter_x2() {
    let base = cpu::read_msr(cpu::MSR_APIC_BASE);
    // SAFETY: the mode changes no mapping.
    unsafe { cpu::write_msr(cpu::MSR_APIC_BASE, base | GLOBAL_ENABLE | X2_ENABLE) };
    enable();
}

/// Reads a register.
pub fn read(register: u32) -> u32 {
    if is_x2() { cpu::read_msr(MSR_BASE + register / 16) as u32 } else { cpu::read_device(BASE + register as usize) }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    // SAFETY: this is no RAM, and no mapping.
    unsafe {
        if is_x2() {
            cpu::write_msr(MSR_BASE + register / 16, value.into());
        } else {
            cpu::write_device(BASE + register as usize, value);
        }
    }
}

/// The identifier.
pub fn id() -> u32 {
    if is_x2() { read(register::ID) } else { read(register::ID) >> 24 }
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(register::END, 0);
}

/// Whether a vector is requested.
pub fn requests(vector: u8) -> bool {
    read(register::REQUESTED + u32::from(vector / 32) * 16) & 1 << (vector % 32) != 0
}

/// Sends an interrupt to this CPU.
pub fn send_to_self(vector: u8) {
    if is_x2() {
        write(register::SELF_IPI, vector.into());
    } else {
        command(1 << 18 | 1 << 14 | u32::from(vector));
    }
}

/// Writes the interrupt command register with nothing in its upper half, and waits until it is sent.
pub fn command(low: u32) {
    const PENDING: u32 = 1 << 12;
    write(register::COMMAND, low);
    while !is_x2() && read(register::COMMAND) & PENDING != 0 {}
}

/// Writes the interrupt command register with a destination, and waits until it is sent.
pub fn send(destination: u32, low: u32) {
    if is_x2() {
        // SAFETY: it changes no mapping.
        unsafe { cpu::write_msr(MSR_BASE + register::COMMAND / 16, u64::from(destination) << 32 | u64::from(low)) };
    } else {
        write(register::COMMAND_HIGH, destination << 24);
        command(low);
    }
}

/// Sets the logical identifier, in xAPIC mode and the flat model.
pub fn set_logical(mask: u32) {
    write(register::LOGICAL, mask << 24);
}

/// Starts the timer: one interrupt after a number of bus ticks.
pub fn one_shot(vector: u8, ticks: u32) {
    write(register::DIVIDER, 0b1011);
    write(register::TIMER, vector.into());
    write(register::INITIAL_COUNT, ticks);
}

/// Starts the timer: one interrupt at a value of the TSC.
pub fn deadline(vector: u8, at: u64) {
    write(register::TIMER, 2 << 17 | u32::from(vector));
    if !is_x2() {
        // The order of the memory and the MSR write (SDM 11.5.4.1).
        core::sync::atomic::fence(Ordering::SeqCst);
    }
    // SAFETY: it changes no mapping.
    unsafe { cpu::write_msr(cpu::MSR_TSC_DEADLINE, at) };
}

/// Masks the timer.
pub fn stop_timer() {
    write(register::TIMER, 1 << 16);
}
