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
//! One destruction is under way at a time. It belongs to nobody: every EC that wants something destroyed meanwhile, on
//! any CPU, carries it on with its own time, one step after the other, so that none waits for one that has no time, and
//! an EC that goes in between leaves nothing undone. The tree of what owns what changes below a dying protection domain
//! only by its own destruction.

use abi::Status;
use abi::capability::Permissions;
use abi::utcb::gpr;
use spin::Mutex;

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec, EcKind};
use crate::guest::GuestState;
use crate::iommu::DmaSpace;
use crate::memory::{Frame, release, release_small};
use crate::object::{self, Object, TABLE, content};
use crate::pd::Pd;
use crate::portal::{self, Pt};
use crate::rounds::{self, mail};
use crate::sched::{self, Sc};
use crate::semaphore::{self, Sm};
use crate::space::{GuestSpace, HostSpace, MsrSpace, ObjectSpace, PioSpace};
use crate::{fpu, registers, run};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Mark,
    FirstRound,
    SecondRound,
    Sweep,
}

/// The destruction under way. Indices of headers.
struct Work {
    phase: Phase,
    /// Counts phases; never 0.
    phases: u64,
    /// Number of destructions that are over.
    ended: u64,
    target: u32,
    at: u32,
    /// Mark: what `at` owns was not looked at yet.
    descend: bool,
    /// Sweep: how much of a space is clear.
    cleared: u64,
    /// Of a target that is an EC: generation of its host space in which its page is not mapped any more.
    unmapped: u64,
}

static WORK: Mutex<Work> = Mutex::new(Work {
    phase: Phase::Idle,
    phases: 1,
    ended: 0,
    target: 0,
    at: 0,
    descend: true,
    cleared: 0,
    unmapped: 0,
});

/// What an EC wants destroyed, beside what others do.
#[derive(Clone, Copy)]
pub struct Errand {
    /// What it began is over after so many destructions; [`u64::MAX`]: it has not begun.
    goal: u64,
    /// The phase for which it has waited for a round.
    awaited: u64,
    /// Abandoned objects that it may still destroy: others may abandon more all the time.
    favours: u32,
}

impl Errand {
    /// Nothing.
    pub const NONE: Self = Self { goal: 0, awaited: 0, favours: 4096 };
}

/// What comes after a step.
enum Next {
    Step,
    /// First other CPUs must have passed through the kernel.
    Round,
    /// All is done.
    End,
}

/// The extension's operation: destroys the object of the call's selector, which the protection domain in RSI owns.
pub fn start(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    ec.errand.set(Errand { goal: u64::MAX, ..Errand::NONE });
    resume(cpu, ec)
}

/// The end of a call that took capabilities away: destroys what nothing uses any more, unless it is active.
pub fn collect(cpu: &'static Cpu, ec: &'static Ec) -> Result<(), Status> {
    if !TABLE.any_abandoned() {
        return Ok(());
    }
    ec.errand.set(Errand::NONE);
    resume(cpu, ec)
}

/// Goes on with what is under way, until what `ec` wants is over.
pub fn resume(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    ec.continuation.set(Continuation::ResumeDestroy);
    // Without the lock another CPU takes a step just now.
    let step = WORK.try_lock().map_or(Ok(Next::Step), |mut work| work.step(cpu, ec));
    match step {
        Ok(Next::Step) => {}
        Ok(Next::Round) => {
            // This CPU takes part, too.
            rounds::flush(cpu);
            cpu.reschedule.set(true);
            if rounds::start(cpu, ec, Continuation::ResumeDestroy, &|_| true) {
                sched::park(cpu, ec)
            }
        }
        Ok(Next::End) => end(cpu, ec, Status::Success),
        Err(status) => end(cpu, ec, status),
    }
    registers::interrupt_window();
    run::run(cpu, ec)
}

fn end(cpu: &'static Cpu, ec: &'static Ec, status: Status) -> ! {
    let first = first_caller(ec);
    if first.kind != EcKind::Local {
        // It went on without its scheduling context for this only.
        sched::disinherit(cpu, first);
    }
    run::finish(ec, status);
    run::run(cpu, ec)
}

impl Work {
    fn start(&mut self, target: u32) {
        (self.target, self.at, self.descend, self.cleared) = (target, target, true, 0);
    }

