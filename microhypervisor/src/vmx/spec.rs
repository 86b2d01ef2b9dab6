//! What the VMX unit defines: MSRs (Intel SDM vol. 4; vol. 3D, appendix A), control bits (vol. 3C, 25.6 to 25.8),
//! VMCS fields (vol. 3D, appendix B), exit reasons (appendix C).

/// CPUID leaf 1 ECX: VMX.
pub const CPUID_VMX: u32 = 1 << 5;

/// Model-specific registers.
pub mod msr {
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const VMX_BASIC: u32 = 0x480;
    pub const VMX_MISC: u32 = 0x485;
    pub const VMX_CR0_FIXED0: u32 = 0x486;
    pub const VMX_CR0_FIXED1: u32 = 0x487;
    pub const VMX_CR4_FIXED0: u32 = 0x488;
    pub const VMX_CR4_FIXED1: u32 = 0x489;
    pub const VMX_SECONDARY: u32 = 0x48b;
    pub const VMX_EPT_VPID: u32 = 0x48c;
    pub const VMX_TRUE_PIN: u32 = 0x48d;
    pub const VMX_TRUE_PRIMARY: u32 = 0x48e;
    pub const VMX_TRUE_EXIT: u32 = 0x48f;
    pub const VMX_TRUE_ENTRY: u32 = 0x490;
}

/// VMX_BASIC: the TRUE capability MSRs exist.
pub const BASIC_TRUE: u64 = 1 << 55;

/// Pin-based controls.
pub mod pin {
    pub const EXTERNAL_INTERRUPT: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
}

/// Primary processor-based controls.
pub mod primary {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const HLT: u32 = 1 << 7;
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const CR3_LOAD: u32 = 1 << 15;
    pub const CR3_STORE: u32 = 1 << 16;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const IO_BITMAPS: u32 = 1 << 25;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls.
pub mod secondary {
    pub const EPT: u32 = 1 << 1;
    pub const RDTSCP: u32 = 1 << 3;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const INVPCID: u32 = 1 << 12;
}

/// Exit controls.
pub mod exit {
    pub const SAVE_DEBUG: u32 = 1 << 2;
    pub const HOST_64: u32 = 1 << 9;
    pub const ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// Entry controls.
pub mod entry {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const IA32E: u32 = 1 << 9;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// EPT and VPID capabilities; the invalidation kinds that every CPU with unrestricted guests has are not named.
pub mod ept {
    pub const FOUR_LEVELS: u64 = 1 << 6;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const PAGE_2M: u64 = 1 << 16;
    pub const PAGE_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_ALL: u64 = 1 << 42;
    /// EPT pointer: write-back tables of four levels.
    pub const POINTER: u64 = 3 << 3 | 6;
}

/// Interruption information and vectoring information: valid.
pub const INFO_VALID: u32 = 1 << 31;
/// Those bits of information from an exit that make up information for an entry.
pub const INFO_EVENT: u32 = INFO_VALID | 0xfff;
/// Exit reason: the entry failed.
pub const ENTRY_FAILED: u32 = 1 << 31;
/// Exit reasons that [`abi::event::guest`] does not name.
pub mod reason {
    pub const APIC_ACCESS: u16 = 0x2c;
    pub const MACHINE_CHECK_AT_ENTRY: u16 = 0x29;
    pub const PREEMPTION_TIMER: u16 = 0x34;
}

/// VMCS fields.
pub mod field {
    pub const VPID: u32 = 0x0000;

    pub const ES_SELECTOR: u32 = 0x0800;
    pub const CS_SELECTOR: u32 = 0x0802;
    pub const SS_SELECTOR: u32 = 0x0804;
    pub const DS_SELECTOR: u32 = 0x0806;
    pub const FS_SELECTOR: u32 = 0x0808;
    pub const GS_SELECTOR: u32 = 0x080a;
    pub const LDTR_SELECTOR: u32 = 0x080c;
    pub const TR_SELECTOR: u32 = 0x080e;

    /// ES; CS, SS, DS, FS, GS follow, two apart.
    pub const HOST_SELECTORS: u32 = 0x0c00;
    pub const HOST_CS: u32 = 0x0c02;
    pub const HOST_SS: u32 = 0x0c04;
    pub const HOST_TR: u32 = 0x0c0c;

    pub const IO_BITMAP_A: u32 = 0x2000;
    pub const IO_BITMAP_B: u32 = 0x2002;
    pub const MSR_BITMAP: u32 = 0x2004;
    pub const TSC_OFFSET: u32 = 0x2010;
    pub const VIRTUAL_APIC: u32 = 0x2012;
    pub const EPT_POINTER: u32 = 0x201a;
    pub const PHYSICAL_ADDRESS: u32 = 0x2400;

    pub const LINK_POINTER: u32 = 0x2800;
    pub const DEBUGCTL: u32 = 0x2802;
    pub const PAT: u32 = 0x2804;
    pub const EFER: u32 = 0x2806;
    pub const PDPTE0: u32 = 0x280a;
    pub const PDPTE1: u32 = 0x280c;
    pub const PDPTE2: u32 = 0x280e;
    pub const PDPTE3: u32 = 0x2810;

    pub const HOST_PAT: u32 = 0x2c00;
    pub const HOST_EFER: u32 = 0x2c02;

