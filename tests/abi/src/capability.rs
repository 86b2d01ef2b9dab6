//! Capabilities: copies with fewer permissions, one of each kind, and the ways in which a selector can be wrong (4.1).
#![allow(unsafe_code)] // One list is made when it is first needed.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::entry::hip;
use crate::hypercall::{self, Delegation, NewEc, create, ctrl_pd, flag};
use crate::report::{Outcome, Stop, failed, must};
use crate::spec::{BAD_CAP, SUCCESS, Selector, Status, feature, hip as page, perm, scd};
use crate::{memory, portal::Local, root, selector, semaphore::Semaphore, shared};

/// Puts a copy of the capability at `from` to `to`, both in the root object space.
pub fn copy(from: Selector, to: Selector, mask: u64) -> Status {
    ctrl_pd(&Delegation { src: root::obj(), dst: root::obj(), ssb: from, dsb: to, order: 0, mask, mad: 0 })
}

/// A copy of the capability at `from` with the permissions of `mask` only.
#[track_caller]
pub fn reduced(from: Selector, mask: u64) -> Result<Selector, Stop> {
    let to = selector();
    must(copy(from, to, mask))?;
    Ok(to)
}

/// Makes a capability null.
#[track_caller]
pub fn drop(selector: Selector) -> Outcome {
    must(copy(selector, selector, 0))
}

/// Whether there is a capability at `selector` of the root object space: nothing can be created over it.
pub fn exists(selector: Selector) -> bool {
    let created = hypercall::create_sm(selector, root::pd(), 0) == SUCCESS;
    if created {
        // It was null, and is again.
        copy(selector, selector, 0);
    }
    !created
}

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Obj,
    Hst,
    Gst,
    Pio,
    Msr,
    Pd,
    Ec,
    Sc,
    Pt,
    Sm,
}

/// Whether guests can run here.
pub fn guests() -> bool {
    hip(page::PLATFORM_FEATURES) & (feature::VMX | feature::SVM) != 0
}

/// A protection domain without spaces.
#[track_caller]
pub fn empty_pd() -> Result<Selector, Stop> {
    let pd = selector();
    must(hypercall::create_pd(pd, root::pd(), create::PD))?;
    Ok(pd)
}

/// A space for `pd`.
#[track_caller]
pub fn space(pd: Selector, operation: u8) -> Result<Selector, Stop> {
    let space = selector();
    must(hypercall::create_pd(space, pd, operation))?;
    Ok(space)
}

/// A global thread that never runs, for it has no scheduling context.
#[track_caller]
pub fn idle_thread() -> Result<Selector, Stop> {
    let ec = selector();
    must(hypercall::create_ec(ec, &global_thread()))?;
    Ok(ec)
}

/// Parameters of a global thread that is never to run.
pub fn global_thread() -> NewEc {
    let page = memory::page_address();
    NewEc { pd: root::pd(), page, cpu: root::cpu(), sp: 0, events: root::NO_EVENTS, flags: flag::EC_GLOBAL }
}

/// An object of each kind that there is on this machine, with all its permissions; the same ones each time.
#[track_caller]
pub fn one_of_each() -> Result<&'static [(Kind, Selector)], Stop> {
    static ALL: AtomicPtr<Vec<(Kind, Selector)>> = AtomicPtr::new(core::ptr::null_mut());
    // SAFETY: null or a list that lives for ever and is not changed.
    if let Some(known) = unsafe { ALL.load(Relaxed).as_ref() } {
        return Ok(known);
    }
    let pd = empty_pd()?;
    let mut all = alloc::vec![
        (Kind::Obj, space(pd, create::OBJ)?),
        (Kind::Hst, space(pd, create::HST)?),
        (Kind::Pio, space(pd, create::PIO)?),
        (Kind::Msr, space(pd, create::MSR)?),
        (Kind::Pd, pd),
        (Kind::Sm, Semaphore::new(0)?.0),
    ];
    if guests() {
        all.push((Kind::Gst, space(pd, create::GST)?));
    }
    let local = Local::new()?;
    all.push((Kind::Pt, local.portal(|_| 0)?));
    let sc = selector();
    // The scheduling context of a thread that is killed at once, as it has no handler for STARTUP.
    must(hypercall::create_sc(sc, root::pd(), idle_thread()?, scd(1, 1, 0)))?;
    all.push((Kind::Sc, sc));
    all.push((Kind::Ec, local.ec));
    let all = shared(all);
    ALL.store(core::ptr::from_ref(all).cast_mut(), Relaxed);
    Ok(all)
}

/// Selectors that are out of range, or hold nothing.
pub fn nothing() -> [Selector; 4] {
    [selector(), root::selector_count(), root::selector_count() + root::obj(), (1 << 56) - 1]
}

/// `call` gives BAD_CAP for every selector that holds nothing and for every object that is not of `kind`.
#[track_caller]
pub fn only_kind(kinds: &[Kind], call: impl Fn(Selector) -> Status) -> Outcome {
    for selector in nothing() {
        let status = call(selector);
        if status != BAD_CAP {
            return Err(failed(alloc::format!("{status:?} instead of BAD_CAP without a capability, at {selector:#x}")));
        }
    }
    for &(kind, selector) in one_of_each()? {
        let status = if kinds.contains(&kind) { BAD_CAP } else { call(selector) };
        if status != BAD_CAP {
            return Err(failed(alloc::format!("{status:?} instead of BAD_CAP for a capability of kind {kind:?}")));
        }
    }
    Ok(())
}

/// `call` gives BAD_CAP for the capability at `with` less permission `needed`, and succeeds with no more than that.
#[track_caller]
pub fn needs(with: Selector, needed: u64, call: impl Fn(Selector) -> Status) -> Outcome {
    // Nothing at all would be left of a capability that has no other permission.
    let without = reduced(with, perm::ALL & !needed)?;
    let status = call(without);
    if status != BAD_CAP {
        return Err(failed(alloc::format!("{status:?} instead of BAD_CAP without permission {needed:#x}")));
    }
    let status = call(reduced(with, needed)?);
    if status != SUCCESS {
        return Err(failed(alloc::format!("{status:?} with permission {needed:#x} alone")));
    }
    Ok(())
}
