//! Further protection domains, with this program's memory at the same addresses.

use super::capability::{empty_pd, space};
use super::memory::{self, PAGE};
use super::root;
use super::thread::{Parameters, Thread, prepare_in};
use super::utcb::Utcb;
use crate::hypercall::{self, Delegation, create, ctrl_pd};
use crate::report::{Outcome, Stop, must};
use crate::spec::{Selector, perm, scd};

/// A protection domain. The selectors are the root object space's.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// The protection domain.
    pub pd: Selector,
    /// Its object space.
    pub obj: Selector,
    /// Its host space.
    pub hst: Selector,
    /// Its PIO space.
    pub pio: Selector,
}

impl Domain {
    /// One whose programs can run this program's code.
    #[track_caller]
    pub fn new() -> Result<Self, Stop> {
        let domain = Self::empty()?;
        for (start, end, executable, writable) in memory::segments() {
            let mask = perm::R | if executable { perm::XU } else { 0 } | if writable { perm::W } else { 0 };
            for address in (start..end).step_by(PAGE as usize) {
                memory::delegate(address, domain.hst, address, 0, mask)?;
            }
        }
        Ok(domain)
    }

    /// One with its spaces, and nothing in them.
    #[track_caller]
    pub fn empty() -> Result<Self, Stop> {
        let pd = empty_pd()?;
        let domain =
            Self { pd, obj: space(pd, create::OBJ)?, hst: space(pd, create::HST)?, pio: space(pd, create::PIO)? };
        Ok(domain)
    }

    /// Gives it the capability at `selector`, at the same selector and at `to`.
    #[track_caller]
    pub fn give(&self, selector: Selector, to: Selector, mask: u64) -> Outcome {
        let delegation = Delegation { src: root::obj(), dst: self.obj, ssb: selector, dsb: to, order: 0, mask, mad: 0 };
        must(ctrl_pd(&delegation))
    }

    /// Starts a thread in it.
    #[track_caller]
    pub fn spawn(&self, priority: u64, body: impl Fn(Utcb) + 'static) -> Result<Thread, Stop> {
        let parameters = Parameters { cpu: root::cpu(), priority, budget: 100, flags: 0 };
        let share = |selector| self.give(selector, selector, perm::ALL);
        let thread = prepare_in(self.pd, parameters, share, body)?;
        must(hypercall::create_sc(thread.sc, root::pd(), thread.ec, scd(parameters.budget, priority, 0)))?;
        Ok(thread)
    }
}
