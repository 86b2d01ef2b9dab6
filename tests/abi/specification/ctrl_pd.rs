//! ctrl_pd: which spaces go together, ranges, and object capabilities (4.1, 5.4.1).

use lab::capability::{self, Kind, empty_pd, nothing, one_of_each, reduced, space};
use lab::domain::Domain;
use lab::entry::user_end;
use lab::hypercall::{Delegation, create, create_sm, ctrl_pd, ctrl_sm};
use lab::report::{Outcome, must};
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, BAD_PAR, SUCCESS, Selector, Status, perm};
use lab::{aligned_selectors, check, equal, root, selector, tests};

tests! {
    "ctrl_pd::only certain kinds of spaces go together" => kinds,
    "ctrl_pd::source and destination must be spaces" => spaces,
    "ctrl_pd::the source needs permission TAKE" => source_permission,
    "ctrl_pd::the destination needs permission GRANT" => destination_permission,
    "ctrl_pd::selectors must be aligned to the order" => alignment,
    "ctrl_pd::ranges must end within the spaces" => bounds,
    "ctrl_pd::PIO and MSR selectors must be equal" => equal_selectors,
    "ctrl_pd::a capability is copied with its permissions" => copied,
    "ctrl_pd::permissions are those of source and mask" => masked,
    "ctrl_pd::a capability without permissions is null" => masked_away,
    "ctrl_pd::a null capability replaces what was there" => null_replaces,
    "ctrl_pd::another capability replaces what was there" => replaces,
    "ctrl_pd::whole ranges, whatever their order" => ranges,
    "ctrl_pd::what is outside of the range stays" => outside,
    "ctrl_pd::the memory attributes are ignored for objects" => attributes_ignored,
    "ctrl_pd::what was delegated from a capability stays when that goes" => independent,
    "ctrl_pd::the last selector" => last_selector,
}

fn nothing_from(src: Selector, dst: Selector) -> Delegation {
    Delegation { src, dst, ssb: 0, dsb: 0, order: 0, mask: 0, mad: 0 }
}

fn compatible(src: Kind, dst: Kind) -> bool {
    use Kind::{Gst, Hst, Msr, Obj, Pio};
    matches!((src, dst), (Obj, Obj) | (Hst, Hst | Gst) | (Pio, Pio) | (Msr, Msr))
}

fn kinds() -> Outcome {
    for &(src_kind, src) in one_of_each()? {
        for &(dst_kind, dst) in one_of_each()? {
            let expected = if compatible(src_kind, dst_kind) { SUCCESS } else { BAD_CAP };
            let status = ctrl_pd(&nothing_from(src, dst));
            check!(status == expected, "from {src_kind:?} to {dst_kind:?}: {status:?}");
        }
    }
    Ok(())
}

fn spaces() -> Outcome {
    for &(kind, space) in one_of_each()? {
        for null in nothing() {
            equal!(ctrl_pd(&nothing_from(null, space)), BAD_CAP);
            let status = ctrl_pd(&nothing_from(space, null));
            check!(status == BAD_CAP, "from {kind:?} to nothing: {status:?}");
        }
    }
    Ok(())
}

fn source_permission() -> Outcome {
    for operation in [create::OBJ, create::HST, create::PIO, create::MSR] {
        let [src, dst] = [space(empty_pd()?, operation)?, space(empty_pd()?, operation)?];
        capability::needs(src, perm::TAKE, |src| ctrl_pd(&nothing_from(src, dst)))?;
    }
    Ok(())
}

fn destination_permission() -> Outcome {
    for operation in [create::OBJ, create::HST, create::PIO, create::MSR] {
        let [src, dst] = [space(empty_pd()?, operation)?, space(empty_pd()?, operation)?];
        capability::needs(dst, perm::GRANT, |dst| ctrl_pd(&nothing_from(src, dst)))?;
    }
    if capability::guests() {
        let dst = space(empty_pd()?, create::GST)?;
        capability::needs(dst, perm::GRANT, |dst| ctrl_pd(&nothing_from(root::HST, dst)))?;
    }
    Ok(())
}

/// A source and a destination of each kind of delegation, and whether selectors must be equal.
fn pairs() -> Result<alloc::vec::Vec<(Kind, Selector, Selector)>, lab::report::Stop> {
    let domain = Domain::empty()?;
    let msr = space(domain.pd, create::MSR)?;
    let mut pairs = alloc::vec![
        (Kind::Obj, root::obj(), domain.obj),
        (Kind::Hst, root::HST, domain.hst),
        (Kind::Pio, root::NOVA_PIO, domain.pio),
        (Kind::Msr, root::NOVA_MSR, msr),
    ];
    if capability::guests() {
        pairs.push((Kind::Gst, root::HST, space(domain.pd, create::GST)?));
    }
    Ok(pairs)
}

