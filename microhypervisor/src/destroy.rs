//! Destruction: everything that was created can be given back, and nothing refers to it afterwards.
//!
//! `destroy` takes one object, or a protection domain with all that it owns, in steps that can be interrupted:
//!
//! 1. *Mark*: from the target downwards, every reference is ended (capabilities read as null everywhere), creation
//!    fails, waiters are released, and each EC and SC gets a message to stop on its own CPU.
//! 2. *Two rounds* over all CPUs. After the first all ECs have stopped, and no CPU holds anything that it looked up
//!    before the marks. After the second that also holds for what a CPU did to an EC just before that one stopped.
//! 3. *Sweep*: from the leaves upwards, memory goes back to the accounts that paid for it.
//!
//! One destruction is under way at a time; others wait for [`TOKEN`]. The tree of what owns what changes below a dying
//! protection domain only by its own destruction.

use core::sync::atomic::Ordering;

use abi::Status;
use abi::capability::Permissions;
use abi::utcb::gpr;
use kernel_core::slots::Kind;
use spin::Mutex;

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec};
use crate::guest::{self, GuestState};
use crate::memory::{release, release_small};
use crate::object::{self, Object, table};
use crate::pd::Pd;
use crate::portal::{self, Pt};
use crate::rounds::{self, mail};
use crate::sched::{self, Sc};
use crate::semaphore::{self, Sm};
use crate::space::{GuestSpace, HostSpace, MemorySpace, MsrSpace, ObjectSpace, PioSpace};
use crate::{fpu, registers, run};

/// Held by the EC that destroys.
pub static TOKEN: Sm = Sm::new(1);

/// Values of [`Ec::progress`] of the EC that destroys.
mod phase {
    pub const BEGIN: u64 = 0;
    pub const COLLECT: u64 = 1;
    pub const MARK: u64 = 2;
    pub const FIRST_ROUND: u64 = 3;
    pub const SECOND_ROUND: u64 = 4;
    pub const SWEEP: u64 = 5;
}

/// How far it came. Indices of headers.
struct Work {
    target: u32,
    at: u32,
    /// Mark: what `at` owns was not looked at yet.
    descend: bool,
    /// Sweep: how much of a space is clear.
    cleared: u64,
    /// Abandoned objects that this call may still destroy.
    favours: u32,
}

static WORK: Mutex<Work> = Mutex::new(Work { target: 0, at: 0, descend: true, cleared: 0, favours: FAVOURS });

impl Work {
    fn start(&mut self, target: u32) {
        (self.target, self.at, self.descend, self.cleared) = (target, target, true, 0);
    }
}

/// Steps between two looks at pending interrupts.
const BATCH: u32 = 32;

/// Abandoned objects that one call destroys at most: others may abandon more all the time.
const FAVOURS: u32 = 4096;

/// What a step left to do.
#[derive(PartialEq, Eq)]
enum Left {
    More,
    /// First other CPUs must have passed through the kernel.
    Round,
    Nothing,
}

/// The extension's operation: destroys the object of the call's selector, which the protection domain in RSI owns.
pub fn start(cpu: &'static Cpu, ec: &'static Ec) -> Result<(), Status> {
    ec.progress.set(phase::BEGIN);
    TOKEN.down(cpu, ec, false, 0)?;
    resume(cpu, ec)
}

/// The end of a call that took capabilities away: destroys what nothing uses any more, unless it is active.
pub fn collect(cpu: &'static Cpu, ec: &'static Ec) -> Result<(), Status> {
    if !table().any_abandoned() {
        return Ok(());
    }
    ec.progress.set(phase::COLLECT);
    TOKEN.down(cpu, ec, false, 0)?;
    resume(cpu, ec)
}

/// Looks for an abandoned object that is inactive: it is the next target, its references are ended.
fn choose(work: &mut Work) -> Left {
    work.favours = work.favours.saturating_sub(1);
    let Some(index) = table().take_abandoned().filter(|_| work.favours != 0) else { return Left::Nothing };
    match inactive(index).filter(|target| table().end(*target, true)) {
        Some(target) => {
            work.start(target);
            Left::Round
        }
        None => Left::More,
    }
}

