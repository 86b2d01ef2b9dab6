//! The hypercalls (NOVA 5, 8.8), as functions with typed results.
//!
//! Unsafe is the SYSCALL instruction itself. Calls that can change what this program's memory is (`delegate`, and
//! what builds on it) are `unsafe fn`; the rest can at worst fail or make the program wait.
#![allow(unsafe_code)]

use abi::capability::Permissions;
use abi::extension::Operation;
use abi::hypercall::{CreatePd, flag};
use abi::scd::Scd;
use abi::{Hypercall, Selector, Status};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::span::spans;

pub use crate::span::Span;

/// Largest order that [`delegate_range`] uses: 1 GiB of memory; no kernel is kept busy by more in one go.
const ORDER_MAX: u32 = 18;

/// Result of a hypercall; the error is never [`Status::Success`].
pub type Result<T> = core::result::Result<T, Status>;

/// Kind of a new execution context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcKind {
    /// Runs when one of its portals is called, on the caller's time.
    Local,
    /// Runs on a scheduling context of its own.
    Global,
    /// A virtual CPU.
    Guest,
}

fn identifier(selector: u64, flags: u8, number: Hypercall) -> u64 {
    selector << 8 | (flags as u64) << 4 | number as u64
}

fn check(status: u64) -> Result<()> {
    use Status::*;
    const BY_NUMBER: [Status; 12] =
        [Success, Timeout, Aborted, Overflow, BadHyp, BadCap, BadPar, BadFtr, BadCpu, BadDev, MemObj, MemCap];
    // What this version does not define cannot be told from a call that it does not have.
    match BY_NUMBER.get(status as u8 as usize) {
        Some(Success) => Ok(()),
        other => Err(other.copied().unwrap_or(BadHyp)),
    }
}

const _: () = assert!(Status::MemCap as usize == 11);

/// SYSCALL with up to four parameters; returns RDI, RSI and RDX.
fn hypercall(rdi: u64, rsi: u64, rdx: u64, rax: u64, r8: u64) -> (u64, u64, u64) {
    let (status, out1, out2);
    // SAFETY: the kernel preserves everything but the registers named here (NOVA 8.8), and this program's memory
    // except for its UTCB, which Rust code reaches only through raw pointers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rdi") rdi => status,
            inlateout("rsi") rsi => out1,
            inlateout("rdx") rdx => out2,
            in("rax") rax,
            in("r8") r8,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (status, out1, out2)
}

/// Whether [`short`] enters by SYSENTER.
static SYSENTER: AtomicBool = AtomicBool::new(false);

/// From now on calls with few parameters enter by SYSENTER: for programs that handle the events of guests. False if
/// the kernel does not announce it.
pub fn prefer_sysenter() -> bool {
    let announced = u32::from(crate::manifest().extensions) & abi::extension::FEATURE_SYSENTER != 0;
    SYSENTER.store(announced, Ordering::Relaxed);
    announced
}

