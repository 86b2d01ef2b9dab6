#![allow(unsafe_code)]
//! Execution contexts.
//!
//! Unsafe: builds references to UTCB frames and shares ECs between CPUs.

use core::cell::Cell;
use core::mem::offset_of;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use abi::Mtd;
use abi::utcb::Architectural;
use kernel_core::mailbox::MailCell;
use kernel_core::ready::{Fifo, LinkCell, Links};
use kernel_core::slots::Entry;
use kernel_core::timeout::{TimeoutNode, TimeoutNodes};

use crate::cpu::{Cpu, Owned};
use crate::destroy::Errand;
use crate::guest::GuestState;
use crate::memory::{Frame, StaticFrame};
use crate::object::{Ref, by_id};
use crate::pd::Pd;
use crate::sched::Sc;
use crate::semaphore::Sm;
use crate::space::{HostSpace, ObjectSpace, Selectors};
use crate::vcpu::Gprs;

/// What an EC does when it next gets the CPU, or what it waits for. With those before [`Continuation::SendCall`] it
/// runs without looking at anybody else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
#[repr(u8)]
pub enum Continuation {
    /// Return from a hypercall.
    ReturnHypercall,
    /// Return from an exception or interrupt with full state.
    ReturnInterrupt,
    /// Enter the guest.
    EnterGuest,
    /// First run of a global thread or vCPU: raise STARTUP.
    Startup,
    /// Send the message of an ipc_call whose callee was busy.
    SendCall,
    /// Raise this event, whose handler was busy.
    SendEvent,
    /// Go on with a ctrl_pd that was preempted.
    ResumeCtrlPd,
    /// Go on with a destruction.
    ResumeDestroy,
    /// Free page tables that nobody can reach any more, then return from the hypercall.
    FreeTables,
    /// Waits for the reply to an ipc_call.
    AwaitReply,
    /// Waits for the reply to an event.
    AwaitEventReply,
    /// Waits on a semaphore.
    Blocked,
    /// Waits until other CPUs have answered.
    AwaitRound,
    /// A local thread without a caller.
    Idle,
    /// Killed.
    Dead,
}

/// What an EC is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EcKind {
    /// Host EC with portals.
    Local,
    /// Host EC with a scheduling context.
    Global,
    /// Virtual CPU.
    Guest,
}

/// What an EC is bound to from its creation on.
pub struct Binding {
    /// Its own reference.
    pub reference: Ref<Ec>,
    /// Kind.
    pub kind: EcKind,
    /// CPU.
    pub cpu: &'static Cpu,
    /// Protection domain.
    pub pd: &'static Pd,
    /// Object space in which its selectors are looked up.
    pub objects: &'static ObjectSpace,
    /// Host space.
    pub space: &'static HostSpace,
    /// UTCB of a host EC, vAPIC page of a guest EC.
    pub utcb: Frame,
    /// Address at which the UTCB was mapped.
    pub utcb_address: u64,
    /// First selector of its event portals.
    pub event_base: u64,
    /// FPU state while it is not in the registers; the EC may not use the FPU without.
    pub fpu_state: Option<Frame>,
    /// What a guest EC has beyond a host EC.
    pub guest: Option<&'static GuestState>,
}

/// Who called a local thread, if anybody did. The fast path follows it before it knows, and finds somebody who waits for nothing.
#[repr(transparent)]
pub struct Caller(Cell<*const Ec>);

/// Nobody: as much of an EC as the fast path looks at.
pub static NOBODY: StaticFrame = StaticFrame::zeroed();

impl Caller {
    /// The caller.
    pub fn get(&self) -> Option<&'static Ec> {
        // SAFETY: anybody else is an EC that waits, for as long as it does.
        (!core::ptr::addr_eq(self.0.get(), NOBODY.get())).then(|| unsafe { &*self.0.get() })
    }

    /// Changes it.
    pub fn set(&self, caller: Option<&'static Ec>) {
        self.0.set(caller.map_or(NOBODY.get().cast(), core::ptr::from_ref));
    }
}

