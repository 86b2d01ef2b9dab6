//! Everything that was created can be given back, to the last frame.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use lab::event::Then;
use lab::guest::{self, Guest};
use lab::guest_code;
use lab::hypercall::{self, Delegation, NewEc, create, create_pd, create_pt, create_sc, create_sm, ctrl_pd, flag, ipc_call};
use lab::portal::Local;
use lab::report::{Outcome, Stop, must};
use lab::semaphore::Semaphore;
use lab::spec::{
    ABORTED, BAD_CAP, BAD_PAR, SUCCESS, Selector, event, feature, field, hip as page, mtd, perm, scd, words,
};
use lab::thread::Parameters;
use lab::{check, entry, equal, memory, number, root, selectors, tests, thread, time};

use crate::operations::{balance, destroy, move_allowance};

tests! {
    "reclaim::a semaphore" => semaphore,
    "reclaim::who waits on a semaphore that goes is aborted" => waiter,
    "reclaim::an allowance comes back" => allowance,
    "reclaim::what refers to a destroyed object reads as null" => stale,
    "reclaim::a guest whose space goes runs no more" => guest_space,
    "reclaim::a portal that was called is gone with its thread, and alone" => called,
    "reclaim::a destruction that waits for another one takes what it was asked to" => two,
    "reclaim::who waits for a destruction and loses its time holds up nobody" => timeless,
    "reclaim::what a call has taken out of a space that ends meanwhile comes back" => interrupted,
    "reclaim::what must not be destroyed" => refused,
    "reclaim::a caller inside is refused" => inside,
    "reclaim::who called into what goes is aborted" => caller,
    "reclaim::a callee whose caller goes finishes" => callee,
    "reclaim::cycles of everything leave nothing behind" => cycles,
}

fn free() -> (u64, u64) {
    balance(root::pd())
}

fn semaphore() -> Outcome {
    let sm = selectors(1);
    // The table of the selector stays.
    must(create_sm(sm, root::pd(), 0))?;
    equal!(destroy(sm, root::pd()), SUCCESS);
    let before = free();
    for _ in 0..1000 {
        must(create_sm(sm, root::pd(), 0))?;
        equal!(destroy(sm, root::pd()), SUCCESS);
    }
    equal!(free(), before);
    Ok(())
}

/// Waits until whoever runs on scheduling context `sc` has begun and does not run any more.
fn settled(sc: Selector) -> Outcome {
    let mut before = 0;
    for _ in 0..10_000 {
        time::sleep(1)?;
        // Of one that runs it grows all the time.
        let (status, consumed) = hypercall::ctrl_sc(sc);
        must(status)?;
        if consumed != 0 && consumed == before {
            return Ok(());
        }
        before = consumed;
    }
    Err(lab::report::failed("it runs and runs".into()))
}

fn waiter() -> Outcome {
    let sm = Semaphore::new(0)?;
    for cpu in 0..root::cpus() {
        let sm = Semaphore::new(0)?;
        let seen = lab::number(0xff);
        let parameters = Parameters { cpu, priority: 100, budget: 10, flags: 0 };
        let thread = thread::spawn_with(parameters, move |_| {
            seen.store(u64::from(sm.down().0), SeqCst);
        })?;
        settled(thread.sc)?;
        equal!(destroy(sm.0, root::pd()), SUCCESS);
        thread.done.wait()?;
        equal!(seen.load(SeqCst), u64::from(ABORTED.0));
        equal!(sm.up(), BAD_CAP);
    }
    equal!(destroy(sm.0, root::pd()), SUCCESS);
    Ok(())
}

