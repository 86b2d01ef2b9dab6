//! The cage: a protection domain with an allowance and a thread on each CPU that executes records of calls.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use lab::hypercall::{self, Delegation, NewEc, create, create_pd, create_sc, ctrl_pd, flag};
use lab::portal::Local;
use lab::report::{Outcome, Stop, must};
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, Selector, event, field, hip as page, mtd, perm, scd};
use lab::{entry, memory, root, thread, time};

use crate::foreign::{Foreign, Pages, give};
use crate::hostile::{self, Batch, place};
use crate::operations::{destroy, move_allowance};

/// Frames that it can pay.
const ALLOWANCE: u64 = 400;
/// Priority of the threads that execute records; all others of the cage have less.
const PRIORITY: u64 = 60;
/// Milliseconds, divided by 4, in which a thread that does not block gets a call further, unless it waits for others.
const PATIENCE: u64 = 1;
/// Times that long, a call must end: a minute, as the emulator's machine has other things to do.
const LONG: u64 = 240_000;
/// Where in its object space lies what it needs to work: the events of its threads, then their semaphores.
const EVENTS: Selector = 0x3_0000;
const EVENTS_ORDER: u32 = 6;
const GO: Selector = 0x3_1000;
const DONE: Selector = 0x3_1100;
/// Ports that it may use.
pub const PORTS: core::ops::Range<u64> = 0x80..0x90;
/// Pages of the window that it may write, to begin with; those that it may read follow.
pub const OWN_PAGES: u64 = 8;

/// What the first selectors of its object space hold.
pub mod held {
    #![allow(missing_docs)]
    pub const PD: u64 = 0;
    pub const OBJ: u64 = 1;
    pub const HST: u64 = 2;
    pub const PIO: u64 = 3;
    pub const GUEST_PIO: u64 = 4;
    pub const GST: u64 = 5;
    pub const MSR: u64 = 6;
    /// What belongs to others, and its end.
    pub const FOREIGN: u64 = 8;
    pub const END: u64 = 17;
}

/// A thread that executes records, and how one speaks with it.
struct Executor {
    cpu: u64,
    batch: Batch,
    ec: Selector,
    sc: Selector,
    events: Selector,
    go: Semaphore,
    done: Semaphore,
    /// Why it was killed: number of the event + 1.
    died: &'static AtomicU64,
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All of it was executed.
    Done,
    /// The thread blocks, or is dead.
    Stuck,
}

/// The cage. Selectors and memory stay; objects are made for each episode.
pub struct Cage {
    first: Selector,
    executors: Vec<Executor>,
    code: u64,
    data: u64,
    own: u64,
    utcbs: u64,
    /// Calls for the other threads.
    pub script: u64,
    /// Replies of its portals.
    pub replies: u64,
}

impl Cage {
    /// Selectors, shared memory, and those who handle its threads' events.
    pub fn new() -> Result<Self, Stop> {
        let cpus = root::cpus();
        let first = lab::aligned_selectors(6);
        let executors: Result<Vec<Executor>, Stop> = (0..cpus).map(|cpu| Executor::new(cpu, first + 8)).collect();
        Ok(Self {
            first,
            executors: executors?,
            code: hostile::code(),
            data: memory::pages(1),
            own: memory::pages(OWN_PAGES),
            utcbs: memory::pages(1),
            script: memory::pages(4),
            replies: memory::pages(4),
        })
    }

    /// The protection domain.
    pub fn pd(&self) -> Selector {
        self.first
    }

    /// Its object space.
    pub fn obj(&self) -> Selector {
        self.first + held::OBJ
    }

    /// Number of threads that execute records.
    pub fn threads(&self) -> usize {
        self.executors.len()
    }

    /// The records of a thread.
    pub fn batch(&self, thread: usize) -> Batch {
        self.executors[thread].batch
    }

    /// Hypercalls that the other threads have begun.
    pub fn others(&self) -> u64 {
        memory::peek(self.data + 16)
    }