    /// Takes a step with the time of `ec`, unless it must wait before, or has nothing more to wait for.
    fn step(&mut self, cpu: &'static Cpu, ec: &'static Ec) -> Result<Next, Status> {
        let (phase, mut errand) = (self.phase, ec.errand.get());
        if self.ended >= errand.goal && (errand.favours == 0 || !TABLE.any_abandoned()) {
            return Ok(Next::End);
        }
        let next = match phase {
            Phase::Idle if errand.goal == u64::MAX => {
                begin(self, ec)?;
                errand.goal = self.ended.saturating_add(1);
                Phase::Mark
            }
            Phase::Idle => {
                errand.favours = errand.favours.saturating_sub(1);
                let chosen = choose(self);
                errand.goal = self.ended.saturating_add(chosen as u64);
                if chosen { Phase::Mark } else { phase }
            }
            Phase::Mark if mark(cpu, ec, self) => Phase::FirstRound,
            Phase::Mark => phase,
            // Whoever has waited for a round that began after the phase did goes on to the next one.
            Phase::FirstRound | Phase::SecondRound if errand.awaited != self.phases => {
                ec.errand.set(Errand { awaited: self.phases, ..errand });
                return Ok(Next::Round);
            }
            Phase::FirstRound => Phase::SecondRound,
            Phase::SecondRound => Phase::Sweep,
            Phase::Sweep => match sweep(self) {
                Next::Step => Phase::Sweep,
                Next::Round => Phase::SecondRound,
                Next::End => {
                    self.ended = self.ended.saturating_add(1);
                    Phase::Idle
                }
            },
        };
        ec.errand.set(errand);
        if next != phase {
            self.phase = next;
            self.phases = self.phases.saturating_add(1);
        }
        Ok(Next::Step)
    }
}

/// Takes an abandoned object: if it is inactive it is the next target, and its references are ended.
fn choose(work: &mut Work) -> bool {
    let target = TABLE.take_abandoned().and_then(inactive).filter(|target| TABLE.end(*target, true));
    target.inspect(|target| work.start(*target)).is_some()
}

/// What goes with `index`, which nothing used: itself, a protection domain of which it is a part, or nothing.
fn inactive(index: u32) -> Option<u32> {
    let gone = if let Some(ec) = content::<Ec>(index) {
        ec.is_in(&[Continuation::Idle, Continuation::Startup, Continuation::Dead])
    } else if let Some(sc) = content::<Sc>(index) {
        sc.ec.get().is_none_or(|ec| ec.is_in(&[Continuation::Dead]))
    } else if let Some(sm) = content::<Sm>(index) {
        !sm.has_waiters()
    } else if content::<Pd>(index).is_some() {
        let mut part = object::first(index);
        while part.is_some_and(|part| is_part(part) && TABLE.is_unused(part)) {
            part = object::next(part?);
        }
        part.is_none()
    } else if is_part(index) {
        return TABLE.owner(index).filter(|pd| inactive(*pd).is_some());
    } else {
        !object::header(index).content().is_nothing()
    };
    gone.then_some(index)
}

/// Whether `index` goes with its protection domain only, whose ECs use it.
fn is_part(index: u32) -> bool {
    let always = content::<ObjectSpace>(index).is_some() || content::<HostSpace>(index).is_some();
    always || content::<PioSpace>(index).is_some_and(|space| space.first)
}

