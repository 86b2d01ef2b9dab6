//! Several who destroy at once: nobody waits for one that has no time.

use core::sync::atomic::Ordering::SeqCst;

use lab::domain::Domain;
use lab::hypercall::{self, Delegation, create, create_pd, create_sm, ctrl_pd};
use lab::portal::Local;
use lab::report::{Outcome, Stop, must};
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, SUCCESS, Selector, perm};
use lab::thread::Parameters;
use lab::{check, equal, memory, probe, root, selectors, tests, thread, time};

use crate::operations::{balance, destroy};
use crate::reclaim::Many;

tests! {
    "destroyers::who is urgent does not wait for who has no time" => urgent,
    "destroyers::on all CPUs at once" => everywhere,
    "destroyers::who destroys its caller runs on until it replies" => of_its_caller,
    "destroyers::the page of a thread that went is gone on the CPU of who destroyed it" => page,
    "destroyers::a right that was revoked does not come back" => revoked,
}

/// One of priority 10 destroys much; one of priority 50 spins meanwhile; one of priority 100 destroys little.
fn urgent() -> Outcome {
    let (many, victim) = (Many::new(), selectors(1));
    let mut duration = many.duration()?;
    let (begin, go, alarm, steps) = (Semaphore::new(0)?, Semaphore::new(0)?, lab::number(0), lab::number(0));
    let (in_time, over) = (lab::number(0), lab::number(0));
    let mut overlaps = 0;
    for attempt in 0..5 * 7 {
        let eighth = attempt % 7 + 1;
        if attempt > 0 && eighth == 1 {
            if overlaps > 0 {
                break;
            }
            // On a busy host it can be another one by now.
            duration = many.duration()?;
        }
        many.create(|_| Ok(()))?;
        must(create_sm(victim, root::pd(), 0))?;
        [steps, in_time, over].iter().for_each(|number| number.store(0, SeqCst));
        let slow = thread::spawn(10, move |_| {
            begin.down();
            alarm.store(time::now() + duration * eighth / 8, SeqCst);
            go.up();
            go.up();
            steps.fetch_add(1, SeqCst);
            destroy(many.pd, root::pd());
            steps.fetch_add(1, SeqCst);
        })?;
        let wake = Semaphore::new(0)?;
        let spinner = thread::spawn(50, move |_| {
            go.down();
            wake.down_until(alarm.load(SeqCst));
            let end = time::now() + 50 * duration;
            while in_time.load(SeqCst) == 0 && time::now() < end {
                core::hint::spin_loop();
            }
            over.store(1, SeqCst);
        })?;
        let urgent = thread::spawn(100, move |_| {
            go.down();
            wake.down_until(alarm.load(SeqCst) + duration / 16);
            let under_way = steps.load(SeqCst);
            destroy(victim, root::pd());
            in_time.store(1 + over.load(SeqCst) + 2 * (under_way % 2), SeqCst);
        })?;
        begin.up();
        for thread in [urgent, spinner, slow] {
            thread.done.wait()?;
        }
        check!(in_time.load(SeqCst) % 2 == 1, "it waited for who spins");
        overlaps += in_time.load(SeqCst) / 2;
        equal!(hypercall::ctrl_sm(victim, 0, 0), BAD_CAP);
    }
    check!(overlaps > 0, "no destruction was under way when the other one began");
    Ok(())
}

