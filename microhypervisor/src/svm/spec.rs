//! What the SVM unit defines: CPUID (AMD APM vol. 3, appendix E), MSRs (vol. 2, 15.30), the control block (vol. 2,
//! appendix B), exit codes (appendix C).

use abi::utcb::Segment;

/// CPUID leaf 0x8000_0001 ECX: SVM.
pub const CPUID_SVM: u32 = 1 << 2;
/// CPUID leaf 0x8000_0001 EDX: 1 GiB pages.
pub const CPUID_PAGE_1G: u32 = 1 << 26;
/// CPUID leaf of SVM: EBX is the number of ASIDs, EDX the features.
pub const CPUID_FEATURES: u32 = 0x8000_000a;
/// Feature: nested paging.
pub const FEATURE_NESTED_PAGING: u32 = 1 << 0;
/// Feature: next-RIP on exits.
pub const FEATURE_NEXT_RIP: u32 = 1 << 3;
/// Feature: operands of intercepted MOV to and from control and debug registers.
pub const FEATURE_DECODE_ASSISTS: u32 = 1 << 7;

/// MSR VM_CR.
pub const VM_CR: u32 = 0xc001_0114;
/// MSR VM_HSAVE_PA.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Intercepts of the first word.
pub mod first {
    pub const INTERRUPT: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const INIT: u32 = 1 << 3;
    pub const VIRTUAL_INTERRUPT: u32 = 1 << 4;
    pub const RDTSC: u32 = 1 << 14;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const RSM: u32 = 1 << 19;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPG: u32 = 1 << 25;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of the second word.
pub mod second {
    /// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
    pub const SVM: u32 = 0x7f;
    pub const RDTSCP: u32 = 1 << 7;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Virtual interrupt control.
pub mod virtual_interrupt {
    pub const TPR: u64 = 0xf;
    pub const PENDING: u64 = 1 << 8;
    pub const IGNORE_TPR: u64 = 1 << 20;
    pub const MASKING: u64 = 1 << 24;
}

/// TLB control: flush all ASIDs.
pub const FLUSH_ALL: u64 = 1;

/// Event injection and interrupted delivery: valid, error code.
pub const INFO_VALID: u64 = 1 << 31;

/// Exit codes.
pub mod code {
    pub const CR: u64 = 0x00;
    pub const CR_LAST: u64 = 0x1f;
    pub const DR: u64 = 0x20;
    pub const DR_LAST: u64 = 0x3f;
    pub const EXCEPTION: u64 = 0x40;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTERRUPT: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const INIT: u64 = 0x63;
    pub const VIRTUAL_INTERRUPT: u64 = 0x64;
    pub const RDTSC: u64 = 0x6e;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPG: u64 = 0x79;
    pub const INVLPGA: u64 = 0x7a;
    pub const IO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const VMSAVE: u64 = 0x83;
    pub const STGI: u64 = 0x84;
    pub const CLGI: u64 = 0x85;
    pub const SKINIT: u64 = 0x86;
    pub const RDTSCP: u64 = 0x87;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NESTED_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
}

/// First information of a port access.
pub mod io {
    pub const INPUT: u64 = 1 << 0;
    pub const STRING: u64 = 1 << 2;
    pub const REPEAT: u64 = 1 << 3;
    /// Bits 6:4 are the size in bytes.
    pub const SIZE_SHIFT: u32 = 4;
}

/// First information of a nested page fault.
pub mod nested {
    pub const WRITE: u64 = 1 << 1;
    pub const FETCH: u64 = 1 << 4;
    pub const FINAL: u64 = 1 << 32;
}

/// The virtual machine control block.
#[repr(C, align(4096))]
pub struct Vmcb {
    /// Reads in the lower half, writes in the upper half, by register number.
    pub cr_intercepts: u32,
    pub dr_intercepts: u32,
    pub exception_intercepts: u32,
    pub first_intercepts: u32,
    pub second_intercepts: u32,
    _0: [u32; 11],
    pub io_bitmap: u64,
    pub msr_bitmap: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    /// Bit 0: interrupt shadow.
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info: [u64; 2],
    pub interrupted: u64,
    /// Bit 0: nested paging.
    pub nested_control: u64,
    _1: [u64; 2],
    pub injection: u64,
    pub nested_cr3: u64,
    pub lbr_control: u64,
    /// 0: take nothing from a cache.
    pub clean: u64,
    pub next_rip: u64,
    _2: [u64; 102],
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    _3: [u8; 43],
    pub cpl: u8,
    _4: u32,
    pub efer: u64,
    _5: [u64; 14],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    _6: [u64; 11],
    pub rsp: u64,
    _7: [u64; 3],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    _8: [u64; 4],
    pub pat: u64,
    _9: [u64; 306],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Vmcb, io_bitmap) == 0x40);
    assert!(offset_of!(Vmcb, asid) == 0x58);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, injection) == 0xa8);
    assert!(offset_of!(Vmcb, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, es) == 0x400);
    assert!(offset_of!(Vmcb, tr) == 0x490);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, pat) == 0x668);
    assert!(size_of::<Vmcb>() == 4096);
};
