//! What is taken away is gone on all CPUs, and in guests, before the call returns.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use lab::capability::guests;
use lab::domain::Domain;
use lab::hypercall::{self, Delegation, NewEc, create, create_pd, create_sc, ctrl_pd, flag};
use lab::portal::Local;
use lab::report::{Outcome, Stop, failed, must};
use lab::semaphore::Semaphore;
use lab::spec::{Selector, event, field, hip as page, mtd, perm, scd};
use lab::{check, entry, memory, root, selectors, tests, time};

use crate::operations::{balance, destroy};

tests! {
    "shootdown::a page that is taken away is written no more, on no CPU and by no guest" => torture,
}

/// Where the page lies for the threads, and for the guest.
const PAGE: u64 = 0x5000_0000;
const GUEST_PAGE: u64 = 0x1_0000;
const CODE: u64 = 0x40_0000;
const UTCBS: u64 = 0x60_0000;
/// Each writer has a word of its own, so far from the next one's.
const DISTANCE: u64 = 64;
/// `inc qword ptr [rdi]; jmp`.
const WRITE: u64 = 0xfb_eb07_ff48;
/// At the reset vector: DS = 0x1000; `inc word ptr [0]; jmp`.
const GUEST_WRITE: [u64; 2] = [0x0006_ffd8_8e10_00b8, 0x00fa_eb00];
/// Exit for a nested page fault.
const NESTED_FAULT: u64 = 48;
/// Selectors of the events of threads of a CPU, and of the guest's.
const fn events(cpu: u64) -> Selector {
    0x1000 * (cpu + 1)
}

/// Those who write.
struct Writers {
    domain: Domain,
    /// Written by threads, each in a word of its own, through a mapping of their own; and by the guest.
    page: u64,
    guest_page: u64,
    guest_space: Option<Selector>,
    pause: Semaphore,
    faults: &'static AtomicU64,
}

fn torture() -> Outcome {
    let rounds = entry::argument("rounds").and_then(|text| text.parse().ok()).unwrap_or(200);
    let writers = Writers::new()?;
    writers.round()?;
    let before = balance(root::pd());
    for round in 0..rounds {
        writers.round().map_err(|stop| match stop {
            Stop::Failed(place, text) => Stop::Failed(place, alloc::format!("round {round}: {text}")),
            stop => stop,
        })?;
    }
    check!(balance(root::pd()) == before, "{:?} frames instead of {before:?}", balance(root::pd()));
    check!(writers.faults.load(SeqCst) > 0, "nobody ever found the page taken away");
    must(destroy(writers.domain.pd, root::pd()))
}

impl Writers {
    fn new() -> Result<Self, Stop> {
        let writers = Self {
            domain: Domain::empty()?,
            page: memory::pages(1),
            guest_page: memory::pages(1),
            guest_space: if guests() { Some(selectors(1)) } else { None },
            pause: Semaphore::new(0)?,
            faults: lab::number(0),
        };
        let code = memory::pages(1);
        memory::poke(code, WRITE);
        memory::grant(code, writers.domain.hst, CODE, 1, perm::R | perm::XU)?;
        for cpu in 0..root::cpus() {
            writers.thread(cpu)?;
        }
        writers.guest()?;
        Ok(writers)
    }

    /// A handler on `cpu` whose portals go to the events `first + number` of the domain.
    fn handle(&self, cpu: u64, first: Selector, startup: u64, fault: u64, begin: fn(&lab::portal::Message, u64) -> u32) -> Result<Local, Stop> {
        let (local, faults) = (Local::on(cpu)?, self.faults);
        let portals = [selectors(1), selectors(1)];
        local.portal_at(portals[0], 0, move |message| begin(message, cpu))?;
        local.portal_at(portals[1], 0, move |_| {
            // It tries again.
            faults.fetch_add(1, SeqCst);
            0
        })?;
        self.domain.give(portals[0], first + startup, perm::ALL)?;
        self.domain.give(portals[1], first + fault, perm::ALL)?;
        Ok(local)
    }

