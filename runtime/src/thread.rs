//! Execution contexts of this program: stacks, UTCBs, portal servers and threads.
//!
//! Every EC has a stack slot of its own. The record at the top of the stack tells where the EC's UTCB is and, for a
//! portal server, what handles its calls: an EC finds its record from its stack pointer, no thread register needed.
#![allow(unsafe_code)]

use crate::manifest::selector;
use crate::pulse::{self, Pulse};
use crate::syscall::{self, EcKind, Result, Span};
use crate::utcb::Utcb;
use crate::{STACK_RESERVE, STACK_SIZE, STACK_SLOT, manifest};
use abi::capability::Permissions;
use abi::event::{RECALL, STARTUP};
use abi::scd::Scd;
use abi::utcb::Architectural;
use abi::{Mtd, PAGE_SIZE, Selector, Status};
use alloc::boxed::Box;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// log2 of the number of exceptions.
const EXCEPTIONS_ORDER: u32 = 5;
/// Selectors for the events of one host EC, exceptions, STARTUP, RECALL, and for it and its scheduling context.
const EVENT_SELECTORS: u64 = (1 << EXCEPTIONS_ORDER) + 4;

/// Top of every stack; the stack pointer of an idle EC points to it.
#[repr(C, align(16))]
struct Record {
    handler: extern "C" fn(u64, u32, *mut (), u64) -> u32,
    context: *mut (),
    utcb: u64,
    pulse: &'static Pulse,
    /// Portal to the root task on the EC's CPU.
    parent: Selector,
}

const _: () = assert!(size_of::<Record>() == STACK_RESERVE);

extern "C" fn no_handler(_: u64, _: u32, _: *mut (), _: u64) -> u32 {
    Mtd::POISON.bits()
}

static NEXT_STACK: AtomicU64 = AtomicU64::new(1);
static NEXT_UTCB: AtomicU64 = AtomicU64::new(0);
static NEXT_PULSE: AtomicU64 = AtomicU64::new(0);
/// For ECs that the page has no room for, and programs without one.
static NO_PULSE: Pulse = Pulse::new();
static NEXT_SELECTOR: AtomicU64 = AtomicU64::new(0);

/// `count` fresh selectors, one behind the other; MEM_CAP if the manifest's are used up.
pub fn selectors(count: u64) -> Result<Selector> {
    aligned_selectors(count, 1)
}

fn aligned_selectors(count: u64, align: u64) -> Result<Selector> {
    let find = |next| manifest().free_selectors(next, count, align);
    let update = |next| find(next).map(|start| start + count);
    let before = NEXT_SELECTOR.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    before.ok().and_then(find).ok_or(Status::MemCap)
}

/// Address for a new UTCB or vAPIC page, from the manifest's window; MEM_OBJ if it is used up.
pub fn utcb_address() -> Result<u64> {
    let window = manifest().utcbs;
    let offset = NEXT_UTCB.fetch_add(PAGE_SIZE as u64, Ordering::Relaxed);
    if offset + PAGE_SIZE as u64 > window.length {
        return Err(Status::MemObj);
    }
    Ok(window.address + offset)
}

/// A counter for the signs of life of `ec`.
fn pulse(ec: Selector) -> &'static Pulse {
    let slot = NEXT_PULSE.fetch_add(1, Ordering::Relaxed) as usize;
    let Some(region) = manifest().region(pulse::REGION).filter(|_| slot < pulse::SLOTS) else { return &NO_PULSE };
    // SAFETY: the manifest says that this page is mapped, writable, for ever; program and root task access it by
    // atomics only, and zeros are a valid value.
    let pulse = unsafe { &*(region.memory.address as *const Pulse).add(slot) };
    pulse.ec.store(ec, Ordering::Relaxed);
    pulse
}

