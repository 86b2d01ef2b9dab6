//! A program that uses up its allowance of kernel memory harms itself only.

use core::sync::atomic::Ordering::SeqCst;

use lab::capability::guests;
use lab::domain::Domain;
use lab::hypercall::{self, Delegation, NewEc, create, create_pd, create_sm, ctrl_pd, flag};
use lab::report::{Outcome, Stop, must};
use lab::spec::{MEM_CAP, MEM_OBJ, SUCCESS, Selector, Status, perm, scd};
use lab::{check, entry, equal, memory, root, selectors, tests, time};

use crate::operations::{balance, destroy, move_allowance};

tests! {
    "exhaustion::every call that takes memory ends with MEM_OBJ or MEM_CAP" => every_call,
    "exhaustion::nobody else notices" => unnoticed,
}

/// Frames beyond what a program needs to begin.
const FRAMES: u64 = 40;
/// First selector in its own object space where it creates.
const NEW: Selector = 0x8000;
/// Selectors there of what it is given.
const PD: Selector = 0x10;
const OBJ: Selector = 0x11;
const HST: Selector = 0x12;
const LOCAL: Selector = 0x13;
const INNER: Selector = 0x14;
const GST: Selector = 0x15;

/// Makes the call once more; the number tells how often it was made before.
type Call = fn(u64) -> Status;

const CALLS: [(&str, Call); 14] = [
    ("create_pd", |n| create_pd(NEW + n, PD, create::PD)),
    ("create_pd, object space", |n| space(n, create::OBJ)),
    ("create_pd, host space", |n| space(n, create::HST)),
    ("create_pd, PIO space", |n| create_pd(NEW + n, PD, create::PIO)),
    ("create_pd, MSR space", |n| create_pd(NEW + n, PD, create::MSR)),
    ("create_ec, local", |n| ec(n, 0)),
    ("create_ec, global with FPU", |n| ec(n, flag::EC_GLOBAL | flag::EC_FPU)),
    ("create_sc", |n| match ec(2 * n, flag::EC_GLOBAL) {
        SUCCESS => hypercall::create_sc(NEW + 2 * n + 1, PD, NEW + 2 * n, scd(1, 1, 0)),
        status => status,
    }),
    ("create_pt", |n| hypercall::create_pt(NEW + n, PD, LOCAL, 0)),
    ("create_sm", |n| create_sm(NEW + n, PD, 0)),
    ("ctrl_pd, capabilities", |n| delegate(OBJ, OBJ, PD, NEW + (n << 9))),
    ("ctrl_pd, memory", |n| delegate(HST, HST, memory::segments()[0].0 >> 12, (n + 0x100) << 18)),
    ("move_allowance", |_| move_allowance(INNER, 1)),
    // Its portal is called for nothing: what takes no memory needs none.
    ("create_sm until the end, and no memory for less", |n| create_sm(NEW + n, PD, n)),
];
const GUEST_CALLS: [(&str, Call); 3] = [
    ("create_pd, guest space", |n| create_pd(NEW + n, PD, create::GST)),
    ("create_ec, vCPU", |n| ec(n, flag::EC_GUEST)),
    ("ctrl_pd, guest memory", |n| delegate(HST, GST, memory::segments()[0].0 >> 12, n << 18)),
];

fn space(n: u64, operation: u8) -> Status {
    match create_pd(NEW + 2 * n, PD, create::PD) {
        SUCCESS => create_pd(NEW + 2 * n + 1, NEW + 2 * n, operation),
        status => status,
    }
}

fn ec(n: u64, flags: u8) -> Status {
    // Always at the same place, which takes no further tables.
    hypercall::create_ec(NEW + n, &NewEc { pd: PD, page: 0x7000_0000, cpu: 0, sp: 0, events: 0x800, flags })
}

fn delegate(src: Selector, dst: Selector, ssb: u64, dsb: u64) -> Status {
    ctrl_pd(&Delegation { src, dst, ssb, dsb, order: 0, mask: perm::ALL, mad: 0 })
}

/// A program with an allowance of its own.
fn poor() -> Result<Domain, Stop> {
    let domain = Domain::new()?;
    let (local, inner, gst) = (selectors(1), selectors(1), selectors(1));
    let new = NewEc { pd: domain.pd, page: 0x7100_0000, cpu: root::cpu(), sp: 0, events: 0x800, flags: 0 };
    must(hypercall::create_ec(local, &new))?;
    must(create_pd(inner, domain.pd, create::PD))?;
    let given = [(domain.pd, PD), (domain.obj, OBJ), (domain.hst, HST), (local, LOCAL), (inner, INNER)];
    given.iter().try_for_each(|(from, to)| domain.give(*from, *to, perm::ALL))?;
    if guests() {
        must(create_pd(gst, domain.pd, create::GST))?;
        domain.give(gst, GST, perm::ALL)?;
    }
    Ok(domain)
}

