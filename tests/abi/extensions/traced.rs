//! While the trace is on, calls, replies and events take the slow path, which is there for all that the fast path leaves
//! to it. What the specification says must hold on both.

use lab::report::{Outcome, Stop, Test, failed};
use lab::root::NOVA_HST;
use lab::spec::{SUCCESS, Status};
use lab::{equal, tests};

use crate::operations;

#[path = "../specification/event.rs"]
#[allow(dead_code)] // Other topics of the specification use more of it.
mod event;
#[path = "../specification/guest_exit.rs"]
#[allow(dead_code)] // Other topics of the specification use more of it.
pub(crate) mod guest_exit;
#[path = "../specification/guest_state.rs"]
#[allow(dead_code)] // Other topics of the specification use more of it.
pub(crate) mod guest_state;
#[path = "../specification/ipc.rs"]
#[allow(dead_code)] // Other topics of the specification use more of it.
mod ipc;
#[path = "../specification/portal.rs"]
#[allow(dead_code)] // Other topics of the specification use more of it.
mod portal;

tests! {
    "traced::calls and replies off the fast path" => calls,
    "traced::events off the fast path" => events,
    "traced::guests off the fast path" => guests,
}

fn calls() -> Outcome {
    off_the_fast_path(&[ipc::TESTS, portal::TESTS])
}

fn events() -> Outcome {
    off_the_fast_path(&[event::TESTS])
}

fn guests() -> Outcome {
    off_the_fast_path(&[guest_exit::TESTS, guest_state::TESTS])
}

fn trace(on: bool) -> Status {
    operations::call(3, NOVA_HST, u64::from(on)).0
}

/// Runs tests of the specification with the trace on.
fn off_the_fast_path(topics: &[&[Test]]) -> Outcome {
    equal!(trace(true), SUCCESS);
    let outcome = all_of(topics);
    equal!(trace(false), SUCCESS);
    outcome
}

/// Runs tests; the first failure is the outcome.
pub fn all_of(topics: &[&[Test]]) -> Outcome {
    topics.iter().copied().flatten().try_for_each(|test| match (test.body)() {
        Err(Stop::Failed(place, text)) => Err(failed(alloc::format!("{}, {place}: {text}", test.name))),
        _ => Ok(()),
    })
}
