//! Scheduling contexts: who runs, for how long, and what a chain of calls does with a budget (NOVA 2.3, 5.2.1).
//!
//! An SC starts at its own EC and follows the callees to the EC that can make progress: donation and helping in one
//! rule. A chain whose end blocks parks the SC there until that EC goes on.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::observation::{Traced, counter};
use abi::scd::Scd;
use kernel_core::mailbox::MailCell;
use kernel_core::ready::{LinkCell, Links};

use crate::cpu::{Cpu, now};
use crate::ec::{Continuation, Ec, EcTimeouts};
use crate::object::{self, Ref, by_id};
use crate::observation::trace;
use crate::{rounds, run, semaphore, timer};

/// A scheduling context.
#[repr(C, align(64))]
pub struct Sc {
    /// The EC that it was bound to.
    pub ec: Ref<Ec>,
    /// The CPU of that EC.
    pub cpu: &'static Cpu,
    /// 1 to 127; 0 for one that is not in use.
    priority: Cell<u8>,
    /// Budget in system time.
    budget: Cell<u64>,
    left: Cell<u64>,
    /// The blocked EC at which it waits.
    parked_at: Cell<Option<&'static Ec>>,
    /// Time consumed; while it runs less one and the time at which it began to run, which is negative.
    time: AtomicU64,
    link: LinkCell,
    /// Messages from other CPUs.
    pub mail: MailCell,
}

/// SCs linked in a ready queue or parked at an EC.
pub struct ScLinks;
impl Links for ScLinks {
    fn links(&self, id: u32) -> &LinkCell {
        &by_id::<Sc>(id).link
    }
}

impl Sc {
    /// A new SC for `ec`; `ticks_per_ms` converts the descriptor's budget into system time.
    pub fn new(ec: Ref<Ec>, cpu: &'static Cpu, scd: Scd, ticks_per_ms: u64) -> Self {
        let budget = ticks_per_ms.saturating_mul(scd.budget as u64);
        Self {
            priority: Cell::new(scd.priority),
            budget: Cell::new(budget),
            left: Cell::new(budget),
            ..Self::inherited(ec, cpu)
        }
    }

    /// An SC for `ec` that has nothing to give yet.
    pub const fn inherited(ec: Ref<Ec>, cpu: &'static Cpu) -> Self {
        Self {
            ec,
            cpu,
            priority: Cell::new(0),
            budget: Cell::new(0),
            left: Cell::new(0),
            parked_at: Cell::new(None),
            time: AtomicU64::new(0),
            link: LinkCell::unlinked(),
            mail: MailCell::empty(),
        }
    }

    /// Total system time consumed. For any CPU.
    pub fn consumed(&self) -> u64 {
        match self.time.load(Ordering::Relaxed) {
            running if (running as i64) < 0 => running.wrapping_add(1).wrapping_add(now()),
            total => total,
        }
    }

    fn begin(&self, now: u64) {
        self.time.store(self.time.load(Ordering::Relaxed).wrapping_sub(now).wrapping_sub(1), Ordering::Relaxed);
    }

    fn end(&self, now: u64) {
        self.time.store(self.time.load(Ordering::Relaxed).wrapping_add(1).wrapping_add(now), Ordering::Relaxed);
    }
}

/// Makes `sc` ready, behind the others of its priority.
#[inline(always)]
fn enqueue(cpu: &Cpu, sc: &Sc) {
    cpu.ready.get().enqueue(&ScLinks, sc.priority.get(), object::id(sc), false);
    if cpu.sc.get().is_none_or(|current| current.priority.get() < sc.priority.get()) {
        cpu.reschedule.set(true);
    }
}

/// `ec` can go on: the SCs that wait for it are ready again, and its timeout is void.
pub fn unpark(cpu: &Cpu, ec: &Ec) {
    while let Some(id) = ec.parked.get().pop_front(&ScLinks) {
        let sc = by_id::<Sc>(id);
        sc.parked_at.set(None);
        enqueue(cpu, sc);
    }
    if ec.timeout.deadline().is_some() {
        cpu.timeouts.get().remove(&EcTimeouts, object::id(ec));
    }
}

