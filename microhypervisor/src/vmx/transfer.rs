//! State transfer between UTCB and VMCS: a table, and by hand only what is not a plain field.
#![allow(unsafe_code)] // Accesses the UTCB by the table's offsets.

use super::Vmx;
use super::spec::{INFO_EVENT, INFO_VALID, entry, field, primary};
use super::vmcs::Current;
use crate::vcpu::register::EFER_LMA;
use crate::vcpu::{KERNEL_EXCEPTIONS, Tag, VMM_CONTROLS, canonical, consistent_efer, legal_xcr0};
use abi::Mtd;
use abi::mtd::injection;
use abi::utcb::Architectural;
use core::mem::offset_of;

/// One value: the descriptor bit that names it, its offset in the UTCB, its VMCS field.
struct Row(Mtd, usize, u32);

macro_rules! rows {
    ($($mtd:ident { $($($utcb:ident).+ = $field:ident),* })*) => {
        &[$($(Row(Mtd::$mtd, offset_of!(Architectural, $($utcb).+), field::$field)),*),*]
    };
}

static TABLE: &[Row] = rows! {
    RFLAGS { rflags = RFLAGS }
    CS_SS {
        cs.selector = CS_SELECTOR, cs.access = CS_ACCESS, cs.limit = CS_LIMIT, cs.base = CS_BASE,
        ss.selector = SS_SELECTOR, ss.access = SS_ACCESS, ss.limit = SS_LIMIT, ss.base = SS_BASE
    }
    DS_ES {
        ds.selector = DS_SELECTOR, ds.access = DS_ACCESS, ds.limit = DS_LIMIT, ds.base = DS_BASE,
        es.selector = ES_SELECTOR, es.access = ES_ACCESS, es.limit = ES_LIMIT, es.base = ES_BASE
    }
    FS_GS {
        fs.selector = FS_SELECTOR, fs.access = FS_ACCESS, fs.limit = FS_LIMIT, fs.base = FS_BASE,
        gs.selector = GS_SELECTOR, gs.access = GS_ACCESS, gs.limit = GS_LIMIT, gs.base = GS_BASE
    }
    TR { tr.selector = TR_SELECTOR, tr.access = TR_ACCESS, tr.limit = TR_LIMIT, tr.base = TR_BASE }
    LDTR { ldtr.selector = LDTR_SELECTOR, ldtr.access = LDTR_ACCESS, ldtr.limit = LDTR_LIMIT, ldtr.base = LDTR_BASE }
    GDTR { gdtr.limit = GDTR_LIMIT, gdtr.base = GDTR_BASE }
    IDTR { idtr.limit = IDTR_LIMIT, idtr.base = IDTR_BASE }
    CR { cr3 = CR3 }
    DR { dr7 = DR7 }
    SYSENTER { sysenter_cs = SYSENTER_CS, sysenter_esp = SYSENTER_ESP, sysenter_eip = SYSENTER_EIP }
    PAT { pat = PAT }
};

/// Access rights in the UTCB (NOVA 8.7.3.1) -> VMCS (Intel SDM vol. 3C, table 25-2).
const fn access_to_vmcs(access: u16) -> u64 {
    access as u64 & 0xff | (access as u64 & 0x1f00) << 4
}

/// The other way round.
const fn access_from_vmcs(access: u64) -> u16 {
    (access & 0xff | access >> 4 & 0x1f00) as u16
}

/// What a row's value is in the UTCB.
enum Width {
    Word,
    Access,
    Double,
    Quad,
}

/// Bits 14:13 of a field's encoding are its width (Intel SDM vol. 3D, appendix B).
const fn width(field: u32) -> Width {
    match field {
        field::ES_ACCESS..=field::TR_ACCESS => Width::Access,
        _ if field >> 13 & 3 == 0 => Width::Word,
        _ if field >> 13 & 3 == 2 => Width::Double,
        _ => Width::Quad,
    }
}

/// What the table names.
const TABLE_MTD: Mtd = {
    let mut mtd = Mtd::empty();
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].1 + 8 <= size_of::<Architectural>());
        mtd = mtd.union(TABLE[i].0);
        i += 1;
    }
    mtd
};

