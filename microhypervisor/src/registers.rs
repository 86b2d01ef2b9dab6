#![allow(unsafe_code)]
//! Control registers and model-specific registers, as far as the kernel writes them (Intel SDM vol. 3A, 2.5; vol. 4).
//!
//! Unsafe: privileged instructions.

use core::arch::asm;

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

/// Functions that read and write control and debug registers.
macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident: $read:ident $(#[$write_doc:meta])* $write:ident;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        #[allow(dead_code)] // The kernel never asks for CR3.
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading has no side effects.
            unsafe { asm!(concat!("mov {}, ", stringify!($name)), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
        $(#[$write_doc])*
        #[inline(always)]
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller's duty.
            unsafe { asm!(concat!("mov ", stringify!($name), ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )* };
}

registers! {
    /// Reads CR0.
    cr0: cr0
    /// Writes CR0.
    ///
    /// # Safety
    /// `value` must keep the kernel running: PE, PG, WP set.
    set_cr0;
    /// Page-fault linear address.
    cr2: cr2
    /// Writes CR2.
    ///
    /// # Safety
    /// Any value; no page fault may be on its way to a handler.
    set_cr2;
    /// Page tables.
    cr3: cr3
    /// Loads page tables; also flushes non-global translations.
    ///
    /// # Safety
    /// The tables at physical address `value` must map the kernel as the current ones do.
    set_cr3;
    /// Reads CR4.
    cr4: cr4
    /// Writes CR4.
    ///
    /// # Safety
    /// `value` must have only bits that the processor supports and must keep PAE.
    set_cr4;
    /// Reads DR6.
    dr6: dr6
    /// Writes DR6.
    ///
    /// # Safety
    /// The upper half must be zero.
    set_dr6;
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
