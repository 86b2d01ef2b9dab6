//! Layouts of the user thread control block (NOVA 4.3, 8.7.3).

/// Number of message words in the regular layout.
pub const WORDS: usize = 512;

/// A segment register in the UTCB (NOVA 8.7.3, 8.7.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Access rights: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11, unusable 12.
    pub access: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// GDTR or IDTR in the UTCB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DescriptorTable {
    /// Reserved.
    pub reserved: u32,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// The architectural layout: the state of an EC in the UTCB of its event handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Architectural {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the numbering of instruction encodings.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    /// Length of the instruction that caused the event; 0 if the hardware does not tell.
    pub instruction_length: u32,
    /// VM-exit instruction information (VMX).
    pub instruction_info: u32,
    /// Interruptibility state: bit 0 STI, 1 MOV SS, 2 SMI, 3 NMI.
    pub interruptibility: u32,
    /// Activity state: 0 active, 1 HLT, 2 shutdown, 3 wait for SIPI.
    pub activity: u32,
    /// Guest: exit qualification, guest-linear address, guest-physical address. Host: error code, fault address.
    pub qualification: [u64; 3],
    /// Reserved.
    pub reserved: u64,
    /// Primary execution controls.
    pub exec_controls_1: u32,
    /// Secondary execution controls.
    pub exec_controls_2: u32,
    /// Tertiary execution controls.
    pub exec_controls_3: u64,
    /// Bits of CR0 that the VMM owns.
    pub cr0_intercepts: u64,
    /// Bits of CR4 that the VMM owns.
    pub cr4_intercepts: u64,
    /// Exceptions that exit.
    pub exception_intercepts: u32,
    /// Page-fault error-code mask.
    pub page_fault_mask: u32,
    /// Page-fault error-code match.
    pub page_fault_match: u32,
    /// TPR threshold.
    pub tpr_threshold: u32,
    /// Event to inject, see [`crate::mtd::injection`].
    pub interruption_info: u32,
    /// Error code of that event.
    pub interruption_error: u32,
    /// Event whose delivery the exit interrupted.
    pub vectoring_info: u32,
    /// Error code of that event.
    pub vectoring_error: u32,
    /// Code segment.
    pub cs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Extra segment.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// Page-directory-pointer-table entries (32-bit PAE paging).
    pub pdpte: [u64; 4],
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// DR7.
    pub dr7: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// Selector of the guest space to assign.
    pub sel_gst: u64,
    /// Selector of the PIO space to assign.
    pub sel_pio: u64,
    /// Selector of the MSR space to assign.
    pub sel_msr: u64,
}

/// Indices into [`Architectural::gpr`].
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Architectural, rip) == 0x88);
    assert!(offset_of!(Architectural, qualification) == 0xa0);
    assert!(offset_of!(Architectural, exec_controls_1) == 0xc0);
    assert!(offset_of!(Architectural, interruption_info) == 0xf0);
    assert!(offset_of!(Architectural, cs) == 0x100);
    assert!(offset_of!(Architectural, gdtr) == 0x180);
    assert!(offset_of!(Architectural, cr0) == 0x1c0);
    assert!(offset_of!(Architectural, apic_base) == 0x200);
    assert!(offset_of!(Architectural, tsc_aux) == 0x250);
    assert!(offset_of!(Architectural, sel_msr) == 0x268);
    assert!(core::mem::size_of::<Architectural>() == 0x270);
};
