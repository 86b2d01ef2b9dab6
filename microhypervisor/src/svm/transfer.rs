//! State transfer between UTCB and control block: a table, and by hand only what is not a plain copy.
#![allow(unsafe_code)] // Accesses UTCB and control block by the table's offsets.

use super::Svm;
use super::spec::{INFO_VALID, Vmcb, first, second, virtual_interrupt};
use crate::vcpu::register::EFER_SVME;
use crate::vcpu::{
    INVLPG_EXITING, KERNEL_EXCEPTIONS, MOV_DR_EXITING, PAUSE_EXITING, RDTSC_EXITING, Tag, canonical, consistent_efer,
    legal_xcr0, vector,
};
use abi::Mtd;
use abi::mtd::injection;
use abi::utcb::Architectural;
use core::mem::offset_of;

/// How a row's values are copied.
#[derive(Clone, Copy)]
enum Kind {
    /// A segment: both have selector, access rights, limit, base.
    Segment,
    /// A descriptor table: both have the limit in the upper half of the first word, then the base.
    Table,
    /// A word.
    Word,
    /// A word that must be a canonical address.
    Address,
}
use Kind::{Address, Segment, Table, Word};

/// The descriptor bit, the offset in the UTCB, the offset in the control block.
struct Row(Mtd, Kind, usize, usize);

macro_rules! rows {
    ($($mtd:ident { $($kind:ident $field:ident),* })*) => {
        &[$($(Row(Mtd::$mtd, $kind, offset_of!(Architectural, $field), offset_of!(Vmcb, $field))),*),*]
    };
}

static TABLE: &[Row] = rows! {
    RFLAGS { Word rflags }
    CS_SS { Segment cs, Segment ss }
    DS_ES { Segment ds, Segment es }
    FS_GS { Segment fs, Segment gs }
    TR { Segment tr }
    LDTR { Segment ldtr }
    GDTR { Table gdtr }
    IDTR { Table idtr }
    CR { Word cr0, Word cr2, Word cr3, Word cr4 }
    DR { Word dr7 }
    SYSCALL { Word star, Address lstar, Word fmask }
    SYSENTER { Word sysenter_cs, Address sysenter_esp, Address sysenter_eip }
    PAT { Word pat }
    KERNEL_GS { Address kernel_gs_base }
};

/// Access rights in the UTCB: not present in the control block, unusable there (NOVA 8.7.3.1; AMD APM vol. 2, 4.10).
const PRESENT: u64 = 0x80;
const UNUSABLE: u64 = 0x1000;
/// Bits of access rights that both have, at the same place.
const ACCESS: u64 = 0xfff;
/// Where access rights begin in the first word of a segment.
const SHIFT: u32 = 16;
const SELECTOR_AND_LIMIT: u64 = !(0xffff << SHIFT);

/// First word of a segment: UTCB -> control block.
const fn segment_to_vmcb(word: u64) -> u64 {
    let access = word >> SHIFT;
    word & SELECTOR_AND_LIMIT | if access & UNUSABLE != 0 { 0 } else { (access & ACCESS) << SHIFT }
}

/// The other way round.
const fn segment_from_vmcb(word: u64) -> u64 {
    let access = word >> SHIFT & ACCESS;
    word & SELECTOR_AND_LIMIT | if access & PRESENT == 0 { access | UNUSABLE } else { access } << SHIFT
}

/// The words of a row in UTCB and control block.
fn words(row: &Row, utcb: *mut Architectural, vmcb: *mut Vmcb) -> (*mut u64, *mut u64) {
    (utcb.cast::<u8>().wrapping_add(row.2).cast(), vmcb.cast::<u8>().wrapping_add(row.3).cast())
}

