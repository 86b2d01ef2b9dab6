#![allow(unsafe_code)]
//! The way in and out by SYSCALL, and calls and replies when nothing is in the way: the callee is idle on the caller's
//! CPU, no recall is pending, and nothing [unusual](crate::cpu::Unusual) has to be done for a switch.
//!
//! Unsafe: assembly.
//!
//! In every other case, and for every other hypercall, nothing has changed when `hypercall` gets the call. Where the fast
//! path does the work it does what `portal` would do. It loses no time to locks, queues or clocks, and it is the reason
//! for the layout of EC, portal and header. The caller's registers are kept. The callee begins with what it is told, and
//! zeros.

use core::mem::offset_of;

use abi::Mtd;
use abi::capability::{Permissions, SELECTOR_COUNT};
use abi::event::guest as event;
use abi::observation::counter;
use abi::utcb::Architectural;
use kernel_core::slots::{Entry, Header, Kind, Reference};

use crate::cpu::{Cpu, Unusual};
use crate::ec::{Continuation, Ec};
use crate::guest::GuestState;
use crate::object::HEADER_MEMORY;
use crate::portal::Pt;
use crate::space::GuestSpace;
use crate::svm::spec::{EVENTS, Vmcb, code};
use crate::vcpu::Gprs;
use crate::vmx::spec as vmx;

core::arch::global_asm!(
    include_str!("fast.S"),
    kernel = const crate::memory::KERNEL as i64,
    hypercall = sym crate::hypercall::hypercall,
    cpu = const offset_of!(Ec, stack),
    rip = const offset_of!(Ec, rip),
    rsp = const offset_of!(Ec, rsp),
    state = const offset_of!(Ec, continuation),
    caller = const offset_of!(Ec, caller),
    callee = const offset_of!(Ec, callee),
    selectors = const offset_of!(Ec, selectors),
    message = const offset_of!(Ec, message),
    tables = const offset_of!(Ec, tables),
    current = const offset_of!(Cpu, current),
    unusual = const offset_of!(Cpu, unusual),
    space = const offset_of!(Cpu, space),
    counters = const offset_of!(Cpu, counters),
    calls = const 8 * (counter::HYPERCALL + abi::Hypercall::IpcCall as usize),
    selectors_end = const SELECTOR_COUNT,
    may_call = const Permissions::CALL.bits(),
    reply = const abi::Hypercall::IpcReply as u8,
    headers = sym HEADER_MEMORY,
    generation = const Header::GENERATION,
    content = const Header::CONTENT,
    portal = const Header::live_content(Kind::Pt, 0),
    portal_ec = const offset_of!(Pt, ec),
    portal_ip = const offset_of!(Pt, ip),
    portal_identifier = const offset_of!(Pt, identifier),
    portal_mtd = const offset_of!(Pt, mtd),
    may_event = const Permissions::EVENT.bits(),
    event_base = const offset_of!(Ec, binding.event_base),
    guest = const offset_of!(Ec, binding.guest),
    poised = const offset_of!(Cpu, poised),
    control = const offset_of!(GuestState, block.va),
    control_physical = const offset_of!(GuestState, block.pa),
    ended = const offset_of!(GuestState, ended),
    guest_space = const offset_of!(GuestState, space),
    seen = const offset_of!(GuestState, generation),
    space_generation = const GuestSpace::GENERATION,
    spaces_ended = sym crate::guest::SPACES_ENDED,
    entries = const 8 * counter::GUEST_ENTRY,
    events = const 8 * counter::GUEST_EVENT,
    resume = const offset_of!(GuestState, resume),
    resume_vmx = sym crate::guest::resume_vmx,
    a_guest_ran = const 0xff << (8 * offset_of!(Unusual, guest)),
    vmcs_reason = const vmx::field::REASON,
    vmx_events = const vmx::PLAIN_EVENTS,
    not_fast = const Mtd::TSC.bits(),
    not_fast_reply = const !Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RIP).bits(),
    mtd_rip = const Mtd::RIP.bits(),
    mtd_gpr_0_7 = const Mtd::GPR_0_7.bits(),
    mtd_gpr_8_15 = const Mtd::GPR_8_15.bits(),
    utcb_rip = const offset_of!(Architectural, rip),
    vmcb_injection = const offset_of!(Vmcb, injection),
    vmcb_interrupted = const offset_of!(Vmcb, interrupted),
    vmcb_exit_code = const offset_of!(Vmcb, exit_code),
    vmcb_rip = const offset_of!(Vmcb, rip),
    vmcb_rsp = const offset_of!(Vmcb, rsp),
    vmcb_rax = const offset_of!(Vmcb, rax),
    vmcb_exit_info = const offset_of!(Vmcb, exit_info),
    nested_fault = const code::NESTED_FAULT,
    event_page_fault = const event::PAGE_FAULT,
    event_rdmsr = const event::RDMSR,
    exit_codes = const EVENTS.len(),
    exit_events = sym EVENTS,
    save_state = sym crate::guest::save_state,
    vcpu_exit = sym crate::guest::vcpu_exit,
    await_event_reply = const Continuation::AwaitEventReply as u16,
    idle = const Continuation::Idle as u16,
    busy = const Continuation::ReturnHypercall as u8,
    await_reply = const Continuation::AwaitReply as u16,
    options(att_syntax)
);

const _: () = {
    assert!(size_of::<Header>() == 32 && SELECTOR_COUNT <= 512 * 512);
    assert!(abi::Hypercall::IpcCall as u8 == 0 && abi::Hypercall::IpcReply as u8 == 1);
    assert!(abi::USER_END == 1 << 47);
    let entry = Entry::new(Reference { index: 3, generation: 7 }, Permissions::CALL).to_raw();
    assert!(entry == 7 << 32 | 3 << 5 | Permissions::CALL.bits() as u64);
};

unsafe extern "C" {
    /// Leaves the kernel after a hypercall of the EC that begins with these registers.
    pub fn return_from_hypercall(ec: *const Gprs) -> !;
    /// Runs a guest, see `fast.S`.
    pub fn svm_run() -> !;
    /// Enters a guest again.
    pub fn svm_resume() -> !;
    /// Enters a guest again.
    pub fn vmx_resume() -> !;
    /// Where exits go.
    pub fn vmx_exit() -> !;
    /// Where SYSCALL enters, through the stubs.
    pub static syscall_entry: u8;
}
