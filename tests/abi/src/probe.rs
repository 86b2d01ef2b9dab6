//! A thread that tries an access, and tells what event that raised.
#![allow(unsafe_code)]

use core::cell::Cell;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::domain::Domain;
use crate::hypercall::{self, NewEc, flag};
use crate::portal::Local;
use crate::report::{Outcome, Stop, must};
use crate::semaphore::Semaphore;
use crate::spec::{Selector, field, mtd, perm, scd};
use crate::thread::{event_count, install_startup_of};
use crate::utcb::Utcb;
use crate::{memory, root, selector, selectors, shared};

core::arch::global_asm!(
    ".pushsection .text.probe, \"ax\", @progbits",
    ".globl probe_read, probe_write, probe_execute, probe_input, probe_output, probe_recover",
    "probe_read: mov rax, [rdi]; ret",
    "probe_write: mov [rdi], rsi; ret",
    // What is there must return.
    "probe_execute: jmp rdi",
    "probe_input: mov edx, edi; in al, dx; ret",
    "probe_output: mov edx, edi; mov eax, esi; out dx, al; ret",
    "probe_recover: ret",
    ".popsection",
);

unsafe extern "C" {
    fn probe_read(address: u64, value: u64) -> u64;
    fn probe_write(address: u64, value: u64) -> u64;
    fn probe_execute(address: u64, value: u64) -> u64;
    fn probe_input(address: u64, value: u64) -> u64;
    fn probe_output(address: u64, value: u64) -> u64;
    fn probe_recover();
}

/// What an access raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Number of the exception.
    pub number: u16,
    /// First qualification: the error code.
    pub error: u64,
    /// Second qualification: the address of a page fault.
    pub address: u64,
}

/// Page-fault error code: the page is there, but not so.
pub const PRESENT: u64 = 1 << 0;
/// Page-fault error code: a write.
pub const WRITE: u64 = 1 << 1;
/// Page-fault error code: in user mode.
pub const USER: u64 = 1 << 2;
/// Page-fault error code: an instruction fetch.
pub const FETCH: u64 = 1 << 4;

type Access = unsafe extern "C" fn(u64, u64) -> u64;

/// The thread that tries.
pub struct Prober {
    go: Semaphore,
    done: Semaphore,
    access: Cell<Access>,
    operands: Cell<(u64, u64)>,
    result: Cell<u64>,
    fault: Cell<Option<Fault>>,
}

impl Prober {
    /// One in the root protection domain.
    #[track_caller]
    pub fn new() -> Result<&'static Self, Stop> {
        Self::with(root::pd(), |_| Ok(()))
    }

    /// One in a further protection domain.
    #[track_caller]
    pub fn within(domain: &Domain) -> Result<&'static Self, Stop> {
        Self::with(domain.pd, |selector| domain.give(selector, selector, perm::ALL))
    }

    #[track_caller]
    fn with(pd: Selector, share: impl Fn(Selector) -> Outcome) -> Result<&'static Self, Stop> {
        let this = shared(Self {
            go: Semaphore::new(0)?,
            done: Semaphore::new(0)?,
            access: Cell::new(probe_read),
            operands: Cell::new((0, 0)),
            result: Cell::new(0),
            fault: Cell::new(None),
        });
        let handler = Local::new()?;
        let events = selectors(event_count());
        let state = mtd::GPR_0_7 | mtd::RIP | mtd::QUAL;
        for number in 0..root::host_events() {
            handler.portal_at(events + u64::from(number), state, move |message| {
                let (error, address) =
                    (message.utcb.get(field::QUALIFICATION_1), message.utcb.get(field::QUALIFICATION_2));
                this.fault.set(Some(Fault { number, error, address }));
                message.utcb.set(field::RIP, probe_recover as *const () as u64);
                mtd::RIP
            })?;
        }
        install_startup_of(&handler, events, body, core::ptr::from_ref(this) as u64)?;
        for selector in [this.go.0, this.done.0].into_iter().chain(events..events + event_count()) {
            share(selector)?;
        }
        let (ec, utcb, sp) = (selector(), Utcb::at(memory::page_address()), memory::stack() - 8);
        let new = NewEc { pd, page: utcb.address(), cpu: root::cpu(), sp, events, flags: flag::EC_GLOBAL };
        must(hypercall::create_ec(ec, &new))?;
        must(hypercall::create_sc(selector(), root::pd(), ec, scd(100, 126, 0)))?;
        Ok(this)
    }

    #[track_caller]
    fn attempt(&self, access: Access, address: u64, value: u64) -> Result<Option<Fault>, Stop> {
        self.access.set(access);
        self.operands.set((address, value));
        self.fault.set(None);
        self.go.up();
        self.done.wait()?;
        Ok(self.fault.get())
    }

    /// Reads a word.
    #[track_caller]
    pub fn read(&self, address: u64) -> Result<Option<Fault>, Stop> {
        self.attempt(probe_read, address, 0)
    }

    /// Reads a word that is there.
    #[track_caller]
    pub fn value(&self, address: u64) -> Result<u64, Stop> {
        match self.read(address)? {
            None => Ok(self.result.get()),
            Some(fault) => Err(crate::report::failed(alloc::format!("reading {address:#x}: {fault:x?}"))),
        }
    }

    /// Writes a word.
    #[track_caller]
    pub fn write(&self, address: u64, value: u64) -> Result<Option<Fault>, Stop> {
        self.attempt(probe_write, address, value)
    }

    /// Executes what is there: it must be a return.
    #[track_caller]
    pub fn execute(&self, address: u64) -> Result<Option<Fault>, Stop> {
        self.attempt(probe_execute, address, 0)
    }

    /// Reads a port.
    #[track_caller]
    pub fn input(&self, port: u16) -> Result<Option<Fault>, Stop> {
        self.attempt(probe_input, u64::from(port), 0)
    }

    /// Writes a port.
    #[track_caller]
    pub fn output(&self, port: u16, value: u8) -> Result<Option<Fault>, Stop> {
        self.attempt(probe_output, u64::from(port), u64::from(value))
    }
}

extern "C" fn body(this: &Prober) -> ! {
    loop {
        this.go.down();
        let (address, value) = this.operands.get();
        // SAFETY: the tests try only what can at worst raise an exception, which ends the access.
        this.result.set(unsafe { this.access.get()(address, value) });
        this.done.up();
    }
}

/// The machine code of a return, as a word.
pub const RETURN: u64 = 0xc3;

/// The prober of the root protection domain.
#[track_caller]
pub fn root() -> Result<&'static Prober, Stop> {
    static ROOT: AtomicPtr<Prober> = AtomicPtr::new(core::ptr::null_mut());
    // SAFETY: null or a prober that lives for ever.
    if let Some(known) = unsafe { ROOT.load(Relaxed).as_ref() } {
        return Ok(known);
    }
    let new = Prober::new()?;
    ROOT.store(core::ptr::from_ref(new).cast_mut(), Relaxed);
    Ok(new)
}

/// Reads a word in the root protection domain; the fault, if that is impossible.
#[track_caller]
pub fn read(address: u64) -> Result<Option<Fault>, Stop> {
    root()?.read(address)
}