/// Everything that `mtd` names: vCPU -> `utcb`, but for general registers, RIP and qualifications.
pub fn save(vcpu: &mut Svm, mtd: Mtd, utcb: &mut Architectural) {
    let vmcb: *mut Vmcb = vcpu.vmcb();
    for row in TABLE.iter().filter(|row| mtd.intersects(row.0)) {
        let (to, from) = words(row, utcb, vmcb);
        // SAFETY: one or two aligned words of integers in each structure, by its kind.
        unsafe {
            match row.1 {
                Word | Address => to.write(from.read()),
                Segment => {
                    to.write(segment_from_vmcb(from.read()));
                    to.add(1).write(from.add(1).read());
                }
                Table => {
                    to.write(from.read() & 0xffff << 32);
                    to.add(1).write(from.add(1).read());
                }
            }
        }
    }
    let vmcb = vcpu.vmcb();
    if mtd.contains(Mtd::CS_SS) {
        utcb.ss.access = utcb.ss.access & !0x60 | u16::from(vmcb.cpl & 3) << 5;
    }
    if mtd.contains(Mtd::STA) {
        utcb.interruptibility = (vmcb.interrupt_shadow & 1) as u32;
        utcb.activity = 0;
    }
    if mtd.contains(Mtd::INJ) {
        utcb.interruption_info = vmcb.injection as u32;
        utcb.interruption_error = (vmcb.injection >> 32) as u32;
        utcb.vectoring_info = vmcb.interrupted as u32;
        utcb.vectoring_error = (vmcb.interrupted >> 32) as u32;
        utcb.interruption_info |= vcpu.windows;
    }
    let vmcb = vcpu.vmcb();
    if mtd.contains(Mtd::CR) {
        utcb.cr8 = vmcb.virtual_interrupt & virtual_interrupt::TPR;
    }
    if mtd.contains(Mtd::EFER) {
        utcb.efer = vmcb.efer & !EFER_SVME;
    }
    if mtd.contains(Mtd::TSC) {
        vcpu.save_foreign_state();
        utcb.tsc_aux = vcpu.tsc_aux;
    }
    if mtd.contains(Mtd::XSAVE) {
        utcb.xcr0 = vcpu.xcr0;
        utcb.xss = 0;
    }
}

/// Everything that `mtd` names: `utcb` -> vCPU, but for general registers and RIP.
pub fn load(vcpu: &mut Svm, mtd: Mtd, utcb: &Architectural) {
    let vmcb: *mut Vmcb = vcpu.vmcb();
    for row in TABLE.iter().filter(|row| mtd.intersects(row.0)) {
        let (from, to) = words(row, core::ptr::from_ref(utcb).cast_mut(), vmcb);
        // SAFETY: one or two aligned words of integers in each structure, by its kind; `from` is only read.
        unsafe {
            match row.1 {
                Word => to.write(from.read()),
                Address => to.write(canonical(from.read())),
                Segment => {
                    to.write(segment_to_vmcb(from.read()));
                    to.add(1).write(canonical(from.add(1).read()));
                }
                Table => {
                    to.write(from.read() & 0xffff << 32);
                    to.add(1).write(canonical(from.add(1).read()));
                }
            }
        }
    }
    let vmcb = vcpu.vmcb();
    if mtd.contains(Mtd::CS_SS) {
        vmcb.cpl = (utcb.ss.access >> 5 & 3) as u8;
    }
    if mtd.contains(Mtd::RFLAGS) {
        vmcb.rflags |= 2;
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
        vcpu.windows = utcb.interruption_info & (injection::INTERRUPT_WINDOW | injection::NMI_WINDOW);
        vcpu.set_window();
    }
    if mtd.contains(Mtd::CTRL) {
        control(vcpu, utcb);
    }
    if mtd.contains(Mtd::TSC) {
        vcpu.save_foreign_state();
        vcpu.tsc_aux = utcb.tsc_aux & 0xffff_ffff;
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
    vmcb.cr_intercepts =
        u32::from(utcb.cr0_intercepts != 0) << CR_WRITES | u32::from(utcb.cr4_intercepts != 0) << (CR_WRITES + 4);
    vmcb.exception_intercepts = utcb.exception_intercepts | KERNEL_EXCEPTIONS;
    vcpu.exceptions = utcb.exception_intercepts;
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