/// Everything that `mtd` names: vCPU -> `utcb`, but for general registers, RIP and qualifications.
pub fn save(vcpu: &mut Vmx, vmcs: Current, mtd: Mtd, utcb: &mut Architectural) {
    if mtd.intersects(TABLE_MTD) {
        let base = core::ptr::from_mut(utcb).cast::<u8>();
        for &Row(_, offset, field) in TABLE.iter().filter(|row| mtd.intersects(row.0)) {
            let value = vmcs.read(field);
            // SAFETY: the offset is that of a field of this width in the UTCB.
            unsafe {
                let slot = base.add(offset);
                match width(field) {
                    Width::Word => slot.cast::<u16>().write(value as u16),
                    Width::Access => slot.cast::<u16>().write(access_from_vmcs(value)),
                    Width::Double => slot.cast::<u32>().write(value as u32),
                    Width::Quad => slot.cast::<u64>().write(value),
                }
            }
        }
    }
    if mtd.contains(Mtd::STA) {
        utcb.interruptibility = vmcs.read32(field::INTERRUPTIBILITY);
        utcb.activity = vmcs.read32(field::ACTIVITY);
    }
    if mtd.contains(Mtd::INJ) {
        let windows = vcpu.primary & (primary::INTERRUPT_WINDOW | primary::NMI_WINDOW);
        utcb.interruption_info = vmcs.read32(field::ENTRY_INFO) & INFO_EVENT
            | if windows & primary::INTERRUPT_WINDOW != 0 { injection::INTERRUPT_WINDOW } else { 0 }
            | if windows & primary::NMI_WINDOW != 0 { injection::NMI_WINDOW } else { 0 };
        utcb.interruption_error = vmcs.read32(field::ENTRY_ERROR);
        utcb.vectoring_info = vmcs.read32(field::VECTORING_INFO);
        utcb.vectoring_error = vmcs.read32(field::VECTORING_ERROR);
    }
    if mtd.contains(Mtd::PDPTE) {
        for (field, value) in (field::PDPTE0..).step_by(2).zip(&mut utcb.pdpte) {
            *value = vmcs.read(field);
        }
    }
    if mtd.contains(Mtd::CR) {
        utcb.cr0 = vcpu.cr0.view(vmcs.read(field::CR0));
        utcb.cr4 = vcpu.cr4.view(vmcs.read(field::CR4));
        utcb.cr8 = vcpu.cr8();
    }
    if mtd.intersects(Mtd::CR | Mtd::SYSCALL) {
        vcpu.park_fast();
        utcb.cr2 = vcpu.fast.cr2;
        utcb.star = vcpu.fast.star;
        utcb.lstar = vcpu.fast.lstar;
        utcb.fmask = vcpu.fast.fmask;
    }
    if mtd.intersects(Mtd::KERNEL_GS | Mtd::TSC) {
        vcpu.park_slow();
        utcb.kernel_gs_base = vcpu.slow.kernel_gs_base;
        utcb.tsc_aux = vcpu.slow.tsc_aux;
    }
    if mtd.contains(Mtd::EFER) {
        utcb.efer = vmcs.read(field::EFER);
    }
    if mtd.contains(Mtd::XSAVE) {
        utcb.xcr0 = vcpu.xcr0;
        utcb.xss = 0;
    }
}

