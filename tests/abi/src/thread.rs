//! Global threads whose bodies are closures.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::event::Event;
use super::portal::Local;
use super::root;
use super::semaphore::Semaphore;
use super::utcb::Utcb;
use super::{memory, selector, selectors, shared};
use crate::entry::hip;
use crate::hypercall::{self, NewEc, flag};
use crate::report::{Outcome, Stop, must};
use crate::spec::{Selector, event, field, hip as page, mtd, scd};

/// What the top of a thread's stack points to.
struct Start {
    body: Box<dyn Fn(Utcb)>,
    utcb: Utcb,
    done: Semaphore,
    park: Semaphore,
}

/// A global thread.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// Its execution context.
    pub ec: Selector,
    /// Its scheduling context.
    pub sc: Selector,
    /// Its UTCB.
    pub utcb: Utcb,
    /// Upped when its body has returned.
    pub done: Semaphore,
}

/// Parameters of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    /// CPU.
    pub cpu: u64,
    /// Priority.
    pub priority: u64,
    /// Budget in milliseconds.
    pub budget: u64,
    /// Further flags of create_ec.
    pub flags: u8,
}

/// Starts a thread on this CPU; it runs when the caller blocks or has a lower priority.
#[track_caller]
pub fn spawn(priority: u64, body: impl Fn(Utcb) + 'static) -> Result<Thread, Stop> {
    spawn_with(Parameters { cpu: root::cpu(), priority, budget: 100, flags: 0 }, body)
}

/// Starts a thread.
#[track_caller]
pub fn spawn_with(parameters: Parameters, body: impl Fn(Utcb) + 'static) -> Result<Thread, Stop> {
    let thread = prepare(parameters, body)?;
    let descriptor = scd(parameters.budget, parameters.priority, 0);
    must(hypercall::create_sc(thread.sc, root::pd(), thread.ec, descriptor))?;
    Ok(thread)
}

/// A thread without its scheduling context, for which the selector is reserved.
#[track_caller]
pub fn prepare(parameters: Parameters, body: impl Fn(Utcb) + 'static) -> Result<Thread, Stop> {
    prepare_in(root::pd(), parameters, |_| Ok(()), body)
}

/// A thread in protection domain `pd`, which maps this program's memory; `share` gives it the capability at a selector.
#[track_caller]
pub(crate) fn prepare_in(
    pd: Selector,
    parameters: Parameters,
    share: impl Fn(Selector) -> Outcome,
    body: impl Fn(Utcb) + 'static,
) -> Result<Thread, Stop> {
    let (ec, sc, utcb) = (selector(), selector(), Utcb::at(memory::page_address()));
    let (done, park) = (Semaphore::new(0)?, Semaphore::new(0)?);
    let start = shared(Start { body: Box::new(body), utcb, done, park });
    let sp = memory::stack() - 16;
    memory::poke(sp, core::ptr::from_ref(start) as u64);
    let events = common_events(parameters.cpu)?;
    for selector in [done.0, park.0].into_iter().chain(events..events + event_count()) {
        share(selector)?;
    }
    let flags = parameters.flags | flag::EC_GLOBAL;
    let new = NewEc { pd, page: utcb.address(), cpu: parameters.cpu, sp, events, flags };
    must(hypercall::create_ec(ec, &new))?;
    Ok(Thread { ec, sc, utcb, done })
}

/// Number of events of a host execution context.
pub fn event_count() -> u64 {
    hip(page::SEL_HST_ARCH) + hip(page::SEL_HST_NOVA)
}

/// Most CPUs whose threads these tests start.
const CPUS: usize = 64;

/// The event base that all threads of a CPU have: STARTUP, and last words for everything else.
#[track_caller]
pub fn common_events(cpu: u64) -> Result<Selector, Stop> {
    static BASES: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
    let known = BASES[cpu as usize].load(Relaxed);
    if known != 0 {
        return Ok(known);
    }
    let handler = Local::on(cpu)?;
    let arch = hip(page::SEL_HST_ARCH);
    let base = selectors(event_count());
    for number in 0..root::host_events() {
        handler.portal_at(base + u64::from(number), mtd::RIP | mtd::QUAL | mtd::GPR_0_7, move |message| {
            root::last_words(&Event { number, mtd: message.mtd, utcb: message.utcb });
            mtd::POISON
        })?;
    }
    install_startup(&handler, base + arch + u64::from(event::STARTUP))?;
    BASES[cpu as usize].store(base, Relaxed);
    Ok(base)
}

/// STARTUP: the thread's stack pointer, set by create_ec, tells which it is.
#[track_caller]
fn install_startup(handler: &Local, pt: Selector) -> Outcome {
    handler.portal_at(pt, mtd::GPR_0_7, |message| {
        let sp = message.utcb.get(field::RSP);
        message.utcb.set(field::RDI, memory::peek(sp));
        message.utcb.set(field::RSP, sp - 8);
        message.utcb.set(field::RIP, body as *const () as u64);
        mtd::GPR_0_7 | mtd::RIP
    })?;
    Ok(())
}

/// STARTUP of one execution context: it begins with `body` and a reference to `argument`.
#[track_caller]
pub(crate) fn install_startup_of<T: 'static>(
    handler: &Local,
    events: Selector,
    body: extern "C" fn(&T) -> !,
    argument: u64,
) -> Outcome {
    let pt = events + hip(page::SEL_HST_ARCH) + u64::from(event::STARTUP);
    handler.portal_at(pt, mtd::GPR_0_7, move |message| {
        message.utcb.set(field::RDI, argument);
        message.utcb.set(field::RIP, body as *const () as u64);
        mtd::GPR_0_7 | mtd::RIP
    })?;
    Ok(())
}

extern "C" fn body(start: &Start) -> ! {
    (start.body)(start.utcb);
    start.done.up();
    loop {
        start.park.down();
    }
}

/// A closure that an execution context can begin with, without a stack of its own.
pub struct Body {
    body: Box<dyn Fn()>,
    stack: u64,
}

/// Prepares `body`. When it returns, the execution context spins.
pub fn body_of(body: impl Fn() + 'static) -> &'static Body {
    shared(Body { body: Box::new(body), stack: memory::stack() })
}

impl Body {
    /// Sets a STARTUP handler's UTCB so that the execution context begins with it; to be replied with GPR_0_7 and RIP.
    pub fn enter(&'static self, utcb: &Utcb) {
        utcb.set(field::RDI, core::ptr::from_ref(self) as u64);
        utcb.set(field::RSP, self.stack - 8);
        utcb.set(field::RIP, run_body as *const () as u64);
    }
}

extern "C" fn run_body(this: &Body) -> ! {
    (this.body)();
    loop {
        core::hint::spin_loop();
    }
}