fn allowance() -> Outcome {
    // One table of capabilities holds them all.
    let pd = lab::aligned_selectors(2);
    let (inner, space) = (pd + 1, pd + 2);
    must(create_pd(pd, root::pd(), create::PD))?;
    equal!(destroy(pd, root::pd()), SUCCESS);
    let before = free();
    must(create_pd(pd, root::pd(), create::PD))?;
    let without = free();
    equal!(move_allowance(pd, 100), SUCCESS);
    equal!(balance(pd).0, 100);
    equal!(free(), (without.0 - 100, without.1));
    // A part of it goes on to a protection domain inside, which pays for itself.
    must(create_pd(inner, pd, create::PD))?;
    equal!(move_allowance(inner, 10), SUCCESS);
    must(create_pd(space, inner, create::OBJ))?;
    check!(balance(inner).0 < 10);
    equal!(destroy(pd, root::pd()), SUCCESS);
    equal!(free(), before);
    Ok(())
}

fn guest_space() -> Outcome {
    let (count, space) = (number(0), number(0));
    let parameters = guest::Parameters { cpu: root::cpu(), rip: guest_code::cpuid().start, mtd: mtd::RIP, flags: 0 };
    let guest = Guest::new(
        parameters,
        |_| 0,
        move |_| {
            if count.fetch_add(1, Relaxed) == 3 {
                destroy(space.load(Relaxed), root::pd());
            }
            Then::Reply(0)
        },
    )?;
    space.store(guest.gst, Relaxed);
    guest.start()?;
    time::until(|| count.load(Relaxed) == 4)?;
    time::pause(20)?;
    time::settle()?;
    equal!(count.load(Relaxed), 4);
    Ok(())
}

fn called() -> Outcome {
    for thread in [true, false] {
        let count = number(0);
        let local = Local::new()?;
        let pt = local.portal(move |_| {
            count.fetch_add(1, Relaxed);
            0
        })?;
        for _ in 0..2 {
            equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        }
        equal!(destroy(if thread { local.ec } else { pt }, root::pd()), SUCCESS);
        let status = ipc_call(pt, words(1), 0).0;
        check!(status == if thread { ABORTED } else { BAD_CAP }, "{status:?} with the thread gone: {thread}");
        equal!(count.load(Relaxed), 2);
    }
    Ok(())
}

fn stale() -> Outcome {
    let sm = Semaphore::new(3)?;
    let copy = selectors(1);
    must(ctrl_pd(&Delegation {
        src: root::obj(),
        dst: root::obj(),
        ssb: sm.0,
        dsb: copy,
        order: 0,
        mask: perm::ALL,
        mad: 0,
    }))?;
    equal!(Semaphore(copy).down(), SUCCESS);
    equal!(destroy(copy, root::pd()), SUCCESS);
    equal!(Semaphore(copy).down(), BAD_CAP);
    equal!(sm.down(), BAD_CAP);
    equal!(destroy(copy, root::pd()), BAD_CAP);
    // Its header serves the next object; the old capabilities must not name it.
    let next = selectors(1);
    must(create_sm(next, root::pd(), 7))?;
    equal!(sm.down(), BAD_CAP);
    equal!(destroy(next, root::pd()), SUCCESS);
    Ok(())
}

/// A protection domain whose destruction takes a while.
#[derive(Clone, Copy)]
pub struct Many {
    /// The protection domain.
    pub pd: Selector,
    first: Selector,
}

impl Many {
    const OBJECTS: u64 = 1000;

    /// Its selectors; nothing is there yet.
    pub fn new() -> Self {
        Self { pd: selectors(1), first: selectors(Self::OBJECTS) }
    }

    /// Creates it; `last` is created in it before all others, and so destroyed after them.
    pub fn create(self, last: impl Fn(Selector) -> Outcome) -> Outcome {
        must(create_pd(self.pd, root::pd(), create::PD))?;
        last(self.pd)?;
        (self.first..self.first + Self::OBJECTS).try_for_each(|selector| must(create_sm(selector, self.pd, 0)))
    }

    /// How long its destruction takes.
    pub fn duration(self) -> Result<u64, Stop> {
        self.create(|_| Ok(()))?;
        let start = time::now();
        must(destroy(self.pd, root::pd()))?;
        Ok(time::now() - start)
    }
}