    /// Creates the protection domain, gives it what it may have, and starts its threads.
    pub fn create(&self, foreign: &Foreign, guests: bool) -> Outcome {
        (0..4).for_each(|word| memory::poke(self.data + 8 * word, 0));
        must(create_pd(self.pd(), root::pd(), create::PD))?;
        must(move_allowance(self.pd(), ALLOWANCE))?;
        let spaces = [
            (held::OBJ, create::OBJ),
            (held::HST, create::HST),
            (held::PIO, create::PIO),
            (held::GUEST_PIO, create::PIO),
            (held::MSR, create::MSR),
            (held::GST, create::GST),
        ];
        for (held, operation) in spaces.into_iter().filter(|(held, _)| guests || *held != held::GST) {
            must(create_pd(self.first + held, self.pd(), operation))?;
            give(root::obj(), self.first + held, self.obj(), held, perm::ALL)?;
        }
        give(root::obj(), self.pd(), self.obj(), held::PD, perm::ALL)?;
        for pio in [held::PIO, held::GUEST_PIO] {
            let (src, dst, ports) = (root::NOVA_PIO, self.first + pio, PORTS.start);
            must(ctrl_pd(&Delegation { src, dst, ssb: ports, dsb: ports, order: 4, mask: perm::A, mad: 0 }))?;
        }
        self.memory(foreign)?;
        foreign.create(self.obj())?;
        self.executors.iter().try_for_each(|executor| self.start(executor))
    }

    fn map(&self, address: u64, to: u64, pages: u64, mask: u64) -> Outcome {
        memory::grant(address, self.first + held::HST, to, pages, mask)
    }

    /// Maps what it works with, and what it may play with.
    fn memory(&self, foreign: &Foreign) -> Outcome {
        self.map(self.own, place::WINDOW, OWN_PAGES, perm::R | perm::W | perm::XU | perm::XS)?;
        let public = place::WINDOW + OWN_PAGES * memory::PAGE;
        self.map(foreign.public.address, public, Pages::COUNT, perm::R | perm::XU | perm::XS)?;
        // A guest's first instructions, where a window's page is found that is mapped there.
        let code = self.own + memory::PAGE - 16;
        memory::poke(code, u64::from_le_bytes([0x0f, 0xa2, 0xe4, 0x80, 0x0f, 0x01, 0xd9, 0xf4]));
        memory::poke(code + 8, 0xf6eb);
        self.tools()
    }

    /// Maps what its threads need to work.
    fn tools(&self) -> Outcome {
        self.map(self.code, place::CODE, 1, perm::R | perm::XU)?;
        self.map(self.data, place::DATA, 1, perm::R | perm::W)?;
        self.map(self.script, place::SCRIPT, 4, perm::R)?;
        self.map(self.replies, place::REPLIES, 4, perm::R)?;
        for executor in &self.executors {
            self.map(executor.batch.0, executor.batch_address(), 1, perm::R | perm::W)?;
        }
        Ok(())
    }

    /// Starts a thread, after it was given what it needs.
    fn start(&self, executor: &Executor) -> Outcome {
        let flags = flag::EC_GLOBAL;
        let events = EVENTS + (executor.cpu << EVENTS_ORDER);
        let order = u64::from(EVENTS_ORDER);
        let portals = Delegation {
            src: root::obj(),
            dst: self.obj(),
            ssb: executor.events,
            dsb: events,
            order,
            mask: perm::EVENT,
            mad: 0,
        };
        must(ctrl_pd(&portals))?;
        give(root::obj(), executor.go.0, self.obj(), GO + executor.cpu, perm::DOWN)?;
        give(root::obj(), executor.done.0, self.obj(), DONE + executor.cpu, perm::UP)?;
        let page = place::UTCBS + executor.cpu * memory::PAGE;
        // Whatever was there: a UTCB is not mapped over something else.
        let clear = Delegation {
            src: root::HST,
            dst: self.first + held::HST,
            ssb: self.utcbs >> 12,
            dsb: page >> 12,
            order: 0,
            mask: 0,
            mad: 0,
        };
        must(ctrl_pd(&clear))?;
        executor.batch.prepare(0, DONE + executor.cpu, GO + executor.cpu);
        let new = NewEc { pd: self.pd(), page, cpu: executor.cpu, sp: 0, events, flags };
        must(hypercall::create_ec(executor.ec, &new))?;
        must(create_sc(executor.sc, self.pd(), executor.ec, scd(10, PRIORITY, 0)))
    }

    /// Has all threads execute their records.
    pub fn go(&self, count: u64) {
        for executor in &self.executors {
            executor.batch.prepare(count, DONE + executor.cpu, GO + executor.cpu);
            executor.go.up();
        }
    }

