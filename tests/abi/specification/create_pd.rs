//! create_pd (2.1, 4.1.2.1 to 4.1.2.7, 5.3.1).

use lab::capability::{self, copy, empty_pd, guests, reduced, space};
use lab::entry::hip;
use lab::hypercall::{Delegation, create, create_pd, create_pt, create_sm, ctrl_pd};
use lab::memory;
use lab::portal::Local;
use lab::report::{Outcome, Stop};
use lab::spec::{ABORTED, BAD_CAP, BAD_FTR, BAD_PAR, SUCCESS, Selector, Status, feature, hip, perm};
use lab::{check, equal, root, selector, tests};

tests! {
    "create_pd::a PD inherits the permissions of its owner's capability" => inherits,
    "create_pd::a PD has one object space and one host space" => only_one,
    "create_pd::a PD has any number of guest, PIO and MSR spaces" => several,
    "create_pd::a space comes with all its defined permissions" => permissions,
    "create_pd::a new object space is empty" => empty_objects,
    "create_pd::a new host space is empty" => empty_host,
    "create_pd::operations from 7 on do not exist" => operations,
    "create_pd::DMA spaces need an IOMMU" => dma,
    "create_pd::guest spaces need virtualization" => guest,
}

fn inherits() -> Outcome {
    let owner = reduced(root::pd(), perm::PD | perm::SM)?;
    let pd = selector();
    equal!(create_pd(pd, owner, create::PD), SUCCESS);
    equal!(create_sm(selector(), pd, 0), SUCCESS);
    equal!(create_pd(selector(), pd, create::OBJ), SUCCESS);
    equal!(create_pt(selector(), pd, Local::new()?.ec, 0), BAD_CAP);
    Ok(())
}

fn only_one() -> Outcome {
    let pd = empty_pd()?;
    for operation in [create::OBJ, create::HST] {
        equal!(create_pd(selector(), pd, operation), SUCCESS);
        let second = selector();
        equal!(create_pd(second, pd, operation), ABORTED);
        check!(!capability::exists(second));
        equal!(create_pd(selector(), root::pd(), operation), ABORTED);
    }
    Ok(())
}

fn several() -> Outcome {
    let pd = empty_pd()?;
    for operation in [create::PIO, create::MSR] {
        for _ in 0..4 {
            equal!(create_pd(selector(), pd, operation), SUCCESS);
        }
    }
    for _ in 0..4 {
        let expected = if guests() { SUCCESS } else { BAD_FTR };
        equal!(create_pd(selector(), pd, create::GST), expected);
    }
    Ok(())
}

/// Takes selector 0 of `src` to `dst`: nothing, but the permissions are looked at.
fn take(src: Selector, dst: Selector) -> Status {
    ctrl_pd(&Delegation { src, dst, ssb: 0, dsb: 0, order: 0, mask: 0, mad: 0 })
}

/// ASSIGN is shown by the tests of guests.
fn permissions() -> Outcome {
    for operation in [create::OBJ, create::HST, create::PIO, create::MSR] {
        let [one, other] = [space(empty_pd()?, operation)?, space(empty_pd()?, operation)?];
        equal!(take(one, other), SUCCESS);
        equal!(take(other, one), SUCCESS);
    }
    if guests() {
        let guest = space(empty_pd()?, create::GST)?;
        equal!(take(root::HST, guest), SUCCESS);
        equal!(take(guest, root::HST), BAD_CAP);
    }
    Ok(())
}

fn empty_objects() -> Outcome {
    let empty = space(empty_pd()?, create::OBJ)?;
    let there = selector();
    equal!(create_sm(there, root::pd(), 0), SUCCESS);
    for from in [0, 1, 511, 512, 0x10000, root::selector_count() - 1] {
        equal!(copy(root::pd(), there, perm::ALL), SUCCESS);
        let delegation =
            Delegation { src: empty, dst: root::obj(), ssb: from, dsb: there, order: 0, mask: perm::ALL, mad: 0 };
        equal!(ctrl_pd(&delegation), SUCCESS);
        check!(!capability::exists(there), "selector {from:#x} of a new object space holds something");
    }
    Ok(())
}

fn empty_host() -> Outcome {
    let empty = space(empty_pd()?, create::HST)?;
    let last = lab::entry::user_end() / memory::PAGE - 1;
    let there = memory::page_address();
    for page in [0, 1, 0x10000, there / memory::PAGE, last] {
        memory::delegate(memory::pages(1), root::HST, there, 0, perm::R)?;
        check!(readable(there)?);
        let delegation = Delegation {
            src: empty,
            dst: root::HST,
            ssb: page,
            dsb: there / memory::PAGE,
            order: 0,
            mask: perm::ALL,
            mad: 0,
        };
        equal!(ctrl_pd(&delegation), SUCCESS);
        check!(!readable(there)?, "page {page:#x} of a new host space is there");
    }
    Ok(())
}

fn readable(address: u64) -> Result<bool, Stop> {
    Ok(lab::probe::read(address)?.is_none())
}

fn operations() -> Outcome {
    for operation in 7..16 {
        let sel = selector();
        equal!(create_pd(sel, empty_pd()?, operation), BAD_PAR);
        check!(!capability::exists(sel));
    }
    Ok(())
}

fn dma() -> Outcome {
    let expected = if hip(hip::PLATFORM_FEATURES) & feature::IOMMU != 0 { SUCCESS } else { BAD_FTR };
    equal!(create_pd(selector(), empty_pd()?, create::DMA), expected);
    Ok(())
}

fn guest() -> Outcome {
    let expected = if guests() { SUCCESS } else { BAD_FTR };
    equal!(create_pd(selector(), empty_pd()?, create::GST), expected);
    Ok(())
}