fn two() -> Outcome {
    let (many, sm) = (Many::new(), selectors(1));
    let duration = many.duration()?;
    let (go, pause, steps) = (Semaphore::new(0)?, Semaphore::new(0)?, lab::number(0));
    let thread = thread::spawn(100, move |_| {
        for _ in 0..8 {
            go.down();
            steps.fetch_add(1, SeqCst);
            destroy(many.pd, root::pd());
            steps.fetch_add(1, SeqCst);
        }
    })?;
    let mut overlaps = 0;
    for eighth in 0..8 {
        many.create(|_| Ok(()))?;
        must(create_sm(sm, root::pd(), 0))?;
        go.up();
        pause.down_until(time::now() + duration * eighth / 8);
        overlaps += steps.load(SeqCst) % 2;
        equal!(destroy(sm, root::pd()), SUCCESS);
        equal!(hypercall::ctrl_sm(sm, 0, 0), BAD_CAP);
        while steps.load(SeqCst) != 2 * (eighth + 1) {
            time::sleep(1)?;
        }
    }
    thread.done.wait()?;
    check!(overlaps > 0, "no destruction was under way when the other one began");
    Ok(())
}

fn timeless() -> Outcome {
    let (many, victim, other) = (Many::new(), selectors(1), selectors(1));
    let duration = many.duration()?;
    let (go, pause, alarm) = (Semaphore::new(0)?, Semaphore::new(0)?, lab::number(0));
    let mut waited = 0;
    // It must wake while the first half of the destruction is under way, before its own time is taken away.
    for sixteenth in (0..8).cycle().take(64) {
        if waited > 0 {
            break;
        }
        must(create_sm(victim, root::pd(), 0))?;
        must(create_sm(other, root::pd(), 0))?;
        // Its scheduling context goes with the protection domain.
        let late = thread::prepare(Parameters { cpu: root::cpu(), priority: 100, budget: 10, flags: 0 }, move |_| {
            go.down();
            pause.down_until(alarm.load(SeqCst));
            destroy(victim, root::pd());
        })?;
        many.create(|pd| must(create_sc(late.sc, pd, late.ec, scd(10, 100, 0))))?;
        let thread = thread::spawn(50, move |_| {
            alarm.store(time::now() + duration * sixteenth / 16, SeqCst);
            go.up();
            destroy(many.pd, root::pd());
            destroy(other, root::pd());
        })?;
        thread.done.wait()?;
        equal!(hypercall::ctrl_sm(other, 0, 0), BAD_CAP);
        // If it was too early or too late, it has not destroyed anything, or was not waiting.
        waited += u64::from(hypercall::ctrl_sm(victim, 0, 0) == BAD_CAP && late.done.down_until(1) != SUCCESS);
        if hypercall::ctrl_sm(victim, 0, 0) != BAD_CAP {
            must(destroy(victim, root::pd()))?;
        }
        must(destroy(late.ec, root::pd()))?;
    }
    check!(waited > 0, "nobody lost its time while it waited");
    Ok(())
}

fn interrupted() -> Outcome {
    /// Page tables, each for one page.
    const TABLES: u64 = 200;
    let pd = lab::aligned_selectors(1);
    let (hst, page, other) = (pd + 1, memory::pages(1), lab::domain::Domain::empty()?);
    let create = || {
        must(create_pd(pd, root::pd(), create::PD))?;
        must(move_allowance(pd, 2 * TABLES))?;
        must(create_pd(hst, pd, create::HST))?;
        (0..TABLES).try_for_each(|table| memory::grant(page, hst, table << 21, 1, perm::R))
    };
    let clear = move |dst| {
        ctrl_pd(&Delegation { src: root::HST, dst, ssb: 0, dsb: 0, order: 17, mask: 0, mad: 0 })
    };
    create()?;
    let start = time::now();
    must(clear(hst))?;
    let duration = time::now() - start;
    must(destroy(pd, root::pd()))?;
    let (go, pause, done, missed) = (Semaphore::new(0)?, Semaphore::new(0)?, Semaphore::new(0)?, lab::number(0));
    thread::spawn(100, move |_| {
        loop {
            go.down();
            missed.fetch_add(u64::from(clear(hst) == BAD_CAP), SeqCst);
            // This one comes to its end, with all that follows.
            let _ = memory::grant(page, other.hst, 0, 1, perm::R).and_then(|()| must(clear(other.hst)));
            done.up();
        }
    })?;
    go.up();
    done.wait()?;
    let (before, early) = (free(), missed.load(SeqCst));
    for sixteenth in 0..16 {
        create()?;
        go.up();
        pause.down_until(time::now() + duration * sixteenth / 16);
        equal!(destroy(pd, root::pd()), SUCCESS);
        done.wait()?;
        check!(free() == before, "{:?} frames instead of {before:?}", free());
    }
    check!(missed.load(SeqCst) > early, "no call was interrupted by the end of its space");
    Ok(())
}

