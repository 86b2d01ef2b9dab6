//! Several CPUs: where ECs run, and what crosses CPUs (2.2, 2.3, 3.1, 5.2.1, 5.4, 8.6).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::{Relaxed, SeqCst}};

use lab::event::{HOST_STATE, Subject, Then, recall, startup};
use lab::guest::{self, Guest};
use lab::hypercall::{ctrl_ec, ctrl_sc, flag, ipc_call};
use lab::log::Log;
use lab::memory::{self, delegate, peek, poke};
use lab::portal::Local;
use lab::report::{Outcome, Stop};
use lab::semaphore::Semaphore;
use lab::spec::{ABORTED, BAD_CPU, SUCCESS, TIMEOUT, event, field, mtd, perm, words};
use lab::thread::{Parameters, Thread, spawn_with};
use lab::time::{ms, now, pause, spin};
use lab::utcb::Utcb;
use lab::{check, equal, guest_code, number, provoke as code, root, selectors, tests};

tests! {
    "smp::each EC runs on the CPU of its creation" => where_they_run,
    "smp::CPUs run at the same time" => parallel,
    "smp::priorities are a CPU's own" => own_priorities,
    "smp::a portal of another CPU gives BAD_CPU" => portal,
    "smp::a handler on another CPU kills" => handler,
    "smp::each CPU's portals serve that CPU" => portals,
    "smp::an up wakes an EC on another CPU" => wakes,
    "smp::ups of all CPUs are counted" => ups,
    "smp::downs of all CPUs are counted" => downs,
    "smp::an up releases one EC, wherever it is" => one_each,
    "smp::the order of coming holds across CPUs" => fifo,
    "smp::up and timeout at once: one of them wins" => race,
    "smp::weak recall of an EC that runs elsewhere" => recall_weak,
    "smp::after a strong recall the EC is in the kernel" => recall_strong,
    "smp::after a strong recall a guest is in the kernel" => recall_strong_guest,
    "smp::strong recall of an EC that waits, or has no SC" => recall_waiting,
    "smp::the time of an SC that runs elsewhere" => time,
    "smp::system time is the same everywhere" => same_time,
    "smp::memory taken away is gone on all CPUs when the call returns" => taken_away,
    "smp::a capability taken away is gone on all CPUs when the call returns" => capability,
}

/// Numbers of the CPUs that the root EC does not run on.
fn others() -> Result<Vec<u64>, Stop> {
    let others: Vec<u64> = (0..root::cpus()).filter(|cpu| *cpu != root::cpu()).collect();
    if others.is_empty() { Err(Stop::Skipped("one CPU")) } else { Ok(others) }
}

fn on(cpu: u64, body: impl Fn(Utcb) + 'static) -> Result<Thread, Stop> {
    spawn_with(Parameters { cpu, priority: 20, budget: 10, flags: 0 }, body)
}

/// Waits until `number` is at least `value`.
fn until(number: &AtomicU64, value: u64) -> Outcome {
    let end = now() + ms(20_000);
    while number.load(SeqCst) < value {
        check!(now() < end, "{} instead of {value}", number.load(SeqCst));
        core::hint::spin_loop();
    }
    Ok(())
}

/// Initial APIC id (CPUID leaf 1).
fn apic_id() -> u64 {
    u64::from(core::arch::x86_64::__cpuid(1).ebx >> 24)
}

fn where_they_run() -> Outcome {
    others()?;
    for _ in 0..2 {
        let mut ids = Vec::new();
        for cpu in 0..root::cpus() {
            let id = number(u64::MAX);
            let pt = Local::on(cpu)?.portal(move |message| {
                message.utcb.set_word(0, apic_id());
                words(1)
            })?;
            let thread = on(cpu, move |utcb| {
                id.store(apic_id(), SeqCst);
                // A portal of this CPU runs here, too.
                if ipc_call(pt, words(1), 0).0 != SUCCESS || utcb.word(0) != apic_id() {
                    id.store(u64::MAX - 1, SeqCst);
                }
            })?;
            thread.done.wait()?;
            ids.push(id.load(SeqCst));
        }
        equal!(ids[root::cpu() as usize], apic_id());
        ids.sort_unstable();
        ids.dedup();
        check!(ids.len() as u64 == root::cpus() && ids.iter().all(|id| *id < 256), "APIC ids {ids:x?}");
    }
    Ok(())
}

