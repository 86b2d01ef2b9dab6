//! The end of the kernel's memory (5.3, 5.4.1). Nothing that was used up comes back, so nothing can be tested after this.

use lab::hypercall::{Delegation, create, create_ec, create_pd, create_pt, create_sm, ctrl_pd};
use lab::capability::global_thread;
use lab::portal::Local;
use lab::probe;
use lab::report::Outcome;
use lab::spec::{MEM_CAP, MEM_OBJ, SUCCESS, Status, perm, words};
use lab::{check, equal, memory, root, selector, selectors, tests};

tests! {
    "exhaustion::creations end with MEM_OBJ or MEM_CAP, and delegations with MEM_CAP" => everything,
}

/// Calls until it fails; the last status.
fn repeat(mut call: impl FnMut() -> Status) -> Status {
    loop {
        let status = call();
        if status != SUCCESS {
            return status;
        }
    }
}

fn everything() -> Outcome {
    let local = Local::new()?;
    let pt = local.portal(|_| words(1))?;
    // A page in many far places needs a table for each: then there is no memory for tables.
    let page = memory::pages(1);
    let mut place = 0x2000_0000_0000;
    let mut map = move || {
        place += 1 << 21;
        let delegation =
            Delegation { src: root::HST, dst: root::HST, ssb: page >> 12, dsb: place >> 12, order: 0, mask: perm::R, mad: 0 };
        (ctrl_pd(&delegation), place)
    };
    let last = loop {
        let (status, place) = map();
        if status != SUCCESS {
            equal!(status, MEM_CAP);
            break place;
        }
    };
    check!(probe::read(last)?.is_some(), "a delegation that failed has mapped something");
    equal!(probe::root()?.value(last - (1 << 21))?, 0);
    let failing = |status: Status| status == MEM_OBJ || status == MEM_CAP;
    let calls: [(&str, &dyn Fn(u64) -> Status); 5] = [
        ("create_pd", &|sel| create_pd(sel, root::pd(), create::PD)),
        ("create_pd PIO", &|sel| create_pd(sel, root::pd(), create::PIO)),
        ("create_ec", &|sel| create_ec(sel, &global_thread())),
        ("create_sm", &|sel| create_sm(sel, root::pd(), 0)),
        ("create_pt", &|sel| create_pt(sel, root::pd(), local.ec, 0)),
    ];
    for (name, call) in calls {
        let mut sel = 0;
        let status = repeat(|| {
            sel = selector();
            call(sel)
        });
        check!(failing(status), "{name}: {status:?}");
        check!(failing(create_sm(sel, root::pd(), 0)), "{name} failed and left something");
    }
    // A whole leaf of selectors that nobody used: no memory for a capability.
    let far = selectors(1 << 12) + (1 << 11);
    let far = Delegation { src: root::obj(), dst: root::obj(), ssb: pt, dsb: far, order: 0, mask: perm::ALL, mad: 0 };
    equal!(ctrl_pd(&far), MEM_CAP);
    // What there is goes on working.
    equal!(lab::hypercall::ipc_call(pt, words(3), 0).0, SUCCESS);
    Ok(())
}