fn refused() -> Outcome {
    equal!(destroy(root::ec(), root::pd()), BAD_PAR);
    equal!(destroy(root::pd(), root::pd()), BAD_PAR);
    equal!(destroy(root::obj(), root::pd()), BAD_PAR);
    equal!(destroy(root::CONSOLE, root::pd()), BAD_PAR);
    equal!(destroy(root::CONSOLE, root::CONSOLE), BAD_CAP);
    equal!(destroy(0x900, root::pd()), BAD_CAP);
    Ok(())
}

fn inside() -> Outcome {
    let domain = lab::domain::Domain::new()?;
    // The information page is not mapped there.
    let (pd, root_pd) = (domain.pd, root::pd());
    domain.give(root_pd, root_pd, perm::ALL)?;
    domain.give(pd, pd, perm::ALL)?;
    let seen = lab::number(0xff);
    let thread = domain.spawn(100, move |_| {
        seen.store(u64::from(destroy(pd, root_pd).0), SeqCst);
    })?;
    thread.done.wait()?;
    equal!(seen.load(SeqCst), u64::from(BAD_PAR.0));
    equal!(destroy(pd, root::pd()), SUCCESS);
    Ok(())
}

fn caller() -> Outcome {
    let domain = lab::domain::Domain::new()?;
    let local = Local::within(domain.pd, root::cpu())?;
    let pt = local.portal(|_| lab::entry::stop())?;
    let seen = lab::number(0xff);
    let thread = thread::spawn(1, move |_| {
        seen.store(u64::from(hypercall::ipc_call(pt, 0, 0).0.0), SeqCst);
    })?;
    time::sleep(5)?;
    equal!(destroy(domain.pd, root::pd()), SUCCESS);
    thread.done.wait()?;
    equal!(seen.load(SeqCst), u64::from(ABORTED.0));
    Ok(())
}

fn callee() -> Outcome {
    let local = Local::new()?;
    let (reached, go) = (Semaphore::new(0)?, Semaphore::new(0)?);
    let pt = local.portal(move |_| {
        reached.up();
        go.down();
        time::spin(time::ms(1));
        reached.up();
        0
    })?;
    for round in 0..3 {
        let domain = lab::domain::Domain::new()?;
        domain.give(pt, pt, perm::ALL)?;
        domain.spawn(1, move |_| {
            hypercall::ipc_call(pt, 0, 0);
        })?;
        reached.wait()?;
        equal!(destroy(domain.pd, root::pd()), SUCCESS);
        go.up();
        // On the priority and time of who is gone.
        reached.wait()?;
        check!(round < 3);
    }
    // It serves the next one.
    go.up();
    equal!(hypercall::ipc_call(pt, 0, 0).0, SUCCESS);
    Ok(())
}

/// Machine code for threads of protection domains without any other memory.
mod code {
    use super::memory;

    /// Where it is mapped.
    pub const BASE: u64 = 0x40_0000;
    pub const SPIN: u64 = BASE;
    pub const UP: u64 = BASE + 0x40;
    pub const DOWN: u64 = BASE + 0x80;
    pub const CALL: u64 = BASE + 0xc0;
    pub const SELECTOR: u64 = 0x100;