fn parallel() -> Outcome {
    let here = number(0);
    let mut threads = Vec::new();
    for cpu in others()? {
        threads.push(on(cpu, move |_| {
            here.fetch_add(1, SeqCst);
            while here.load(SeqCst) != u64::MAX {}
        })?);
    }
    // None of them returns to the kernel, and this one has not blocked.
    until(here, threads.len() as u64)?;
    here.store(u64::MAX, SeqCst);
    threads.iter().try_for_each(|thread| thread.done.wait())
}

fn own_priorities() -> Outcome {
    let stop = number(0);
    let high = spawn_with(Parameters { cpu: others()?[0], priority: 127, budget: 1000, flags: 0 }, move |_| {
        while stop.load(SeqCst) == 0 {}
    })?;
    let low = lab::thread::spawn(2, |_| ())?;
    low.done.wait()?;
    stop.store(1, SeqCst);
    high.done.wait()
}

fn portal() -> Outcome {
    for cpu in others()? {
        let pt = Local::on(cpu)?.portal(|_| words(1))?;
        for flags in [0, flag::CALL_TIMEOUT] {
            equal!(ipc_call(pt, words(1), flags).0, BAD_CPU);
        }
    }
    Ok(())
}

fn handler() -> Outcome {
    for cpu in others()? {
        let events = selectors(lab::thread::event_count());
        let faulty = Local::with_events(events)?.portal(|_| {
            code::undefined();
            words(1)
        })?;
        Local::on(cpu)?.portal_at(events + u64::from(event::UD), mtd::RIP, |_| mtd::POISON)?;
        equal!(ipc_call(faulty, words(1), 0).0, ABORTED);
    }
    Ok(())
}

fn portals() -> Outcome {
    const CALLS: u64 = 300;
    let mut threads = Vec::new();
    let right = number(0);
    for cpu in 0..root::cpus() {
        let _ = others()?;
        let pt = Local::on(cpu)?.portal(move |message| {
            message.utcb.set_word(0, message.utcb.word(0) + cpu);
            words(1)
        })?;
        threads.push(on(cpu, move |utcb| {
            for call in 0..CALLS {
                utcb.set_word(0, call);
                if ipc_call(pt, words(1), 0).0 == SUCCESS && utcb.word(0) == call + cpu {
                    right.fetch_add(1, SeqCst);
                }
            }
        })?);
    }
    threads.iter().try_for_each(|thread| thread.done.wait())?;
    equal!(right.load(SeqCst), CALLS * root::cpus());
    Ok(())
}

fn wakes() -> Outcome {
    for cpu in others()? {
        let (go, back) = (Semaphore::new(0)?, Semaphore::new(0)?);
        let count = number(0);
        let thread = on(cpu, move |_| {
            for _ in 0..200 {
                go.down();
                count.fetch_add(1, SeqCst);
                back.up();
            }
        })?;
        for round in 0..200 {
            equal!(count.load(SeqCst), round);
            equal!(go.up(), SUCCESS);
            back.wait()?;
        }
        thread.done.wait()?;
    }
    Ok(())
}

fn ups() -> Outcome {
    const UPS: u64 = 500;
    let (sm, go) = (Semaphore::new(0)?, number(0));
    let mut threads = Vec::new();
    for cpu in others()? {
        threads.push(on(cpu, move |_| {
            while go.load(SeqCst) == 0 {}
            (0..UPS).for_each(|_| assert_eq!(sm.up(), SUCCESS));
        })?);
    }
    go.store(1, SeqCst);
    (0..UPS).for_each(|_| assert_eq!(sm.up(), SUCCESS));
    threads.iter().try_for_each(|thread| thread.done.wait())?;
    let mut count = 0;
    while sm.down_until(1) == SUCCESS {
        count += 1;
    }
    equal!(count, UPS * root::cpus());
    Ok(())
}