    pub const PIN_CONTROLS: u32 = 0x4000;
    pub const PRIMARY_CONTROLS: u32 = 0x4002;
    pub const EXCEPTION_BITMAP: u32 = 0x4004;
    pub const PAGE_FAULT_MASK: u32 = 0x4006;
    pub const PAGE_FAULT_MATCH: u32 = 0x4008;
    pub const CR3_TARGETS: u32 = 0x400a;
    pub const EXIT_CONTROLS: u32 = 0x400c;
    pub const EXIT_MSR_STORES: u32 = 0x400e;
    pub const EXIT_MSR_LOADS: u32 = 0x4010;
    pub const ENTRY_CONTROLS: u32 = 0x4012;
    pub const ENTRY_MSR_LOADS: u32 = 0x4014;
    pub const ENTRY_INFO: u32 = 0x4016;
    pub const ENTRY_ERROR: u32 = 0x4018;
    pub const ENTRY_LENGTH: u32 = 0x401a;
    pub const TPR_THRESHOLD: u32 = 0x401c;
    pub const SECONDARY_CONTROLS: u32 = 0x401e;

    pub const INSTRUCTION_ERROR: u32 = 0x4400;
    pub const REASON: u32 = 0x4402;
    pub const EXIT_INFO: u32 = 0x4404;
    pub const EXIT_ERROR: u32 = 0x4406;
    pub const VECTORING_INFO: u32 = 0x4408;
    pub const VECTORING_ERROR: u32 = 0x440a;
    pub const INSTRUCTION_LENGTH: u32 = 0x440c;
    pub const INSTRUCTION_INFO: u32 = 0x440e;

    pub const ES_LIMIT: u32 = 0x4800;
    pub const CS_LIMIT: u32 = 0x4802;
    pub const SS_LIMIT: u32 = 0x4804;
    pub const DS_LIMIT: u32 = 0x4806;
    pub const FS_LIMIT: u32 = 0x4808;
    pub const GS_LIMIT: u32 = 0x480a;
    pub const LDTR_LIMIT: u32 = 0x480c;
    pub const TR_LIMIT: u32 = 0x480e;
    pub const GDTR_LIMIT: u32 = 0x4810;
    pub const IDTR_LIMIT: u32 = 0x4812;
    pub const ES_ACCESS: u32 = 0x4814;
    pub const CS_ACCESS: u32 = 0x4816;
    pub const SS_ACCESS: u32 = 0x4818;
    pub const DS_ACCESS: u32 = 0x481a;
    pub const FS_ACCESS: u32 = 0x481c;
    pub const GS_ACCESS: u32 = 0x481e;
    pub const LDTR_ACCESS: u32 = 0x4820;
    pub const TR_ACCESS: u32 = 0x4822;
    pub const INTERRUPTIBILITY: u32 = 0x4824;
    pub const ACTIVITY: u32 = 0x4826;
    pub const SYSENTER_CS: u32 = 0x482a;
    pub const TIMER: u32 = 0x482e;
    pub const HOST_SYSENTER_CS: u32 = 0x4c00;

    pub const CR0_MASK: u32 = 0x6000;
    pub const CR4_MASK: u32 = 0x6002;
    pub const CR0_SHADOW: u32 = 0x6004;
    pub const CR4_SHADOW: u32 = 0x6006;
    pub const QUALIFICATION: u32 = 0x6400;
    pub const LINEAR_ADDRESS: u32 = 0x640a;

    pub const CR0: u32 = 0x6800;
    pub const CR3: u32 = 0x6802;
    pub const CR4: u32 = 0x6804;
    pub const ES_BASE: u32 = 0x6806;
    pub const CS_BASE: u32 = 0x6808;
    pub const SS_BASE: u32 = 0x680a;
    pub const DS_BASE: u32 = 0x680c;
    pub const FS_BASE: u32 = 0x680e;
    pub const GS_BASE: u32 = 0x6810;
    pub const LDTR_BASE: u32 = 0x6812;
    pub const TR_BASE: u32 = 0x6814;
    pub const GDTR_BASE: u32 = 0x6816;
    pub const IDTR_BASE: u32 = 0x6818;
    pub const DR7: u32 = 0x681a;
    pub const RSP: u32 = 0x681c;
    pub const RIP: u32 = 0x681e;
    pub const RFLAGS: u32 = 0x6820;
    pub const PENDING_DEBUG: u32 = 0x6822;
    pub const SYSENTER_ESP: u32 = 0x6824;
    pub const SYSENTER_EIP: u32 = 0x6826;

    pub const HOST_CR0: u32 = 0x6c00;
    pub const HOST_CR3: u32 = 0x6c02;
    pub const HOST_CR4: u32 = 0x6c04;
    pub const HOST_FS_BASE: u32 = 0x6c06;
    pub const HOST_GS_BASE: u32 = 0x6c08;
    pub const HOST_TR_BASE: u32 = 0x6c0a;
    pub const HOST_GDTR_BASE: u32 = 0x6c0c;
    pub const HOST_IDTR_BASE: u32 = 0x6c0e;
    pub const HOST_SYSENTER_ESP: u32 = 0x6c10;
    pub const HOST_SYSENTER_EIP: u32 = 0x6c12;
    pub const HOST_RSP: u32 = 0x6c14;
    pub const HOST_RIP: u32 = 0x6c16;
}
