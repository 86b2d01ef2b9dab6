//! What nothing refers to any more goes by itself, unless it is active.

use core::sync::atomic::Ordering::SeqCst;

use lab::hypercall::{self, Delegation, NewEc, create, create_pd, create_pt, create_sm, ctrl_pd};
use lab::portal::Local;
use lab::report::{Outcome, must};
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, SUCCESS, Selector, feature, hip as page};
use lab::thread::Parameters;
use lab::{check, entry, equal, root, tests, thread};

use crate::operations::balance;

tests! {
    "abandoned::objects without capabilities are given back" => everything,
    "abandoned::in any order of the capabilities" => orders,
    "abandoned::a thread lives while a portal leads to it" => portal,
    "abandoned::who has time runs on" => running,
    "abandoned::a copy keeps the object" => copy,
}

fn free() -> (u64, u64) {
    balance(root::pd())
}

/// Drops the capabilities of 2^`order` selectors.
fn drop_range(first: Selector, order: u64) -> Outcome {
    let (src, dst) = (root::obj(), root::obj());
    must(ctrl_pd(&Delegation { src, dst, ssb: first, dsb: first, order, mask: 0, mad: 0 }))
}

const ORDER: u64 = 4;

/// One of each at 16 selectors from `first` on, among them a protection domain whose local thread is on `cpu`.
fn make(first: Selector, cpu: u64) -> Outcome {
    let at = |place: u64| first + place;
    must(create_pd(at(0), root::pd(), create::PD))?;
    for (place, space) in (1..).zip([create::OBJ, create::HST, create::PIO, create::PIO, create::MSR]) {
        must(create_pd(at(place), at(0), space))?;
    }
    must(create_sm(at(6), at(0), 0))?;
    must(create_sm(at(7), root::pd(), 0))?;
    must(hypercall::create_ec(at(8), &NewEc { pd: at(0), page: 0x5000_0000, cpu, sp: 0, events: 0, flags: 0 }))?;
    must(create_pt(at(9), at(0), at(8), 0x1000))?;
    must(create_pt(at(10), root::pd(), at(8), 0x1000))?;
    must(create_pd(at(11), at(0), create::PD))?;
    must(create_pd(at(12), root::pd(), create::PD))?;
    must(create_sm(at(13), at(12), 0))?;
    if entry::hip(page::PLATFORM_FEATURES) & (feature::VMX | feature::SVM) != 0 {
        must(create_pd(at(14), at(0), create::GST))?;
    }
    Ok(())
}

fn everything() -> Outcome {
    let first = lab::aligned_selectors(ORDER as u32);
    for cpu in 0..root::cpus() {
        let mut before = (0, 0);
        for round in 0..200 {
            make(first, cpu)?;
            drop_range(first, ORDER)?;
            if round == 0 {
                // The table of the selectors stays.
                before = free();
            }
            check!(free() == before, "round {round}: {:?} frames instead of {before:?}", free());
        }
    }
    Ok(())
}

fn orders() -> Outcome {
    let first = lab::aligned_selectors(ORDER as u32);
    make(first, 0)?;
    drop_range(first, ORDER)?;
    let before = free();
    for stride in [1, 3, 5, 7, 9, 11, 13, 15] {
        make(first, root::cpus() - 1)?;
        check!(free().1 < before.1, "nothing was created");
        for step in 0..16 {
            drop_range(first + step * stride % 16, 0)?;
        }
        check!(free() == before, "stride {stride}: {:?} frames instead of {before:?}", free());
    }
    Ok(())
}

fn portal() -> Outcome {
    let local = Local::new()?;
    let calls = lab::number(0);
    let pt = local.portal(move |message| {
        calls.fetch_add(1, SeqCst);
        message.mtd
    })?;
    drop_range(local.ec, 0)?;
    for _ in 0..3 {
        equal!(hypercall::ipc_call(pt, 0, 0).0, SUCCESS);
    }
    equal!(calls.load(SeqCst), 3);
    drop_range(pt, 0)?;
    equal!(hypercall::ipc_call(pt, 0, 0).0, BAD_CAP);
    Ok(())
}

fn running() -> Outcome {
    for cpu in 0..root::cpus() {
        let (go, ready) = (Semaphore::new(0)?, Semaphore::new(0)?);
        let thread = thread::spawn_with(Parameters { cpu, priority: 100, budget: 10, flags: 0 }, move |_| {
            ready.up();
            go.down();
        })?;
        ready.wait()?;
        drop_range(thread.ec, 0)?;
        drop_range(thread.sc, 0)?;
        equal!(go.up(), SUCCESS);
        thread.done.wait()?;
    }
    Ok(())
}

fn copy() -> Outcome {
    let (sm, copy) = (lab::aligned_selectors(0), lab::aligned_selectors(0));
    let (src, dst) = (root::obj(), root::obj());
    must(create_sm(sm, root::pd(), 2))?;
    must(ctrl_pd(&Delegation { src, dst, ssb: sm, dsb: copy, order: 0, mask: 0x1f, mad: 0 }))?;
    drop_range(sm, 0)?;
    equal!(Semaphore(sm).down(), BAD_CAP);
    equal!(Semaphore(copy).down(), SUCCESS);
    drop_range(copy, 0)?;
    equal!(Semaphore(copy).down(), BAD_CAP);
    Ok(())
}