fn downs() -> Outcome {
    const TOKENS: u64 = 1000;
    let (sm, taken) = (Semaphore::new(TOKENS)?, number(0));
    let mut threads = Vec::new();
    for cpu in others()? {
        threads.push(on(cpu, move |_| {
            while sm.down_until(1) == SUCCESS {
                taken.fetch_add(1, SeqCst);
            }
        })?);
    }
    threads.iter().try_for_each(|thread| thread.done.wait())?;
    equal!((taken.load(SeqCst), sm.down_until(1)), (TOKENS, TIMEOUT));
    Ok(())
}

fn one_each() -> Outcome {
    let (sm, begun, ended) = (Semaphore::new(0)?, number(0), number(0));
    let mut threads = Vec::new();
    for cpu in others()?.into_iter().cycle().take(6) {
        threads.push(on(cpu, move |_| {
            begun.fetch_add(1, SeqCst);
            sm.down();
            ended.fetch_add(1, SeqCst);
        })?);
    }
    until(begun, 6)?;
    for round in 1..=6 {
        equal!(sm.up(), SUCCESS);
        until(ended, round)?;
        pause(1)?;
        equal!(ended.load(SeqCst), round);
    }
    threads.iter().try_for_each(|thread| thread.done.wait())?;
    equal!(sm.down_until(1), TIMEOUT);
    Ok(())
}

/// Waits until the SC of `thread` has not run for a while: its EC waits.
fn blocked(thread: &Thread) -> Outcome {
    let mut before = u64::MAX;
    loop {
        let (_, time) = ctrl_sc(thread.sc);
        if time == before && time > 0 {
            return Ok(());
        }
        before = time;
        pause(2)?;
    }
}

fn fifo() -> Outcome {
    let (sm, log, ended) = (Semaphore::new(0)?, Log::new(), number(0));
    let cpus: Vec<u64> = others()?.into_iter().chain([root::cpu()]).cycle().take(8).collect();
    for (place, cpu) in cpus.iter().enumerate() {
        let thread = on(*cpu, move |_| {
            sm.down();
            log.push(place as u64);
            ended.fetch_add(1, SeqCst);
        })?;
        blocked(&thread)?;
    }
    for round in 1..=8 {
        equal!(sm.up(), SUCCESS);
        while ended.load(SeqCst) < round {
            pause(1)?;
        }
    }
    equal!(log.all(), [0, 1, 2, 3, 4, 5, 6, 7]);
    Ok(())
}