/// A new SC begins to compete.
pub fn begin(cpu: &Cpu, sc: &Sc) {
    if sc.priority.get() == 0 {
        return;
    }
    sc.ec.get().inspect(|ec| ec.share.set(Some((sc.priority.get(), sc.budget.get()))));
    enqueue(cpu, sc);
}

/// `ec` loses the SC that it runs on to a destruction: an SC with its priority and budget lingers until `ec` is done.
pub fn inherit(cpu: &Cpu, ec: &Ec, share: Option<(u8, u64)>) {
    if let Some((priority, budget)) = share.filter(|_| ec.orphan.priority.get() == 0) {
        ec.orphan.priority.set(priority);
        ec.orphan.budget.set(budget);
        ec.orphan.left.set(budget);
        ec.share.set(share);
        begin(cpu, &ec.orphan);
    }
}

/// `ec` is done with what it inherited, if it did.
pub fn disinherit(cpu: &Cpu, ec: &Ec) {
    if ec.orphan.priority.get() != 0 {
        remove(cpu, &ec.orphan);
        ec.share.set(None);
    }
}

/// `sc` competes no longer, nor does it if a message that it begins comes only now.
pub fn remove(cpu: &Cpu, sc: &Sc) {
    if cpu.sc.get().is_some_and(|current| core::ptr::eq(current, sc)) {
        suspend(cpu, now());
        cpu.reschedule.set(true);
    } else if let Some(ec) = sc.parked_at.take() {
        ec.parked.get().remove(&ScLinks, object::id(sc));
    } else {
        cpu.ready.get().remove(&ScLinks, sc.priority.get(), object::id(sc));
    }
    sc.priority.set(0);
}

/// Ends the current SC's turn now: accounts its time and returns it with what is left of its budget, or a new one.
#[inline(always)]
fn suspend(cpu: &Cpu, now: u64) -> Option<&'static Sc> {
    let sc = cpu.sc.take()?;
    sc.end(now);
    sc.left.set(cpu.slice_end.get().checked_sub(now).filter(|left| *left != 0).unwrap_or(sc.budget.get()));
    Some(sc)
}

/// The current SC waits at `ec`, the blocked end of its chain. It is `now`.
#[inline(always)]
fn park_current(cpu: &Cpu, ec: &'static Ec, now: u64) {
    if let Some(sc) = suspend(cpu, now) {
        sc.parked_at.set(Some(ec));
        ec.parked.get().push(&ScLinks, object::id(sc), false);
    }
}

/// The current SC waits at `ec`, which has just blocked; another one runs.
pub fn park(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    let now = now();
    park_current(cpu, ec, now);
    schedule(cpu, now)
}

/// A more urgent SC may be ready, the budget used up, or another CPU wants something. If not, `ec` goes on, which the
/// current SC was to run.
pub fn check(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    cpu.reschedule.set(false);
    let attended = rounds::attend(cpu);
    let now = now();
    let Some(current) = cpu.sc.get() else { schedule(cpu, now) };
    let expired = now >= cpu.slice_end.get();
    let urgent = cpu.ready.get().highest().is_some_and(|priority| priority > current.priority.get());
    if !expired && !urgent {
        timer::program(cpu);
        if attended {
            resume_current(cpu)
        }
        run::run(cpu, ec)
    }
    suspend(cpu, now);
    cpu.ready.get().enqueue(&ScLinks, current.priority.get(), object::id(current), !expired);
    schedule(cpu, now)
}

/// Runs the most urgent ready SC, or waits for an interrupt. It is `time` now.
pub fn schedule(cpu: &'static Cpu, mut time: u64) -> ! {
    loop {
        time = turn(cpu, time);
    }
}

