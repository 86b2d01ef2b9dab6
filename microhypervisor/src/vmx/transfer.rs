//! State transfer between UTCB and VMCS: a table, and by hand only what is not a plain field.

use super::Vmx;
use super::spec::{INFO_EVENT, INFO_VALID, WINDOWS, entry, field, primary};
use super::vmcs::Current;
use crate::vcpu::register::EFER_LMA;
use crate::vcpu::{KERNEL_EXCEPTIONS, consistent_efer};
use abi::Mtd;
use abi::mtd::injection;
use abi::utcb::{Architectural, DescriptorTable, Segment};

/// A field of the UTCB, exchanged with the one at its place among the VMCS fields of its kind.
trait Transfer {
    fn transfer(&mut self, vmcs: Current, place: u32, save: bool);
}

impl Transfer for u64 {
    fn transfer(&mut self, vmcs: Current, place: u32, save: bool) {
        if save { *self = vmcs.read(place) } else { vmcs.write(place, *self) }
    }
}

impl Transfer for u32 {
    fn transfer(&mut self, vmcs: Current, place: u32, save: bool) {
        let mut value = u64::from(*self);
        value.transfer(vmcs, place, save);
        *self = value as u32;
    }
}

impl Transfer for [u64; 4] {
    fn transfer(&mut self, vmcs: Current, place: u32, save: bool) {
        (place..).step_by(2).zip(self).for_each(|(field, value)| value.transfer(vmcs, field, save));
    }
}

impl Transfer for DescriptorTable {
    fn transfer(&mut self, vmcs: Current, place: u32, save: bool) {
        self.limit.transfer(vmcs, field::TABLE_LIMITS + place, save);
        self.base.transfer(vmcs, field::TABLE_BASES + place, save);
    }
}

/// Access rights (Intel SDM vol. 3C, table 25-2) have bits 7:0 as in the UTCB (NOVA 8.7.3.1), and 12:8 four higher.
impl Transfer for Segment {
    fn transfer(&mut self, vmcs: Current, place: u32, save: bool) {
        let (mut access, mut selector) = (u32::from(self.access), u32::from(self.selector));
        access = access & 0xff | (access & 0x1f00) << 4;
        selector.transfer(vmcs, field::SELECTORS + place, save);
        access.transfer(vmcs, field::ACCESS_RIGHTS + place, save);
        self.limit.transfer(vmcs, field::LIMITS + place, save);
        self.base.transfer(vmcs, field::BASES + place, save);
        (self.selector, self.access) = (selector as u16, (access & 0xff | access >> 4 & 0x1f00) as u16);
    }
}

/// From a list of descriptor bits, fields of the UTCB, and their places in the VMCS.
macro_rules! table {
    ($($mtd:ident { $($utcb:ident: $place:expr),* })*) => {
        fn transfer(vmcs: Current, mtd: Mtd, utcb: &mut Architectural, save: bool) {
            $(if mtd.contains(Mtd::$mtd) { $(utcb.$utcb.transfer(vmcs, $place, save);)* })*
        }
    };
}

table! {
    RFLAGS { rflags: field::RFLAGS }
    CS_SS { cs: 2, ss: 4 }
    DS_ES { ds: 6, es: 0 }
    FS_GS { fs: 8, gs: 10 }
    LDTR { ldtr: 12 }
    STA { interruptibility: field::INTERRUPTIBILITY, activity: field::ACTIVITY }
    TR { tr: 14 }
    GDTR { gdtr: 0 }
    IDTR { idtr: 2 }
    PDPTE { pdpte: field::PDPTES }
    CR { cr3: field::CR3 }
    DR { dr7: field::DR7 }
    SYSENTER { sysenter_cs: field::SYSENTER_CS, sysenter_esp: field::SYSENTER_ESP, sysenter_eip: field::SYSENTER_EIP }
    PAT { pat: field::PAT }
    EFER { efer: field::EFER }
}

/// Everything that `mtd` names: vCPU -> `utcb`, but for general registers, RIP and qualifications.
pub fn save(vcpu: &mut Vmx, vmcs: Current, mtd: Mtd, utcb: &mut Architectural) {
    transfer(vmcs, mtd, utcb, true);
    if mtd.contains(Mtd::INJ) {
        let pending = vmcs.read32(field::ENTRY_INFO);
        let pick = |control: u32, window: u32| if vcpu.controls[0] & control != 0 { window } else { 0 };
        utcb.interruption_info = if pending & INFO_VALID != 0 { pending & INFO_EVENT } else { 0 }
            | pick(primary::INTERRUPT_WINDOW, injection::INTERRUPT_WINDOW)
            | pick(primary::NMI_WINDOW, injection::NMI_WINDOW);
        utcb.interruption_error = vmcs.read32(field::ENTRY_ERROR);
        utcb.vectoring_info = vmcs.read32(field::VECTORING_INFO);
        utcb.vectoring_error = vmcs.read32(field::VECTORING_ERROR);
    }
    // The registers stay as they are: the fast path resumes with them.
    if mtd.contains(Mtd::CR) {
        utcb.cr0 = vcpu.cr0.view(vmcs.read(field::CR0));
        utcb.cr2 = vcpu.cr2;
        utcb.cr4 = vcpu.cr4.view(vmcs.read(field::CR4));
        utcb.cr8 = vcpu.cr8();
    }
    if mtd.contains(Mtd::SYSCALL) {
        [utcb.star, utcb.lstar, utcb.fmask] = vcpu.syscall;
    }
    if mtd.intersects(Mtd::KERNEL_GS.union(Mtd::TSC)) {
        vcpu.park_slow();
    }
    if mtd.contains(Mtd::KERNEL_GS) {
        utcb.kernel_gs_base = vcpu.kernel_gs_base;
    }
    vcpu.common.save(mtd, utcb);
}

