//! Message transfer descriptors (NOVA 4.4, 8.7.4).

use bitflags::bitflags;

bitflags! {
    /// Which architectural state travels between an EC and the UTCB of its event handler.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Mtd: u32 {
        /// Reply only: kills the EC.
        const POISON = 1 << 0;
        /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
        const GPR_0_7 = 1 << 1;
        /// R8 to R15.
        const GPR_8_15 = 1 << 2;
        /// RFLAGS.
        const RFLAGS = 1 << 3;
        /// RIP; for guests also instruction length and information.
        const RIP = 1 << 4;
        /// Interruptibility and activity state.
        const STA = 1 << 5;
        /// Qualifications.
        const QUAL = 1 << 6;
        /// Execution controls, CR and exception intercepts, page-fault error mask and match.
        const CTRL = 1 << 7;
        /// TPR threshold.
        const TPR = 1 << 8;
        /// Interruption and IDT-vectoring information.
        const INJ = 1 << 9;
        /// CS and SS.
        const CS_SS = 1 << 10;
        /// DS and ES.
        const DS_ES = 1 << 11;
        /// FS and GS.
        const FS_GS = 1 << 12;
        /// TR.
        const TR = 1 << 13;
        /// LDTR.
        const LDTR = 1 << 14;
        /// GDTR.
        const GDTR = 1 << 15;
        /// IDTR.
        const IDTR = 1 << 16;
        /// PDPTEs.
        const PDPTE = 1 << 17;
        /// CR0, CR2, CR3, CR4, CR8.
        const CR = 1 << 18;
        /// DR7.
        const DR = 1 << 19;
        /// XCR0 and IA32_XSS.
        const XSAVE = 1 << 20;
        /// IA32_APIC_BASE.
        const APIC = 1 << 21;
        /// IA32_STAR, IA32_LSTAR, IA32_FMASK.
        const SYSCALL = 1 << 22;
        /// IA32_SYSENTER_CS, _ESP, _EIP.
        const SYSENTER = 1 << 23;
        /// IA32_PAT.
        const PAT = 1 << 24;
        /// IA32_EFER.
        const EFER = 1 << 25;
        /// IA32_KERNEL_GS_BASE.
        const KERNEL_GS = 1 << 26;
        /// IA32_TSC_AUX.
        const TSC = 1 << 27;
        /// Reply only: invalidates the TLB of the vCPU.
        const TLB = 1 << 29;
        /// FPU state (reserved by the specification).
        const FPU = 1 << 30;
        /// Reply only: assigns guest, PIO and MSR spaces.
        const SPACES = 1 << 31;
    }
}

impl Mtd {
    /// The descriptor of a regular message with `words` words, 1 to 512 (NOVA 4.4.1).
    pub const fn regular(words: usize) -> u32 {
        (words as u32).wrapping_sub(1) & 0x1ff
    }
}

/// Interruption information in the UTCB (NOVA 8.7.3.2).
pub mod injection {
    /// The information is valid.
    pub const VALID: u32 = 1 << 31;
    /// Request an NMI window.
    pub const NMI_WINDOW: u32 = 1 << 13;
    /// Request an interrupt window.
    pub const INTERRUPT_WINDOW: u32 = 1 << 12;
    /// Deliver the error code.
    pub const ERROR_CODE: u32 = 1 << 11;
    /// Mask of the event type.
    pub const TYPE_MASK: u32 = 7 << 8;
    /// External interrupt.
    pub const TYPE_EXTERNAL: u32 = 0 << 8;
    /// Non-maskable interrupt.
    pub const TYPE_NMI: u32 = 2 << 8;
    /// Hardware exception.
    pub const TYPE_EXCEPTION: u32 = 3 << 8;
    /// Software interrupt.
    pub const TYPE_SOFTWARE: u32 = 4 << 8;
    /// Privileged software exception (INT1).
    pub const TYPE_PRIVILEGED: u32 = 5 << 8;
    /// Software exception (INT3, INTO).
    pub const TYPE_SOFTWARE_EXCEPTION: u32 = 6 << 8;
}
