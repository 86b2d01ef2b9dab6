//! Event numbers: the offset of the portal that an event goes to from its EC's event base (NOVA 8.6).
//!
//! Guest events are numbered as Intel's basic exit reasons on both vendors. The specification does not number SVM
//! intercepts; the kernel translates them, with their qualifications, so that a VMM has one vocabulary: an SVM
//! `CPUID` intercept is event 0x0a with the state that VMX would show. Where SVM knows no instruction length
//! (no next-RIP), the length is 0 and the VMM decodes.

/// Selectors for architectural host events; the information page conveys it as SEL_HST_ARCH.
pub const HOST_ARCH: u16 = 0x20;
/// Selectors for microhypervisor host events; SEL_HST_NOVA.
pub const HOST_NOVA: u16 = 2;
/// Selectors for architectural guest events; SEL_GST_ARCH.
pub const GUEST_ARCH: u16 = 0x80;
/// Selectors for microhypervisor guest events; SEL_GST_NOVA.
pub const GUEST_NOVA: u16 = 2;

/// Offset from SEL_*_ARCH: first run of an EC with a scheduling context (NOVA 8.6.2).
pub const STARTUP: u16 = 0;
/// Offset from SEL_*_ARCH: a recall was requested.
pub const RECALL: u16 = 1;

/// Guest events: Intel SDM vol. 3D, appendix C.
pub mod guest {
    /// Exception (those that the VMM asked to intercept).
    pub const EXCEPTION: u16 = 0x00;
    /// External interrupt: handled by the kernel.
    pub const EXTERNAL_INTERRUPT: u16 = 0x01;
    /// Triple fault; SVM shutdown.
    pub const TRIPLE_FAULT: u16 = 0x02;
    /// INIT signal.
    pub const INIT: u16 = 0x03;
    /// Start-up IPI.
    pub const SIPI: u16 = 0x04;
    /// Interrupt window open; SVM VINTR.
    pub const INTERRUPT_WINDOW: u16 = 0x07;
    /// NMI window open.
    pub const NMI_WINDOW: u16 = 0x08;
    /// Task switch.
    pub const TASK_SWITCH: u16 = 0x09;
    /// CPUID.
    pub const CPUID: u16 = 0x0a;
    /// GETSEC; SVM SKINIT.
    pub const GETSEC: u16 = 0x0b;
    /// HLT.
    pub const HLT: u16 = 0x0c;
    /// INVD.
    pub const INVD: u16 = 0x0d;
    /// INVLPG; SVM INVLPGA.
    pub const INVLPG: u16 = 0x0e;
    /// RDPMC.
    pub const RDPMC: u16 = 0x0f;
    /// RDTSC.
    pub const RDTSC: u16 = 0x10;
    /// RSM.
    pub const RSM: u16 = 0x11;
    /// VMCALL; SVM VMMCALL.
    pub const VMCALL: u16 = 0x12;
    /// VMCLEAR.
    pub const VMCLEAR: u16 = 0x13;
    /// VMLAUNCH; SVM VMRUN.
    pub const VMLAUNCH: u16 = 0x14;
    /// VMPTRLD; SVM VMLOAD.
    pub const VMPTRLD: u16 = 0x15;
    /// VMPTRST; SVM VMSAVE.
    pub const VMPTRST: u16 = 0x16;
    /// VMXOFF; SVM CLGI.
    pub const VMXOFF: u16 = 0x1a;
    /// VMXON; SVM STGI.
    pub const VMXON: u16 = 0x1b;
    /// Control-register access. First qualification: bits 3:0 the register, 5:4 MOV to it, MOV from it, CLTS, LMSW, 11:8
    /// the general register, 31:16 the operand of LMSW. [`UNKNOWN_OPERAND`] can be set.
    pub const CR_ACCESS: u16 = 0x1c;
    /// Debug-register access. First qualification: bits 2:0 the register, 4 MOV from it, 11:8 the general register.
    /// [`UNKNOWN_OPERAND`] can be set.
    pub const DR_ACCESS: u16 = 0x1d;
    /// First qualification of CR_ACCESS and DR_ACCESS on a processor that does not tell the instruction: only the
    /// register, and bit 4 for a read, mean something; the VMM decodes what is at RIP.
    pub const UNKNOWN_OPERAND: u64 = 1 << 63;
    /// Port input or output. First qualification: bits 2:0 size - 1, 3 input, 4 string, 5 REP, 6 immediate, 31:16 port.
    pub const IO: u16 = 0x1e;
    /// RDMSR.
    pub const RDMSR: u16 = 0x1f;
    /// WRMSR.
    pub const WRMSR: u16 = 0x20;
    /// Entry failed for invalid guest state; SVM VMEXIT_INVALID.
    pub const INVALID_STATE: u16 = 0x21;
    /// MWAIT.
    pub const MWAIT: u16 = 0x24;
    /// Monitor trap flag (VMX).
    pub const MONITOR_TRAP: u16 = 0x25;
    /// MONITOR.
    pub const MONITOR: u16 = 0x27;
    /// PAUSE.
    pub const PAUSE: u16 = 0x28;
    /// The task priority is below the threshold.
    pub const TPR_BELOW_THRESHOLD: u16 = 0x2b;
    /// Access to the APIC page (VMX).
    pub const APIC_ACCESS: u16 = 0x2c;
    /// Access to GDTR or IDTR.
    pub const GDTR_IDTR_ACCESS: u16 = 0x2e;
    /// Access to LDTR or TR.
    pub const LDTR_TR_ACCESS: u16 = 0x2f;
    /// Access to guest-physical memory without permission: EPT violation, nested page fault. First qualification:
    /// bit 0 read, 1 write, 2 fetch, 7 second qualification (linear address) valid. Third: guest-physical address.
    pub const PAGE_FAULT: u16 = 0x30;
    /// EPT misconfiguration.
    pub const EPT_MISCONFIGURATION: u16 = 0x31;
    /// RDTSCP.
    pub const RDTSCP: u16 = 0x33;
    /// WBINVD.
    pub const WBINVD: u16 = 0x36;
    /// XSETBV.
    pub const XSETBV: u16 = 0x37;
}
