//! Semaphores.

use super::{root, selector, time};
use crate::hypercall::{self, flag};
use crate::report::{Outcome, Stop, failed, must};
use crate::spec::{SUCCESS, Selector, Status};

/// Milliseconds after which what a test waits for is taken not to happen. On several CPUs an emulator's time goes on
/// whether or not the machine under it does.
fn patience() -> u64 {
    if root::cpus() == 1 { 2000 } else { 10_000 }
}

/// A semaphore of the root protection domain.
#[derive(Clone, Copy, Debug)]
pub struct Semaphore(pub Selector);

impl Semaphore {
    /// A new one.
    #[track_caller]
    pub fn new(count: u64) -> Result<Self, Stop> {
        let sm = selector();
        must(hypercall::create_sm(sm, root::pd(), count))?;
        Ok(Self(sm))
    }

    /// Up.
    pub fn up(self) -> Status {
        hypercall::ctrl_sm(self.0, 0, 0)
    }

    /// Down, for as long as it takes.
    pub fn down(self) -> Status {
        hypercall::ctrl_sm(self.0, flag::SM_DOWN, 0)
    }

    /// Down with an absolute timeout.
    pub fn down_until(self, stc: u64) -> Status {
        hypercall::ctrl_sm(self.0, flag::SM_DOWN, stc)
    }

    /// Waits for what a test waits for; too long is a failure.
    #[track_caller]
    pub fn wait(self) -> Outcome {
        match self.down_until(time::now() + time::ms(patience())) {
            SUCCESS => Ok(()),
            status => Err(failed(alloc::format!("what the test waits for does not happen: {status:?}"))),
        }
    }
}
