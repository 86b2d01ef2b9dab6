//! State transfer between UTCB and VMCS: a table, and by hand only what is not a plain field.

use super::Vmx;
use super::spec::{INFO_EVENT, INFO_VALID, WINDOWS, entry, field, primary};
use super::vmcs::Current;
use crate::vcpu::register::EFER_LMA;
use crate::vcpu::{KERNEL_EXCEPTIONS, VMM_CONTROLS, canonical, consistent_efer};
use abi::Mtd;
use abi::mtd::injection;
use abi::utcb::{Architectural, DescriptorTable, Segment};

/// A field of the UTCB and its place among the VMCS fields of its kind.
trait Transfer {
    fn save(&mut self, vmcs: Current, place: u32);
    fn load(&self, vmcs: Current, place: u32);
}

impl Transfer for u64 {
    fn save(&mut self, vmcs: Current, place: u32) {
        *self = vmcs.read(place);
    }
    fn load(&self, vmcs: Current, place: u32) {
        vmcs.write(place, *self);
    }
}

impl Transfer for [u64; 4] {
    fn save(&mut self, vmcs: Current, place: u32) {
        (place..).step_by(2).zip(self).for_each(|(field, value)| value.save(vmcs, field));
    }
    fn load(&self, vmcs: Current, place: u32) {
        (place..).step_by(2).zip(self).for_each(|(field, value)| value.load(vmcs, field));
    }
}

impl Transfer for DescriptorTable {
    fn save(&mut self, vmcs: Current, place: u32) {
        self.limit = vmcs.read32(field::TABLE_LIMITS + place);
        self.base = vmcs.read(field::TABLE_BASES + place);
    }
    fn load(&self, vmcs: Current, place: u32) {
        vmcs.write32(field::TABLE_LIMITS + place, self.limit);
        vmcs.write(field::TABLE_BASES + place, self.base);
    }
}

/// Access rights (Intel SDM vol. 3C, table 25-2) have bits 7:0 as in the UTCB (NOVA 8.7.3.1), and 12:8 four higher.
impl Transfer for Segment {
    fn save(&mut self, vmcs: Current, place: u32) {
        let access = vmcs.read32(field::ACCESS_RIGHTS + place);
        self.selector = vmcs.read32(field::SELECTORS + place) as u16;
        self.access = (access & 0xff | access >> 4 & 0x1f00) as u16;
        self.limit = vmcs.read32(field::LIMITS + place);
        self.base = vmcs.read(field::BASES + place);
    }
    fn load(&self, vmcs: Current, place: u32) {
        let access = u32::from(self.access);
        vmcs.write32(field::SELECTORS + place, u32::from(self.selector));
        vmcs.write32(field::ACCESS_RIGHTS + place, access & 0xff | (access & 0x1f00) << 4);
        vmcs.write32(field::LIMITS + place, self.limit);
        vmcs.write(field::BASES + place, self.base);
    }
}

/// Both directions from one list: descriptor bit, field of the UTCB, place in the VMCS.
macro_rules! table {
    ($($mtd:ident { $($utcb:ident: $place:expr),* })*) => {
        fn save_table(vmcs: Current, mtd: Mtd, utcb: &mut Architectural) {
            $(if mtd.contains(Mtd::$mtd) { $(utcb.$utcb.save(vmcs, $place);)* })*
        }
        fn load_table(vmcs: Current, mtd: Mtd, utcb: &Architectural) {
            $(if mtd.contains(Mtd::$mtd) { $(utcb.$utcb.load(vmcs, $place);)* })*
        }
    };
}

table! {
    RFLAGS { rflags: field::RFLAGS }
    CS_SS { cs: 2, ss: 4 }
    DS_ES { ds: 6, es: 0 }
    FS_GS { fs: 8, gs: 10 }
    LDTR { ldtr: 12 }
    TR { tr: 14 }
    GDTR { gdtr: 0 }
    IDTR { idtr: 2 }
    PDPTE { pdpte: field::PDPTES }
    CR { cr3: field::CR3 }
    DR { dr7: field::DR7 }
    SYSENTER { sysenter_cs: field::SYSENTER_CS, sysenter_esp: field::SYSENTER_ESP, sysenter_eip: field::SYSENTER_EIP }
    PAT { pat: field::PAT }
}

