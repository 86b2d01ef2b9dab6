#![allow(unsafe_code)]
//! Control registers and model-specific registers, as far as the kernel writes them (Intel SDM vol. 3A, 2.5; vol. 4).
//!
//! Unsafe: privileged instructions.

use core::arch::asm;

/// CR0.AM: programs that set RFLAGS.AC get #AC.
pub const CR0_AM: u64 = 1 << 18;
/// CR0.TS: FPU instructions raise #NM.
pub const CR0_TS: u64 = 1 << 3;

/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// IA32_STAR.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_FMASK.
pub const FMASK: u32 = 0xc000_0084;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// Reads a model-specific register.
///
/// # Safety
/// The register must exist.
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's duty.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    low as u64 | (high as u64) << 32
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist, and `value` must keep the kernel sound.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's duty.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// Page-fault linear address.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 has no side effects.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reading CR0 has no side effects.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR0.
///
/// # Safety
/// `value` must keep the kernel running: PE, PG, WP set.
pub unsafe fn set_cr0(value: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading CR4 has no side effects.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR4.
///
/// # Safety
/// `value` must have only bits that the processor supports and must keep PAE.
pub unsafe fn set_cr4(value: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Loads page tables; also flushes non-global translations.
///
/// # Safety
/// The tables at physical address `root` must map the kernel as the current ones do.
#[inline(always)]
pub unsafe fn set_cr3(root: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Takes pending interrupts in the kernel, then goes on with interrupts off.
pub fn interrupt_window() {
    // SAFETY: the kernel's interrupt path saves and restores everything; no lock is held here.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Waits for an interrupt and takes it, then goes on with interrupts off.
pub fn halt() {
    // SAFETY: as for `interrupt_window`; STI's shadow keeps the interrupt from coming before HLT.
    unsafe { asm!("sti", "hlt", "cli") };
}
