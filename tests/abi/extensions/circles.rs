//! Calls that go round in a circle: the specification does not say what becomes of them. Here they are ABORTED.

use core::sync::atomic::Ordering::Relaxed;

use lab::hypercall::{flag, ipc_call};
use lab::portal::Local;
use lab::report::Outcome;
use lab::spec::{ABORTED, SUCCESS, TIMEOUT, words};
use lab::utcb::Utcb;
use lab::{equal, number, tests};

tests! {
    "circles::a callee that calls itself gets ABORTED" => itself,
    "circles::the last call of a circle gets ABORTED" => three,
}

/// Calls the portal whose selector `to` holds and notes the statuses with and without T.
fn call_noting(to: &'static core::sync::atomic::AtomicU64, utcb: Utcb) -> u32 {
    let statuses = [flag::CALL_TIMEOUT, 0].map(|flags| ipc_call(to.load(Relaxed), words(1), flags).0);
    utcb.set_word(0, u64::from(statuses[0].0) << 8 | u64::from(statuses[1].0));
    words(1)
}

fn itself() -> Outcome {
    let own = number(0);
    let pt = Local::new()?.portal(move |message| call_noting(own, message.utcb))?;
    own.store(pt, Relaxed);
    for _ in 0..2 {
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(Utcb::root().word(0), u64::from(TIMEOUT.0) << 8 | u64::from(ABORTED.0));
    }
    Ok(())
}

fn three() -> Outcome {
    let first = number(0);
    let mut pt = Local::new()?.portal(move |message| call_noting(first, message.utcb))?;
    for _ in 0..2 {
        let next = pt;
        pt = Local::new()?.portal(move |_| {
            // The reply is passed on.
            ipc_call(next, words(1), 0).1
        })?;
    }
    first.store(pt, Relaxed);
    for _ in 0..2 {
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(Utcb::root().word(0), u64::from(TIMEOUT.0) << 8 | u64::from(ABORTED.0));
    }
    Ok(())
}