fn alignment() -> Outcome {
    for (kind, src, dst) in pairs()? {
        for order in [1, 2, 5, 9, 12] {
            let unit = 1 << order;
            for (ssb, dsb) in [(1, 1), (unit / 2, unit / 2), (unit + 1, unit), (unit, unit + unit / 2), (0, 1), (1, 0)] {
                let status = ctrl_pd(&Delegation { src, dst, ssb, dsb, order, mask: 0, mad: 0 });
                check!(status == BAD_PAR, "{kind:?}, order {order}, {ssb:#x} to {dsb:#x}: {status:?}");
            }
            equal!(ctrl_pd(&Delegation { src, dst, ssb: unit, dsb: unit, order, mask: 0, mad: 0 }), SUCCESS);
        }
    }
    Ok(())
}

/// Number of selectors in source and destination.
fn selectors(kind: Kind) -> (u64, u64) {
    match kind {
        Kind::Hst => (user_end() >> 12, user_end() >> 12),
        // The guest-physical address has one bit more (8.4.2).
        Kind::Gst => (user_end() >> 12, user_end() >> 11),
        Kind::Pio => (1 << 16, 1 << 16),
        Kind::Msr => (1 << 32, 1 << 32),
        _ => (root::selector_count(), root::selector_count()),
    }
}

fn bounds() -> Outcome {
    for (kind, src, dst) in pairs()? {
        let (sources, destinations) = selectors(kind);
        let attempt = |ssb, dsb, order| ctrl_pd(&Delegation { src, dst, ssb, dsb, order, mask: 0, mad: 0 });
        for order in [0, 1, 4] {
            let unit = 1 << order;
            for beyond in [0, unit, 1 << 40] {
                let status = attempt(sources + beyond, destinations + beyond, order);
                check!(status == BAD_PAR, "{kind:?}, order {order}, behind the end: {status:?}");
                if !matches!(kind, Kind::Pio | Kind::Msr) {
                    equal!(attempt(sources + beyond, 0, order), BAD_PAR);
                    equal!(attempt(0, destinations + beyond, order), BAD_PAR);
                }
            }
            equal!(attempt(sources - unit, sources - unit, order), SUCCESS);
            if sources != destinations {
                equal!(attempt(0, destinations - unit, order), SUCCESS);
            }
        }
        let order = sources.trailing_zeros() as u64 + 1;
        if order < 32 {
            equal!(attempt(0, 0, order), BAD_PAR);
        }
        equal!(attempt((1 << 52) - 16, (1 << 52) - 16, 4), BAD_PAR);
    }
    Ok(())
}

fn equal_selectors() -> Outcome {
    for (kind, src, dst) in pairs()? {
        if !matches!(kind, Kind::Pio | Kind::Msr) {
            continue;
        }
        for (ssb, dsb, order) in [(0, 1, 0), (0x80, 0x81, 0), (0x100, 0x200, 8)] {
            equal!(ctrl_pd(&Delegation { src, dst, ssb, dsb, order, mask: perm::ALL, mad: 0 }), BAD_PAR);
        }
    }
    Ok(())
}

fn delegate(ssb: u64, dsb: u64, order: u64, mask: u64) -> Status {
    ctrl_pd(&Delegation { src: root::obj(), dst: root::obj(), ssb, dsb, order, mask, mad: 0 })
}

fn up(sm: Selector) -> Status {
    ctrl_sm(sm, 0, 0)
}

fn down(sm: Selector) -> Status {
    ctrl_sm(sm, lab::hypercall::flag::SM_DOWN, 1)
}

fn copied() -> Outcome {
    let sm = Semaphore::new(0)?;
    let other = selector();
    equal!(delegate(sm.0, other, 0, perm::ALL), SUCCESS);
    equal!(up(other), SUCCESS);
    equal!(down(sm.0), SUCCESS);
    equal!(up(sm.0), SUCCESS);
    equal!(down(other), SUCCESS);
    Ok(())
}

fn masked() -> Outcome {
    let sm = Semaphore::new(4)?;
    let only_up = reduced(sm.0, perm::UP)?;
    equal!(up(only_up), SUCCESS);
    equal!(down(only_up), BAD_CAP);
    // A mask gives no permission that the source has not.
    let again = reduced(only_up, perm::ALL)?;
    equal!(up(again), SUCCESS);
    equal!(down(again), BAD_CAP);
    // All the same onto itself.
    equal!(delegate(sm.0, sm.0, 0, perm::DOWN), SUCCESS);
    equal!(up(sm.0), BAD_CAP);
    equal!(down(sm.0), SUCCESS);
    Ok(())
}

