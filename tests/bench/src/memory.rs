//! ctrl_pd: pages and capabilities, to another space and to the caller's own.

use lab::domain::Domain;
use lab::memory::{LARGE, PAGE, address, large, pages, peek};
use lab::report::Outcome;
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, Selector, call, perm};
use lab::{equal, root, selectors, tests};

use crate::window::{Call, ROUNDS, number};

tests! {
    "map::a page to another space" => page,
    "map::a page to the caller's space" => own_page,
    "map::64 pages to another space" => many,
    "delegate::a capability" => capability,
}

/// Delegates 2^`order` of what `src` has at `from` to `dst` at `to`; nothing, if `mask` is 0.
fn delegation(src: Selector, dst: Selector, [from, to]: [u64; 2], order: u64, mask: u64) -> Call {
    Call {
        selector: src,
        identifier: call::CTRL_PD,
        rsi: dst,
        rdx: from << 12 | order,
        rax: to << 12 | mask,
        r8: 0,
    }
}

/// Maps pages at `to` in `dst` one by one, then takes them away; `look` is called in between. The first one may need
/// tables, and the last one may give them back.
fn map_and_unmap<const MAP: u8, const UNMAP: u8>(dst: Selector, to: u64, look: impl Fn(u64)) -> Outcome {
    let page = pages(1);
    let places = |round| [page / PAGE, to / PAGE + round];
    for round in 0..ROUNDS as u64 {
        equal!(delegation(root::HST, dst, places(round), 0, perm::R).within::<MAP>(), SUCCESS);
        look(to + round * PAGE);
    }
    for round in 0..ROUNDS as u64 {
        equal!(delegation(root::HST, dst, places(round), 0, 0).within::<UNMAP>(), SUCCESS);
    }
    Ok(())
}

fn page() -> Outcome {
    let hst = Domain::empty()?.hst;
    map_and_unmap::<{ number("map.4k") }, { number("unmap.4k") }>(hst, 0x1000_0000, |_| {})
}

/// With a look at the page, so that its translation has to go.
fn own_page() -> Outcome {
    let look = |page| _ = peek(page);
    map_and_unmap::<{ number("map.4k.own") }, { number("unmap.4k.own") }>(root::HST, address(3), look)
}

/// 64 pages at once.
fn many() -> Outcome {
    const ORDER: u64 = 6;
    assert!(u64::from(LARGE) >= ORDER);
    let hst = Domain::empty()?.hst;
    for round in 0..ROUNDS as u64 {
        let places = [large() / PAGE, (round + 1) << 9];
        equal!(delegation(root::HST, hst, places, ORDER, perm::R).within::<{ number("map.64_pages") }>(), SUCCESS);
        equal!(delegation(root::HST, hst, places, ORDER, 0).within::<{ number("unmap.64_pages") }>(), SUCCESS);
    }
    Ok(())
}

fn capability() -> Outcome {
    let (obj, sm) = (Domain::empty()?.obj, Semaphore::new(0)?);
    let first = selectors(ROUNDS as u64);
    for to in first..first + ROUNDS as u64 {
        let call = delegation(root::obj(), obj, [sm.0, to], 0, perm::ALL);
        equal!(call.within::<{ number("delegate.cap") }>(), SUCCESS);
    }
    Ok(())
}
