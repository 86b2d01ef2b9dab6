//! Instructions that Rust has no words for.
//!
//! Port accesses are safe functions here: this program owns a whole virtual machine, has no device that writes into its
//! memory, and provoking devices is its purpose.
#![allow(unsafe_code)] // Privileged instructions.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};

/// `IA32_APIC_BASE`.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// `IA32_TSC_DEADLINE`.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_EFER`.
pub const MSR_EFER: u32 = 0xc000_0080;

/// `CPUID`.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every 64-bit CPU has it, and CR4.TSD does not concern ring 0.
    unsafe { _rdtsc() }
}

/// `IN` of a byte.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `IN` of a word.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `IN` of a double word.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `OUT` of a byte.
pub fn out8(port: u16, value: u8) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// `OUT` of a word.
pub fn out16(port: u16, value: u16) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// `OUT` of a double word.
pub fn out32(port: u16, value: u32) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// `REP OUTSB`.
pub fn out_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: it reads just these bytes.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags));
    }
}

/// `REP INSB`.
pub fn in_bytes(port: u16, bytes: &mut [u8]) {
    // SAFETY: it writes just these bytes.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags));
    }
}

/// `RDMSR`. Without such a register: #GP.
pub fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing that Rust knows of; exceptions have a handler.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// `WRMSR`.
///
/// # Safety
/// The value must leave the program's memory mapping and code as they are.
pub unsafe fn write_msr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller answers for it.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}

/// Defines reading and writing of a control register.
macro_rules! control_register {
    ($register:literal, $read:ident, $write:ident) => {
        #[doc = concat!("Reads ", $register, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading changes nothing.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $register, ".")]
        ///
        /// # Safety
        /// The value must leave the program's memory mapping and code as they are.
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller answers for it.
            unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!("cr0", cr0, write_cr0);
control_register!("cr2", cr2, write_cr2);
control_register!("cr3", cr3, write_cr3);
control_register!("cr4", cr4, write_cr4);
control_register!("cr8", cr8, write_cr8);

/// `XSETBV`.
///
/// # Safety
/// No state component that is in use may be switched off.
pub unsafe fn xsetbv(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller answers for it.
    unsafe {
        asm!("xsetbv", in("ecx") register, in("eax") low, in("edx") high, options(nomem, nostack, preserves_flags))
    };
}

/// `XGETBV`.
pub fn xgetbv(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing.
    unsafe {
        asm!("xgetbv", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Reads 32 bits of a device.
pub fn read_device(address: usize) -> u32 {
    let value;
    // SAFETY: the program maps 4 GiB as they are, and no address in them is unreadable.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Writes 32 bits of a device.
///
/// # Safety
/// The address must not be RAM.
pub unsafe fn write_device(address: usize, value: u32) {
    // SAFETY: the caller answers for it.
    unsafe { asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) };
}

/// Waits in `HLT` for an interrupt, and returns with interrupts off. An interrupt that is pending already ends it at
/// once: `STI` takes effect after the next instruction.
pub fn halt() {
    // SAFETY: handlers keep all registers.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Lets pending interrupts come.
pub fn take_interrupts() {
    // SAFETY: handlers keep all registers.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// Halts for ever.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
