//! What is common to all hypercalls that create objects (5.3): where the capability goes, and who may.

use alloc::vec::Vec;

use lab::capability::{self, Kind, empty_pd, global_thread, idle_thread, needs, nothing, only_kind, space};
use lab::hypercall::{NewEc, create, create_ec, create_pd, create_pt, create_sc, create_sm};
use lab::memory::page_address;
use lab::portal::Local;
use lab::report::{Outcome, Stop};
use lab::spec::{BAD_CAP, SUCCESS, Selector, Status, perm, scd};
use lab::{check, equal, root, selector, tests};

tests! {
    "create::the selector must hold a null capability" => occupied,
    "create::the selector must be in range" => out_of_range,
    "create::a failed creation leaves the selector null" => failed_leaves_null,
    "create_pd::the owner must be a PD with permission PD" => pd_owner,
    "create_ec::the owner must be a PD with permission EC" => ec_owner,
    "create_sc::the owner must be a PD with permission SC" => sc_owner,
    "create_pt::the owner must be a PD with permission PT" => pt_owner,
    "create_sm::the owner must be a PD with permission SM" => sm_owner,
    "create_sc::the EC must be one, with permission BIND_SC" => sc_ec,
    "create_pt::the EC must be one, with permission BIND_PT" => pt_ec,
}

type Create = fn(sel: Selector, pd: Selector) -> Status;

fn new_ec(sel: Selector, pd: Selector) -> Status {
    create_ec(sel, &NewEc { pd, ..global_thread() })
}

/// A scheduling context for a new thread, which is killed when it first runs.
fn new_sc(sel: Selector, pd: Selector) -> Status {
    idle_thread().map_or(SUCCESS, |ec| create_sc(sel, pd, ec, scd(1, 1, 0)))
}

fn new_pt(sel: Selector, pd: Selector) -> Status {
    Local::new().map_or(SUCCESS, |local| create_pt(sel, pd, local.ec, 0))
}

/// All ways to create an object.
fn ways() -> Vec<(&'static str, Create)> {
    let mut ways: Vec<(&'static str, Create)> = alloc::vec![
        ("create_pd", |sel, pd| create_pd(sel, pd, create::PD)),
        ("create_pd OBJ", |sel, pd| create_pd(sel, pd, create::OBJ)),
        ("create_pd HST", |sel, pd| create_pd(sel, pd, create::HST)),
        ("create_pd PIO", |sel, pd| create_pd(sel, pd, create::PIO)),
        ("create_pd MSR", |sel, pd| create_pd(sel, pd, create::MSR)),
        ("create_ec", new_ec),
        ("create_sc", new_sc),
        ("create_pt", new_pt),
        ("create_sm", |sel, pd| create_sm(sel, pd, 0)),
    ];
    if capability::guests() {
        ways.push(("create_pd GST", |sel, pd| create_pd(sel, pd, create::GST)));
    }
    ways
}

/// The owner for these: a new one without spaces for spaces, the root protection domain for the rest.
fn owner(name: &str) -> Result<Selector, Stop> {
    if name.starts_with("create_pd ") { empty_pd() } else { Ok(root::pd()) }
}

fn occupied() -> Outcome {
    for (name, way) in ways() {
        for &(kind, occupied) in capability::one_of_each()? {
            let status = way(occupied, owner(name)?);
            check!(status == BAD_CAP, "{name} over a capability of kind {kind:?}: {status:?}");
        }
        let (sel, pd) = (selector(), owner(name)?);
        equal!(way(sel, pd), SUCCESS);
        let status = way(sel, pd);
        check!(status == BAD_CAP, "{name} twice: {status:?}");
    }
    Ok(())
}

fn out_of_range() -> Outcome {
    for (name, way) in ways() {
        for sel in &nothing()[1..] {
            let status = way(*sel, owner(name)?);
            check!(status == BAD_CAP, "{name} at {sel:#x}: {status:?}");
        }
    }
    Ok(())
}

fn failed_leaves_null() -> Outcome {
    let sel = selector();
    for (name, way) in ways() {
        let status = way(sel, selector());
        check!(status == BAD_CAP, "{name} without an owner: {status:?}");
        check!(!capability::exists(sel), "{name} failed and left something");
    }
    Ok(())
}

fn pd_owner() -> Outcome {
    for operation in [create::PD, create::PIO, create::MSR] {
        only_kind(&[Kind::Pd], |pd| create_pd(selector(), pd, operation))?;
        needs(root::pd(), perm::PD, |pd| create_pd(selector(), pd, operation))?;
    }
    for operation in [create::OBJ, create::HST] {
        only_kind(&[Kind::Pd], |pd| create_pd(selector(), pd, operation))?;
        needs(empty_pd()?, perm::PD, |pd| create_pd(selector(), pd, operation))?;
    }
    Ok(())
}

fn ec_owner() -> Outcome {
    only_kind(&[Kind::Pd], |pd| new_ec(selector(), pd))?;
    needs(root::pd(), perm::EC, |pd| new_ec(selector(), pd))
}

fn sc_owner() -> Outcome {
    only_kind(&[Kind::Pd], |pd| new_sc(selector(), pd))?;
    needs(root::pd(), perm::SC, |pd| new_sc(selector(), pd))
}

fn pt_owner() -> Outcome {
    only_kind(&[Kind::Pd], |pd| new_pt(selector(), pd))?;
    needs(root::pd(), perm::PT, |pd| new_pt(selector(), pd))
}

fn sm_owner() -> Outcome {
    only_kind(&[Kind::Pd], |pd| create_sm(selector(), pd, 0))?;
    needs(root::pd(), perm::SM, |pd| create_sm(selector(), pd, 0))
}

fn sc_ec() -> Outcome {
    only_kind(&[Kind::Ec], |ec| create_sc(selector(), root::pd(), ec, scd(1, 1, 0)))?;
    needs(idle_thread()?, perm::BIND_SC, |ec| create_sc(selector(), root::pd(), ec, scd(1, 1, 0)))
}

fn pt_ec() -> Outcome {
    only_kind(&[Kind::Ec], |ec| create_pt(selector(), root::pd(), ec, 0))?;
    let local = selector();
    let new = NewEc { flags: 0, page: page_address(), ..global_thread() };
    equal!(create_ec(local, &new), SUCCESS);
    needs(local, perm::BIND_PT, |ec| create_pt(selector(), root::pd(), ec, 0))?;
    // What a capability of another object's space may do is of no account.
    let other = space(empty_pd()?, create::OBJ)?;
    equal!(create_pt(selector(), root::pd(), other, 0), BAD_CAP);
    Ok(())
}
