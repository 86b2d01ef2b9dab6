//! Portals and the messages that travel through them: calls, events, replies (NOVA 2.4, 4.4, 5.2, 8.6).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use abi::capability::Permissions;
use abi::hypercall::flag;
use abi::observation::{Traced, counter};
use abi::utcb::gpr;
use abi::{Mtd, Status, USER_END, event};

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec, EcKind};
use crate::guest::{NOBODY, expect, save_state};
use crate::hypercall::Call;
use crate::memory::copy_words;
use crate::object::{Ref, TABLE};
use crate::observation::trace;
use crate::vcpu::{Gprs, legal};
use crate::{run, sched};

/// A portal.
#[repr(C, align(64))]
pub struct Pt {
    /// Who is entered.
    pub ec: Ref<Ec>,
    /// The same for the fast path; nobody if `ip` is no user address, so that SYSRET or SYSEXIT would fault in the kernel.
    pub enters: Ref<Ec>,
    /// Where it enters.
    pub ip: u64,
    /// Passed to the callee.
    pub identifier: AtomicU64,
    /// State that an event carries.
    pub mtd: AtomicU32,
}

impl Pt {
    /// A portal to `ec` that enters at `ip`.
    pub fn new(ec: Ref<Ec>, ip: u64) -> Self {
        let enters = if ip < USER_END { ec } else { Ref::NULL };
        Self { ec, enters, ip, identifier: AtomicU64::new(0), mtd: AtomicU32::new(0) }
    }
}

/// Lends the caller's scheduling context to `callee`, which starts at the portal's address.
fn enter(cpu: &'static Cpu, caller: &'static Ec, callee: &'static Ec, portal: &Pt, mtd: u32) -> ! {
    callee.caller.set(Some(caller));
    caller.serves.set(Some(callee));
    *callee.gprs.get() = Gprs([0; 16]);
    callee.set_gpr(gpr::RDI, portal.identifier.load(Ordering::Relaxed));
    callee.set_gpr(gpr::RSI, mtd as u64);
    callee.rip.set(portal.ip);
    callee.continuation.set(Continuation::ReturnHypercall);
    run::run(cpu, callee)
}

/// Whether `callee` cannot be done before `caller` is: helping would go round in a circle, for ever.
fn waits_for(callee: &'static Ec, caller: &Ec) -> bool {
    let mut next = Some(callee);
    while next.is_some_and(|ec| !core::ptr::eq(ec, caller)) {
        next = next.and_then(sched::ahead);
    }
    next.is_some()
}

/// `caller` found `callee` busy: its scheduling context runs what the callee is busy with, and then it tries again.
fn help(cpu: &'static Cpu, caller: &'static Ec, callee: &'static Ec, retry: Continuation) -> ! {
    caller.continuation.set(retry);
    caller.helps.set(Some(callee.reference));
    cpu.counters().count(counter::HELP);
    sched::resume_current(cpu)
}

/// ipc_call of `caller`, whose registers hold the portal and the message descriptor.
pub fn call(cpu: &'static Cpu, caller: &'static Ec, call: Call) -> Result<(), Status> {
    let (portal, _) = caller.selectors.get::<Pt>(call.selector, Permissions::CALL)?;
    let callee = portal.ec.get().ok_or(Status::Aborted)?;
    if !core::ptr::eq(callee.cpu, caller.cpu) {
        return Err(Status::BadCpu);
    }
    match callee.continuation.get() {
        Continuation::Dead => return Err(Status::Aborted),
        Continuation::Idle => {}
        _ if call.flags & flag::CALL_NO_HELP != 0 => return Err(Status::Timeout),
        _ if waits_for(callee, caller) => return Err(Status::Aborted),
        _ => help(cpu, caller, callee, Continuation::SendCall),
    }
    let mtd = caller.gpr(gpr::RSI) as u32 & 0x1ff;
    copy_words(caller.utcb, callee.utcb, (mtd as usize).saturating_add(1));
    caller.continuation.set(Continuation::AwaitReply);
    enter(cpu, caller, callee, portal, mtd)
}

