//! ctrl_ec: recall of host execution contexts (5.4.2, 8.6.2).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab::capability::{Kind, idle_thread, needs, only_kind};
use lab::event::{HOST_STATE, Subject, Then, recall, startup};
use lab::hypercall::{ctrl_ec, flag, ipc_call};
use lab::portal::Local;
use lab::registers::{portal_address, return_address};
use lab::report::{Outcome, Stop};
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, field, mtd, perm, words};
use lab::thread::body_of;
use lab::time::settle;
use lab::{check, equal, number, provoke as code, selectors, tests};

tests! {
    "ctrl_ec::needs an EC with permission CTRL" => control,
    "recall::a thread that runs raises RECALL before it goes on" => running,
    "recall::a thread that waits raises RECALL when its call returns" => waiting,
    "recall::a caller raises RECALL when the reply is there" => calling,
    "recall::a local thread raises RECALL at its next portal" => local,
    "recall::each recall is an event, once it was taken" => again,
    "recall::who recalls itself raises RECALL when that call returns" => itself,
}

fn control() -> Outcome {
    for flags in [0, flag::RECALL_STRONG] {
        only_kind(&[Kind::Ec], |ec| ctrl_ec(ec, flags))?;
        needs(idle_thread()?, perm::CTRL, |ec| ctrl_ec(ec, flags))?;
    }
    Ok(())
}

/// A thread that executes `body`, and ends at RECALL.
fn subject(body: impl Fn() + 'static) -> Result<Subject, Stop> {
    let argument = body_of(body);
    Subject::new(0, HOST_STATE, move |event| {
        if event.number != startup() {
            return Then::End;
        }
        argument.enter(&event.utcb);
        Then::Reply(mtd::GPR_0_7 | mtd::RIP)
    })
}

fn running() -> Outcome {
    for flags in [0, flag::RECALL_STRONG] {
        let subject = Subject::new(0, HOST_STATE, |event| {
            if event.number != startup() {
                return Then::End;
            }
            event.utcb.set(field::RIP, code::count());
            event.utcb.set(field::RBX, 0);
            Then::Reply(mtd::GPR_0_7 | mtd::RIP)
        })?;
        subject.start()?;
        while subject.seen().is_empty() {
            lab::time::pause(1)?;
        }
        lab::time::pause(1)?;
        equal!(ctrl_ec(subject.ec, flags), SUCCESS);
        let seen = subject.wait()?;
        equal!((seen.len(), seen[1].number), (2, recall()));
        check!(seen[1].state.get(field::RBX) > 0, "it never ran");
        let rip = seen[1].state.get(field::RIP);
        check!((code::count()..code::count() + 16).contains(&rip), "RIP {rip:#x}");
        equal!(seen[1].state.get(field::QUALIFICATION_1), 0);
    }
    Ok(())
}

fn waiting() -> Outcome {
    let gate = Semaphore::new(0)?;
    let subject = subject(move || {
        gate.down();
    })?;
    subject.start()?;
    settle()?;
    equal!(ctrl_ec(subject.ec, 0), SUCCESS);
    settle()?;
    equal!(subject.seen().len(), 1);
    gate.up();
    let seen = subject.wait()?;
    equal!((seen.len(), seen[1].number), (2, recall()));
    let state = &seen[1].state;
    // As the call left it.
    equal!((state.get(field::RIP), state.get(field::RCX)), (return_address(), return_address()));
    equal!((state.get(field::RDI) & 0xff, state.word(11)), (0, 0x202));
    equal!(state.get(field::RFLAGS), 0x202);
    Ok(())
}

fn itself() -> Outcome {
    let (own, after) = (number(0), number(0));
    let subject = subject(move || {
        ctrl_ec(own.load(Relaxed), 0);
        after.store(1, Relaxed);
    })?;
    own.store(subject.ec, Relaxed);
    subject.start()?;
    let seen = subject.wait()?;
    equal!((seen.len(), seen[1].number), (2, recall()));
    let state = &seen[1].state;
    equal!((state.get(field::RIP), state.get(field::RDI) & 0xff), (return_address(), 0));
    equal!(after.load(Relaxed), 0);
    Ok(())
}

fn calling() -> Outcome {
    let gate = Semaphore::new(0)?;
    let pt = Local::new()?.portal(move |_| {
        gate.down();
        words(5)
    })?;
    let subject = subject(move || {
        ipc_call(pt, words(1), 0);
    })?;
    subject.start()?;
    settle()?;
    equal!(ctrl_ec(subject.ec, 0), SUCCESS);
    settle()?;
    equal!(subject.seen().len(), 1);
    gate.up();
    let seen = subject.wait()?;
    equal!((seen.len(), seen[1].number), (2, recall()));
    let state = &seen[1].state;
    equal!((state.get(field::RDI) & 0xff, state.get(field::RSI)), (0, u64::from(words(5))));
    Ok(())
}

fn local() -> Outcome {
    let events = selectors(lab::thread::event_count());
    let (count, place): (_, &'static AtomicU64) = (number(0), number(0));
    Local::new()?.portal_at(events + u64::from(recall()), mtd::RIP, move |message| {
        count.fetch_add(1, Relaxed);
        place.store(message.utcb.get(field::RIP), Relaxed);
        0
    })?;
    let callee = Local::with_events(events)?;
    let pt = callee.portal(|_| words(1))?;
    equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
    equal!(ctrl_ec(callee.ec, 0), SUCCESS);
    equal!(count.load(Relaxed), 0);
    for _ in 0..2 {
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!((count.load(Relaxed), place.load(Relaxed)), (1, portal_address()));
    }
    Ok(())
}

fn again() -> Outcome {
    let taken = Semaphore::new(0)?;
    let count = number(0);
    let subject = Subject::new(0, HOST_STATE, move |event| {
        if event.number == startup() {
            event.utcb.set(field::RIP, code::spin());
            return Then::Reply(mtd::RIP);
        }
        let last = count.fetch_add(1, Relaxed) == 4;
        taken.up();
        if last { Then::End } else { Then::Reply(0) }
    })?;
    subject.start()?;
    for round in 0..5 {
        equal!(ctrl_ec(subject.ec, 0), SUCCESS);
        taken.wait()?;
        equal!(count.load(Relaxed), round + 1);
    }
    let seen = subject.wait()?;
    check!(seen[1..].iter().all(|seen| seen.number == recall()), "another event than RECALL");
    Ok(())
}
