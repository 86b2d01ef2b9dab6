//! Registers that entering a guest touches beyond those of [`crate::registers`]
//! (Intel SDM vol. 3A, 2.5; vol. 4; AMD APM vol. 2, 3).
#![allow(unsafe_code)] // Privileged instructions.

use crate::registers::{rdmsr, wrmsr};
use core::arch::asm;
use x86_64::instructions::tables;
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3, Dr6};

/// CR0: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0: cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: machine-check enable.
pub const CR4_MCE: u64 = 1 << 6;
/// CR4: VMX enable.
pub const CR4_VMXE: u64 = 1 << 13;
/// EFER: SYSCALL enable.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: no-execute enable.
pub const EFER_NXE: u64 = 1 << 11;
/// EFER: SVM enable.
pub const EFER_SVME: u64 = 1 << 12;

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_CSTAR.
pub const CSTAR: u32 = 0xc000_0083;
/// IA32_FS_BASE; IA32_GS_BASE is the next one.
pub const FS_BASE: u32 = 0xc000_0100;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;

/// EAX, EBX, ECX, EDX of a CPUID leaf; zeros if the CPU has no such leaf.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    use core::arch::x86_64::__cpuid;
    if leaf > __cpuid(leaf & 0x8000_0000).eax {
        return [0; 4];
    }
    let r = __cpuid(leaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Writes CR2.
pub fn set_cr2(value: u64) {
    // SAFETY: CR2 takes any value and controls nothing.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// DR6.
pub fn dr6() -> u64 {
    Dr6::read_raw()
}

/// Sets DR6.
pub fn set_dr6(value: u64) {
    // SAFETY: a status register; the upper half must be zero.
    unsafe { asm!("mov dr6, {}", in(reg) value & 0xffff_ffff, options(nomem, nostack, preserves_flags)) };
}

/// A guest's state that neither vendor switches and host programs do not see: DR0 to DR3, DR6 and TSC_AUX.
pub struct Foreign {
    /// The guest's values are in the registers.
    live: bool,
    /// If the CPU has it.
    tsc_aux: Option<u64>,
    debug: [u64; 5],
}

impl Foreign {
    /// The state after reset.
    pub fn new() -> Self {
        const RDTSCP: u32 = 1 << 27;
        let has_tsc_aux = cpuid(0x8000_0001)[3] & RDTSCP != 0;
        Self { live: false, tsc_aux: has_tsc_aux.then_some(0), debug: [0, 0, 0, 0, 0xffff_0ff0] }
    }

    /// Puts the guest's values into the registers; false if they are there.
    pub fn enter(&mut self) -> bool {
        if self.live {
            return false;
        }
        self.live = true;
        let [dr0, dr1, dr2, dr3, dr6] = self.debug;
        // The host uses no breakpoints: DR7 enables none of them.
        Dr0::write(dr0);
        Dr1::write(dr1);
        Dr2::write(dr2);
        Dr3::write(dr3);
        set_dr6(dr6);
        if let Some(value) = self.tsc_aux {
            // SAFETY: the CPU has it, and the value has 32 bits.
            unsafe { wrmsr(TSC_AUX, value) };
        }
        true
    }

    /// Takes the guest's values out of the registers; false if they are not there.
    pub fn leave(&mut self) -> bool {
        if !self.live {
            return false;
        }
        self.debug = [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read(), dr6()];
        self.tsc_aux = self.tsc_aux.map(|_| self.tsc_aux());
        self.live = false;
        true
    }

    /// TSC_AUX; 0 if the CPU has none.
    pub fn tsc_aux(&self) -> u64 {
        match self.tsc_aux {
            // SAFETY: the CPU has it.
            Some(_) if self.live => unsafe { rdmsr(TSC_AUX) },
            value => value.unwrap_or(0),
        }
    }

    /// Sets TSC_AUX, if the CPU has it.
    pub fn set_tsc_aux(&mut self, value: u64) {
        self.leave();
        self.tsc_aux = self.tsc_aux.map(|_| value & 0xffff_ffff);
    }
}

/// Selectors of CS, SS and TR.
pub fn selectors() -> [u16; 3] {
    let (cs, ss, tr): (u16, u16, u16);
    // SAFETY: reading them has no effect.
    unsafe {
        asm!("mov {0:x}, cs", "mov {1:x}, ss", "str {2:x}", out(reg) cs, out(reg) ss, out(reg) tr,
            options(nomem, nostack, preserves_flags));
    }
    [cs, ss, tr]
}

/// Base of the task state segment, from its descriptor (Intel SDM vol. 3A, 8.2.3).
pub fn task_base() -> u64 {
    let [_, _, tr] = selectors();
    let descriptor = (tables::sgdt().base.as_u64() + u64::from(tr & !7)) as *const [u64; 2];
    // SAFETY: TR was loaded from there.
    let [low, high] = unsafe { descriptor.read() };
    low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32
}