/// An execution context. The first 192 bytes are written by the entry stubs in `entry.S`.
#[repr(C, align(64))]
pub struct Ec {
    /// General registers.
    pub gprs: Owned<Gprs>,
    /// Address of the CPU's stack top.
    pub stack: u64,
    /// Vector of the exception or interrupt.
    pub vector: Cell<u64>,
    /// Its error code.
    pub error: Cell<u64>,
    /// RIP in user mode; of a guest EC unused.
    pub rip: Cell<u64>,
    cs: Cell<u64>,
    /// RFLAGS in user mode.
    pub rflags: Cell<u64>,
    /// RSP in user mode.
    pub rsp: Cell<u64>,
    ss: Cell<u64>,

    /// What comes next.
    pub continuation: Cell<Continuation>,
    /// A recall is pending. The fast path looks at both at once.
    pub recall: AtomicBool,
    /// It has entered the kernel by SYSENTER. The fast path looks at these four bytes at once, too.
    pub sysenter: Cell<bool>,
    always_0: u8,
    /// The event that it sends.
    pub event: Cell<u16>,
    /// Who called this local thread and waits for its reply.
    pub caller: Caller,
    /// The local thread whose reply this EC waits for, if it does: see [`Self::callee`].
    pub serves: Cell<Option<&'static Ec>>,
    /// Its capabilities, message words and page tables: what `binding` leads to, close at hand for the fast path.
    pub selectors: &'static Selectors,
    /// See above.
    pub message: *mut u64,
    /// See above.
    pub tables: u64,
    /// The handler that the fast path found last, see `fast.S`: nobody else's.
    pub last_found: Owned<[u64; 7]>,
    /// The busy local thread that it helps until it can call it.
    pub helps: Cell<Option<Ref<Ec>>>,
    /// Header of the scheduling context that was bound to it, plus one; while that is created [`u32::MAX`].
    pub bound: AtomicU32,

    /// SCs that wait for this EC to unblock.
    pub parked: Owned<Fifo>,
    /// Link in a semaphore's queue.
    pub link: LinkCell,
    /// Armed while the EC waits with a timeout.
    pub timeout: TimeoutNode,
    /// Semaphore it waits on.
    pub waits_on: Cell<Option<&'static Sm>>,
    /// Address of the last page fault.
    pub fault_address: Cell<u64>,
    /// Pages done of a preempted ctrl_pd.
    pub progress: Cell<u64>,
    /// The space that this ctrl_pd changes.
    pub destination: Cell<Entry>,
    /// What it wants destroyed.
    pub errand: Cell<Errand>,
    /// What comes after the round that it waits for.
    pub after_round: Cell<Continuation>,
    /// Messages from other CPUs.
    pub mail: MailCell,
    /// Priority and budget of the scheduling context that was bound to it.
    pub share: Cell<Option<(u8, u64)>>,
    /// Of a local thread whose caller was destroyed: the scheduling context that lingers until it replies.
    pub orphan: Sc,
    /// What it is bound to.
    pub binding: Binding,
}

impl Deref for Ec {
    type Target = Binding;

    #[inline(always)]
    fn deref(&self) -> &Binding {
        &self.binding
    }
}

// SAFETY: cells of an EC are touched by its CPU only; what other CPUs touch is atomic.
unsafe impl Sync for Ec {}

const _: () = {
    assert!(offset_of!(Ec, stack) == crate::vcpu::STACK_OFFSET);
    assert!(offset_of!(Ec, vector) == 136 && offset_of!(Ec, rip) == 152 && offset_of!(Ec, rsp) == 176);
    assert!(offset_of!(Ec, continuation) == FRAME_END && offset_of!(Ec, recall) == FRAME_END + 1);
    assert!(offset_of!(Ec, sysenter) == FRAME_END + 2 && offset_of!(Ec, always_0) == FRAME_END + 3);
    assert!(offset_of!(Ec, tables) < FRAME_END + 64);
    assert!(size_of::<Ec>() <= 1024);
};

/// Offset of the end of the frame that the processor pushes on an entry from user mode.
pub const FRAME_END: usize = 192;

/// Flags of RFLAGS that a reply can set: status flags and DF.
const RFLAGS_USER: u64 = 0xcd5;