/// Reserves a stack and puts a record on it; the record's address is the initial stack pointer.
fn stack(
    pulse: &'static Pulse,
    handler: extern "C" fn(u64, u32, *mut (), u64) -> u32,
    context: *mut (),
    utcb: u64,
    parent: Selector,
) -> Result<*mut Record> {
    let window = manifest().stacks;
    let slot = NEXT_STACK.fetch_add(1, Ordering::Relaxed);
    if (slot + 1) * STACK_SLOT as u64 > window.length {
        return Err(Status::MemObj);
    }
    let top = window.address + (slot + 1) * STACK_SLOT as u64;
    let record = (top - size_of::<Record>() as u64) as *mut Record;
    // SAFETY: the slot is mapped, and no other EC has or will have it.
    unsafe { record.write(Record { handler, context, utcb, pulse, parent }) };
    Ok(record)
}

/// Puts the main EC's record on its stack.
///
/// # Safety
/// Once, by the main EC, with nothing yet on the uppermost bytes of its stack.
pub(crate) unsafe fn adopt_main(manifest: &manifest::Manifest) {
    let top = manifest.stacks.address + STACK_SLOT as u64;
    let record = (top - size_of::<Record>() as u64) as *mut Record;
    let value = Record {
        handler: no_handler,
        context: core::ptr::null_mut(),
        utcb: manifest.main_utcb,
        pulse: pulse(selector::MAIN_EC),
        parent: selector::PARENT,
    };
    value.pulse.beat();
    // SAFETY: the caller's promise.
    unsafe { record.write(value) };
}

/// The record of the EC that calls this, found from its stack.
fn current() -> *const Record {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    let top = (stack & !(STACK_SIZE as u64 - 1)) + STACK_SIZE as u64;
    (top - size_of::<Record>() as u64) as *const Record
}

/// The UTCB of the EC that calls this.
pub fn current_utcb() -> Utcb {
    // SAFETY: all stacks of a program are aligned to their size and have a record at their top. Only this EC runs on
    // this stack, so the UTCB is its own.
    unsafe { Utcb::new((*current()).utcb) }
}

/// The portal to the root task for the EC that calls this.
pub(crate) fn current_parent() -> Selector {
    // SAFETY: as in `current_utcb`.
    unsafe { (*current()).parent }
}

/// Runs `wait`, during which the calling EC counts as waiting.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    // Before the main EC has its record there is nobody to tell.
    if NEXT_PULSE.load(Ordering::Relaxed) == 0 {
        return wait();
    }
    // SAFETY: as in `current_utcb`.
    let pulse = unsafe { (*current()).pulse };
    pulse.beat();
    let result = wait();
    pulse.beat();
    result
}

/// What a portal server does when one of its portals is called.
pub trait Service: Send + 'static {
    /// Handles a call or event: `pid` is the portal's identifier, `mtd` says what `utcb` holds. Returns the descriptor of the reply.
    fn serve(&mut self, pid: u64, mtd: u32, utcb: Utcb) -> u32;

    /// Whether the portal is one that `quick` is for. All others are for `brief`.
    #[inline(always)]
    fn is_quick(_pid: u64) -> bool {
        false
    }

    /// As [`Self::serve`], for what takes a few instructions and calls nothing, so that no register has to be kept. None,
    /// with nothing done: it is for `serve`.
    #[inline(always)]
    fn quick(&mut self, _pid: u64, _mtd: u32, _utcb: Utcb) -> Option<u32> {
        None
    }

    /// The same for what takes more of them. None: it is for `serve`.
    #[inline(always)]
    fn brief(&mut self, _pid: u64, _mtd: u32, _utcb: Utcb) -> Option<u32> {
        None
    }
}

impl<F: FnMut(u64, u32, Utcb) -> u32 + Send + 'static> Service for F {
    fn serve(&mut self, pid: u64, mtd: u32, utcb: Utcb) -> u32 {
        self(pid, mtd, utcb)
    }
}