fn masked_away() -> Outcome {
    let sm = Semaphore::new(0)?;
    let copy = selector();
    for mask in [0, perm::ASSIGN, perm::ASSIGN | 1 << 3] {
        equal!(delegate(sm.0, copy, 0, mask), SUCCESS);
        check!(!capability::exists(copy), "a capability with mask {mask:#x}");
    }
    Ok(())
}

fn null_replaces() -> Outcome {
    let sm = Semaphore::new(0)?;
    equal!(delegate(selector(), sm.0, 0, perm::ALL), SUCCESS);
    equal!(up(sm.0), BAD_CAP);
    check!(!capability::exists(sm.0));
    Ok(())
}

fn replaces() -> Outcome {
    let [one, other] = [Semaphore::new(1)?, Semaphore::new(0)?];
    equal!(delegate(one.0, other.0, 0, perm::ALL), SUCCESS);
    equal!(down(other.0), SUCCESS);
    equal!(down(other.0), lab::spec::TIMEOUT);
    Ok(())
}

/// 2 to the power of `order` semaphores, the counter of each its number; every fourth is missing.
fn row(order: u32) -> Result<Selector, lab::report::Stop> {
    let first = aligned_selectors(order);
    for number in (0..1 << order).filter(|number| number % 4 != 3) {
        must(create_sm(first + number, root::pd(), number))?;
    }
    Ok(first)
}

/// Counter of the semaphore at `sm`; None if there is none.
fn counter(sm: Selector) -> Option<u64> {
    let mut count = 0;
    loop {
        match down(sm) {
            SUCCESS => count += 1,
            BAD_CAP => return None,
            _ => break,
        }
    }
    for _ in 0..count {
        up(sm);
    }
    Some(count)
}

fn ranges() -> Outcome {
    for order in 0..=7 {
        let (from, to) = (row(order)?, row(order)?);
        // They count otherwise than those that come.
        for number in 0..1 << order {
            up(to + number);
        }
        equal!(delegate(from, to, u64::from(order), perm::ALL), SUCCESS);
        for number in 0..1 << order {
            equal!(counter(to + number), (number % 4 != 3).then_some(number));
        }
    }
    // A range without a table of selectors, across many of them.
    let order = 12;
    let (from, to) = (aligned_selectors(order), aligned_selectors(order));
    must(create_sm(from + 700, root::pd(), 7))?;
    equal!(delegate(from, to, u64::from(order), perm::ALL), SUCCESS);
    equal!(counter(to + 700), Some(7));
    equal!(counter(to + 701), None);
    Ok(())
}

fn outside() -> Outcome {
    let (from, to) = (row(4)?, row(4)?);
    equal!(delegate(from + 4, to + 8, 2, 0), SUCCESS);
    for number in (0..16).filter(|number| number % 4 != 3) {
        equal!(counter(to + number), (!(8..12).contains(&number)).then_some(number));
        equal!(counter(from + number), Some(number));
    }
    Ok(())
}

fn attributes_ignored() -> Outcome {
    let (from, to) = (Semaphore::new(0)?, selector());
    for mad in [7, 0xffff_ffff, u64::MAX] {
        let delegation =
            Delegation { src: root::obj(), dst: root::obj(), ssb: from.0, dsb: to, order: 0, mask: perm::ALL, mad };
        equal!(ctrl_pd(&delegation), SUCCESS);
        equal!(up(to), SUCCESS);
    }
    Ok(())
}

fn independent() -> Outcome {
    let sm = Semaphore::new(0)?;
    let copy = reduced(sm.0, perm::ALL)?;
    capability::drop(sm.0)?;
    equal!(up(copy), SUCCESS);
    equal!(down(copy), SUCCESS);
    Ok(())
}

fn last_selector() -> Outcome {
    let domain = Domain::empty()?;
    let (sm, last) = (Semaphore::new(1)?, root::selector_count() - 1);
    must(ctrl_pd(&Delegation {
        src: root::obj(),
        dst: domain.obj,
        ssb: sm.0,
        dsb: last,
        order: 0,
        mask: perm::ALL,
        mad: 0,
    }))?;
    let back = selector();
    must(ctrl_pd(&Delegation {
        src: domain.obj,
        dst: root::obj(),
        ssb: last,
        dsb: back,
        order: 0,
        mask: perm::ALL,
        mad: 0,
    }))?;
    equal!(down(back), SUCCESS);
    Ok(())
}