/// A protection domain with objects that threads of each CPU create and destroy.
fn everywhere() -> Outcome {
    const ROUNDS: u64 = 20;
    const OBJECTS: u64 = 40;
    let body = |first: Selector| -> Outcome {
        must(create_pd(first, root::pd(), create::PD))?;
        (1..OBJECTS).try_for_each(|place| must(create_sm(first + place, first, 0)))?;
        equal!(destroy(first + 1, first), SUCCESS);
        equal!(destroy(first, root::pd()), SUCCESS);
        equal!(hypercall::ctrl_sm(first + 2, 0, 0), BAD_CAP);
        Ok(())
    };
    let mut threads = alloc::vec::Vec::new();
    let failed = lab::number(0);
    let start = Semaphore::new(0)?;
    for cpu in 0..root::cpus() {
        for priority in [20, 30] {
            let first = selectors(OBJECTS);
            // The tables of the selectors stay.
            body(first)?;
            let parameters = Parameters { cpu, priority, budget: 1, flags: 0 };
            threads.push(thread::spawn_with(parameters, move |_| {
                start.down();
                for _ in 0..ROUNDS {
                    failed.fetch_add(u64::from(body(first).is_err()), SeqCst);
                }
            })?);
        }
    }
    time::pause(5)?;
    let before = balance(root::pd());
    threads.iter().for_each(|_| {
        start.up();
    });
    threads.iter().try_for_each(|thread| thread.done.wait())?;
    equal!(failed.load(SeqCst), 0);
    check!(balance(root::pd()) == before, "{:?} frames instead of {before:?}", balance(root::pd()));
    Ok(())
}

fn of_its_caller() -> Outcome {
    let local = Local::new()?;
    let (pd, end) = (lab::number(0), Semaphore::new(0)?);
    let pt = local.portal(move |_| {
        destroy(pd.load(SeqCst), root::pd());
        time::spin(time::ms(1));
        end.up();
        0
    })?;
    for _ in 0..3 {
        let domain = Domain::new()?;
        domain.give(pt, pt, perm::ALL)?;
        pd.store(domain.pd, SeqCst);
        domain.spawn(1, move |_| {
            hypercall::ipc_call(pt, 0, 0);
        })?;
        end.wait()?;
        equal!(destroy(domain.pd, root::pd()), BAD_CAP);
    }
    Ok(())
}

fn page() -> Outcome {
    for cpu in 0..root::cpus() {
        let local = Local::on(cpu)?;
        equal!(probe::read(local.utcb.address())?, None);
        equal!(destroy(local.ec, root::pd()), SUCCESS);
        check!(probe::read(local.utcb.address())?.is_some(), "CPU {cpu}");
    }
    Ok(())
}

/// Others copy a capability, or a page, all the time; it is taken away first from where they take it.
fn revoked() -> Outcome {
    if root::cpus() == 1 {
        return Err(Stop::Skipped("one CPU"));
    }
    let keep = Semaphore::new(0)?.0;
    let copy = |src: Selector, dst: Selector, ssb: u64, dsb: u64, mask: u64| {
        must(ctrl_pd(&Delegation { src, dst, ssb, dsb, order: 0, mask, mad: 0 }))
    };
    let (objects, (from, to)) = (root::obj(), (selectors(1), selectors(1)));
    let (page, seen) = (memory::pages(1), Domain::empty()?.hst);
    let (source, here) = (Domain::empty()?.hst, memory::page_address() >> 12);
    let stop = lab::number(0);
    let mut threads = alloc::vec::Vec::new();
    for cpu in 1..root::cpus() {
        let parameters = Parameters { cpu, priority: 20, budget: 10, flags: 0 };
        threads.push(thread::spawn_with(parameters, move |_| {
            while stop.load(SeqCst) == 0 {
                let _ = copy(objects, objects, from, to, perm::ALL);
                let _ = copy(source, seen, 1, 1, perm::R);
            }
        })?);
    }
    let mut back = 0;
    for _ in 0..2000 {
        copy(objects, objects, keep, from, perm::ALL)?;
        copy(root::HST, source, page >> 12, 1, perm::R)?;
        time::spin(time::ms(1) / 100);
        copy(objects, objects, from, from, 0)?;
        copy(objects, objects, from, to, 0)?;
        copy(root::HST, source, page >> 12, 1, 0)?;
        copy(root::HST, seen, page >> 12, 1, 0)?;
        time::spin(time::ms(1) / 100);
        back += u64::from(hypercall::ctrl_sm(to, 0, 0) != BAD_CAP);
        copy(seen, root::HST, 1, here, perm::R)?;
        back += 1_000_000 * u64::from(probe::read(here << 12)?.is_none());
    }
    stop.store(1, SeqCst);
    threads.iter().try_for_each(|thread| thread.done.wait())?;
    equal!(back, 0);
    Ok(())
}
