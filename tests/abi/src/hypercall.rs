//! The hypercalls (5, 8.8), with the status as it comes. Parameters are raw: a test may pass anything.

use crate::registers::Registers;
use crate::spec::{Selector, Status, call};

fn make(number: u8, flags: u8, selector: u64, rsi: u64, rdx: u64, rax: u64, r8: u64) -> Registers {
    let mut registers =
        Registers::new(selector << 8 | u64::from(flags & 0xf) << 4 | u64::from(number), rsi, rdx, rax, r8);
    registers.call();
    registers
}

fn status(registers: &Registers) -> Status {
    Status(registers.gpr[7] as u8)
}

/// Flags, by call.
pub mod flag {
    #![allow(missing_docs)]
    pub const CALL_TIMEOUT: u8 = 1 << 0;
    pub const EC_GUEST: u8 = 1 << 0;
    pub const EC_GLOBAL: u8 = 1 << 1;
    pub const EC_FPU: u8 = 1 << 2;
    pub const RECALL_STRONG: u8 = 1 << 0;
    pub const SM_DOWN: u8 = 1 << 0;
    pub const SM_ZERO: u8 = 1 << 1;
    pub const INT_MASKED: u8 = 1 << 0;
    pub const INT_LEVEL: u8 = 1 << 1;
    pub const INT_LOW: u8 = 1 << 2;
    pub const INT_GUEST: u8 = 1 << 3;
}

/// What create_pd creates.
pub mod create {
    #![allow(missing_docs)]
    pub const PD: u8 = 0;
    pub const OBJ: u8 = 1;
    pub const HST: u8 = 2;
    pub const GST: u8 = 3;
    pub const DMA: u8 = 4;
    pub const PIO: u8 = 5;
    pub const MSR: u8 = 6;
}

/// ipc_call; status and the reply's descriptor.
pub fn ipc_call(pt: Selector, mtd: u32, flags: u8) -> (Status, u32) {
    let after = make(call::IPC_CALL, flags, pt, u64::from(mtd), 0, 0, 0);
    (status(&after), after.gpr[6] as u32)
}

/// create_pd.
pub fn create_pd(sel: Selector, pd: Selector, operation: u8) -> Status {
    status(&make(call::CREATE_PD, operation, sel, pd, 0, 0, 0))
}

/// Parameters of create_ec.
#[derive(Clone, Copy, Debug)]
pub struct NewEc {
    /// Owner.
    pub pd: Selector,
    /// Address of UTCB or vAPIC page; its page number is passed.
    pub page: u64,
    /// CPU.
    pub cpu: u64,
    /// Initial stack pointer.
    pub sp: u64,
    /// Event base.
    pub events: Selector,
    /// Flags.
    pub flags: u8,
}

/// create_ec.
pub fn create_ec(sel: Selector, new: &NewEc) -> Status {
    let rdx = new.page & !0xfff | new.cpu & 0xfff;
    status(&make(call::CREATE_EC, new.flags, sel, new.pd, rdx, new.sp, new.events))
}

/// create_sc.
pub fn create_sc(sel: Selector, pd: Selector, ec: Selector, scd: u64) -> Status {
    status(&make(call::CREATE_SC, 0, sel, pd, ec, scd, 0))
}

/// create_pt.
pub fn create_pt(sel: Selector, pd: Selector, ec: Selector, ip: u64) -> Status {
    status(&make(call::CREATE_PT, 0, sel, pd, ec, ip, 0))
}

/// create_sm.
pub fn create_sm(sel: Selector, pd: Selector, count: u64) -> Status {
    status(&make(call::CREATE_SM, 0, sel, pd, count, 0, 0))
}

/// Parameters of ctrl_pd.
#[derive(Clone, Copy, Debug)]
pub struct Delegation {
    /// Source space.
    pub src: Selector,
    /// Destination space.
    pub dst: Selector,
    /// First selector in the source.
    pub ssb: u64,
    /// First selector in the destination.
    pub dsb: u64,
    /// log2 of the number of selectors.
    pub order: u64,
    /// Permission mask.
    pub mask: u64,
    /// Memory attributes.
    pub mad: u64,
}

/// ctrl_pd.
pub fn ctrl_pd(d: &Delegation) -> Status {
    let (rdx, rax) = (d.ssb << 12 | d.order & 0x1f, d.dsb << 12 | d.mask & 0x1f);
    status(&make(call::CTRL_PD, 0, d.src, d.dst, rdx, rax, d.mad))
}

/// ctrl_ec.
pub fn ctrl_ec(ec: Selector, flags: u8) -> Status {
    status(&make(call::CTRL_EC, flags, ec, 0, 0, 0, 0))
}

/// ctrl_sc; status and time.
pub fn ctrl_sc(sc: Selector) -> (Status, u64) {
    let after = make(call::CTRL_SC, 0, sc, 0, 0, 0, 0);
    (status(&after), after.gpr[6])
}

/// ctrl_pt.
pub fn ctrl_pt(pt: Selector, pid: u64, mtd: u32) -> Status {
    status(&make(call::CTRL_PT, 0, pt, pid, u64::from(mtd), 0, 0))
}

/// ctrl_sm.
pub fn ctrl_sm(sm: Selector, flags: u8, stc: u64) -> Status {
    status(&make(call::CTRL_SM, flags, sm, stc, 0, 0, 0))
}

/// ctrl_hw.
pub fn ctrl_hw(operation: u8, descriptor: u64) -> Status {
    status(&make(call::CTRL_HW, operation, descriptor, 0, 0, 0, 0))
}

/// assign_int; status, message address, message data.
pub fn assign_int(sm: Selector, flags: u8, cpu: u64, device: u64) -> (Status, u64, u64) {
    let after = make(call::ASSIGN_INT, flags, sm, cpu, device, 0, 0);
    (status(&after), after.gpr[6], after.gpr[2])
}

/// assign_dev.
pub fn assign_dev(dma: Selector, smmu: u64, dad: u64) -> Status {
    status(&make(call::ASSIGN_DEV, 0, dma, smmu, dad, 0, 0))
}
