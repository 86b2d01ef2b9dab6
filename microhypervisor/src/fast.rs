#![allow(unsafe_code)]
//! The way in and out by SYSCALL and SYSENTER, and calls and replies when nothing is in the way: the callee is idle on the caller's
//! CPU, no recall is pending, and nothing [unusual](crate::cpu::Unusual) has to be done for a switch.
//!
//! Unsafe: assembly.
//!
//! In every other case, and for every other hypercall, nothing but its count has changed when `hypercall` gets the call. Where the fast
//! path does the work it does what `portal` would do. It loses no time to locks, queues or clocks, and it is the reason
//! for the layout of EC, portal and header. The caller's registers are kept. The callee begins with what it is told, and
//! zeros.

use core::mem::offset_of as at;

use abi::Mtd;
use abi::capability::{Permissions, SELECTOR_COUNT};
use abi::event::guest as event;
use abi::hypercall::flag;
use abi::observation::counter;
use abi::utcb::Architectural as Utcb;
use kernel_core::slots::{Entry, Header, HeaderTable, Kind, Reference};

use crate::cpu::{Cpu, CpuBlock, Unusual};
use crate::ec::{Continuation, Ec};
use crate::guest::GuestState;
use crate::object::{HEADER_MEMORY, TABLE};
use crate::portal::Pt;
use crate::semaphore::Sm;
use crate::svm::spec::{EVENTS, Vmcb, code};
use crate::vcpu::Gprs;
use crate::vmx::spec as vmx;

core::arch::global_asm!(
    include_str!("fast.S"),
    cpu = const at!(Ec, stack), rip = const at!(Ec, rip), rsp = const at!(Ec, rsp),
    state = const at!(Ec, continuation), caller = const at!(Ec, caller), callee = const at!(Ec, serves),
    selectors = const at!(Ec, selectors), message = const at!(Ec, message), tables = const at!(Ec, tables),
    event_base = const at!(Ec, binding.event_base), guest = const at!(Ec, binding.guest),
    sysenter = const at!(Ec, sysenter), last_found = const at!(Ec, last_found), table = sym TABLE,
    nobody = sym crate::ec::NOBODY, changes = const at!(HeaderTable<'static>, changes),
    current = const at!(Cpu, current), unusual = const at!(Cpu, unusual), space = const at!(Cpu, space),
    counters = const CpuBlock::COUNTERS - CpuBlock::STACK_TOP, poised = const at!(Cpu, poised), guest_cr2 = const at!(Cpu, guest_cr2),
    a_guest_ran = const Unusual::GUEST, a_guest_alone = const 1 << Unusual::GUEST.trailing_zeros(),
    tracing = const 0xff_u64 << (8 * at!(Unusual, tracing)), up = const abi::Hypercall::CtrlSm as u8,
    down = const abi::Hypercall::CtrlSm as u8 | flag::SM_DOWN << 4, sm_word = const at!(Sm, word),
    sm_route = const at!(Sm, route), semaphore = const Header::live_content(Kind::Sm, 0),
    portal_enters = const at!(Pt, enters), portal_ip = const at!(Pt, ip),
    portal_identifier = const at!(Pt, identifier), portal_mtd = const at!(Pt, mtd),
    control = const at!(GuestState, block.va), control_physical = const at!(GuestState, block.pa),
    resume = const at!(GuestState, resume), resume_rip = const at!(GuestState, resume_rip), syscall_off = const at!(GuestState, syscall_off),
    pass_event = const at!(GuestState, pass_event), vmcb_next_rip = const at!(Vmcb, next_rip),
    vmcb_interrupted = const at!(Vmcb, interrupted), vmcb_exit_code = const at!(Vmcb, exit_code),
    vmcb_rip = const at!(Vmcb, rip), vmcb_rsp = const at!(Vmcb, rsp), vmcb_rax = const at!(Vmcb, rax),
    vmcb_exit_info = const at!(Vmcb, exit_info), vmcb_cr0 = const at!(Vmcb, cr0), vmcb_cr2 = const at!(Vmcb, cr2),
    vmcb_cr3 = const at!(Vmcb, cr3), vmcb_cr4 = const at!(Vmcb, cr4), vmcb_tpr = const at!(Vmcb, virtual_interrupt),
    vmcb_efer = const at!(Vmcb, efer), utcb_cr0 = const at!(Utcb, cr0), utcb_cr2 = const at!(Utcb, cr2),
    utcb_cr3 = const at!(Utcb, cr3), utcb_cr4 = const at!(Utcb, cr4), utcb_cr8 = const at!(Utcb, cr8),
    utcb_efer = const at!(Utcb, efer), mtd_cr = const Mtd::CR.bits(), mtd_efer = const Mtd::EFER.bits(),
    efer_svme = const crate::vcpu::register::EFER_SVME,
    utcb_qualification = const at!(Utcb, qualification), utcb_length = const at!(Utcb, instruction_length),
    utcb_information = const at!(Utcb, instruction_info), utcb_rip = const at!(Utcb, rip),
    vmcs_qualification = const vmx::field::QUALIFICATION, vmcs_linear = const vmx::field::LINEAR_ADDRESS,
    vmcs_physical = const vmx::field::PHYSICAL_ADDRESS, vmcs_rip = const vmx::field::RIP,
    vmcs_rsp = const vmx::field::RSP, vmcs_length = const vmx::field::INSTRUCTION_LENGTH,
    vmcs_information = const vmx::field::INSTRUCTION_INFO, vmcs_reason = const vmx::field::REASON,
    mtd_qual = const Mtd::QUAL.bits(), not_fast = const Mtd::RIP.union(Mtd::TSC).union(Mtd::KERNEL_GS).bits(),
    not_fast_reply = const !Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RIP).bits(), mtd_rip = const Mtd::RIP.bits(),
    mtd_gpr_0_7 = const Mtd::GPR_0_7.bits(), mtd_gpr_8_15 = const Mtd::GPR_8_15.bits(),
    calls = const 8 * (counter::HYPERCALL + abi::Hypercall::IpcCall as usize),
    entries = const 8 * counter::GUEST_ENTRY, events = const 8 * counter::GUEST_EVENT,
    await_event_reply = const Continuation::AwaitEventReply as u16, idle = const Continuation::Idle as u16,
    idle_by_sysenter = const Continuation::Idle as u32 | 1 << 16, busy = const Continuation::ReturnHypercall as u8,
    await_reply = const Continuation::AwaitReply as u16, kernel = const crate::memory::KERNEL as i64,
    selectors_end = const SELECTOR_COUNT, may_call = const Permissions::CALL.bits(),
    reply = const abi::Hypercall::IpcReply as u8, generation = const Header::GENERATION,
    content = const Header::CONTENT, portal = const Header::live_content(Kind::Pt, 0),
    may_event = const Permissions::EVENT.bits(), io_exit = const code::IO, vmx_events = const vmx::PLAIN_EVENTS,
    nested_fault = const code::NESTED_FAULT, event_page_fault = const event::PAGE_FAULT,
    event_rdmsr = const event::RDMSR, exit_codes = const EVENTS.len(), ctrl_sm = sym crate::semaphore::control,
    hypercall = sym crate::hypercall::hypercall, trace_hypercall = sym crate::hypercall::trace_hypercall,
    hypercalls = const 8 * counter::HYPERCALL, recall = const at!(Ec, recall), go_on = sym crate::run::go_on,
    switches = const 8 * counter::SWITCH, fpu_owner = const at!(Cpu, fpu_owner), headers = sym HEADER_MEMORY, make_live = sym crate::guest::make_live,
    leave = sym crate::guest::leave, save_rest = sym crate::guest::save_state, exit_events = sym EVENTS,
    vcpu_exit = sym crate::guest::vcpu_exit,
    options(att_syntax)
);

