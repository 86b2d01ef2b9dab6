//! Objects: how they come, and how they go. An object goes when its last capability does.

use lab::capability::{empty_pd, space};
use lab::hypercall::{create, flag};
use lab::portal::Local;
use lab::report::{Outcome, Stop};
use lab::spec::{SUCCESS, Selector, call, scd};
use lab::{capability, equal, memory, root, selector, tests};

use crate::window::{Call, ROUNDS, number};

tests! {
    "create::SM" => semaphore,
    "create::PT" => portal,
    "create::PD" => domain,
    "create::EC in a fresh PD" => thread,
    "create::SC" => scheduling,
}

/// Takes away the capability at `selector` within window `NUMBER`.
fn drop_within<const NUMBER: u8>(selector: Selector) -> Outcome {
    let call = Call {
        selector: root::obj(),
        identifier: call::CTRL_PD,
        rsi: root::obj(),
        rdx: selector << 12,
        rax: selector << 12,
        r8: 0,
    };
    equal!(call.within::<NUMBER>(), SUCCESS);
    Ok(())
}

fn semaphore() -> Outcome {
    for _ in 0..ROUNDS {
        let new = Call { selector: selector(), identifier: call::CREATE_SM, rsi: root::pd(), ..Call::default() };
        equal!(new.within::<{ number("create.sm") }>(), SUCCESS);
        drop_within::<{ number("destroy.sm") }>(new.selector)?;
    }
    Ok(())
}

fn portal() -> Outcome {
    let ec = Local::new()?.ec;
    for _ in 0..ROUNDS {
        let identifier = call::CREATE_PT;
        let new = Call { selector: selector(), identifier, rsi: root::pd(), rdx: ec, ..Call::default() };
        equal!(new.within::<{ number("create.pt") }>(), SUCCESS);
        drop_within::<{ number("destroy.pt") }>(new.selector)?;
    }
    Ok(())
}

fn domain() -> Outcome {
    for _ in 0..ROUNDS {
        let identifier = call::CREATE_PD | create::PD << 4;
        let new = Call { selector: selector(), identifier, rsi: root::pd(), ..Call::default() };
        equal!(new.within::<{ number("create.pd") }>(), SUCCESS);
        drop_within::<{ number("destroy.pd") }>(new.selector)?;
    }
    Ok(())
}

/// A local thread of `pd`.
fn new_ec(pd: Selector) -> Call {
    let page = memory::page_address();
    let events = root::NO_EVENTS;
    Call { selector: selector(), identifier: call::CREATE_EC, rsi: pd, rdx: page | root::cpu(), rax: 0, r8: events }
}

fn thread() -> Outcome {
    for _ in 0..ROUNDS {
        let (pd, spaces) = fresh()?;
        let [first, second] = [new_ec(pd), new_ec(pd)];
        equal!(first.within::<{ number("create.ec") }>(), SUCCESS);
        equal!(second.within::<{ number("create.ec.second") }>(), SUCCESS);
        capability::drop(second.selector)?;
        drop_within::<{ number("destroy.ec") }>(first.selector)?;
        spaces.into_iter().chain([pd]).try_for_each(capability::drop)?;
    }
    Ok(())
}

/// A protection domain and the spaces that its threads need.
fn fresh() -> Result<(Selector, [Selector; 3]), Stop> {
    let pd = empty_pd()?;
    Ok((pd, [space(pd, create::OBJ)?, space(pd, create::HST)?, space(pd, create::PIO)?]))
}

/// Of threads that end as soon as they could run: there is no handler for their first event.
fn scheduling() -> Outcome {
    for _ in 0..ROUNDS {
        let thread = Call { identifier: call::CREATE_EC | flag::EC_GLOBAL << 4, ..new_ec(root::pd()) };
        equal!(thread.make(), SUCCESS);
        let (identifier, rdx, rax) = (call::CREATE_SC, thread.selector, scd(1, 1, 0));
        let new = Call { selector: selector(), identifier, rsi: root::pd(), rdx, rax, r8: 0 };
        equal!(new.within::<{ number("create.sc") }>(), SUCCESS);
    }
    Ok(())
}
