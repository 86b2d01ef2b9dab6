//! Execution contexts of this program: stacks, UTCBs, portal servers and threads.
//!
//! Every EC has a stack slot of its own. The record at the top of the stack tells where the EC's UTCB is and, for a
//! portal server, what handles its calls: an EC finds its record from its stack pointer, no thread register needed.
#![allow(unsafe_code)]

use crate::manifest::{FURTHER_CPUS, selector};
use crate::pulse::{self, Pulse};
use crate::syscall::{self, EcKind, Result, Span};
use crate::utcb::Utcb;
use crate::{STACK_RESERVE, STACK_SIZE, STACK_SLOT, manifest};
use abi::capability::Permissions;
use abi::event::RECALL;
use abi::scd::Scd;
use abi::{Mtd, PAGE_SIZE, Selector, Status};
use alloc::boxed::Box;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// Selectors for the events of one host EC: exceptions, STARTUP, RECALL; a power of two.
const EVENT_SELECTORS: u64 = 64;

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
static NEXT_SELECTOR: AtomicU64 = AtomicU64::new(selector::DYNAMIC);

/// `count` fresh selectors, aligned to their number rounded up to a power of two; MEM_CAP if none are left below
/// [`selector::FREE`].
pub fn selectors(count: u64) -> Result<Selector> {
    let align = count.next_power_of_two();
    let update = |next: u64| {
        let start = next.next_multiple_of(align);
        (start + count <= selector::FREE).then_some(start + count)
    };
    let before = NEXT_SELECTOR.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    before.map(|next| next.next_multiple_of(align)).map_err(|_| Status::MemCap)
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

    /// As [`Self::serve`], for what takes a few instructions and calls nothing, so that no register has to be kept. None,
    /// with nothing done: it is for `brief`.
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
            // SAFETY: `context` is the leaked box below, and only this EC, whose calls do not overlap, uses it.
            let hosted = unsafe { &mut *context.cast::<Hosted<S>>() };
            hosted.1.beat();
            // SAFETY: this EC's UTCB, from its record.
            let utcb = unsafe { Utcb::new(utcb) };
            if let Some(reply) = hosted.0.quick(pid, mtd, utcb) {
                hosted.1.beat();
                return reply;
            }
            brief(pid, mtd, utcb, hosted)
        }
        // Apart, so that only what needs registers of its own saves them.
        #[inline(never)]
        extern "C" fn brief<S: Service>(pid: u64, mtd: u32, utcb: Utcb, hosted: &mut Hosted<S>) -> u32 {
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

/// A thread's start: its code, consumed by the first and only STARTUP event.
struct Start {
    run: Option<Box<dyn FnOnce() + Send>>,
    sp: u64,
}

/// The capabilities of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// The execution context.
    pub ec: Selector,
    /// The scheduling context.
    pub sc: Selector,
}

extern "C" fn thread_main(start: *mut Start) -> ! {
    // SAFETY: the leaked box of `spawn`, handed to this thread alone.
    let start = unsafe { &mut *start };
    if let Some(run) = start.run.take() {
        // SAFETY: this EC's own record.
        unsafe { (*current()).pulse.beat() };
        run();
    }
    crate::sync::park()
}

/// Answers the STARTUP events of threads; the portal's identifier is the address of the thread's [`Start`].
fn start_thread(pid: u64, _: u32, mut utcb: Utcb) -> u32 {
    let start = pid as *const Start;
    let state = utcb.architectural();
    // SAFETY: `pid` was set from a leaked box by `spawn`, which is the only one to make portals for this server.
    state.gpr[abi::utcb::gpr::RSP] = unsafe { (*start).sp } - 8;
    state.gpr[abi::utcb::gpr::RDI] = pid;
    state.rip = thread_main as *const () as u64;
    (Mtd::GPR_0_7 | Mtd::RIP).bits()
}

/// The server that starts threads on `cpu`.
fn starter(cpu: u32) -> Result<Server> {
    type Starters = [Option<(u32, Server)>; FURTHER_CPUS + 1];
    static READY: crate::sync::Mutex<Starters> =
        crate::sync::Mutex::new([None; FURTHER_CPUS + 1], selector::THREAD_LOCK);
    let mut ready = READY.lock();
    if let Some((_, server)) = ready.iter().flatten().find(|(place, _)| *place == cpu) {
        return Ok(*server);
    }
    let vacant = ready.iter_mut().find(|slot| slot.is_none()).ok_or(Status::BadCpu)?;
    let server = Server::new(cpu, start_thread)?;
    *vacant = Some((cpu, server));
    Ok(server)
}

/// Starts a thread on this program's CPU with scheduling parameters `scd`. When `run` returns, the thread sleeps for
/// ever.
pub fn spawn(scd: Scd, run: impl FnOnce() + Send + 'static) -> Result<Thread> {
    spawn_on(manifest().cpu, scd, run)
}

/// As [`spawn`], on another CPU; BAD_CPU if the program cannot use it.
pub fn spawn_on(cpu: u32, scd: Scd, run: impl FnOnce() + Send + 'static) -> Result<Thread> {
    let (portals, parent) = manifest().portals_on(cpu).ok_or(Status::BadCpu)?;
    let starter = starter(cpu)?;
    let events = selectors(EVENT_SELECTORS)?;
    // Behind the last event.
    let caps = events + EVENT_SELECTORS - 2;
    // The exception portals that the parent made for ECs on this CPU serve all threads.
    let exceptions = Span { source: portals, destination: events, order: 5 };
    let own = selector::OBJECT_SPACE;
    // SAFETY: between object spaces.
    unsafe { syscall::delegate(own, own, exceptions, Permissions::all(), 0)? };
    let arch = manifest().sel_hst_arch as u64;
    let recall = arch + RECALL as u64;
    syscall::delegate_object(own, portals + recall, own, events + recall, Permissions::all())?;
    let utcb = utcb_address()?;
    let sp = stack(pulse(caps), no_handler, core::ptr::null_mut(), utcb, parent)? as u64;
    let start = Box::into_raw(Box::new(Start { run: Some(Box::new(run)), sp }));
    starter.portal(events + arch, start as u64, Mtd::GPR_0_7 | Mtd::RIP)?;
    let (thread, pd) = (Thread { ec: caps, sc: caps + 1 }, selector::PROTECTION_DOMAIN);
    syscall::create_ec(thread.ec, pd, EcKind::Global, utcb, cpu, sp, events)?;
    syscall::create_sc(thread.sc, pd, thread.ec, scd)?;
    Ok(thread)
}
