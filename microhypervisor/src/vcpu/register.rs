//! Registers that entering a guest touches beyond those of [`crate::registers`]
//! (Intel SDM vol. 3A, 2.5; vol. 4; AMD APM vol. 2, 3).
#![allow(unsafe_code)] // Privileged instructions.

use crate::registers::{Dr6, rdmsr, set_dr6, wrmsr};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3};

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
/// EFER: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: SVM enable.
pub const EFER_SVME: u64 = 1 << 12;

/// DR6: what a debug exception can report by breakpoints, access to debug registers, and single steps.
pub const DR6_CONDITIONS: u64 = 0x600f;

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
        let [dr0, dr1, dr2, dr3, status] = self.debug;
        // The host uses no breakpoints: DR7 enables none of them.
        Dr0::write(dr0);
        Dr1::write(dr1);
        Dr2::write(dr2);
        Dr3::write(dr3);
        // SAFETY: the values came from the registers, or were checked; the CPU has TSC_AUX.
        unsafe {
            set_dr6(status);
            if let Some(value) = self.tsc_aux {
                wrmsr(TSC_AUX, value);
            }
        }
        true
    }

    /// Takes the guest's values out of the registers; false if they are not there.
    pub fn leave(&mut self) -> bool {
        if !self.live {
            return false;
        }
        self.debug = [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read(), Dr6::read_raw()];
        // SAFETY: the CPU has it.
        self.tsc_aux = self.tsc_aux.map(|_| unsafe { rdmsr(TSC_AUX) });
        self.live = false;
        true
    }

    /// TSC_AUX, if the CPU has it.
    pub fn tsc_aux(&mut self) -> Option<&mut u64> {
        self.leave();
        self.tsc_aux.as_mut()
    }
}
