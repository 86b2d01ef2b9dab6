//! ctrl_ec: the call, and the event that it leads to.

use lab::capability::idle_thread;
use lab::event::{Subject, Then, recall, startup};
use lab::hypercall::create_pt;
use lab::hypercall::ctrl_pt;
use lab::portal::Local;
use lab::report::{Outcome, must};
use lab::spec::{SUCCESS, Selector, call, mtd};
use lab::thread::body_of;
use lab::{capability, equal, number as shared_number, provoke, root, tests};

use crate::window::{Call, ROUNDS, number};

tests! {
    "recall::of another" => other,
    "recall::of itself" => own,
}

fn recall_of(ec: Selector) -> Call {
    Call { selector: ec, identifier: call::CTRL_EC, ..Call::default() }
}

fn other() -> Outcome {
    for _ in 0..ROUNDS {
        equal!(recall_of(idle_thread()?).within::<{ number("recall") }>(), SUCCESS);
    }
    Ok(())
}

/// The call, the event with RIP and flags, and its reply.
fn own() -> Outcome {
    let ec = shared_number(0);
    let body = body_of(move || {
        let call = recall_of(ec.load(core::sync::atomic::Ordering::Relaxed));
        for _ in 0..ROUNDS {
            call.within::<{ number("recall.event") }>();
        }
        provoke::undefined();
    });
    let subject = Subject::new(0, mtd::GPR_0_7 | mtd::RIP, move |event| {
        if event.number != startup() {
            return Then::End;
        }
        body.enter(&event.utcb);
        Then::Reply(mtd::GPR_0_7 | mtd::RIP)
    })?;
    ec.store(subject.ec, core::sync::atomic::Ordering::Relaxed);
    let pt = subject.events + u64::from(recall());
    capability::drop(pt)?;
    must(create_pt(pt, root::pd(), Local::new()?.ec, crate::ipc::echo as *const () as u64))?;
    must(ctrl_pt(pt, 0, mtd::RIP | mtd::RFLAGS))?;
    subject.start()?;
    equal!(subject.wait()?.len(), 2);
    Ok(())
}