fn race() -> Outcome {
    const ROUNDS: u64 = 300;
    let (sm, go, back) = (Semaphore::new(0)?, Semaphore::new(0)?, Semaphore::new(0)?);
    let (deadline, timeouts): (_, &'static AtomicU64) = (number(0), number(0));
    let thread = on(others()?[0], move |_| {
        for _ in 0..ROUNDS {
            go.down();
            if sm.down_until(deadline.load(SeqCst)) == TIMEOUT {
                timeouts.fetch_add(1, SeqCst);
            }
            back.up();
        }
    })?;
    for round in 0..ROUNDS {
        let end = now() + ms(1) / 20 * (10 + round % 7);
        deadline.store(end, SeqCst);
        go.up();
        while now() < end - ms(1) / 50 * (round % 5) {}
        equal!(sm.up(), SUCCESS);
        back.wait()?;
        // Whoever did not take the up left it.
        let left = u64::from(sm.down_until(1) == SUCCESS);
        let lost = timeouts.swap(0, SeqCst);
        check!(left == lost, "round {round}: {lost} timeouts, {left} ups left");
    }
    thread.done.wait()
}

/// A thread on `cpu` that counts, and whose RECALL ups `taken`, and is answered after a down of `gate`.
fn counting(cpu: u64, count: &'static AtomicU64, taken: Semaphore, gate: Semaphore) -> Result<Subject, Stop> {
    let body = lab::thread::body_of(move || {
        loop {
            count.fetch_add(1, SeqCst);
        }
    });
    let subject = Subject::on(cpu, 0, HOST_STATE, move |event| {
        if event.number == startup() {
            body.enter(&event.utcb);
            return Then::Reply(mtd::GPR_0_7 | mtd::RIP);
        }
        taken.up();
        gate.down();
        if event.number == recall() && count.load(SeqCst) < u64::MAX / 2 { Then::Reply(0) } else { Then::End }
    })?;
    subject.start()?;
    until(count, 1)?;
    Ok(subject)
}

/// Ends the thread of [`counting`], which waits in its RECALL.
fn end(subject: &Subject, count: &AtomicU64, taken: Semaphore, gate: Semaphore) -> Outcome {
    until(count, count.load(SeqCst) + 1)?;
    count.store(u64::MAX / 2, SeqCst);
    equal!(ctrl_ec(subject.ec, 0), SUCCESS);
    taken.wait()?;
    gate.up();
    subject.wait().map(|_| ())
}

fn recall_weak() -> Outcome {
    let (count, taken, gate) = (number(0), Semaphore::new(0)?, Semaphore::new(0)?);
    let subject = counting(others()?[0], count, taken, gate)?;
    for _ in 0..20 {
        let before = count.load(SeqCst);
        until(count, before + 1)?;
        equal!(ctrl_ec(subject.ec, 0), SUCCESS);
        taken.wait()?;
        let stopped = count.load(SeqCst);
        spin(ms(1) / 4);
        equal!(count.load(SeqCst), stopped);
        gate.up();
    }
    end(&subject, count, taken, gate)
}

/// Where interrupts do not make a guest exit at once (it has them off, in Bochs), only the strong form waits until it does.
fn recall_strong_guest() -> Outcome {
    const ROUNDS: u64 = 5;
    let (recalls, taken, gate) = (number(0), Semaphore::new(0)?, Semaphore::new(0)?);
    let parameters = guest::Parameters { cpu: others()?[0], rip: guest_code::count().start, mtd: 0, flags: 0 };
    let handler = move |_: &_| {
        let last = recalls.fetch_add(1, Relaxed) == ROUNDS - 1;
        taken.up();
        gate.down();
        if last { Then::End } else { Then::Reply(0) }
    };
    let guest = Guest::new(parameters, |_| 0, handler)?;
    guest.start()?;
    for round in 0..ROUNDS {
        let (before, end) = (guest.peek(guest::DATA), now() + ms(20_000));
        while guest.peek(guest::DATA) == before {
            check!(now() < end, "it does not run");
        }
        equal!(ctrl_ec(guest.ec, flag::RECALL_STRONG), SUCCESS);
        let stopped = guest.peek(guest::DATA);
        spin(ms(1) / 10);
        let later = guest.peek(guest::DATA);
        check!(later == stopped, "round {round}: it still ran after a strong recall, {} rounds", later - stopped);
        taken.wait()?;
        gate.up();
    }
    let seen = guest.wait()?;
    check!(seen.iter().all(|seen| seen.number == guest::recall()), "another event than RECALL");
    Ok(())
}

fn recall_strong() -> Outcome {
    let (count, taken, gate) = (number(0), Semaphore::new(0)?, Semaphore::new(0)?);
    let subject = counting(others()?[0], count, taken, gate)?;
    for round in 0..100 {
        let before = count.load(SeqCst);
        until(count, before + 1)?;
        equal!(ctrl_ec(subject.ec, flag::RECALL_STRONG), SUCCESS);
        // It has entered the kernel, and then waits in its event.
        let stopped = count.load(SeqCst);
        spin(ms(1) / 10);
        let later = count.load(SeqCst);
        check!(later == stopped, "round {round}: it still ran after a strong recall, {} rounds", later - stopped);
        taken.wait()?;
        gate.up();
    }
    end(&subject, count, taken, gate)
}

fn recall_waiting() -> Outcome {
    let cpu = others()?[0];
    let gate = Semaphore::new(0)?;
    let body = lab::thread::body_of(move || {
        gate.down();
    });
    let begun = number(0);
    let subject = Subject::on(cpu, 0, HOST_STATE, move |event| {
        if event.number == startup() {
            body.enter(&event.utcb);
            begun.store(1, SeqCst);
            return Then::Reply(mtd::GPR_0_7 | mtd::RIP);
        }
        begun.store(2, SeqCst);
        Then::End
    })?;
    equal!(ctrl_ec(Local::on(cpu)?.ec, flag::RECALL_STRONG), SUCCESS);
    subject.start()?;
    until(begun, 1)?;
    pause(5)?;
    equal!(ctrl_ec(subject.ec, flag::RECALL_STRONG), SUCCESS);
    pause(5)?;
    equal!(begun.load(SeqCst), 1);
    gate.up();
    let seen = subject.wait()?;
    equal!((seen.len(), seen[1].number), (2, recall()));
    equal!(seen[1].state.get(field::RDI) & 0xff, 0);
    Ok(())
}

fn time() -> Outcome {
    for cpu in others()? {
        let stop = number(0);
        let thread = on(cpu, move |_| {
            stop.fetch_add(1, SeqCst);
            while stop.load(SeqCst) != 2 {}
        })?;
        until(stop, 1)?;
        let (start, (status, before)) = (now(), ctrl_sc(thread.sc));
        equal!(status, SUCCESS);
        spin(ms(5));
        let (used, total) = (ctrl_sc(thread.sc).1 - before, now() - start);
        check!(used >= ms(4) && used <= total + ms(1), "CPU {cpu}: {used} ticks of {total}");
        stop.store(2, SeqCst);
        thread.done.wait()?;
        blocked(&thread)?;
        let end = ctrl_sc(thread.sc).1;
        spin(ms(1));
        equal!(ctrl_sc(thread.sc).1, end);
    }
    Ok(())
}

fn same_time() -> Outcome {
    for cpu in others()? {
        let turn = number(0);
        let late = number(0);
        let stamp: &'static AtomicU64 = number(0);
        // Who has the turn reads the time, which is not before what the other one read.
        let step = move |own: u64| {
            while turn.load(SeqCst) % 2 != own {}
            let now = now();
            if now < stamp.swap(now, SeqCst) {
                late.fetch_add(1, SeqCst);
            }
            turn.fetch_add(1, SeqCst);
        };
        let thread = on(cpu, move |_| (0..200).for_each(|_| step(1)))?;
        (0..200).for_each(|_| step(0));
        thread.done.wait()?;
        equal!(late.load(Relaxed), 0);
    }
    Ok(())
}

fn taken_away() -> Outcome {
    let page = memory::pages(1);
    for cpu in others()? {
        for mask in [0, perm::R] {
            let address = memory::page_address();
            delegate(page, root::HST, address, 0, perm::R | perm::W)?;
            poke(page, 0);
            let body = lab::thread::body_of(move || {
                loop {
                    poke(address, peek(address).wrapping_add(1));
                }
            });
            let subject = Subject::on(cpu, 0, HOST_STATE, move |event| {
                if event.number != startup() {
                    return Then::End;
                }
                body.enter(&event.utcb);
                Then::Reply(mtd::GPR_0_7 | mtd::RIP)
            })?;
            subject.start()?;
            while peek(page) < 100 {}
            delegate(page, root::HST, address, 0, mask)?;
            let stopped = peek(page);
            spin(ms(1) / 4);
            equal!(peek(page), stopped);
            let seen = subject.wait()?;
            equal!((seen.len(), seen[1].number), (2, event::PF));
            equal!(seen[1].state.get(field::QUALIFICATION_2), address);
        }
    }
    Ok(())
}

fn capability() -> Outcome {
    for cpu in others()? {
        let (sm, done) = (Semaphore::new(0)?, number(0));
        let thread = on(cpu, move |_| {
            while sm.up() == SUCCESS {
                done.fetch_add(1, SeqCst);
            }
        })?;
        until(done, 10)?;
        let aside = lab::capability::reduced(sm.0, perm::ALL)?;
        lab::capability::drop(sm.0)?;
        thread.done.wait()?;
        // The object is there still.
        equal!(Semaphore(aside).down(), SUCCESS);
    }
    Ok(())
}