/// Everything that `mtd` names: `utcb` -> vCPU, but for general registers and RIP.
pub fn load(vcpu: &mut Vmx, vmcs: Current, mtd: Mtd, utcb: &Architectural) {
    if mtd.intersects(TABLE_MTD) {
        let base = core::ptr::from_ref(utcb).cast::<u8>();
        for &Row(_, offset, field) in TABLE.iter().filter(|row| mtd.intersects(row.0)) {
            // SAFETY: the offset is that of a field of this width in the UTCB.
            let value = unsafe {
                let slot = base.add(offset);
                match width(field) {
                    Width::Word => u64::from(slot.cast::<u16>().read()),
                    Width::Access => access_to_vmcs(slot.cast::<u16>().read()),
                    Width::Double => u64::from(slot.cast::<u32>().read()),
                    Width::Quad => slot.cast::<u64>().read(),
                }
            };
            vmcs.write(field, value);
        }
    }
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
    if mtd.contains(Mtd::PDPTE) {
        for (field, value) in (field::PDPTE0..).step_by(2).zip(&utcb.pdpte) {
            vmcs.write(field, *value);
        }
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
        vcpu.fast.cr2 = utcb.cr2;
    }
    if mtd.contains(Mtd::SYSCALL) {
        vcpu.park_fast();
        vcpu.fast.star = utcb.star;
        vcpu.fast.lstar = canonical(utcb.lstar);
        vcpu.fast.fmask = utcb.fmask & 0xffff_ffff;
    }
    if mtd.contains(Mtd::KERNEL_GS) {
        vcpu.park_slow();
        vcpu.slow.kernel_gs_base = canonical(utcb.kernel_gs_base);
    }
    if mtd.contains(Mtd::TSC) {
        vcpu.park_slow();
        vcpu.slow.tsc_aux = utcb.tsc_aux & 0xffff_ffff;
    }
    if mtd.intersects(Mtd::EFER | Mtd::CR) {
        let efer = if mtd.contains(Mtd::EFER) { utcb.efer } else { vmcs.read(field::EFER) };
        let efer = consistent_efer(efer, vmcs.read(field::CR0));
        vmcs.write(field::EFER, efer);
        let controls = vmcs.read32(field::ENTRY_CONTROLS) & !entry::IA32E;
        vmcs.write32(field::ENTRY_CONTROLS, controls | if efer & EFER_LMA != 0 { entry::IA32E } else { 0 });
    }
    if mtd.contains(Mtd::XSAVE)
        && let Some(value) = legal_xcr0(utcb.xcr0, vcpu.cpu.xcr0)
    {
        vcpu.xcr0 = value;
    }
    if mtd.contains(Mtd::TLB) {
        vcpu.tag = Tag::default();
    }
}

/// The event to inject, and the windows that the VMM waits for.
fn inject(vcpu: &mut Vmx, vmcs: Current, utcb: &Architectural) {
    let info = utcb.interruption_info;
    vmcs.write32(field::ENTRY_INFO, info & INFO_EVENT);
    if info & INFO_VALID != 0 {
        vmcs.write32(field::ENTRY_ERROR, utcb.interruption_error);
        if info & injection::TYPE_MASK >= injection::TYPE_SOFTWARE {
            vmcs.write32(field::ENTRY_LENGTH, utcb.instruction_length);
        }
    }
    let mut controls = vcpu.primary & !(primary::INTERRUPT_WINDOW | primary::NMI_WINDOW);
    if info & injection::INTERRUPT_WINDOW != 0 {
        controls |= primary::INTERRUPT_WINDOW;
    }
    if info & injection::NMI_WINDOW != 0 {
        controls |= primary::NMI_WINDOW;
    }
    vcpu.set_primary(vmcs, controls);
}

/// What else exits. The second and third words of execution controls are the kernel's.
fn control(vcpu: &mut Vmx, vmcs: Current, utcb: &Architectural) {
    vcpu.set_primary(vmcs, vcpu.primary & !VMM_CONTROLS | utcb.exec_controls_1 & VMM_CONTROLS);
    vcpu.exceptions = utcb.exception_intercepts;
    vmcs.write32(field::EXCEPTION_BITMAP, vcpu.exceptions | KERNEL_EXCEPTIONS);
    vmcs.write32(field::PAGE_FAULT_MASK, utcb.page_fault_mask);
    vmcs.write32(field::PAGE_FAULT_MATCH, utcb.page_fault_match);
    let fields = [(field::CR0_MASK, field::CR0_SHADOW), (field::CR4_MASK, field::CR4_SHADOW)];
    let real = [vmcs.read(field::CR0), vmcs.read(field::CR4)];
    let wanted = [utcb.cr0_intercepts, utcb.cr4_intercepts];
    for (i, register) in [&mut vcpu.cr0, &mut vcpu.cr4].into_iter().enumerate() {
        register.shadow = register.view(real[i]);
        register.vmm = wanted[i];
        vmcs.write(fields[i].0, register.mask());
        vmcs.write(fields[i].1, register.shadow);
    }
}
