//! create_sc (2.3, 4.5, 5.3.3).

use lab::capability::{self, idle_thread};
use lab::hypercall::{create_sc, ctrl_sc};
use lab::portal::Local;
use lab::report::{Outcome, Stop};
use lab::spec::{ABORTED, BAD_CAP, BAD_PAR, SUCCESS, Status, scd};
use lab::{check, equal, root, selector, tests};

tests! {
    "create_sc::budget and priority must not be 0" => zero,
    "create_sc::the smallest and the largest values are accepted" => extremes,
    "create_sc::without support the class of service must be 0" => class_of_service,
    "create_sc::undefined bits of the descriptor are ignored" => undefined,
    "create_sc::a local thread has none" => local,
    "create_sc::an EC has one" => second,
    "create_sc::it comes with permission CTRL" => permissions,
}

fn new(scd: u64) -> Result<Status, Stop> {
    Ok(create_sc(selector(), root::pd(), idle_thread()?, scd))
}

fn zero() -> Outcome {
    for descriptor in [scd(0, 1, 0), scd(1, 0, 0), scd(0, 0, 0), scd(0, 127, 0), scd(0xffff, 0, 0)] {
        let sel = selector();
        let status = create_sc(sel, root::pd(), idle_thread()?, descriptor);
        check!(status == BAD_PAR, "{descriptor:#x}: {status:?}");
        check!(!capability::exists(sel));
    }
    Ok(())
}

fn extremes() -> Outcome {
    for descriptor in [scd(1, 1, 0), scd(0xffff, 1, 0), scd(1, 127, 0), scd(0xffff, 127, 0)] {
        let status = new(descriptor)?;
        check!(status == SUCCESS, "{descriptor:#x}: {status:?}");
    }
    Ok(())
}

/// CPUID leaf 7, EBX bit 15 (8.5).
fn supported() -> bool {
    // SAFETY is not needed: CPUID is an ordinary instruction everywhere that this runs.
    core::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 15 != 0
}

fn class_of_service() -> Outcome {
    if supported() {
        return Err(Stop::Skipped("classes of service are supported"));
    }
    for cos in [1, 2, 0x7fff, 0xffff] {
        equal!(new(scd(1, 1, cos))?, BAD_PAR);
    }
    Ok(())
}

fn undefined() -> Outcome {
    equal!(new(scd(1, 1, 0) | 1 << 39)?, SUCCESS);
    equal!(new(scd(1, 1, 0) | 1 << 63)?, SUCCESS);
    Ok(())
}

fn local() -> Outcome {
    let sel = selector();
    equal!(create_sc(sel, root::pd(), Local::new()?.ec, scd(1, 1, 0)), BAD_CAP);
    check!(!capability::exists(sel));
    Ok(())
}

fn second() -> Outcome {
    let ec = idle_thread()?;
    equal!(create_sc(selector(), root::pd(), ec, scd(1, 1, 0)), SUCCESS);
    let sel = selector();
    equal!(create_sc(sel, root::pd(), ec, scd(1, 1, 0)), ABORTED);
    check!(!capability::exists(sel));
    equal!(create_sc(selector(), root::pd(), root::ec(), scd(1, 1, 0)), ABORTED);
    Ok(())
}

fn permissions() -> Outcome {
    let sc = selector();
    equal!(create_sc(sc, root::pd(), idle_thread()?, scd(1, 1, 0)), SUCCESS);
    equal!(ctrl_sc(sc).0, SUCCESS);
    Ok(())
}