/// The same once: returns the time if nobody runs.
#[inline(never)]
fn turn(cpu: &'static Cpu, time: u64) -> u64 {
    // Whoever wants something of this CPU has set it.
    if cpu.reschedule.replace(false) {
        rounds::attend(cpu);
        return now();
    }
    let Some(id) = cpu.ready.get().pop_highest(&ScLinks) else { return wait(cpu) };
    let sc = by_id::<Sc>(id);
    cpu.counters().count(counter::TURN);
    cpu.sc.set(Some(sc));
    sc.begin(time);
    cpu.slice_end.set(time.saturating_add(sc.left.get()));
    // No timeout has come nearer.
    if cpu.slice_end.get() < cpu.deadline.get() {
        timer::program(cpu);
        return go_on(cpu, sc);
    }
    cpu.unusual.helping.set(false);
    match sc.ec.find() {
        // The usual case: nobody is ahead of its own EC, which can run.
        Ok(ec) if ec.continuation.get() < Continuation::SendCall => run::run(cpu, ec),
        _ => go_on(cpu, sc),
    }
}

/// The chain of the current SC goes on. Returns the time if it cannot.
fn go_on(cpu: &'static Cpu, sc: &Sc) -> u64 {
    follow(cpu, sc).map_or_else(now, |ec| run::run(cpu, ec))
}

/// Waits for an interrupt. Returns the time.
#[cold]
fn wait(cpu: &Cpu) -> u64 {
    cpu.slice_end.set(u64::MAX);
    timer::program(cpu);
    cpu.counters().count(counter::IDLE);
    if !cpu.current.replace(core::ptr::null()).is_null() {
        trace(cpu, Traced::Idle, 0, 0, 0);
    }
    let idle = cpu.idle.get();
    idle.inspect(|idle| idle.begin(now()));
    crate::registers::halt();
    idle.inspect(|idle| idle.end(now()));
    now()
}

/// The EC that ran has nothing more to do: the current SC's chain goes on elsewhere.
pub fn resume_current(cpu: &'static Cpu) -> ! {
    schedule(cpu, cpu.sc.get().map_or_else(now, |sc| go_on(cpu, sc)))
}

/// Who must be done before `ec` can go on: the callee that serves it, or the busy one that it helps. None of that
/// callee if it is free by now, or gone: then `ec` tries again.
pub fn ahead(ec: &Ec) -> Option<&'static Ec> {
    let busy = |callee: &&Ec| !matches!(callee.continuation.get(), Continuation::Idle | Continuation::Dead);
    match ec.continuation.get() {
        Continuation::SendCall | Continuation::SendEvent => ec.helps.get().and_then(Ref::get).filter(busy),
        _ => ec.callee(),
    }
}

/// The end of the current SC's chain of calls. If it cannot run, parks or drops the SC.
fn follow(cpu: &Cpu, sc: &Sc) -> Option<&'static Ec> {
    cpu.unusual.helping.set(false);
    let mut next = sc.ec.get();
    while let Some(ec) = next {
        next = ahead(ec);
        match ec.continuation.get() {
            Continuation::SendCall | Continuation::SendEvent if next.is_some() => cpu.unusual.helping.set(true),
            _ if next.is_some() => {}
            Continuation::Blocked | Continuation::AwaitRound => {
                park_current(cpu, ec, now());
                return None;
            }
            Continuation::Dead | Continuation::Idle | Continuation::AwaitReply | Continuation::AwaitEventReply => {}
            _ => return Some(ec),
        }
    }
    suspend(cpu, now());
    None
}

/// Wakes every EC whose timeout has passed and ends a used-up budget. For the timer interrupt.
pub fn expire(cpu: &'static Cpu) {
    let now = now();
    // As many as take little time: the timer, programmed for what has passed, comes again for the others.
    for id in (0..8).map_while(|_| cpu.timeouts.get().pop_expired(&EcTimeouts, now)) {
        semaphore::timed_out(cpu, by_id::<Ec>(id));
    }
    cpu.reschedule.set(cpu.reschedule.get() || now >= cpu.slice_end.get());
    cpu.deadline.set(u64::MAX);
    timer::program(cpu);
}