/// Entries of portals: RDI = pid, RSI = mtd, RSP = the EC's record (NOVA 5.2.2). They call the record's handler and reply,
/// with the stack pointer back where it was, by the instructions `$reply`.
macro_rules! portal_entries {
    ($($(#[$doc:meta])* $name:ident: $reply:literal;)*) => { $(
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "mov rdx, [rsp + 8]",
                "mov rcx, [rsp + 16]",
                "call [rsp]",
                "mov esi, eax",
                "mov edi, {reply}",
                $reply,
                "ud2",
                reply = const abi::Hypercall::IpcReply as u32,
            )
        }
    )* };
}

portal_entries! {
    /// For calls, and for events of host ECs.
    portal_entry: "syscall";
    /// For guests' events where [`syscall::prefer_sysenter`] (`abi::extension`): RCX = stack pointer, RDX = an address to
    /// return to.
    guest_portal_entry: "mov rcx, rsp; xor edx, edx; sysenter";
}

/// Address of the portal entry, for portals that are created by hand on a [`Server`]'s EC.
pub fn portal_address() -> u64 {
    portal_entry as *const () as u64
}

/// A local EC that serves portals. Its calls never overlap, so the service needs no lock.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    ec: Selector,
    entry: u64,
}

impl Server {
    /// Makes a local EC on `cpu` in this protection domain that hands calls to `service`, which lives for ever.
    pub fn new<S: Service>(cpu: u32, service: S) -> Result<Self> {
        Self::at(selectors(1)?, cpu, service)
    }

    /// As [`Self::new`], with the EC's capability at `ec`.
    pub fn at<S: Service>(ec: Selector, cpu: u32, service: S) -> Result<Self> {
        /// The service, and the EC's signs of life, which would otherwise have to be looked for at every call.
        struct Hosted<S>(S, &'static Pulse);
        extern "C" fn call<S: Service>(pid: u64, mtd: u32, context: *mut (), utcb: u64) -> u32 {
            if S::is_quick(pid) { quick::<S>(pid, mtd, context, utcb) } else { brief::<S>(pid, mtd, context, utcb) }
        }
        // Apart, so that only what needs registers of its own saves them.
        #[inline(never)]
        extern "C" fn quick<S: Service>(pid: u64, mtd: u32, context: *mut (), utcb: u64) -> u32 {
            // SAFETY: `context` is the leaked box below, and only this EC, whose calls do not overlap, uses it.
            let hosted = unsafe { &mut *context.cast::<Hosted<S>>() };
            hosted.1.beat();
            // SAFETY: this EC's UTCB, from its record.
            let utcb = unsafe { Utcb::new(utcb) };
            if let Some(reply) = hosted.0.quick(pid, mtd, utcb) {
                hosted.1.beat();
                return reply;
            }
            serve(pid, mtd, utcb, hosted)
        }
        #[inline(never)]
        extern "C" fn brief<S: Service>(pid: u64, mtd: u32, context: *mut (), utcb: u64) -> u32 {
            // SAFETY: as above.
            let hosted = unsafe { &mut *context.cast::<Hosted<S>>() };
            hosted.1.beat();
            // SAFETY: as above.
            let utcb = unsafe { Utcb::new(utcb) };
            if let Some(reply) = hosted.0.brief(pid, mtd, utcb) {
                hosted.1.beat();
                return reply;
            }
            serve(pid, mtd, utcb, hosted)
        }
        #[inline(never)]
        extern "C" fn serve<S: Service>(pid: u64, mtd: u32, utcb: Utcb, hosted: &mut Hosted<S>) -> u32 {
            let reply = hosted.0.serve(pid, mtd, utcb);
            hosted.1.beat();
            reply
        }
        let (events, parent) = manifest().portals_on(cpu).ok_or(Status::BadCpu)?;
        let utcb = utcb_address()?;
        let pulse = pulse(ec);
        let context = Box::into_raw(Box::new(Hosted(service, pulse)));
        let sp = stack(pulse, call::<S>, context.cast(), utcb, parent)? as u64;
        syscall::create_ec(ec, selector::PROTECTION_DOMAIN, EcKind::Local, utcb, cpu, sp, events)?;
        Ok(Self { ec, entry: portal_address() })
    }

    /// As [`Self::at`], for the events of a guest: replies by SYSENTER where that is shorter.
    pub fn of_guest<S: Service>(ec: Selector, cpu: u32, service: S) -> Result<Self> {
        let server = Self::at(ec, cpu, service)?;
        let entry = if syscall::prefer_sysenter() { guest_portal_entry as *const () as u64 } else { server.entry };
        Ok(Self { entry, ..server })
    }

    /// The EC's capability.
    pub fn ec(&self) -> Selector {
        self.ec
    }

    /// Makes a portal to this server at `sel`, with identifier `pid`; `mtd` counts for events only.
    pub fn portal(&self, sel: Selector, pid: u64, mtd: Mtd) -> Result<()> {
        syscall::create_pt(sel, selector::PROTECTION_DOMAIN, self.ec, self.entry)?;
        syscall::ctrl_pt(sel, pid, mtd.bits())
    }
}

/// The capabilities of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// The execution context.
    pub ec: Selector,
    /// The scheduling context.
    pub sc: Selector,
}