/// Sends `event` of `ec` to its portal; kills `ec` if that cannot be done.
pub fn raise(cpu: &'static Cpu, ec: &'static Ec, event: u16) -> ! {
    let portal = match ec.selectors.get::<Pt>(ec.event_base.wrapping_add(event as u64), Permissions::EVENT) {
        Ok((portal, _)) => portal,
        Err(_) => kill(cpu, ec, format_args!("no portal for event {:#x}", event as u64)),
    };
    let callee = match portal.ec.get() {
        Some(callee) if core::ptr::eq(callee.cpu, ec.cpu) && callee.continuation.get() != Continuation::Dead => callee,
        _ => kill(cpu, ec, format_args!("the handler of event {:#x} is gone", event as u64)),
    };
    if callee.continuation.get() != Continuation::Idle {
        if waits_for(callee, ec) {
            kill(cpu, ec, format_args!("event {:#x} in its own handler", event as u64));
        }
        ec.event.set(event);
        help(cpu, ec, callee, Continuation::SendEvent);
    }
    let (first, guest) = if ec.guest.is_some() { (counter::GUEST_EVENT, 1 << 15) } else { (counter::HOST_EVENT, 0) };
    cpu.counters().count(first.saturating_add(event as usize));
    trace(cpu, Traced::Event, event | guest, ec.reference.index() as u64, callee.reference.index() as u64);
    let mtd = Mtd::from_bits_retain(portal.mtd.load(Ordering::Relaxed));
    match ec.guest {
        Some(guest) => {
            cpu.poised.set(NOBODY);
            expect(cpu, guest, callee);
            save_state(ec, mtd.bits(), callee);
        }
        None => ec.save_host(mtd, callee.architectural()),
    }
    ec.continuation.set(Continuation::AwaitEventReply);
    enter(cpu, ec, callee, portal, mtd.bits())
}

/// ipc_reply of `callee`: answers its caller, if it has one, and waits for the next message.
pub fn reply(cpu: &'static Cpu, callee: &'static Ec) -> ! {
    if callee.kind != EcKind::Local {
        kill(cpu, callee, format_args!("ipc_reply by an EC that is not a local thread"));
    }
    callee.continuation.set(Continuation::Idle);
    let Some(caller) = callee.caller.get() else {
        sched::disinherit(cpu, callee);
        sched::resume_current(cpu)
    };
    let mtd = callee.gpr(gpr::RSI) as u32;
    callee.caller.set(None);
    if caller.continuation.get() == Continuation::AwaitReply {
        let mtd = mtd & 0x1ff;
        copy_words(callee.utcb, caller.utcb, (mtd as usize).saturating_add(1));
        caller.set_gpr(gpr::RSI, mtd as u64);
        run::finish(caller, Status::Success);
    } else {
        resume_event(cpu, caller, callee, Mtd::from_bits_retain(mtd));
    }
    if cpu.unusual.helping.get() {
        sched::resume_current(cpu);
    }
    run::run(cpu, caller)
}

/// Takes the state that `handler` replied with into `ec`.
fn resume_event(cpu: &'static Cpu, ec: &'static Ec, handler: &Ec, mtd: Mtd) {
    if mtd.contains(Mtd::POISON) {
        kill(cpu, ec, format_args!("poisoned by its handler"));
    }
    let utcb = handler.architectural();
    let Some(guest) = ec.guest else {
        ec.load_host(mtd, utcb);
        ec.continuation.set(Continuation::ReturnInterrupt);
        return;
    };
    if mtd.contains(Mtd::SPACES) {
        guest.assign(handler.objects, utcb);
    }
    cpu.poised.set(NOBODY);
    let mut continuation = Continuation::EnterGuest;
    if mtd.intersects(legal::CHECKED) {
        // A copy, because the handler's program can change the original at any time.
        let mut state = *utcb;
        let taken = legal::check(mtd, &state);
        if taken != mtd {
            ec.event.set(event::guest::INVALID_STATE);
            continuation = Continuation::SendEvent;
        }
        guest.vcpu().load(taken, ec.gprs.get(), &mut state);
    } else {
        guest.vcpu().load(mtd, ec.gprs.get(), utcb);
    }
    ec.continuation.set(continuation);
}

/// Kills `ec`; whoever waits for its reply gets ABORTED, or dies as well if it was waiting for an event handler.
pub fn kill(cpu: &'static Cpu, ec: &'static Ec, reason: core::fmt::Arguments) -> ! {
    crate::log!("killed EC {:#x} at RIP {:#x}: {reason}", ec.reference.index() as u64, ec.rip.get());
    unwind(cpu, ec);
    sched::resume_current(cpu)
}

/// `ec` is dead: tells whoever waits for it.
pub fn unwind(cpu: &Cpu, ec: &'static Ec) {
    let mut dead = ec;
    loop {
        dead.continuation.set(Continuation::Dead);
        sched::unpark(cpu, dead);
        // It and its scheduling context are inactive now.
        TABLE.suspect(dead.reference.index());
        TABLE.suspect(dead.bound.load(Ordering::Relaxed).wrapping_sub(1));
        let Some(caller) = dead.caller.get() else { return };
        dead.caller.set(None);
        if caller.continuation.get() == Continuation::AwaitReply {
            return run::finish(caller, Status::Aborted);
        }
        crate::log!("killed EC {:#x}: its event handler died", caller.reference.index() as u64);
        dead = caller;
    }
}