    /// Waits until `thread` is done with `count` records, or does not get any further for a while.
    pub fn wait(&self, thread: usize, count: u64) -> End {
        let executor = &self.executors[thread];
        let mut position = u64::MAX;
        loop {
            if executor.batch.position() >= count {
                return End::Done;
            }
            let timeout = executor.done.down_until(time::now() + time::ms(PATIENCE) / 4) != SUCCESS;
            if executor.died.load(SeqCst) != 0 || timeout && executor.batch.position() == position {
                return if executor.batch.position() >= count { End::Done } else { End::Stuck };
            }
            position = executor.batch.position();
        }
    }

    /// The event that has killed `thread`, if one has.
    pub fn died(&self, thread: usize) -> Option<u64> {
        self.executors[thread].died.load(SeqCst).checked_sub(1)
    }

    /// Whether the portals of the events of `thread` are where they were put; `trial` is a selector for trying.
    pub fn has_events(&self, thread: usize, trial: Selector) -> Result<bool, Stop> {
        let events = EVENTS + (self.executors[thread].cpu << EVENTS_ORDER);
        for number in [0xd, 0xe] {
            give(self.obj(), events + number, root::obj(), trial, perm::ALL)?;
            if hypercall::create_sm(trial, root::pd(), 0) == SUCCESS {
                return must(destroy(trial, root::pd())).map(|()| false);
            }
        }
        Ok(true)
    }

    /// Waits until `thread` gets further than `position`, or dies, for very long.
    pub fn wait_long(&self, thread: usize, position: u64) -> bool {
        let executor = &self.executors[thread];
        (0..LONG).any(|_| {
            executor.done.down_until(time::now() + time::ms(PATIENCE) / 4);
            executor.batch.position() != position || executor.died.load(SeqCst) != 0
        })
    }

    /// Replaces a thread that blocks or is dead. An error if the allowance does not suffice.
    pub fn replace(&self, thread: usize) -> Outcome {
        let executor = &self.executors[thread];
        must(destroy(executor.sc, self.pd()))?;
        must(destroy(executor.ec, self.pd()))?;
        executor.reset();
        self.tools()?;
        self.start(executor)
    }

    /// Destroys everything, after the first 2^`order` capabilities were copied to `to`.
    pub fn destroy(&self, to: Selector, order: u64) -> Outcome {
        let copy = Delegation { src: self.obj(), dst: root::obj(), ssb: 0, dsb: to, order, mask: perm::ALL, mad: 0 };
        must(ctrl_pd(&copy))?;
        must(destroy(self.pd(), root::pd()))?;
        self.executors.iter().for_each(Executor::reset);
        Ok(())
    }
}

impl Executor {
    fn new(cpu: u64, names: Selector) -> Result<Self, Stop> {
        let events = lab::aligned_selectors(EVENTS_ORDER);
        let names = names + 2 * cpu;
        let executor = Self {
            cpu,
            batch: Batch(memory::pages(1)),
            ec: names,
            sc: names + 1,
            events,
            go: Semaphore::new(0)?,
            done: Semaphore::new(0)?,
            died: lab::number(0),
        };
        let local = Local::on(cpu)?;
        let startup = entry::hip(page::SEL_HST_ARCH) + u64::from(event::STARTUP);
        let (died, done, batch) = (executor.died, executor.done, executor.batch_address());
        for number in 0..thread::event_count() {
            local.portal_at(events + number, mtd::RIP | mtd::GPR_0_7, move |message| {
                let utcb = message.utcb;
                if number == startup {
                    utcb.set(field::RDI, batch);
                    utcb.set(field::RIP, hostile::executor());
                    return mtd::GPR_0_7 | mtd::RIP;
                }
                if let Some(next) = hostile::after_fault(utcb.get(field::RIP)) {
                    utcb.set(field::RIP, next);
                    return mtd::RIP;
                }
                died.store(number + 1, SeqCst);
                done.up();
                mtd::POISON
            })?;
        }
        Ok(executor)
    }

    fn batch_address(&self) -> u64 {
        place::BATCHES + self.cpu * memory::PAGE
    }

    /// As before it ever ran.
    fn reset(&self) {
        self.died.store(0, SeqCst);
        for semaphore in [self.go, self.done] {
            hypercall::ctrl_sm(semaphore.0, flag::SM_DOWN | flag::SM_ZERO, 1);
        }
    }
}