/// Everything that `mtd` names: vCPU -> `utcb`, but for general registers, RIP and qualifications.
pub fn save(vcpu: &mut Vmx, vmcs: Current, mtd: Mtd, utcb: &mut Architectural) {
    save_table(vmcs, mtd, utcb);
    if mtd.contains(Mtd::STA) {
        utcb.interruptibility = vmcs.read32(field::INTERRUPTIBILITY);
        utcb.activity = vmcs.read32(field::ACTIVITY);
    }
    if mtd.contains(Mtd::INJ) {
        let pending = vmcs.read32(field::ENTRY_INFO);
        let pick = |control: u32, window: u32| if vcpu.primary & control != 0 { window } else { 0 };
        utcb.interruption_info = if pending & INFO_VALID != 0 { pending & INFO_EVENT } else { 0 }
            | pick(primary::INTERRUPT_WINDOW, injection::INTERRUPT_WINDOW)
            | pick(primary::NMI_WINDOW, injection::NMI_WINDOW);
        utcb.interruption_error = vmcs.read32(field::ENTRY_ERROR);
        utcb.vectoring_info = vmcs.read32(field::VECTORING_INFO);
        utcb.vectoring_error = vmcs.read32(field::VECTORING_ERROR);
    }
    if mtd.contains(Mtd::CR) {
        utcb.cr0 = vcpu.cr0.view(vmcs.read(field::CR0));
        utcb.cr4 = vcpu.cr4.view(vmcs.read(field::CR4));
        utcb.cr8 = vcpu.cr8();
    }
    if mtd.intersects(Mtd::CR.union(Mtd::SYSCALL)) {
        vcpu.park_fast();
        utcb.cr2 = vcpu.cr2;
        [utcb.star, utcb.lstar, utcb.fmask] = vcpu.syscall;
    }
    if mtd.contains(Mtd::KERNEL_GS) {
        vcpu.park_slow();
        utcb.kernel_gs_base = vcpu.kernel_gs_base;
    }
    if mtd.contains(Mtd::EFER) {
        utcb.efer = vmcs.read(field::EFER);
    }
    vcpu.common.save(mtd, utcb);
}

/// Everything that `mtd` names: `utcb` -> vCPU, but for general registers and RIP.
pub fn load(vcpu: &mut Vmx, vmcs: Current, mtd: Mtd, utcb: &Architectural) {
    load_table(vmcs, mtd, utcb);
    if mtd.contains(Mtd::STA) {
        vmcs.write32(field::INTERRUPTIBILITY, utcb.interruptibility);
        vmcs.write(field::ACTIVITY, 0);
    }
    if mtd.contains(Mtd::INJ) {
        inject(vcpu, vmcs, utcb);
    }
    if mtd.contains(Mtd::CTRL) {
        control(vcpu, vmcs, utcb);
    }
    if mtd.contains(Mtd::TPR) {
        vmcs.write32(field::TPR_THRESHOLD, utcb.tpr_threshold & 0xf);
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
    if mtd.contains(Mtd::SYSCALL) {
        vcpu.park_fast();
        vcpu.syscall = [utcb.star, canonical(utcb.lstar), utcb.fmask & 0xffff_ffff];
    }
    if mtd.intersects(Mtd::KERNEL_GS.union(Mtd::TSC)) {
        vcpu.park_slow();
    }
    if mtd.contains(Mtd::KERNEL_GS) {
        vcpu.kernel_gs_base = canonical(utcb.kernel_gs_base);
    }
    if mtd.intersects(Mtd::EFER.union(Mtd::CR)) {
        let efer = if mtd.contains(Mtd::EFER) { utcb.efer } else { vmcs.read(field::EFER) };
        let efer = consistent_efer(efer, vmcs.read(field::CR0));
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
    vcpu.set_primary(vmcs, vcpu.primary & !WINDOWS | windows);
}

/// What else exits. The second and third words of execution controls are the kernel's.
fn control(vcpu: &mut Vmx, vmcs: Current, utcb: &Architectural) {
    vcpu.set_primary(vmcs, vcpu.primary & !VMM_CONTROLS | utcb.exec_controls_1 & VMM_CONTROLS);
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