const _: () = {
    assert!(size_of::<Header>() == 32 && SELECTOR_COUNT <= 512 * 512);
    assert!(abi::Hypercall::IpcCall as u8 == 0 && abi::Hypercall::IpcReply as u8 == 1);
    assert!(
        abi::USER_END == 1 << 47 && flag::SM_DOWN == 1 && Permissions::UP.bits() == 1 && Permissions::DOWN.bits() == 2
    );
    let entry = Entry::new(Reference { index: 3, generation: 7 }, Permissions::CALL).to_raw();
    assert!(entry == 7 << 32 | 3 << 5 | Permissions::CALL.bits() as u64);
};

// Nothing crosses but addresses.
#[allow(improper_ctypes)]
unsafe extern "C" {
    /// Runs `ec`, the end of the current SC's chain, unless something more urgent is ready. The stack, on whose top `cpu` is,
    /// begins anew: programs can bring the kernel here any number of times before it returns to user mode.
    pub safe fn run(cpu: &'static Cpu, ec: &'static Ec) -> !;
    /// Leaves the kernel after a hypercall of the EC, whose RIP is a user address.
    pub fn return_from_hypercall(cpu: &'static Cpu, ec: &'static Ec) -> !;
    /// Loads the general registers and enters the guest of this control block, which is complete; as for
    /// [`crate::vcpu::VirtualCpu::enter`]. Goes on at the exit with the registers stored. Entry 4 of them holds the physical
    /// address of the block with the host's FS, GS, TR, LDTR and syscall MSRs.
    pub fn svm_enter(gprs: *mut Gprs, control: u64) -> !;
    /// Loads the general registers and enters the guest of the current VMCS, which is complete; as for
    /// [`crate::vcpu::VirtualCpu::enter`]. `launched` is 0 the first time. Goes on at [`vmx_exit`], or as from there if the CPU refuses.
    pub fn vmx_enter(gprs: *mut Gprs, launched: u64) -> !;
    /// Enters a guest again.
    pub fn svm_resume() -> !;
    /// Enters a guest again, with a new RIP alone.
    pub fn svm_resume_rip() -> !;
    /// Enters a guest again.
    pub fn vmx_resume() -> !;
    /// Where exits go.
    pub fn vmx_exit() -> !;
    /// Passes an event of a guest on to its handler, which enters by SYSENTER.
    pub fn vmx_event() -> !;
    /// Passes an event of a guest on to its handler, which enters by SYSCALL.
    pub fn vmx_event_for_syscall() -> !;
    /// Passes an event of a guest on to its handler.
    pub fn svm_event_found() -> !;
    /// Where SYSCALL enters, through the stubs.
    pub static syscall_entry: u8;
    /// Where SYSENTER enters.
    pub static sysenter_entry: u8;
}