    /// Writes `mov $rdi, %edi; mov $0, %esi; syscall; jmp back` at `place`.
    fn syscall(page: u64, place: u64, rdi: u64) {
        let mut bytes = [0x90u8; 16];
        bytes[0] = 0xbf;
        bytes[1..5].copy_from_slice(&(rdi as u32).to_le_bytes());
        bytes[5..7].copy_from_slice(&[0x31, 0xf6]);
        bytes[7..9].copy_from_slice(&[0x0f, 0x05]);
        bytes[9..11].copy_from_slice(&[0xeb, 0xf5]);
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            memory::poke(page + place - BASE + 8 * index as u64, u64::from_le_bytes(word.try_into().unwrap()));
        }
    }

    /// A page of it.
    pub fn page() -> u64 {
        let page = memory::pages(1);
        memory::poke(page, 0xfeeb);
        // What a guest finds at its reset vector.
        memory::poke(page + 0xff0, 0xfeeb);
        syscall(page, UP, SELECTOR << 8 | 0xb);
        syscall(page, DOWN, SELECTOR << 8 | 1 << 4 | 0xb);
        syscall(page, CALL, (SELECTOR + 1) << 8);
        page
    }
}

/// Portals of the root protection domain, on one CPU, that start threads at the address that is their stack pointer,
/// and vCPUs with their spaces.
struct Starter {
    host: Selector,
    guest: Selector,
}

impl Starter {
    fn new(cpu: u64, names: &Names) -> Result<Self, Stop> {
        let local = Local::on(cpu)?;
        let host = selectors(1);
        local.portal_at(host, mtd::GPR_0_7, |message| {
            message.utcb.set(field::RIP, message.utcb.get(field::RSP));
            mtd::RIP
        })?;
        let (gst, pio, msr) = (names.gst, names.pio2, names.msr);
        let guest = local.portal(move |message| {
            message.utcb.set(field::SEL_GST, gst);
            message.utcb.set(field::SEL_PIO, pio);
            message.utcb.set(field::SEL_MSR, msr);
            mtd::SPACES
        })?;
        Ok(Self { host, guest })
    }
}

/// Selectors of one cycle, the same each time.
#[derive(Clone, Copy)]
struct Names {
    pd: Selector,
    obj: Selector,
    hst: Selector,
    pio: Selector,
    pio2: Selector,
    gst: Selector,
    msr: Selector,
    inner: Selector,
    inner_obj: Selector,
    sm: Selector,
    threads: Selector,
}

impl Names {
    fn new() -> Self {
        let first = selectors(0x100);
        let name = |index| first + index;
        Self {
            pd: name(0),
            obj: name(1),
            hst: name(2),
            pio: name(3),
            pio2: name(4),
            gst: name(5),
            msr: name(6),
            inner: name(7),
            inner_obj: name(8),
            sm: name(9),
            threads: name(16),
        }
    }
}

fn guests() -> bool {
    entry::hip(page::PLATFORM_FEATURES) & (feature::VMX | feature::SVM) != 0
}

fn cycles() -> Outcome {
    let rounds = entry::argument("rounds").and_then(|text| text.parse().ok()).unwrap_or(1000);
    let names = Names::new();
    let starters: Result<Vec<Starter>, Stop> = (0..root::cpus()).map(|cpu| Starter::new(cpu, &names)).collect();
    let (starters, code, pause) = (starters?, code::page(), Semaphore::new(0)?);
    for warm in 0..3 {
        cycle(&names, &starters, code, pause, warm)?;
    }
    let before = free();
    for round in 0..rounds {
        cycle(&names, &starters, code, pause, round)?;
        check!(free() == before, "after cycle {round}: {:?} frames instead of {before:?}", free());
    }
    Ok(())
}

