//! Host execution contexts that are there to raise events, and what their events carry.
#![allow(unsafe_code)]

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use super::portal::Local;
use super::root;
use super::semaphore::Semaphore;
use super::thread::event_count;
use super::utcb::{Snapshot, Utcb};
use super::{memory, selector, selectors};
use crate::entry::hip;
use crate::hypercall::{self, NewEc, flag};
use crate::report::{Stop, failed, must};
use crate::spec::{Selector, event, hip as page, mtd, scd};

/// An event that has arrived.
#[derive(Clone, Copy)]
pub struct Event {
    /// Relative to the event base.
    pub number: u16,
    /// The descriptor.
    pub mtd: u32,
    /// The handler's UTCB.
    pub utcb: Utcb,
}

/// An event as it was when it arrived.
#[derive(Clone)]
pub struct Seen {
    /// Relative to the event base.
    pub number: u16,
    /// The descriptor.
    pub mtd: u32,
    /// The handler's UTCB.
    pub state: Snapshot,
}

/// All state of a host execution context.
pub const HOST_STATE: u32 = mtd::GPR_0_7 | mtd::GPR_8_15 | mtd::RFLAGS | mtd::RIP | mtd::QUAL;

/// An execution context all of whose events go to one handler.
#[derive(Clone)]
pub struct Subject {
    /// Its capability.
    pub ec: Selector,
    /// Selector for its scheduling context.
    pub sc: Selector,
    /// Its stack pointer at its creation.
    pub sp: u64,
    /// Its event base.
    pub events: Selector,
    /// Its UTCB.
    pub utcb: Utcb,
    /// Where its events are handled.
    pub handler: Local,
    seen: Rc<RefCell<Vec<Seen>>>,
    finished: Semaphore,
}

/// What a handler does with an event.
pub enum Then {
    /// Replies with this descriptor.
    Reply(u32),
    /// Replies so that the execution context is killed, and the test goes on.
    End,
}

/// Number of STARTUP and RECALL of a host execution context.
pub fn startup() -> u16 {
    hip(page::SEL_HST_ARCH) as u16 + event::STARTUP
}

/// See [`startup`].
pub fn recall() -> u16 {
    hip(page::SEL_HST_ARCH) as u16 + event::RECALL
}

impl Subject {
    /// A global thread, further flags of create_ec given, whose events carry `mtd`.
    #[track_caller]
    pub fn new(flags: u8, mtd: u32, handler: impl Fn(&Event) -> Then + 'static) -> Result<Self, Stop> {
        Self::on(root::cpu(), flags, mtd, handler)
    }

    /// The same on `cpu`.
    #[track_caller]
    pub fn on(cpu: u64, flags: u8, mtd: u32, handler: impl Fn(&Event) -> Then + 'static) -> Result<Self, Stop> {
        let local = Local::on(cpu)?;
        let count = event_count();
        let page = memory::page_address();
        let subject = Self {
            ec: selector(),
            sc: selector(),
            sp: memory::stack(),
            events: selectors(count),
            utcb: Utcb::at(page),
            handler: local,
            seen: Rc::default(),
            finished: Semaphore::new(0)?,
        };
        let handler: Rc<dyn Fn(&Event) -> Then> = Rc::new(handler);
        for number in 0..count as u16 {
            let (handler, seen, finished) = (handler.clone(), subject.seen.clone(), subject.finished);
            local.portal_at(subject.events + u64::from(number), mtd, move |message| {
                let event = Event { number, mtd: message.mtd, utcb: message.utcb };
                seen.borrow_mut().push(Seen { number, mtd: message.mtd, state: message.utcb.snapshot() });
                match handler(&event) {
                    Then::Reply(mtd) => mtd,
                    Then::End => {
                        finished.up();
                        mtd::POISON
                    }
                }
            })?;
        }
        let (sp, flags) = (subject.sp, flags | flag::EC_GLOBAL);
        let new = NewEc { pd: root::pd(), page, cpu, sp, events: subject.events, flags };
        must(hypercall::create_ec(subject.ec, &new))?;
        Ok(subject)
    }

    /// Gives it a scheduling context.
    #[track_caller]
    pub fn start(&self) -> Result<(), Stop> {
        must(hypercall::create_sc(self.sc, root::pd(), self.ec, scd(100, 50, 0)))
    }

    /// Waits until its handler has ended it; all its events.
    #[track_caller]
    pub fn wait(&self) -> Result<Vec<Seen>, Stop> {
        let waited = self.finished.wait();
        let seen = self.seen.borrow().clone();
        waited.map_err(|_| {
            let numbers: Vec<u16> = seen.iter().map(|seen| seen.number).collect();
            failed(alloc::format!("the last event does not come; before it came {numbers:x?}"))
        })?;
        Ok(seen)
    }

    /// Events so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }
}

/// Runs a subject that `prepare` sets up in its STARTUP event, up to its next event, which is returned.
#[track_caller]
pub fn provoke(flags: u8, prepare: impl Fn(Utcb) -> u32 + 'static) -> Result<Seen, Stop> {
    let subject = Subject::new(flags, HOST_STATE, move |event| {
        if event.number == startup() { Then::Reply(prepare(event.utcb)) } else { Then::End }
    })?;
    subject.start()?;
    subject.wait()?.pop().ok_or_else(|| failed("no event has been seen".into()))
}