    fn thread(&self, cpu: u64) -> Outcome {
        let startup = entry::hip(page::SEL_HST_ARCH) + u64::from(event::STARTUP);
        self.handle(cpu, events(cpu), startup, u64::from(event::PF), |message, cpu| {
            message.utcb.set(field::RIP, CODE);
            message.utcb.set(field::RDI, PAGE + DISTANCE * cpu);
            mtd::RIP | mtd::GPR_0_7
        })?;
        let (ec, sc, page) = (selectors(1), selectors(1), UTCBS + memory::PAGE * cpu);
        let pd = self.domain.pd;
        let new = NewEc { pd, page, cpu, sp: 0, events: events(cpu), flags: flag::EC_GLOBAL };
        must(hypercall::create_ec(ec, &new))?;
        must(create_sc(sc, pd, ec, scd(1, 20, 0)))
    }

    /// A virtual CPU, on the last CPU.
    fn guest(&self) -> Outcome {
        let Some(space) = self.guest_space else { return Ok(()) };
        let pd = self.domain.pd;
        let (pio, msr, ec, sc) = (selectors(1), selectors(1), selectors(1), selectors(1));
        must(create_pd(space, pd, create::GST))?;
        must(create_pd(pio, pd, create::PIO))?;
        must(create_pd(msr, pd, create::MSR))?;
        let code = memory::pages(1);
        (0..).step_by(8).zip(GUEST_WRITE).for_each(|(offset, word)| memory::poke(code + 0xff0 + offset, word));
        memory::grant(code, space, 0xffff_f000, 1, perm::R | perm::XU | perm::XS)?;
        let (cpu, first) = (root::cpus() - 1, events(root::cpus()));
        let startup = entry::hip(page::SEL_GST_ARCH) + u64::from(event::STARTUP);
        SPACES.iter().zip([space, pio, msr]).for_each(|(number, selector)| number.store(selector, SeqCst));
        self.handle(cpu, first, startup, NESTED_FAULT, |message, _| {
            for (number, field) in SPACES.iter().zip([field::SEL_GST, field::SEL_PIO, field::SEL_MSR]) {
                message.utcb.set(field, number.load(SeqCst));
            }
            mtd::SPACES
        })?;
        must(hypercall::create_ec(ec, &NewEc { pd, page: 0, cpu, sp: 0, events: first, flags: flag::EC_GUEST }))?;
        must(create_sc(sc, pd, ec, scd(1, 20, 0)))
    }

    /// Words that are written: one by each thread, and one by the guest.
    fn words(&self) -> Vec<u64> {
        let threads = (0..root::cpus()).map(|cpu| self.page + DISTANCE * cpu);
        threads.chain(self.guest_space.map(|_| self.guest_page)).collect()
    }

    /// Maps the pages, waits until all have written, and takes the pages away.
    fn round(&self) -> Outcome {
        let words = self.words();
        memory::grant(self.page, self.domain.hst, PAGE, 1, perm::R | perm::W)?;
        if let Some(space) = self.guest_space {
            memory::grant(self.guest_page, space, GUEST_PAGE, 1, perm::R | perm::W)?;
        }
        let mut patience = 100_000;
        while words.iter().any(|word| memory::peek(*word) == 0) {
            self.pause.down_until(time::now() + time::ms(1) / 20);
            patience -= 1;
            check!(patience > 0, "not everybody writes");
        }
        let (threads, guest) = words.split_at(root::cpus() as usize);
        self.take(self.domain.hst, PAGE, threads)?;
        self.guest_space.map_or(Ok(()), |space| self.take(space, GUEST_PAGE, guest))
    }

    /// Takes the page at `address` of `space` away; from then on nobody writes these words.
    fn take(&self, space: Selector, address: u64, words: &[u64]) -> Outcome {
        let nothing = Delegation { src: root::HST, dst: space, ssb: 0, dsb: address >> 12, order: 0, mask: 0, mad: 0 };
        must(ctrl_pd(&nothing))?;
        words.iter().for_each(|word| memory::poke(*word, 0));
        self.pause.down_until(time::now() + time::ms(1) / 20);
        match words.iter().position(|word| memory::peek(*word) != 0) {
            Some(writer) => Err(failed(alloc::format!("writer {writer} still writes"))),
            None => Ok(()),
        }
    }
}

/// Selectors of the guest's spaces, for its handler.
static SPACES: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