fn every_call() -> Outcome {
    let guest_calls = if guests() { &GUEST_CALLS[..] } else { &[] };
    for (name, call) in CALLS.iter().chain(guest_calls) {
        exhaust(*call).map_err(|stop| match stop {
            Stop::Failed(place, text) => Stop::Failed(place, alloc::format!("{name}: {text}")),
            stop => stop,
        })?;
    }
    Ok(())
}

fn exhaust(call: Call) -> Outcome {
    let domain = poor()?;
    let (last, calls) = (lab::number(0xff), lab::number(0));
    let thread = domain.spawn(100, move |_| {
        for n in 0..100_000 {
            let status = call(n);
            last.store(u64::from(status.0), SeqCst);
            if status != SUCCESS {
                break;
            }
            calls.fetch_add(1, SeqCst);
        }
    })?;
    // All that it needs to begin is there; from now on it pays for itself.
    must(move_allowance(domain.pd, FRAMES))?;
    let before = balance(root::pd()).0;
    thread.done.wait()?;
    let status = Status(last.load(SeqCst) as u8);
    check!(status == MEM_OBJ || status == MEM_CAP, "{status:?} after {} calls", calls.load(SeqCst));
    check!(calls.load(SeqCst) > 0, "not even the first call succeeded");
    check!(balance(domain.pd).0 < 8, "{} frames are left", balance(domain.pd).0);
    equal!(balance(root::pd()).0, before);
    equal!(destroy(domain.pd, root::pd()), SUCCESS);
    Ok(())
}

/// Whether time counts instructions here, so that the same work always takes the same time.
fn exact() -> bool {
    entry::argument("exact") == Some("1")
}

/// Creates one of each and destroys them: the time that takes.
fn cost(first: Selector) -> Result<u64, Stop> {
    let start = time::now();
    must(create_pd(first, root::pd(), create::PD))?;
    must(create_pd(first + 1, first, create::OBJ))?;
    must(create_pd(first + 2, first, create::HST))?;
    must(create_pd(first + 3, first, create::PIO))?;
    must(create_sm(first + 4, first, 0))?;
    let new = NewEc { pd: first, page: 0x1000, cpu: root::cpu(), sp: 0, events: 0x800, flags: 0 };
    must(hypercall::create_ec(first + 5, &new))?;
    must(hypercall::create_pt(first + 6, first, first + 5, 0))?;
    must(destroy(first, root::pd()))?;
    Ok(time::now() - start)
}

/// The least of many times, between which others run.
fn least(first: Selector, pause: lab::semaphore::Semaphore) -> Result<u64, Stop> {
    let mut least = u64::MAX;
    for _ in 0..50 {
        least = least.min(cost(first)?);
        pause.down_until(time::now() + time::ms(1) / 10);
    }
    Ok(least)
}

fn unnoticed() -> Outcome {
    let (first, pause) = (lab::aligned_selectors(3), lab::semaphore::Semaphore::new(0)?);
    least(first, pause)?;
    let before = least(first, pause)?;
    let (domain, tries) = (poor()?, lab::number(0));
    domain.spawn(1, move |_| {
        let mut n = 0;
        loop {
            // All of them, and whatever room the last one has left is filled by smaller objects.
            for (_, call) in &CALLS {
                call(n);
                n += 1;
            }
            tries.fetch_add(1, SeqCst);
        }
    })?;
    must(move_allowance(domain.pd, FRAMES))?;
    // It has used up everything long before.
    for _ in 0..1000 {
        if tries.load(SeqCst) > 100 {
            break;
        }
        time::sleep(1)?;
    }
    check!(tries.load(SeqCst) > 100 && balance(domain.pd).0 == 0, "it has {} frames", balance(domain.pd).0);
    let after = least(first, pause)?;
    lab::println!("# creation and destruction of 7 objects: {before} ticks before, {after} beside it");
    check!(!exact() || after.abs_diff(before) * 100 <= before, "{before} ticks before, {after} beside it");
    equal!(destroy(domain.pd, root::pd()), SUCCESS);
    Ok(())
}
