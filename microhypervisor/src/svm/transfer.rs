//! State transfer between UTCB and control block: a table, and by hand only what is not a plain copy.

use super::Svm;
use super::spec::{CR_WRITES, INFO_VALID, Vmcb, first, second, virtual_interrupt};
use super::step::Nmi;
use crate::vcpu::register::EFER_SVME;
use crate::vcpu::{consistent_efer, vector};
use crate::vmx::spec::{primary, secondary};
use abi::Mtd;
use abi::mtd::injection;
use abi::utcb::{Architectural, DescriptorTable, Segment};

/// A field of the UTCB, exchanged with the one of the control block that corresponds to it.
trait Transfer<T> {
    fn transfer(&mut self, vmcb: &mut T, save: bool);
}

impl Transfer<u64> for u64 {
    fn transfer(&mut self, vmcb: &mut u64, save: bool) {
        if save { *self = *vmcb } else { *vmcb = *self }
    }
}

impl Transfer<Segment> for DescriptorTable {
    fn transfer(&mut self, vmcb: &mut Segment, save: bool) {
        self.base.transfer(&mut vmcb.base, save);
        if save { self.limit = vmcb.limit } else { vmcb.limit = self.limit }
    }
}

impl Transfer<Segment> for Segment {
    /// Access rights, usable (NOVA 8.7.3.1): a segment that is not has no access rights in the control block.
    fn transfer(&mut self, vmcb: &mut Segment, save: bool) {
        const UNUSABLE: u16 = 1 << 12;
        const PRESENT: u16 = 1 << 7;
        if save {
            *self = *vmcb;
            self.access = vmcb.access & 0xfff | if vmcb.access & PRESENT == 0 { UNUSABLE } else { 0 };
        } else {
            *vmcb = *self;
            vmcb.access = if self.access & UNUSABLE != 0 { 0 } else { self.access & 0xfff };
        }
    }
}

/// From a list of descriptor bits and fields that have the same name in both.
macro_rules! table {
    ($($mtd:ident { $($field:ident)* })*) => {
        fn transfer(vmcb: &mut Vmcb, mtd: Mtd, utcb: &mut Architectural, save: bool) {
            $(if mtd.contains(Mtd::$mtd) { $(utcb.$field.transfer(&mut vmcb.$field, save);)* })*
        }
    };
}

table! {
    RFLAGS { rflags }
    CS_SS { cs ss }
    DS_ES { ds es }
    FS_GS { fs gs }
    LDTR { ldtr }
    TR { tr }
    GDTR { gdtr }
    IDTR { idtr }
    CR { cr0 cr2 cr3 cr4 }
    DR { dr7 }
    SYSCALL { star lstar fmask }
    SYSENTER { sysenter_cs sysenter_esp sysenter_eip }
    PAT { pat }
    KERNEL_GS { kernel_gs_base }
}

/// Everything that `mtd` names: vCPU -> `utcb`, but for general registers, RIP and qualifications.
pub fn save(vcpu: &mut Svm, mtd: Mtd, utcb: &mut Architectural) {
    let (windows, nmi) = (vcpu.windows, vcpu.watch.nmi);
    let vmcb = vcpu.vmcb();
    transfer(vmcb, mtd, utcb, true);
    if mtd.contains(Mtd::CS_SS) {
        utcb.ss.access = utcb.ss.access & !0x60 | u16::from(vmcb.cpl & 3) << 5;
    }
    if mtd.contains(Mtd::STA) {
        utcb.interruptibility = (vmcb.interrupt_shadow & 1) as u32 | if nmi == Nmi::Open { 0 } else { BLOCKED_BY_NMI };
        utcb.activity = 0;
    }
    if mtd.contains(Mtd::INJ) {
        utcb.interruption_info = vmcb.injection as u32 | windows;
        utcb.interruption_error = (vmcb.injection >> 32) as u32;
        utcb.vectoring_info = if vmcb.interrupted & INFO_VALID != 0 { vmcb.interrupted as u32 } else { 0 };
        utcb.vectoring_error = (vmcb.interrupted >> 32) as u32;
    }
    if mtd.contains(Mtd::CR) {
        utcb.cr8 = vmcb.task_priority();
    }
    if mtd.contains(Mtd::EFER) {
        utcb.efer = vmcb.efer & !EFER_SVME;
    }
    vcpu.common.save(mtd, utcb);
}