/// What goes with `index`, which nothing used: itself, a protection domain of which it is a part, or nothing.
fn inactive(index: u32) -> Option<u32> {
    let gone = match object::content_kind(index) {
        Kind::Null => false,
        Kind::Ec => {
            object::content::<Ec>(index)?.is_in(&[Continuation::Idle, Continuation::Startup, Continuation::Dead])
        }
        Kind::Sc => object::content::<Sc>(index)?.ec.get().is_none_or(|ec| ec.is_in(&[Continuation::Dead])),
        Kind::Sm => !object::content::<Sm>(index)?.has_waiters(),
        Kind::Pd => {
            let mut part = object::first(index);
            while part.is_some_and(|part| is_part(part) && table().is_unused(part)) {
                part = object::next(part?);
            }
            part.is_none()
        }
        _ if is_part(index) => return table().owner(index).filter(|pd| inactive(*pd).is_some()),
        _ => true,
    };
    gone.then_some(index)
}

/// Whether `index` goes with its protection domain only, whose ECs use it.
fn is_part(index: u32) -> bool {
    match object::content_kind(index) {
        Kind::ObjectSpace | Kind::HostSpace => true,
        Kind::PioSpace => object::content::<PioSpace>(index).is_some_and(|space| space.first),
        _ => false,
    }
}

/// Goes on.
pub fn resume(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    ec.continuation.set(Continuation::ResumeDestroy);
    let now = ec.progress.get();
    let next = match now {
        phase::BEGIN => match begin(ec) {
            Ok(()) => phase::MARK,
            Err(status) => end(cpu, ec, status),
        },
        phase::COLLECT => match repeat(choose) {
            Left::More => phase::COLLECT,
            Left::Round => phase::MARK,
            Left::Nothing => end(cpu, ec, Status::Success),
        },
        phase::MARK => match repeat(|work| mark(cpu, ec, work)) {
            Left::Nothing => phase::FIRST_ROUND,
            _ => phase::MARK,
        },
        phase::FIRST_ROUND | phase::SECOND_ROUND => {
            let next = now.saturating_add(1);
            ec.progress.set(next);
            // This CPU takes part, too.
            cpu.reschedule.set(true);
            if rounds::start(cpu, ec, Continuation::ResumeDestroy, |_| true) {
                sched::park(cpu, ec)
            }
            next
        }
        _ => match repeat(|work| sweep(ec, work)) {
            Left::Nothing => phase::COLLECT,
            Left::Round => phase::SECOND_ROUND,
            Left::More => phase::SWEEP,
        },
    };
    ec.progress.set(next);
    registers::interrupt_window();
    run::run(cpu, ec)
}

fn end(cpu: &'static Cpu, ec: &'static Ec, status: Status) -> ! {
    // The counter is 0 while the token is held: no overflow.
    WORK.lock().favours = FAVOURS;
    let _ = TOKEN.up(cpu);
    sched::disinherit(cpu, ec);
    run::finish(ec, status);
    run::run(cpu, ec)
}

fn repeat(mut step: impl FnMut(&mut Work) -> Left) -> Left {
    let mut work = WORK.lock();
    for _ in 0..BATCH {
        match step(&mut work) {
            Left::More => {}
            left => return left,
        }
    }
    Left::More
}