/// Whoever began the chain of calls that `ec` serves.
fn first_caller(ec: &'static Ec) -> &'static Ec {
    let mut first = ec;
    while let Some(caller) = first.caller.get() {
        first = caller;
    }
    first
}

fn begin(work: &mut Work, ec: &'static Ec) -> Result<(), Status> {
    let (owner, _) = ec.selectors.get::<Pd>(ec.gpr(gpr::RSI), Permissions::PD)?;
    let (entry, named) = ec.selectors.find(ec.gpr(gpr::RDI) >> 8);
    let target = entry.reference().index;
    if named.is_nothing() {
        return Err(Status::BadCap);
    }
    let mut inside = Some(ec.pd.reference.index());
    while inside.is_some_and(|pd| pd != target) {
        inside = TABLE.owner(inside.unwrap_or(target));
    }
    let allowed = !is_part(target) && ec.reference.index() != target;
    if !allowed || inside.is_some() || TABLE.owner(target) != Some(owner.reference.index()) {
        return Err(Status::BadPar);
    }
    work.start(target);
    Ok(())
}

/// Marks the next object in the tree, in preorder; true after the last one.
#[inline(never)]
fn mark(cpu: &'static Cpu, ec: &'static Ec, work: &mut Work) -> bool {
    let fresh = work.descend;
    if fresh && !mark_one(cpu, ec, work) {
        return false;
    }
    let below = if fresh { object::first(work.at) } else { None };
    if let Some(below) = below {
        work.at = below;
    } else if work.at == work.target {
        work.start(work.target);
        return true;
    } else if let Some(next) = object::next(work.at) {
        (work.at, work.descend) = (next, true);
    } else {
        (work.at, work.descend) = (TABLE.owner(work.at).unwrap_or(work.target), false);
    }
    false
}

/// Ends all references to an object and has it stop; false if there is more to do.
fn mark_one(cpu: &'static Cpu, ec: &'static Ec, work: &mut Work) -> bool {
    let index = work.at;
    TABLE.end(index, false);
    if let Some(pd) = content::<Pd>(index) {
        *pd.dying.lock() = true;
    } else if let Some(target) = content::<Ec>(index) {
        if index == work.target {
            target.space.unmap_kernel_page(target.utcb_address, target.utcb.physical());
            work.unmapped = target.space.memory.generation.current();
        }
        rounds::post_ec(target, mail::STOP);
    } else if let Some(sc) = content::<Sc>(index) {
        if sc.ec == first_caller(ec).reference {
            sched::inherit(cpu, ec, first_caller(ec).share.get());
        }
        rounds::post_sc(sc, mail::STOP);
    } else if let Some(sm) = content::<Sm>(index) {
        return !sm.abort_one();
    }
    true
}

/// Stops `ec` on its CPU: it waits for nothing, nobody waits for it, and no register holds anything of it.
pub fn stop(cpu: &Cpu, ec: &'static Ec) {
    if ec.continuation.get() == Continuation::Blocked {
        semaphore::forget(ec);
    }
    if let Some(callee) = ec.callee() {
        callee.caller.set(None);
        sched::inherit(cpu, callee, first_caller(ec).share.get());
    }
    portal::unwind(cpu, ec);
    sched::disinherit(cpu, ec);
    fpu::forget(cpu, ec);
    ec.guest.inspect(|guest| guest.release(cpu));
    run::forget_space(cpu, ec);
}

/// Frees something of what the target owns, or the target.
fn sweep(work: &mut Work) -> Next {
    let below = object::first(work.at);
    if let Some(pd) = below.filter(|below| content::<Pd>(*below).is_some()) {
        work.at = pd;
        return Next::Step;
    }
    let index = below.unwrap_or(work.at);
    let above = TABLE.owner(index).unwrap_or(work.target);
    match sweep_one(index, work) {
        Next::End => work.cleared = 0,
        left => return left,
    }
    if index == work.target {
        return Next::End;
    }
    if below.is_none() {
        work.at = above;
    }
    Next::Step
}

/// Frees the object of header `index`, or a part of it.
#[inline(never)]
fn sweep_one(index: u32, work: &mut Work) -> Next {
    if let Some(target) = content::<Ec>(index) {
        return sweep_ec(index, target, work);
    }
    let cleared = &mut work.cleared;
    let all = free::<HostSpace>(index, |space| space.clear(cleared))
        .or_else(|| free::<GuestSpace>(index, |space| space.0.clear(cleared)))
        .or_else(|| free::<DmaSpace>(index, |space| space.clear(cleared)))
        .or_else(|| free::<ObjectSpace>(index, |space| space.clear(cleared)))
        .or_else(|| free::<PioSpace>(index, |space| (release(space.bitmap), true).1))
        .or_else(|| free::<MsrSpace>(index, |space| (release(space.bitmap), true).1))
        .or_else(|| free::<Sc>(index, |sc| sc.ec.drop_use()))
        .or_else(|| free::<Pt>(index, |pt| pt.ec.drop_use()))
        .or_else(|| free::<Sm>(index, |_| true))
        .or_else(|| free::<Pd>(index, Pd::return_allowance));
    if all == Some(false) { Next::Step } else { Next::End }
}

/// Frees the object of header `index` if it is a `T`, when `clear` says that nothing of it remains, which it returns.
fn free<T: Object>(index: u32, clear: impl FnOnce(&'static T) -> bool) -> Option<bool> {
    let object = content::<T>(index)?;
    let all = clear(object);
    if all {
        object::free(index, object);
    }
    Some(all)
}

fn sweep_ec(index: u32, ec: &'static Ec, work: &Work) -> Next {
    if ec.mail.is_pending() || ec.link.is_linked() {
        return Next::Round;
    }
    if index == work.target {
        // Alone: its host space remains.
        ec.space.memory.generation.complete(work.unmapped);
        if ec.space.memory.free_table() {
            return Next::Step;
        }
    }
    release(ec.utcb);
    ec.fpu_state.into_iter().for_each(release);
    if let Some(guest) = ec.guest {
        guest.drop_spaces();
        Frame::from_physical(guest.block.pa).into_iter().for_each(release);
        release_small(core::ptr::from_ref(guest).cast_mut().cast(), size_of::<GuestState>());
    }
    object::free(index, ec);
    Next::End
}