/// Everything that `mtd` names: `utcb` -> vCPU, but for general registers and RIP.
pub fn load(vcpu: &mut Vmx, vmcs: Current, mtd: Mtd, utcb: &mut Architectural) {
    transfer(vmcs, mtd, utcb, false);
    if mtd.intersects(Mtd::STA.union(Mtd::RFLAGS)) {
        vmcs.write(field::ACTIVITY, 0);
        single_step(vmcs);
    }
    if mtd.contains(Mtd::INJ) {
        inject(vcpu, vmcs, utcb);
    }
    if mtd.contains(Mtd::CTRL) {
        control(vcpu, vmcs, utcb);
    }
    if mtd.contains(Mtd::TPR) {
        vcpu.threshold = utcb.tpr_threshold as u8;
    }
    if mtd.contains(Mtd::CR) {
        vcpu.cr0.shadow = utcb.cr0;
        vcpu.cr4.shadow = utcb.cr4;
        vmcs.write(field::CR0, vcpu.cr0.real(utcb.cr0));
        vmcs.write(field::CR4, vcpu.cr4.real(utcb.cr4));
        vmcs.write(field::CR0_SHADOW, utcb.cr0);
        vmcs.write(field::CR4_SHADOW, utcb.cr4);
        vcpu.set_cr8(utcb.cr8);
        vcpu.park_fast();
        vcpu.cr2 = utcb.cr2;
    }
    if mtd.intersects(Mtd::TPR.union(Mtd::CR)) {
        // The CPU refuses a threshold above the priority; `enter` sees to it.
        vmcs.write(field::TPR_THRESHOLD, vcpu.cr8().min(vcpu.threshold.into()));
    }
    if mtd.contains(Mtd::SYSCALL) {
        vcpu.park_fast();
        vcpu.syscall = [utcb.star, utcb.lstar, utcb.fmask];
    }
    if mtd.intersects(Mtd::KERNEL_GS.union(Mtd::TSC)) {
        vcpu.park_slow();
    }
    if mtd.contains(Mtd::KERNEL_GS) {
        vcpu.kernel_gs_base = utcb.kernel_gs_base;
    }
    if mtd.intersects(Mtd::EFER.union(Mtd::CR)) {
        let efer = consistent_efer(vmcs.read(field::EFER), vmcs.read(field::CR0));
        vmcs.write(field::EFER, efer);
        let controls = vmcs.read32(field::ENTRY_CONTROLS) & !entry::IA32E;
        vmcs.write32(field::ENTRY_CONTROLS, controls | if efer & EFER_LMA != 0 { entry::IA32E } else { 0 });
    }
    vcpu.common.load(mtd, utcb);
}

/// The event to inject, and the windows that the VMM waits for.
fn inject(vcpu: &mut Vmx, vmcs: Current, utcb: &Architectural) {
    let info = utcb.interruption_info;
    vmcs.write32(field::ENTRY_INFO, info & INFO_EVENT);
    if info & INFO_VALID != 0 {
        vmcs.write32(field::ENTRY_ERROR, utcb.interruption_error);
        vmcs.write32(field::ENTRY_LENGTH, utcb.instruction_length);
    }
    let pick = |window: u32, control: u32| if info & window != 0 { control } else { 0 };
    let windows =
        pick(injection::INTERRUPT_WINDOW, primary::INTERRUPT_WINDOW) | pick(injection::NMI_WINDOW, primary::NMI_WINDOW);
    vcpu.set_controls(vmcs, 0, WINDOWS, windows);
}

/// With a single step due and interrupts held back by STI or MOV SS the CPU wants the trap pending, and else not (Intel
/// SDM vol. 3C, 27.3.1.5). The VMM has no word for it.
fn single_step(vmcs: Current) {
    const BLOCKED: u32 = 3;
    const TF_SHIFT: u32 = 8;
    const PENDING_STEP_SHIFT: u32 = 14;
    if vmcs.read32(field::INTERRUPTIBILITY) & BLOCKED != 0 {
        let others = vmcs.read(field::PENDING_DEBUG) & !(1 << PENDING_STEP_SHIFT);
        let step = vmcs.read(field::RFLAGS) >> TF_SHIFT & 1;
        vmcs.write(field::PENDING_DEBUG, others | step << PENDING_STEP_SHIFT);
    }
}

/// What else exits. The third word of execution controls is the kernel's.
fn control(vcpu: &mut Vmx, vmcs: Current, utcb: &Architectural) {
    let [first, second] = vcpu.cpu.vmm;
    vcpu.set_controls(vmcs, 0, first, utcb.exec_controls_1);
    vcpu.set_controls(vmcs, 1, second, utcb.exec_controls_2);
    vcpu.common.exceptions = utcb.exception_intercepts;
    vmcs.write32(field::EXCEPTION_BITMAP, vcpu.common.exceptions | KERNEL_EXCEPTIONS);
    vmcs.write32(field::PAGE_FAULT_MASK, utcb.page_fault_mask);
    vmcs.write32(field::PAGE_FAULT_MATCH, utcb.page_fault_match);
    vcpu.cr0.shadow = vcpu.cr0.view(vmcs.read(field::CR0));
    vcpu.cr4.shadow = vcpu.cr4.view(vmcs.read(field::CR4));
    vcpu.cr0.vmm = utcb.cr0_intercepts;
    vcpu.cr4.vmm = utcb.cr4_intercepts;
    vmcs.write(field::CR0_MASK, vcpu.cr0.mask());
    vmcs.write(field::CR4_MASK, vcpu.cr4.mask());
    vmcs.write(field::CR0_SHADOW, vcpu.cr0.shadow);
    vmcs.write(field::CR4_SHADOW, vcpu.cr4.shadow);
}
