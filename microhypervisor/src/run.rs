#![allow(unsafe_code)]
//! The way out of the kernel: an EC goes on where its continuation says. And the way in from user mode.
//!
//! Unsafe: calls the entry and exit stubs, which never return.

use core::sync::atomic::Ordering;

use abi::observation::{Traced, counter};
use abi::utcb::gpr;
use abi::{Status, USER_END};

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec};
use crate::fast::return_from_hypercall;
pub use crate::fast::run;
use crate::hypercall::Call;
use crate::observation::trace;
use crate::vcpu::Gprs;
use crate::{ctrl_pd, destroy, fpu, guest, interrupt, portal, registers, sched};

core::arch::global_asm!(
    include_str!("entry.S"),
    block_mask = const -(crate::cpu::BLOCK as i64),
    current = const crate::cpu::CpuBlock::STACK_TOP,
    user_interrupt = sym user_interrupt,
    kernel_interrupt = sym interrupt::kernel_interrupt,
    options(att_syntax)
);

unsafe extern "C" {
    fn return_from_interrupt(ec: *const Gprs) -> !;
    /// The first interrupt stub.
    pub static interrupt_stubs: u8;
}

/// `ec` will return from its hypercall with `status`.
#[inline(always)]
pub fn finish(ec: &Ec, status: Status) {
    ec.set_gpr(gpr::RDI, status as u64);
    ec.continuation.set(Continuation::ReturnHypercall);
}

/// `ec` returns from its hypercall with `result`.
#[inline(always)]
pub fn end(cpu: &'static Cpu, ec: &'static Ec, result: Result<(), Status>) -> ! {
    finish(ec, result.err().unwrap_or(Status::Success));
    run(cpu, ec)
}

/// What [`run`] does if there is more to do than to return from a hypercall.
pub extern "C" fn go_on(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    if cpu.reschedule.get() {
        sched::check(cpu, ec)
    }
    let continuation = ec.continuation.get();
    if ec.recall.load(Ordering::Relaxed) {
        recall(cpu, ec, continuation);
    }
    match continuation {
        Continuation::ReturnHypercall => {
            prepare_user(cpu, ec);
            // SAFETY: the EC's state is complete, and its RIP and RSP are user addresses or fault in user mode.
            unsafe { return_from_hypercall(cpu, ec) }
        }
        Continuation::ReturnInterrupt => {
            prepare_user(cpu, ec);
            // SAFETY: as above; selectors and flags of the frame are ours.
            unsafe { return_from_interrupt(ec.gprs.get()) }
        }
        Continuation::EnterGuest => guest::enter(cpu, ec),
        Continuation::Startup => {
            let arch = first_microhypervisor_event(ec);
            portal::raise(cpu, ec, arch + abi::event::STARTUP)
        }
        Continuation::SendCall => {
            end(cpu, ec, portal::call(cpu, ec, Call { selector: ec.gpr(gpr::RDI) >> 8, flags: 0 }))
        }
        Continuation::SendEvent => portal::raise(cpu, ec, ec.event.get()),
        Continuation::ResumeCtrlPd => ctrl_pd::resume(cpu, ec),
        Continuation::ResumeDestroy => destroy::resume(cpu, ec),
        Continuation::FreeTables => ctrl_pd::free_tables(cpu, ec),
        // It waits, or is no more.
        _ => sched::resume_current(cpu),
    }
}

fn first_microhypervisor_event(ec: &Ec) -> u16 {
    if ec.guest.is_some() { abi::event::GUEST_ARCH } else { abi::event::HOST_ARCH }
}

/// A recall is pending: raises it if `ec` was about to leave the kernel.
fn recall(cpu: &'static Cpu, ec: &'static Ec, continuation: Continuation) {
    match continuation {
        Continuation::ReturnHypercall => {
            // The event's reply resumes with full state, so what SYSRET would set must be there.
            ec.set_gpr(gpr::RCX, ec.rip.get());
            ec.set_gpr(11, 0x202);
            ec.rflags.set(0x202);
        }
        Continuation::ReturnInterrupt | Continuation::EnterGuest => {}
        _ => return,
    }
    if ec.recall.swap(false, Ordering::Relaxed) {
        let arch = first_microhypervisor_event(ec);
        portal::raise(cpu, ec, arch | abi::event::RECALL)
    }
}

/// Makes the CPU ready for `ec` in user mode.
fn prepare_user(cpu: &'static Cpu, ec: &'static Ec) {
    if ec.rip.get() >= USER_END {
        // SYSRET and IRET fault in the kernel on such an address; the fault is the program's.
        ec.error.set(0);
        ec.vector.set(13);
        // Its handler may have such an address, too, and so on.
        registers::interrupt_window();
        portal::raise(cpu, ec, 13);
    }
    make_current(cpu, ec);
    switch_space(cpu, ec);
    fpu::prepare_user(cpu, ec);
    if cpu.unusual.guest.get() {
        guest::leave(cpu);
    }
}

/// #GP in user mode: true if it may be for a port that a stale task register hides, which it does no longer.
fn show_ports(cpu: &Cpu, ec: &Ec) -> bool {
    let hidden = ec.space.has_ports() && cpu.task_register_stale.replace(false);
    if hidden {
        // SAFETY: the table that `CpuBlock::load_descriptors` loaded.
        unsafe { crate::descriptors::reload_task_register(cpu.gdt.get()) };
    }
    hidden
}

/// `ec` is about to run.
#[inline(always)]
pub fn make_current(cpu: &Cpu, ec: &Ec) {
    if !core::ptr::eq(cpu.current.replace(ec), ec) {
        cpu.counters().count(counter::SWITCH);
        trace(cpu, Traced::Switch, 0, ec.reference.index() as u64, ec.pd.reference.index() as u64);
    }
}

/// Loads the page tables of `ec`'s host space if others are loaded, or if they lost entries since.
#[inline(always)]
pub fn switch_space(cpu: &Cpu, ec: &Ec) {
    let root = ec.space.root();
    if cpu.space.root() != root {
        cpu.counters().count(counter::SPACE_SWITCH);
        cpu.space.announce(root);
        // SAFETY: every host space maps the kernel.
        unsafe { registers::set_cr3(root) };
    }
}

/// The page tables of `ec`'s host space may go: this CPU does without if it has them loaded.
pub fn forget_space(cpu: &Cpu, ec: &Ec) {
    if cpu.space.root() == ec.space.root() {
        cpu.space.announce(crate::space::master());
        // SAFETY: the kernel's half is the same everywhere.
        unsafe { registers::set_cr3(crate::space::master()) };
    }
}

/// Exceptions and interrupts from user mode. `ec` holds the complete state.
extern "C" fn user_interrupt(ec: &'static Ec) -> ! {
    let cpu = ec.cpu;
    ec.continuation.set(Continuation::ReturnInterrupt);
    let vector = ec.vector.get();
    if vector >= 32 {
        interrupt::handle(cpu, vector as u8);
        run(cpu, ec)
    }
    match vector {
        2 => {}
        8 | 18 => crate::panic::fatal(format_args!("exception {vector:#x} in user mode at RIP {:#x}", ec.rip.get())),
        // It may be for a SYSCALL while that was a guest's.
        6 if cpu.guest.get().is_some() => {}
        7 if ec.fpu_state.is_some() => fpu::acquire(cpu, ec),
        13 if show_ports(cpu, ec) => {}
        _ => {
            ec.fault_address.set(if vector == 14 { registers::Cr2::read_raw() } else { 0 });
            portal::raise(cpu, ec, vector as u16)
        }
    }
    run(cpu, ec)
}
