//! VMX on one CPU: whether it has what the kernel needs, and turning it on (Intel SDM vol. 3C, 24.7; 32.5).
#![allow(unsafe_code)] // MSRs, control registers, VMXON.

use super::spec::{self, CONTROLS, Controls, PIN, PRIMARY, ept, msr, pin};
use super::{Syscall, Vmx, vmcs};
use crate::registers::{Cr0, Cr4, EFER, FMASK, LSTAR, STAR, rdmsr, wrmsr};
use crate::vcpu::register::{CR4_VMXE, cpuid};
use crate::vcpu::{PhysPage, Tags};
use core::cell::Cell;
use kernel_core::reason::Reason;
use kernel_core::virt::{vmx_adjust, vmx_usable};

/// VMX on one CPU.
pub struct Processor {
    /// Initial values of [`CONTROLS`].
    pub(super) controls: [u32; CONTROLS.len()],
    /// Primary and secondary controls that a VMM can set.
    pub(super) vmm: [u32; 2],
    pub(super) revision: u32,
    /// Ticks of the preemption timer are 2^this of the TSC.
    pub(super) timer_shift: Option<u32>,
    /// Bits of CR0 and CR4 that must be set.
    pub(super) cr0: u64,
    pub(super) cr4: u64,
    pub has_page_1g: bool,
    /// The host's SYSCALL.
    pub(super) host: Syscall,
    pub(super) efer: u64,
    pub(super) tags: Tags,
    /// The vCPU whose VMCS is current.
    pub(super) current: Cell<*mut Vmx>,
}

const LACKS: &&str = &"the CPU lacks VMX controls, by capability MSR (31:0 of it: by bit): #";

impl Processor {
    /// See [`crate::vcpu::Processor::enable`].
    ///
    /// # Errors
    /// What the CPU lacks.
    pub fn enable(region: PhysPage) -> Result<Self, Reason> {
        let supported = cpuid(1)[2] & spec::CPUID_VMX != 0;
        // SAFETY: the MSRs exist on CPUs with VMX; those of secondary controls, EPT, and the TRUE ones are read after
        // what announces them.
        let read = |msr| unsafe { rdmsr(msr) };
        let feature_control = if supported { read(msr::FEATURE_CONTROL) } else { 0 };
        let action = vmx_usable(feature_control, supported)?;
        let basic = read(msr::BASIC);
        if basic & spec::BASIC_TRUE == 0 {
            return Err(Reason(&"the CPU lacks the TRUE capability MSRs", 0));
        }
        let mut controls = [0; CONTROLS.len()];
        for (value, Controls(msr, _, needed, welcome)) in controls.iter_mut().zip(CONTROLS) {
            *value = vmx_adjust(read(msr), needed, welcome)
                .map_err(|missing| Reason(LACKS, (msr as u64) << 32 | missing as u64))?;
        }
        controls[PRIMARY] &= !spec::WINDOWS;
        let mut needed = ept::FOUR_LEVELS | ept::WRITE_BACK | ept::PAGE_2M | ept::INVVPID | ept::INVVPID_ALL;
        needed |= ept::INVEPT | ept::INVEPT_SINGLE | ept::INVEPT_ALL;
        let capabilities = read(msr::EPT_VPID);
        let missing = needed & !capabilities;
        if missing != 0 {
            return Err(Reason(&"the CPU lacks EPT and VPID capabilities, by bit: #", missing));
        }
        let (cr0, cr4) = (read(msr::CR0_FIXED0), read(msr::CR4_FIXED0));
        let revision = basic as u32 & 0x7fff_ffff;
        // SAFETY: the kernel has PE, PG and NE set anyhow, and goes on as before with VMXE. The page is the CPU's.
        unsafe {
            if let Some(value) = action {
                wrmsr(msr::FEATURE_CONTROL, value);
            }
            Cr0::write_raw((Cr0::read_raw() | cr0) & read(msr::CR0_FIXED1));
            Cr4::write_raw((Cr4::read_raw() | cr4 | CR4_VMXE) & read(msr::CR4_FIXED1));
            region.va.cast::<u32>().write(revision);
            if !vmcs::vmxon(region.pa) {
                return Err(Reason(&"VMXON failed", 0));
            }
        }
        vmcs::invept(0);
        vmcs::invvpid_all();
        let has_timer = controls[PIN] & pin::PREEMPTION_TIMER != 0;
        let possible = |msr| (read(msr) >> 32) as u32;
        Ok(Self {
            controls,
            vmm: [possible(msr::TRUE_PRIMARY) & spec::VMM_PRIMARY, possible(msr::SECONDARY) & spec::VMM_SECONDARY],
            revision,
            timer_shift: has_timer.then(|| read(msr::MISC) as u32 & 31),
            cr0,
            cr4,
            has_page_1g: capabilities & ept::PAGE_1G != 0,
            host: [read(STAR), read(LSTAR), read(FMASK)],
            efer: read(EFER),
            tags: Tags::new(1 << 16),
            current: Cell::new(core::ptr::null_mut()),
        })
    }
}