/// Creates everything, lets it run for a moment, and destroys it.
fn cycle(names: &Names, starters: &[Starter], code: u64, pause: Semaphore, round: u64) -> Outcome {
    let n = names;
    must(create_pd(n.pd, root::pd(), create::PD))?;
    let spaces = [(n.obj, create::OBJ), (n.hst, create::HST), (n.pio, create::PIO), (n.pio2, create::PIO)];
    for (selector, operation) in spaces.into_iter().chain([(n.msr, create::MSR)]) {
        must(create_pd(selector, n.pd, operation))?;
    }
    must(create_pd(n.inner, n.pd, create::PD))?;
    must(create_pd(n.inner_obj, n.inner, create::OBJ))?;
    must(create_sm(n.sm, n.pd, 0))?;
    memory::grant(code, n.hst, code::BASE, 1, perm::R | perm::XU)?;
    memory::grant(code, n.hst, 0x7f00_0000_0000, 1, perm::R)?;
    memory::delegate(memory::segments()[0].0, n.hst, 0x12_3400_0000, 4, perm::R)?;
    must(ctrl_pd(&Delegation { src: root::NOVA_PIO, dst: n.pio, ssb: 0x80, dsb: 0x80, order: 0, mask: perm::A, mad: 0 }))?;
    if guests() {
        must(create_pd(n.gst, n.pd, create::GST))?;
        memory::grant(code, n.gst, 0xffff_f000, 1, perm::R | perm::XU | perm::XS)?;
    }
    let give = |from: Selector, to: Selector| {
        let delegation =
            Delegation { src: root::obj(), dst: n.obj, ssb: from, dsb: to, order: 0, mask: perm::ALL, mad: 0 };
        must(ctrl_pd(&delegation))
    };
    give(n.sm, code::SELECTOR)?;
    let arch = entry::hip(page::SEL_HST_ARCH) + u64::from(event::STARTUP);
    let guest_arch = entry::hip(page::SEL_GST_ARCH) + u64::from(event::STARTUP);
    for (cpu, starter) in (0..).zip(starters) {
        give(starter.host, 0x1000 * (cpu + 1) + arch)?;
        give(starter.guest, 0x1000 * (cpu + 1) + 0x200 + guest_arch)?;
        let mut next = n.threads + 16 * cpu;
        let mut take = || {
            next += 1;
            next - 1
        };
        // A local thread that never replies, and one that calls it.
        let (local, pt) = (take(), take());
        let mut utcb = 0x5000_0000 + 0x10_0000 * cpu;
        let mut ec = |selector: Selector, sp: u64, flags: u8| {
            utcb += 0x1000;
            let new = NewEc { pd: n.pd, page: utcb, cpu, sp, events: 0x1000 * (cpu + 1), flags };
            must(hypercall::create_ec(selector, &new))
        };
        ec(local, 0, 0)?;
        must(create_pt(pt, n.pd, local, code::SPIN))?;
        give(pt, code::SELECTOR + 1)?;
        let bodies = [code::SPIN, code::UP, code::DOWN, code::DOWN, code::CALL];
        for (index, body) in bodies.into_iter().enumerate() {
            let (thread, sc) = (take(), take());
            ec(thread, body, flag::EC_GLOBAL | if index == 0 { flag::EC_FPU } else { 0 })?;
            must(create_sc(sc, if index == 1 { n.inner } else { n.pd }, thread, scd(1, 1 + index as u64 % 2, 0)))?;
        }
        if guests() {
            let (vcpu, sc) = (take(), take());
            let events = 0x1000 * (cpu + 1) + 0x200;
            let new = NewEc { pd: n.pd, page: 0, cpu, sp: 0, events, flags: flag::EC_GUEST };
            must(hypercall::create_ec(vcpu, &new))?;
            must(create_sc(sc, n.pd, vcpu, scd(1, 1, 0)))?;
        }
    }
    if round.is_multiple_of(8) {
        pause.down_until(time::now() + time::ms(3));
    }
    equal!(destroy(n.pd, root::pd()), SUCCESS);
    equal!(hypercall::ctrl_sm(n.sm, 0, 0), BAD_CAP);
    Ok(())
}
