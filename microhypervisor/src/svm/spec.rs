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
/// Feature: next-RIP on exits, and of injected software interrupts.
pub const FEATURE_NEXT_RIP: u32 = 1 << 3;
/// Feature: operands of intercepted MOV to and from control and debug registers.
pub const FEATURE_DECODE_ASSISTS: u32 = 1 << 7;

/// MSR VM_CR.
pub const VM_CR: u32 = 0xc001_0114;
/// MSR VM_HSAVE_PA.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Modules of constants: name and value of each.
macro_rules! constants {
    ($($(#[$doc:meta])* $module:ident: $type:ty { $($name:ident $value:literal)* })*) => { $(
        $(#[$doc])*
        pub mod $module { $(pub const $name: $type = $value;)* }
    )* };
}

constants! {
    /// Intercepts of the first word.
    first: u32 {
        INTERRUPT 0x1 NMI 0x2 INIT 0x8 VIRTUAL_INTERRUPT 0x10 DESCRIPTOR_TABLES 0x3fc0 RDTSC 0x4000
        RDPMC 0x8000 CPUID 0x4_0000 RSM 0x8_0000 IRET 0x10_0000 INVD 0x40_0000 PAUSE 0x80_0000 HLT 0x100_0000 INVLPG 0x200_0000 INVLPGA 0x400_0000 IO 0x800_0000
        MSR 0x1000_0000 SHUTDOWN 0x8000_0000
    }
    /// Intercepts of the second word; SVM are VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
    second: u32 { SVM 0x7f RDTSCP 0x80 WBINVD 0x200 MONITOR 0x400 MWAIT 0x800 XSETBV 0x2000 RDPRU 0x4000 }
    /// Virtual interrupt control.
    virtual_interrupt: u64 { TPR 0xf PENDING 0x100 IGNORE_TPR 0x10_0000 MASKING 0x100_0000 }
    /// Exit codes that carry information or are for the kernel.
    code: u64 {
        CR 0x00 CR8_WRITE 0x18 DR 0x20 DR_LAST 0x3f EXCEPTION 0x40 EXCEPTION_LAST 0x5f INTERRUPT 0x60
        NMI 0x61 VIRTUAL_INTERRUPT 0x64 IRET 0x74 INVLPG 0x79 IO 0x7b MSR 0x7c NESTED_FAULT 0x400 INVALID 0xffff_ffff_ffff_ffff
    }
    /// First information of a port access; from SIZE_SHIFT on the size in bytes.
    io: u64 { INPUT 0x1 STRING 0x4 REPEAT 0x8 SIZE_SHIFT 4 PORT 0xffff_0000 }
    /// First information of a nested page fault.
    nested: u64 { PRESENT 0x1 WRITE 0x2 FETCH 0x10 FINAL 0x1_0000_0000 }
}

/// What always exits, by the first word.
pub const FIRST_INTERCEPTS: u32 = {
    use first::*;
    const KERNEL: u32 = INTERRUPT | NMI | INIT | VIRTUAL_INTERRUPT | SHUTDOWN;
    KERNEL | RDPMC | CPUID | RSM | INVD | HLT | INVLPGA | IO | MSR
};
/// What always exits, by the second word.
pub const SECOND_INTERCEPTS: u32 = {
    use second::*;
    SVM | WBINVD | MONITOR | MWAIT | XSETBV | RDPRU
};

/// Events of VMX by exit code, of those that correspond to one; 0 for others. An access to an MSR counts as RDMSR.
pub static EVENTS: [u8; 0x8f] = {
    let mut events = [0; 0x8f];
    let mut n = 0;
    while n < PAIRS.len() {
        events[PAIRS[n][0] as usize] = PAIRS[n][1];
        n += 1;
    }
    events
};

#[rustfmt::skip]
const PAIRS: [[u8; 2]; 35] = {
    use abi::event::guest::*;
    macro_rules! pairs { ($(($code:literal, $event:ident)),*,) => { [$([$code, $event as u8]),*] } }
    pairs! [
        (0x63, INIT), (0x66, GDTR_IDTR_ACCESS), (0x67, GDTR_IDTR_ACCESS), (0x68, LDTR_TR_ACCESS),
        (0x69, LDTR_TR_ACCESS), (0x6a, GDTR_IDTR_ACCESS), (0x6b, GDTR_IDTR_ACCESS), (0x6c, LDTR_TR_ACCESS),
        (0x6d, LDTR_TR_ACCESS), (0x6e, RDTSC), (0x6f, RDPMC), (0x72, CPUID), (0x73, RSM), (0x76, INVD), (0x77, PAUSE),
        (0x78, HLT), (0x79, INVLPG), (0x7a, INVLPG), (0x7b, IO), (0x7c, RDMSR), (0x7d, TASK_SWITCH), (0x7f, TRIPLE_FAULT), (0x80, VMLAUNCH), (0x81, VMCALL),
        (0x82, VMPTRLD), (0x83, VMPTRST), (0x84, VMXON), (0x85, VMXOFF), (0x86, GETSEC), (0x87, RDTSCP),
        (0x89, WBINVD), (0x8a, MONITOR), (0x8b, MWAIT), (0x8d, XSETBV), (0x8e, RDPMC),
    ]
};

/// Control-register intercepts, of the registers that have them: reads, from here on writes.
pub const CR_WRITES: u32 = 16;
/// Control-register intercepts: writes of CR8.
pub const CR8_WRITE: u32 = 1 << 24;
/// First information of a control-register access: an assist tells the operand of a MOV.
pub const MOV_CR_TOLD: u64 = 1 << 63;

/// TLB control: flush all ASIDs.
pub const FLUSH_ALL: u32 = 1;
/// Event injection and interrupted delivery: valid.
pub const INFO_VALID: u64 = 1 << 31;

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

impl Vmcb {
    /// The guest's CR8.
    pub fn task_priority(&self) -> u64 {
        self.virtual_interrupt & virtual_interrupt::TPR
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Vmcb, io_bitmap) == 0x40 && offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, next_rip) == 0xc8 && offset_of!(Vmcb, es) == 0x400 && offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, cr4) == 0x548 && offset_of!(Vmcb, rax) == 0x5f8 && offset_of!(Vmcb, pat) == 0x668);
    assert!(size_of::<Vmcb>() == 4096);
};