impl Ec {
    /// A new EC with stack pointer `rsp` that waits to be called (local) or for a scheduling context.
    pub fn new(binding: Binding, rsp: u64) -> Self {
        let continuation = if binding.kind == EcKind::Local { Continuation::Idle } else { Continuation::Startup };
        Self {
            gprs: Owned::new(Gprs([0; 16])),
            stack: core::ptr::from_ref(binding.cpu) as u64,
            vector: Cell::new(0),
            error: Cell::new(0),
            rip: Cell::new(0),
            cs: Cell::new(crate::descriptors::USER_CS as u64),
            rflags: Cell::new(0x202),
            rsp: Cell::new(rsp),
            ss: Cell::new(crate::descriptors::USER_SS as u64),
            continuation: Cell::new(continuation),
            recall: AtomicBool::new(false),
            sysenter: Cell::new(false),
            always_0: 0,
            event: Cell::new(0),
            caller: Caller(Cell::new(NOBODY.get().cast())),
            serves: Cell::new(None),
            selectors: binding.objects.selectors(),
            message: binding.utcb.pointer().cast(),
            tables: binding.space.root(),
            last_found: Owned::new([u64::MAX, u64::MAX >> 1, 0, 0, 0, 0, 0]),
            helps: Cell::new(None),
            orphan: Sc::inherited(binding.reference, binding.cpu),
            share: Cell::new(None),
            bound: AtomicU32::new(0),
            parked: Owned::new(Fifo::empty()),
            link: LinkCell::unlinked(),
            timeout: TimeoutNode::unlinked(),
            waits_on: Cell::new(None),
            fault_address: Cell::new(0),
            progress: Cell::new(0),
            destination: Cell::new(Entry::NULL),
            errand: Cell::new(Errand::NONE),
            after_round: Cell::new(continuation),
            mail: MailCell::empty(),
            binding,
        }
    }

    /// General register by encoding.
    #[inline(always)]
    pub fn gpr(&self, index: usize) -> u64 {
        self.gprs.get().0[index]
    }

    /// Sets a general register.
    #[inline(always)]
    pub fn set_gpr(&self, index: usize, value: u64) {
        self.gprs.get().0[index] = value;
    }

    /// The UTCB as architectural state. User code may change it at any time: every value is read once and checked.
    #[allow(clippy::mut_from_ref)]
    pub fn architectural(&self) -> &mut Architectural {
        // SAFETY: the frame is a whole page, plain integers; only this CPU writes it while the handler does not run.
        unsafe { &mut *self.utcb.pointer().cast::<Architectural>() }
    }

    /// Whether its continuation is one of `states`. For any CPU.
    pub fn is_in(&self, states: &[Continuation]) -> bool {
        // SAFETY: the continuation is one byte.
        let now = unsafe { AtomicU8::from_ptr(self.continuation.as_ptr().cast()) }.load(Ordering::Relaxed);
        states.iter().any(|state| *state as u8 == now)
    }

    /// The local thread whose reply this EC waits for.
    pub fn callee(&self) -> Option<&'static Ec> {
        let waits = matches!(self.continuation.get(), Continuation::AwaitReply | Continuation::AwaitEventReply);
        self.serves.get().filter(|_| waits)
    }

    /// State of a host EC named by `mtd` -> `utcb` (NOVA 8.7.4).
    pub fn save_host(&self, mtd: Mtd, utcb: &mut Architectural) {
        self.gprs.get().save(mtd, utcb, || self.rsp.get());
        if mtd.contains(Mtd::RFLAGS) {
            utcb.rflags = self.rflags.get();
        }
        if mtd.contains(Mtd::RIP) {
            utcb.rip = self.rip.get();
        }
        if mtd.contains(Mtd::QUAL) {
            utcb.qualification = [self.error.get(), self.fault_address.get(), 0];
        }
    }

    /// State named by `mtd` in `utcb` -> host EC.
    pub fn load_host(&self, mtd: Mtd, utcb: &Architectural) {
        self.gprs.get().load(mtd, utcb, |rsp| self.rsp.set(rsp));
        if mtd.contains(Mtd::RFLAGS) {
            self.rflags.set(utcb.rflags & RFLAGS_USER | self.rflags.get() & !RFLAGS_USER);
        }
        if mtd.contains(Mtd::RIP) {
            self.rip.set(utcb.rip);
        }
    }
}

/// ECs linked in a semaphore's queue.
pub struct EcLinks;
impl Links for EcLinks {
    fn links(&self, id: u32) -> &LinkCell {
        &by_id::<Ec>(id).link
    }
}

/// ECs with armed timeouts.
pub struct EcTimeouts;
impl TimeoutNodes for EcTimeouts {
    fn node(&self, id: u32) -> &TimeoutNode {
        &by_id::<Ec>(id).timeout
    }
}
