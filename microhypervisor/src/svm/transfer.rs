//! State transfer between UTCB and control block: a table, and by hand only what is not a plain copy.

use super::Svm;
use super::spec::{INFO_VALID, Vmcb, first, second, virtual_interrupt};
use crate::vcpu::register::EFER_SVME;
use crate::vcpu::{
    INVLPG_EXITING, KERNEL_EXCEPTIONS, MOV_DR_EXITING, PAUSE_EXITING, RDTSC_EXITING, canonical, consistent_efer, vector,
};
use abi::Mtd;
use abi::mtd::injection;
use abi::utcb::{Architectural, DescriptorTable, Segment};

/// A field of the UTCB, and the one of the control block that corresponds to it.
trait Transfer<T> {
    fn save(&mut self, vmcb: &T);
    fn load(&self, vmcb: &mut T);
}

impl Transfer<u64> for u64 {
    fn save(&mut self, vmcb: &u64) {
        *self = *vmcb;
    }
    fn load(&self, vmcb: &mut u64) {
        *vmcb = *self;
    }
}

impl Transfer<Segment> for DescriptorTable {
    fn save(&mut self, vmcb: &Segment) {
        (self.limit, self.base) = (vmcb.limit, vmcb.base);
    }
    fn load(&self, vmcb: &mut Segment) {
        (vmcb.limit, vmcb.base) = (self.limit, canonical(self.base));
    }
}

/// Access rights, usable (NOVA 8.7.3.1): a segment that is not has no access rights in the control block.
const UNUSABLE: u16 = 1 << 12;
/// Access rights: present.
const PRESENT: u16 = 1 << 7;

impl Transfer<Segment> for Segment {
    fn save(&mut self, vmcb: &Segment) {
        let unusable = if vmcb.access & PRESENT == 0 { UNUSABLE } else { 0 };
        *self = Segment { access: vmcb.access & 0xfff | unusable, ..*vmcb };
    }
    fn load(&self, vmcb: &mut Segment) {
        let access = if self.access & UNUSABLE != 0 { 0 } else { self.access & 0xfff };
        *vmcb = Segment { access, base: canonical(self.base), ..*self };
    }
}

/// Both directions from one list: descriptor bit, fields that have the same name in both.
macro_rules! table {
    ($($mtd:ident { $($field:ident)* })*) => {
        fn save_table(vmcb: &Vmcb, mtd: Mtd, utcb: &mut Architectural) {
            $(if mtd.contains(Mtd::$mtd) { $(utcb.$field.save(&vmcb.$field);)* })*
        }
        fn load_table(vmcb: &mut Vmcb, mtd: Mtd, utcb: &Architectural) {
            $(if mtd.contains(Mtd::$mtd) { $(utcb.$field.load(&mut vmcb.$field);)* })*
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
    let windows = vcpu.windows;
    let vmcb = vcpu.vmcb();
    save_table(vmcb, mtd, utcb);
    if mtd.contains(Mtd::CS_SS) {
        utcb.ss.access = utcb.ss.access & !0x60 | u16::from(vmcb.cpl & 3) << 5;
    }
    if mtd.contains(Mtd::STA) {
        utcb.interruptibility = (vmcb.interrupt_shadow & 1) as u32;
        utcb.activity = 0;
    }
    if mtd.contains(Mtd::INJ) {
        utcb.interruption_info = vmcb.injection as u32 | windows;
        utcb.interruption_error = (vmcb.injection >> 32) as u32;
        utcb.vectoring_info = if vmcb.interrupted & INFO_VALID != 0 { vmcb.interrupted as u32 } else { 0 };
        utcb.vectoring_error = (vmcb.interrupted >> 32) as u32;
    }
    if mtd.contains(Mtd::CR) {
        utcb.cr8 = vmcb.virtual_interrupt & virtual_interrupt::TPR;
    }
    if mtd.contains(Mtd::EFER) {
        utcb.efer = vmcb.efer & !EFER_SVME;
    }
    vcpu.common.save(mtd, utcb);
}

/// Everything that `mtd` names: `utcb` -> vCPU, but for general registers and RIP.
pub fn load(vcpu: &mut Svm, mtd: Mtd, utcb: &Architectural) {
    let vmcb = vcpu.vmcb();
    load_table(vmcb, mtd, utcb);
    for address in [&mut vmcb.lstar, &mut vmcb.sysenter_esp, &mut vmcb.sysenter_eip, &mut vmcb.kernel_gs_base] {
        *address = canonical(*address);
    }
    if mtd.contains(Mtd::CS_SS) {
        vmcb.cpl = (utcb.ss.access >> 5 & 3) as u8;
    }
    if mtd.contains(Mtd::STA) {
        vmcb.interrupt_shadow = u64::from(utcb.interruptibility & 3 != 0);
    }
    if mtd.contains(Mtd::CR) {
        vmcb.virtual_interrupt = vmcb.virtual_interrupt & !virtual_interrupt::TPR | utcb.cr8 & virtual_interrupt::TPR;
    }
    if mtd.intersects(Mtd::EFER | Mtd::CR) {
        let efer = if mtd.contains(Mtd::EFER) { utcb.efer } else { vmcb.efer };
        vmcb.efer = consistent_efer(efer, vmcb.cr0) | EFER_SVME;
    }
    if mtd.contains(Mtd::INJ) {
        vmcb.injection = injection_to_vmcb(utcb.interruption_info, utcb.interruption_error);
        vcpu.set_windows(utcb.interruption_info & (injection::INTERRUPT_WINDOW | injection::NMI_WINDOW));
    }
    if mtd.contains(Mtd::CTRL) {
        control(vcpu, utcb);
    }
    vcpu.common.load(mtd, utcb);
}

/// Interruption information -> event injection (AMD APM vol. 2, 15.20): software exceptions are of the type exception.
const fn injection_to_vmcb(info: u32, error: u32) -> u64 {
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
    const CR_WRITES: u32 = 16;
    let pick = |control: u32, intercept: u32| if utcb.exec_controls_1 & control != 0 { intercept } else { 0 };
    let vmcb = vcpu.vmcb();
    vmcb.first_intercepts = vmcb.first_intercepts & !(first::RDTSC | first::INVLPG | first::PAUSE)
        | pick(RDTSC_EXITING, first::RDTSC)
        | pick(INVLPG_EXITING, first::INVLPG)
        | pick(PAUSE_EXITING, first::PAUSE);
    vmcb.second_intercepts = vmcb.second_intercepts & !second::RDTSCP | pick(RDTSC_EXITING, second::RDTSCP);
    vmcb.dr_intercepts = pick(MOV_DR_EXITING, !0);
    // Bit 19: CR8-load exiting (Intel SDM vol. 3C, table 25-6).
    vmcb.cr_intercepts = u32::from(utcb.cr0_intercepts != 0) << CR_WRITES
        | u32::from(utcb.cr4_intercepts != 0) << (CR_WRITES + 4)
        | pick(1 << 19, 1 << (CR_WRITES + 8));
    vmcb.exception_intercepts = utcb.exception_intercepts | KERNEL_EXCEPTIONS;
    vcpu.common.exceptions = utcb.exception_intercepts;
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
