//! Single instructions.
//!
//! Unsafe: they are instructions. This guest owns its machine, so that none of them can break anybody's promise.
#![allow(unsafe_code)]

use core::arch::asm;

/// OUT, byte.
pub fn out8(port: u16, value: u8) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// OUT, word.
pub fn out16(port: u16, value: u16) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// IN, byte.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// IN, double word.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) };
    value
}

/// REP OUTSB.
pub fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes` only.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags, readonly));
    }
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// RDMSR.
pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: see the module's head.
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    (high as u64) << 32 | low as u64
}

/// WRMSR.
pub fn wrmsr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: see the module's head.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}

/// RDTSC.
pub fn rdtsc() -> u64 {
    // SAFETY: see the module's head.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// STI and HLT in one go: no interrupt is lost between them. Interrupts are disabled again afterwards.
pub fn wait_for_interrupt() {
    // SAFETY: see the module's head.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Reads a device's register.
pub fn read32(address: u64) -> u32 {
    // SAFETY: the first 4 GiB are mapped; see the module's head.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a device's register.
pub fn write32(address: u64, value: u32) {
    // SAFETY: the first 4 GiB are mapped; see the module's head.
    unsafe { (address as *mut u32).write_volatile(value) };
}
