#![allow(unsafe_code)]
//! Control registers and model-specific registers, as far as the kernel writes them (Intel SDM vol. 3A, 2.5; vol. 4).
//!
//! Unsafe: privileged instructions.

use core::arch::asm;

pub use x86_64::registers::control::{Cr0, Cr2, Cr4};
pub use x86_64::registers::debug::Dr6;
use x86_64::registers::model_specific::Msr;

/// CR0.AM: programs that set RFLAGS.AC get #AC.
pub const CR0_AM: u64 = 1 << 18;
/// CR0.TS: FPU instructions raise #NM.
pub const CR0_TS: u64 = 1 << 3;

/// IA32_SYSENTER_CS; IA32_SYSENTER_ESP and EIP follow.
pub const SYSENTER_CS: u32 = 0x174;
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
    // SAFETY: the caller's duty.
    unsafe { Msr::new(msr).read() }
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist, and `value` must keep the kernel sound.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's duty.
    unsafe { Msr::new(msr).write(value) }
}

/// Writes CR2.
///
/// # Safety
/// No page fault may be on its way to a handler.
#[inline(always)]
pub unsafe fn set_cr2(value: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Loads page tables; also flushes non-global translations.
///
/// # Safety
/// The tables at physical address `value` must map the kernel as the current ones do.
#[inline(always)]
pub unsafe fn set_cr3(value: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Writes DR6.
///
/// # Safety
/// The upper half must be zero.
#[inline(always)]
pub unsafe fn set_dr6(value: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nostack, preserves_flags)) };
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