/// Everything that `mtd` names: `utcb` -> vCPU, but for general registers and RIP.
pub fn load(vcpu: &mut Svm, mtd: Mtd, utcb: &mut Architectural) {
    let (vmcb, watch) = vcpu.parts();
    transfer(vmcb, mtd, utcb, false);
    if mtd.contains(Mtd::CS_SS) {
        vmcb.cpl = (utcb.ss.access >> 5 & 3) as u8;
    }
    if mtd.contains(Mtd::STA) {
        vmcb.interrupt_shadow = u64::from(utcb.interruptibility & 3 != 0);
        watch.nmi = if utcb.interruptibility & BLOCKED_BY_NMI != 0 { Nmi::Blocked } else { Nmi::Open };
    }
    if mtd.contains(Mtd::CR) {
        vmcb.virtual_interrupt = vmcb.virtual_interrupt & !virtual_interrupt::TPR | utcb.cr8;
    }
    if mtd.intersects(Mtd::EFER | Mtd::CR) {
        let efer = if mtd.contains(Mtd::EFER) { utcb.efer } else { vmcb.efer };
        vmcb.efer = consistent_efer(efer, vmcb.cr0) | EFER_SVME;
    }
    if mtd.contains(Mtd::TPR) {
        watch.threshold = utcb.tpr_threshold.into();
    }
    if mtd.contains(Mtd::INJ) {
        let vmcb = vcpu.vmcb();
        vmcb.injection = injection_to_vmcb(utcb.interruption_info, utcb.interruption_error);
        let software = vmcb.injection != 0 && utcb.interruption_info & injection::TYPE_MASK >= injection::TYPE_SOFTWARE;
        vcpu.injection_length = if software { u64::from(utcb.instruction_length & 0xf) } else { 0 };
        vcpu.windows = utcb.interruption_info & (injection::INTERRUPT_WINDOW | injection::NMI_WINDOW);
    }
    if mtd.contains(Mtd::CTRL) {
        control(vcpu, utcb);
    }
    vcpu.common.load(mtd, utcb);
}

/// Interruptibility: NMIs are blocked.
const BLOCKED_BY_NMI: u32 = 1 << 3;

/// Interruption information -> event injection (AMD APM vol. 2, 15.20): software exceptions are of the type exception.
pub const fn injection_to_vmcb(info: u32, error: u32) -> u64 {
    if info as u64 & INFO_VALID == 0 {
        return 0;
    }
    let kind = match info & injection::TYPE_MASK {
        injection::TYPE_PRIVILEGED | injection::TYPE_SOFTWARE_EXCEPTION => injection::TYPE_EXCEPTION,
        kind => kind,
    };
    let error = if info & injection::ERROR_CODE != 0 { (error as u64) << 32 } else { 0 };
    error | INFO_VALID | (info & (injection::ERROR_CODE | 0xff) | kind) as u64
}

/// What else exits. A VMM that wants to own any bit of CR0 or CR4 sees all writes to that register.
fn control(vcpu: &mut Svm, utcb: &Architectural) {
    let pick = |control: u32, intercept: u32| if utcb.exec_controls_1 & control != 0 { intercept } else { 0 };
    vcpu.cr_intercepts = u32::from(utcb.cr0_intercepts != 0) << CR_WRITES
        | u32::from(utcb.cr4_intercepts != 0) << (CR_WRITES + 4)
        | pick(primary::CR3_STORE, 1 << 3)
        | pick(primary::CR3_LOAD, 1 << (CR_WRITES + 3))
        | pick(primary::CR8_STORE, 1 << 8)
        | pick(primary::CR8_LOAD, 1 << (CR_WRITES + 8));
    vcpu.common.exceptions = utcb.exception_intercepts;
    vcpu.page_faults = [utcb.page_fault_mask, utcb.page_fault_match];
    let vmcb = vcpu.vmcb();
    const VMM_FIRST: u32 = first::RDTSC | first::INVLPG | first::PAUSE | first::DESCRIPTOR_TABLES;
    vmcb.first_intercepts = vmcb.first_intercepts & !VMM_FIRST
        | pick(primary::RDTSC, first::RDTSC)
        | pick(primary::INVLPG, first::INVLPG)
        | pick(primary::PAUSE, first::PAUSE)
        | if utcb.exec_controls_2 & secondary::DESCRIPTOR_TABLES != 0 { first::DESCRIPTOR_TABLES } else { 0 };
    vmcb.second_intercepts = vmcb.second_intercepts & !second::RDTSCP | pick(primary::RDTSC, second::RDTSCP);
    vmcb.dr_intercepts = pick(primary::MOV_DR, !0);
}

/// Whether an interrupted delivery is done again by running its instruction again rather than by injection: INT n,
/// INT3 and INTO, whose length is not known.
pub const fn is_software(info: u64) -> bool {
    match info as u32 & injection::TYPE_MASK {
        injection::TYPE_SOFTWARE => true,
        injection::TYPE_EXCEPTION => matches!(info as u8, vector::BREAKPOINT | vector::OVERFLOW),
        _ => false,
    }
}
