//! Local execution contexts and portals whose handlers are closures.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use super::root;
use super::utcb::Utcb;
use super::{memory, selector, shared};
use crate::hypercall::{self, NewEc};
use crate::registers::portal_address;
use crate::report::{Stop, must};
use crate::spec::Selector;

/// A message that has arrived.
pub struct Message {
    /// The UTCB of the EC that handles it.
    pub utcb: Utcb,
    /// The descriptor.
    pub mtd: u32,
    /// RCX and R11 at the portal's entry.
    pub rcx: u64,
    /// See `rcx`.
    pub r11: u64,
}

/// What a portal calls; its address is the portal's identifier. The result is the reply's descriptor.
pub struct Handler {
    utcb: Utcb,
    body: Box<dyn Fn(&Message) -> u32>,
}

/// Called by the entry stub of portals.
pub extern "C" fn dispatch(handler: &Handler, mtd: u64, rcx: u64, r11: u64) -> u32 {
    (handler.body)(&Message { utcb: handler.utcb, mtd: mtd as u32, rcx, r11 })
}

/// A local execution context.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Its capability.
    pub ec: Selector,
    /// Its UTCB.
    pub utcb: Utcb,
}

impl Local {
    /// One in the root protection domain, on this CPU.
    #[track_caller]
    pub fn new() -> Result<Self, Stop> {
        Self::on(root::cpu())
    }

    /// One in the root protection domain, on `cpu`.
    #[track_caller]
    pub fn on(cpu: u64) -> Result<Self, Stop> {
        Self::within(root::pd(), cpu)
    }

    /// One in the protection domain `pd`, which maps this program's memory.
    #[track_caller]
    pub fn within(pd: Selector, cpu: u64) -> Result<Self, Stop> {
        Self::with(pd, cpu, root::NO_EVENTS)
    }

    /// One on this CPU with event base `events`.
    #[track_caller]
    pub fn with_events(events: Selector) -> Result<Self, Stop> {
        Self::with(root::pd(), root::cpu(), events)
    }

    #[track_caller]
    fn with(pd: Selector, cpu: u64, events: Selector) -> Result<Self, Stop> {
        let (ec, page) = (selector(), memory::page_address());
        let sp = memory::stack();
        must(hypercall::create_ec(ec, &NewEc { pd, page, cpu, sp, events, flags: 0 }))?;
        Ok(Self { ec, utcb: Utcb::at(page) })
    }

    /// A portal to it.
    #[track_caller]
    pub fn portal(&self, body: impl Fn(&Message) -> u32 + 'static) -> Result<Selector, Stop> {
        let pt = selector();
        self.portal_at(pt, 0, body)?;
        Ok(pt)
    }

    /// A portal to it at selector `pt` with descriptor `mtd`; its identifier.
    #[track_caller]
    pub fn portal_at(&self, pt: Selector, mtd: u32, body: impl Fn(&Message) -> u32 + 'static) -> Result<u64, Stop> {
        let handler = shared(Handler { utcb: self.utcb, body: Box::new(body) });
        must(hypercall::create_pt(pt, root::pd(), self.ec, portal_address()))?;
        let identifier = core::ptr::from_ref(handler) as u64;
        must(hypercall::ctrl_pt(pt, identifier, mtd))?;
        Ok(identifier)
    }
}