/// Whoever began the chain of calls that `ec` serves.
fn first_caller(ec: &'static Ec) -> &'static Ec {
    let mut first = ec;
    while let Some(caller) = first.caller.get() {
        first = caller;
    }
    first
}

fn begin(ec: &'static Ec) -> Result<(), Status> {
    let (owner, _) = ec.objects.get::<Pd>(ec.gpr(gpr::RSI), Permissions::PD)?;
    let entry = ec.objects.lookup(ec.gpr(gpr::RDI) >> 8);
    let (kind, target) = (object::kind(entry), entry.reference().index);
    if kind == Kind::Null {
        return Err(Status::BadCap);
    }
    let mut inside = Some(ec.pd.reference.index());
    while inside.is_some_and(|pd| pd != target) {
        inside = table().owner(inside.unwrap_or(target));
    }
    let allowed = !is_part(target) && ec.reference.index() != target;
    if !allowed || inside.is_some() || table().owner(target) != Some(owner.reference.index()) {
        return Err(Status::BadPar);
    }
    WORK.lock().start(target);
    Ok(())
}

/// Marks the next object in the tree, in preorder.
fn mark(cpu: &'static Cpu, ec: &'static Ec, work: &mut Work) -> Left {
    let fresh = work.descend;
    if fresh && !mark_one(cpu, ec, work.at, work.at == work.target) {
        return Left::More;
    }
    let below = if fresh { object::first(work.at) } else { None };
    if let Some(below) = below {
        work.at = below;
    } else if work.at == work.target {
        work.start(work.target);
        return Left::Nothing;
    } else if let Some(next) = object::next(work.at) {
        (work.at, work.descend) = (next, true);
    } else {
        (work.at, work.descend) = (table().owner(work.at).unwrap_or(work.target), false);
    }
    Left::More
}

/// Ends all references to an object and has it stop; false if there is more to do.
fn mark_one(cpu: &'static Cpu, ec: &'static Ec, index: u32, alone: bool) -> bool {
    table().end(index, false);
    if let Some(pd) = object::content::<Pd>(index) {
        *pd.dying.lock() = true;
    } else if let Some(target) = object::content::<Ec>(index) {
        if alone {
            target.space.unmap_kernel_page(&ec.changes, target.utcb_address, target.utcb.physical());
        }
        rounds::post_ec(target, mail::STOP);
    } else if let Some(sc) = object::content::<Sc>(index) {
        if sc.ec == first_caller(ec).reference {
            sched::inherit(cpu, ec, first_caller(ec).share.get());
        }
        rounds::post_sc(sc, mail::STOP);
    } else if let Some(sm) = object::content::<Sm>(index) {
        return !sm.abort_one();
    } else if !matches!(object::content_kind(index), Kind::Pt) {
        // vCPUs may be using the space.
        guest::SPACES_ENDED.fetch_add(1, Ordering::Release);
    }
    true
}

/// Stops `ec` on its CPU: it waits for nothing, nobody waits for it, and no register holds anything of it.
pub fn stop(cpu: &Cpu, ec: &'static Ec) {
    if ec.continuation.get() == Continuation::Blocked {
        semaphore::forget(cpu, ec);
    }
    if ec.changes.any() {
        // What it took from a guest space is freed with it: no vCPU may have it cached.
        guest::SPACES_ENDED.fetch_add(1, Ordering::Release);
    }
    if let Some(callee) = ec.callee.take() {
        callee.caller.set(None);
        sched::inherit(cpu, callee, first_caller(ec).share.get());
    }
    portal::unwind(cpu, ec);
    sched::disinherit(cpu, ec);
    fpu::forget(cpu, ec);
    if let Some(guest) = ec.guest {
        guest.release(cpu);
    }
    run::forget_space(cpu, ec);
}

/// Frees something of what the target owns, or the target.
fn sweep(ec: &Ec, work: &mut Work) -> Left {
    let below = object::first(work.at);
    if let Some(pd) = below.filter(|below| object::content::<Pd>(*below).is_some()) {
        work.at = pd;
        return Left::More;
    }
    let index = below.unwrap_or(work.at);
    let above = table().owner(index).unwrap_or(work.target);
    match sweep_one(ec, index, &mut work.cleared) {
        Left::Nothing => work.cleared = 0,
        left => return left,
    }
    if index == work.target {
        return Left::Nothing;
    }
    if below.is_none() {
        work.at = above;
    }
    Left::More
}

/// Frees the object of header `index`, or a part of it.
fn sweep_one(ec: &Ec, index: u32, cleared: &mut u64) -> Left {
    if ec.changes.forget() {
        return Left::More;
    }
    if let Some(target) = object::content::<Ec>(index) {
        return sweep_ec(index, target);
    }
    let all = free::<HostSpace>(index, |space| space.clear(&ec.changes, cleared))
        .or_else(|| free::<GuestSpace>(index, |space| space.clear(&ec.changes, cleared)))
        .or_else(|| free::<ObjectSpace>(index, |space| space.clear(cleared)))
        .or_else(|| free::<PioSpace>(index, PioSpace::clear))
        .or_else(|| free::<MsrSpace>(index, MsrSpace::clear))
        .or_else(|| free::<Sc>(index, |sc| sc.ec.drop_use()))
        .or_else(|| free::<Pt>(index, |pt| pt.ec.drop_use()))
        .or_else(|| free::<Sm>(index, |_| true))
        .or_else(|| free::<Pd>(index, Pd::return_allowance));
    if all == Some(false) { Left::More } else { Left::Nothing }
}

/// Frees the object of header `index` if it is a `T`, when `clear` says that nothing of it remains, which it returns.
fn free<T: Object>(index: u32, clear: impl FnOnce(&'static T) -> bool) -> Option<bool> {
    let object = object::content::<T>(index)?;
    let all = clear(object);
    if all {
        object::free(index, object);
    }
    Some(all)
}

fn sweep_ec(index: u32, ec: &'static Ec) -> Left {
    if ec.mail.is_pending() || ec.link.is_linked() {
        return Left::Round;
    }
    if ec.changes.forget() {
        return Left::More;
    }
    release(ec.utcb);
    if let Some(area) = ec.fpu_state {
        release(area);
    }
    if let Some(guest) = ec.guest {
        guest.drop_spaces();
        release(guest.control);
        release_small(core::ptr::from_ref(guest).cast_mut().cast(), size_of::<GuestState>());
    }
    object::free(index, ec);
    Left::Nothing
}