/// A call with one parameter; returns RDI and RSI.
fn short(rdi: u64, rsi: u64) -> (u64, u64) {
    if !SYSENTER.load(Ordering::Relaxed) {
        let (status, out, _) = hypercall(rdi, rsi, 0, 0, 0);
        return (status, out);
    }
    let (status, out);
    // SAFETY: as for `hypercall`; the kernel returns behind the instruction with the stack pointer as it is
    // (`abi::extension`).
    unsafe {
        asm!(
            "mov rcx, rsp",
            "lea rdx, [rip + 2f]",
            "sysenter",
            "2:",
            inlateout("rdi") rdi => status,
            inlateout("rsi") rsi => out,
            out("rcx") _,
            out("rdx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (status, out)
}

/// Calls portal `pt` with descriptor `mtd`; the reply's descriptor. The message is in the current EC's UTCB.
pub fn ipc_call(pt: Selector, mtd: u32) -> Result<u32> {
    let (status, mtd) = short(identifier(pt, 0, Hypercall::IpcCall), mtd as u64);
    check(status).map(|()| mtd as u32)
}

/// Creates a protection domain (`pd` is the parent) or a space for `pd`, capability in `sel`.
pub fn create_pd(sel: Selector, what: CreatePd, pd: Selector) -> Result<()> {
    check(hypercall(identifier(sel, what as u8, Hypercall::CreatePd), pd, 0, 0, 0).0)
}

/// Creates an execution context in `pd` on `cpu`, with its UTCB at `utcb`, stack pointer `sp` and event base `evt`.
/// It cannot use the FPU, except if it is a guest.
pub fn create_ec(sel: Selector, pd: Selector, kind: EcKind, utcb: u64, cpu: u32, sp: u64, evt: Selector) -> Result<()> {
    let flags = match kind {
        EcKind::Local => 0,
        EcKind::Global => flag::EC_GLOBAL,
        EcKind::Guest => flag::EC_GUEST | flag::EC_FPU,
    };
    let place = utcb & !0xfff | cpu as u64;
    check(hypercall(identifier(sel, flags, Hypercall::CreateEc), pd, place, sp, evt).0)
}

/// Creates a scheduling context in `pd` for `ec`, which thereby starts to run.
pub fn create_sc(sel: Selector, pd: Selector, ec: Selector, scd: Scd) -> Result<()> {
    check(hypercall(identifier(sel, 0, Hypercall::CreateSc), pd, ec, scd.to_raw(), 0).0)
}

/// Creates a portal in `pd`, bound to the local `ec`, with entry address `ip`.
pub fn create_pt(sel: Selector, pd: Selector, ec: Selector, ip: u64) -> Result<()> {
    check(hypercall(identifier(sel, 0, Hypercall::CreatePt), pd, ec, ip, 0).0)
}

/// Creates a semaphore in `pd` with counter `count`.
pub fn create_sm(sel: Selector, pd: Selector, count: u64) -> Result<()> {
    check(hypercall(identifier(sel, 0, Hypercall::CreateSm), pd, count, 0, 0).0)
}

/// Takes the capabilities of `span` from space `src` and grants them to space `dst` with permissions `mask`; an
/// empty mask unmaps. `mad` counts only for memory from the NOVA host space.
///
/// # Safety
/// If `dst` is this program's own host space, the caller answers for what happens to the memory there.
pub unsafe fn delegate(src: Selector, dst: Selector, span: Span, mask: Permissions, mad: u32) -> Result<()> {
    let from = span.source << 12 | span.order as u64;
    let to = span.destination << 12 | mask.bits() as u64;
    check(hypercall(identifier(src, 0, Hypercall::CtrlPd), dst, from, to, mad as u64).0)
}

/// As [`delegate`], between object spaces and for one capability.
pub fn delegate_object(src: Selector, from: Selector, dst: Selector, to: Selector, mask: Permissions) -> Result<()> {
    // SAFETY: between object spaces no memory changes; between others the kernel refuses or moves one page or port
    // that the caller named by mistake, which is why this function is for object spaces.
    unsafe { delegate(src, dst, Span { source: from, destination: to, order: 0 }, mask, 0) }
}

/// As [`delegate`] for `count` selectors from `source` to `destination`, in as large pieces as possible.
///
/// # Safety
/// See [`delegate`].
pub unsafe fn delegate_range(
    (src, source): (Selector, u64),
    (dst, destination): (Selector, u64),
    count: u64,
    mask: Permissions,
    mad: u32,
) -> Result<()> {
    for span in spans(source, destination, count, ORDER_MAX) {
        // SAFETY: the caller's promise.
        unsafe { delegate(src, dst, span, mask, mad)? };
    }
    Ok(())
}

/// Recalls an execution context; `strong` waits until it has been seen in the kernel.
pub fn ctrl_ec(ec: Selector, strong: bool) -> Result<()> {
    let flags = if strong { flag::RECALL_STRONG } else { 0 };
    check(short(identifier(ec, flags, Hypercall::CtrlEc), 0).0)
}

/// Time that a scheduling context has consumed, in ticks of the system time counter.
pub fn ctrl_sc(sc: Selector) -> Result<u64> {
    let (status, time, _) = hypercall(identifier(sc, 0, Hypercall::CtrlSc), 0, 0, 0, 0);
    check(status).map(|()| time)
}

/// Sets a portal's identifier and message transfer descriptor.
pub fn ctrl_pt(pt: Selector, pid: u64, mtd: u32) -> Result<()> {
    check(hypercall(identifier(pt, 0, Hypercall::CtrlPt), pid, mtd as u64, 0, 0).0)
}

/// Ups a semaphore.
pub fn sm_up(sm: Selector) -> Result<()> {
    check(short(identifier(sm, 0, Hypercall::CtrlSm), 0).0)
}

/// Downs a semaphore, or sets its counter to `zero`; gives up with [`Status::Timeout`] when the system time counter
/// reaches `deadline`, unless that is 0.
pub fn sm_down(sm: Selector, zero: bool, deadline: u64) -> Result<()> {
    let flags = flag::SM_DOWN | if zero { flag::SM_ZERO } else { 0 };
    check(short(identifier(sm, flags, Hypercall::CtrlSm), deadline).0)
}

/// Platform control; root protection domain only. Returns only on failure or after a shallow sleep.
pub fn ctrl_hw(operation: u8, descriptor: u64) -> Result<()> {
    check(hypercall(identifier(descriptor, operation, Hypercall::CtrlHw), 0, 0, 0, 0).0)
}

/// Routes the interrupt of semaphore `sm` to `cpu`; flags `INT_*`. Message address and data for an MSI.
pub fn assign_int(sm: Selector, flags: u8, cpu: u32, device: u16) -> Result<(u32, u16)> {
    let (status, address, data) =
        hypercall(identifier(sm, flags, Hypercall::AssignInt), cpu as u64, device as u64, 0, 0);
    check(status).map(|()| (address as u32, data as u16))
}

/// Puts the device with source id `device` into the DMA space `dma`, by the IOMMU whose registers are at the physical address
/// `iommu`; root protection domain only.
pub fn assign_dev(dma: Selector, iommu: u64, device: u16) -> Result<()> {
    check(hypercall(identifier(dma, 0, Hypercall::AssignDev), iommu, device.into(), 0, 0).0)
}

/// What a device did that it may not do, as [`Operation::Fault`] says it, or a reason of 0; root protection domain only, and
/// only where the information page offers it.
pub fn fault() -> Result<(u64, u64)> {
    let (status, what, address) = hypercall(identifier(0, Operation::Fault as u8, Hypercall::Extension), 0, 0, 0, 0);
    check(status).map(|()| (what, address))
}

/// Moves `frames` of the caller's allowance of kernel memory to `pd`; only where the information page offers it.
pub fn move_allowance(pd: Selector, frames: u64) -> Result<()> {
    check(hypercall(identifier(pd, Operation::MoveAllowance as u8, Hypercall::Extension), frames, 0, 0, 0).0)
}

/// Destroys the object at `sel`, which the protection domain `owner` owns, with everything that it owns in turn. All its
/// kernel memory is free when the call returns; only where the information page offers it.
pub fn destroy(sel: Selector, owner: Selector) -> Result<()> {
    check(hypercall(identifier(sel, Operation::Destroy as u8, Hypercall::Extension), owner, 0, 0, 0).0)
}

/// Turns the trace of all CPUs on or off (`abi::observation`); `space` is the NOVA host space. Only where the information
/// page offers it.
pub fn trace(space: Selector, on: bool) -> Result<()> {
    check(hypercall(identifier(space, Operation::Trace as u8, Hypercall::Extension), on as u64, 0, 0, 0).0)
}

/// Frames of kernel memory, of 4 KiB, that `pd` could still use, and those that are free in the whole kernel; only where
/// the information page offers it.
pub fn balance(pd: Selector) -> Result<(u64, u64)> {
    let (status, own, free) = hypercall(identifier(pd, Operation::Balance as u8, Hypercall::Extension), 0, 0, 0, 0);
    check(status).map(|()| (own, free))
}