/// What a thread does, as its record holds it.
type Run = Box<dyn FnOnce() + Send>;

/// First of all in a new thread.
pub(crate) extern "C" fn begin() -> ! {
    // SAFETY: this EC's own record, which `spawn` wrote; only this thread, once, takes what it does.
    unsafe {
        let record = current();
        (*record).pulse.beat();
        if !(*record).context.is_null() {
            Box::from_raw((*record).context.cast::<Run>())();
        }
    }
    crate::sync::park()
}

/// In the handler of a thread's STARTUP event, with general registers and RIP: has it begin. For the root task, which answers
/// its own threads; those of others begin at their program's entry, without a manifest.
pub fn startup(state: &mut Architectural) {
    // As a call would have left it.
    state.gpr[abi::utcb::gpr::RSP] -= 8;
    state.rip = begin as *const () as u64;
}

/// Starts a thread on this program's CPU with scheduling parameters `scd`. When `run` returns, the thread sleeps for
/// ever.
pub fn spawn(scd: Scd, run: impl FnOnce() + Send + 'static) -> Result<Thread> {
    spawn_on(manifest().cpu, scd, run)
}

/// As [`spawn`], on another CPU; BAD_CPU if the program cannot use it.
pub fn spawn_on(cpu: u32, scd: Scd, run: impl FnOnce() + Send + 'static) -> Result<Thread> {
    let (portals, parent) = manifest().portals_on(cpu).ok_or(Status::BadCpu)?;
    let events = aligned_selectors(EVENT_SELECTORS, 1 << EXCEPTIONS_ORDER)?;
    // Behind the last event.
    let caps = events + EVENT_SELECTORS - 2;
    // The portals that the parent made for ECs on this CPU serve all threads.
    let exceptions = Span { source: portals, destination: events, order: EXCEPTIONS_ORDER };
    let own = selector::OBJECT_SPACE;
    // SAFETY: between object spaces.
    unsafe { syscall::delegate(own, own, exceptions, Permissions::all(), 0)? };
    for event in [STARTUP, RECALL].map(|event| u64::from(manifest().sel_hst_arch + event)) {
        syscall::delegate_object(own, portals + event, own, events + event, Permissions::all())?;
    }
    let utcb = utcb_address()?;
    let run: Run = Box::new(run);
    let context = Box::into_raw(Box::new(run)).cast();
    let sp = stack(pulse(caps), no_handler, context, utcb, parent)? as u64;
    let (thread, pd) = (Thread { ec: caps, sc: caps + 1 }, selector::PROTECTION_DOMAIN);
    syscall::create_ec(thread.ec, pd, EcKind::Global, utcb, cpu, sp, events)?;
    syscall::create_sc(thread.sc, pd, thread.ec, scd)?;
    Ok(thread)
}
