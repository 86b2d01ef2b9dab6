#![allow(unsafe_code)]
//! Guest ECs: entering the guest, its exits, and the spaces that its handler assigns (NOVA 2.2.2).
//!
//! Unsafe: enters the guest.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use abi::Mtd;
use abi::capability::Permissions;
use abi::observation::counter;
use abi::utcb::Architectural;

use crate::cpu::{Cpu, Owned, Unusual};
use crate::ec::{Continuation, Ec};
use crate::object::{Ref, TABLE};
use crate::space::{GuestSpace, MsrSpace, ObjectSpace, PioSpace};
use crate::svm::Svm;
use crate::vcpu::{Exit, Gprs, PhysPage, Processor, VirtualCpu};
use crate::vmx::Vmx;
use crate::{fast, fpu, interrupt, portal, registers, run};

/// A virtual CPU of the vendor at hand.
enum Vcpu {
    Vmx(Vmx),
    Svm(Svm),
}

/// The spaces that a vCPU uses.
#[derive(Clone, Copy)]
struct Assigned {
    guest: Ref<GuestSpace>,
    pio: Ref<PioSpace>,
    msr: Ref<MsrSpace>,
}

/// In [`Cpu::poised`]: no guest, and not what ECs without a guest have.
pub const NOBODY: *const GuestState = core::ptr::dangling();

/// What a guest EC has beyond a host EC.
#[repr(C)]
pub struct GuestState {
    /// VMCS or VMCB.
    pub block: PhysPage,
    /// Where the fast path enters the guest again.
    pub resume: unsafe extern "C" fn() -> !,
    /// The same with a new RIP alone.
    pub resume_rip: unsafe extern "C" fn() -> !,
    /// How it passes on an event: on VMX any, on SVM one whose handler was just found.
    pub pass_event: Cell<unsafe extern "C" fn() -> !>,
    /// Its exits turn SYSCALL off, for a handler that enters by SYSENTER (VMX).
    pub syscall_off: Cell<bool>,
    assigned: Cell<Option<Assigned>>,
    /// The guest space, if it is there.
    space: Cell<Option<&'static GuestSpace>>,
    /// [`Changes`](kernel_core::slots::Changes) when it last looked whether its spaces are there.
    changes: Cell<u64>,
    /// Generation of the guest space when it was entered last by [`enter`].
    generation: Cell<u64>,
    vcpu: Owned<Vcpu>,
}

impl GuestState {
    /// A virtual CPU of `processor` in the reset state, without spaces, whose handlers live in host space `root`,
    /// with a stack pointer. The zeroed frames are its own: VMCS or VMCB, and the virtual-APIC page, which only VMX has.
    pub fn new(processor: &'static Processor, [block, apic]: [PhysPage; 2], root: u64, rsp: u64) -> Self {
        let vcpu = match processor {
            Processor::Vmx(processor) => Vcpu::Vmx(Vmx::new(processor, block, apic, root, rsp)),
            Processor::Svm(processor) => Vcpu::Svm(Svm::new(processor, block, rsp)),
        };
        let [resume, resume_rip, pass_event]: [unsafe extern "C" fn() -> !; 3] = match vcpu {
            Vcpu::Vmx(_) => [fast::vmx_resume, fast::vmx_resume, fast::vmx_event_for_syscall],
            Vcpu::Svm(_) => [fast::svm_resume, fast::svm_resume_rip, fast::svm_event_found],
        };
        Self {
            block,
            resume,
            resume_rip,
            pass_event: Cell::new(pass_event),
            syscall_off: Cell::new(false),
            vcpu: Owned::new(vcpu),
            assigned: Cell::new(None),
            space: Cell::new(None),
            changes: Cell::new(0),
            generation: Cell::new(0),
        }
    }

    /// The virtual CPU.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub fn vcpu(&self) -> &mut dyn VirtualCpu {
        match self.vcpu.get() {
            Vcpu::Vmx(vcpu) => vcpu,
            Vcpu::Svm(vcpu) => vcpu,
        }
    }

    /// Assigns the spaces that `utcb` names in `objects`; those whose capability lacks ASSIGN stay as they were.
    pub fn assign(&self, objects: &ObjectSpace, utcb: &Architectural) {
        let previous = self.assigned.get();
        let guest =
            objects.selectors().get::<GuestSpace>(utcb.sel_gst, Permissions::ASSIGN).ok().map(|(_, space)| space);
        let pio = objects.selectors().get::<PioSpace>(utcb.sel_pio, Permissions::ASSIGN).ok().map(|(_, space)| space);
        let msr = objects.selectors().get::<MsrSpace>(utcb.sel_msr, Permissions::ASSIGN).ok().map(|(_, space)| space);
        let Some(guest) = guest.or(previous.map(|spaces| spaces.guest)) else { return };
        let Some(pio) = pio.or(previous.map(|spaces| spaces.pio)) else { return };
        let Some(msr) = msr.or(previous.map(|spaces| spaces.msr)) else { return };
        // What is stale is found out below.
        let _ = (guest.retain(), pio.retain(), msr.retain());
        self.drop_spaces();
        self.assigned.set(Some(Assigned { guest, pio, msr }));
        self.generation.set(0);
        self.look_again();
    }

    /// The spaces that were assigned are no longer used.
    pub fn drop_spaces(&self) {
        if let Some(Assigned { guest, pio, msr }) = self.assigned.take() {
            guest.drop_use();
            pio.drop_use();
            msr.drop_use();
        }
    }

    /// Looks the assigned spaces up; without all of them there is none.
    fn look_again(&self) {
        self.changes.set(TABLE.changes.0.load(Ordering::Acquire));
        let found = |spaces: Assigned| Some((spaces.guest.get()?, spaces.pio.get()?, spaces.msr.get()?));
        let spaces = self.assigned.get().and_then(found);
        self.space.set(spaces.map(|(guest, ..)| guest));
        if let Some((guest, pio, msr)) = spaces {
            self.vcpu().assign(guest.0.root(), pio.bitmap.physical(), msr.bitmap.physical());
        }
    }

    /// Takes the vCPU off its CPU, for good.
    pub fn release(&self, cpu: &Cpu) {
        if cpu.guest.get().is_some_and(|guest| core::ptr::eq(guest, self)) {
            leave(cpu);
        }
        if core::ptr::eq(cpu.poised.get(), self) {
            cpu.poised.set(NOBODY);
        }
        self.vcpu().release();
    }
}

/// Enters the guest of `ec`.
pub fn enter(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    let Some(guest) = ec.guest else { portal::kill(cpu, ec, format_args!("not a vCPU")) };
    if guest.changes.get() != TABLE.changes.0.load(Ordering::Acquire) {
        guest.look_again();
    }
    let Some(space) = guest.space.get() else {
        portal::kill(cpu, ec, format_args!("it has no guest, PIO and MSR spaces, or they are gone"))
    };
    run::make_current(cpu, ec);
    cpu.counters().count(counter::GUEST_ENTRY);
    run::switch_space(cpu, ec);
    fpu::acquire(cpu, ec);
    let vcpu = guest.vcpu();
    fpu::load_xcr0(cpu, vcpu.common().xcr0);
    cpu.nested.enter(space.0.root());
    let generation = space.0.generation.current();
    if generation != guest.generation.replace(generation) {
        cpu.counters().count(counter::GUEST_FLUSH);
        vcpu.common().flush();
    }
    if cpu.guest.get().is_some_and(|last| !core::ptr::eq(last, guest)) {
        leave(cpu);
    }
    occupy(cpu, guest);
    cpu.poised.set(if vcpu.is_plain() && cpu.unusual.bits() & !Unusual::GUEST == 0 { guest } else { NOBODY });
    // SAFETY: the EC's first field are its registers; the host space is loaded, the spaces are assigned and live as long
    // as the EC.
    let event = unsafe { vcpu.enter(core::ptr::from_ref(ec).cast_mut().cast::<Gprs>(), cpu.deadline.get()) };
    portal::raise(cpu, ec, event)
}

/// Before user mode: registers that the last guest left live are the host's again.
pub extern "C" fn leave(cpu: &Cpu) {
    cpu.unusual.guest.set(false);
    if let Some(guest) = cpu.guest.take()
        && let Vcpu::Vmx(vcpu) = guest.vcpu.get()
    {
        vcpu.restore_host(guest.syscall_off.get());
    }
}

/// The state of `ec`, whose guest stopped, that `mtd` names: to the message of `handler`.
pub extern "C" fn save_state(ec: &Ec, mtd: u32, handler: &Ec) {
    let Some(guest) = ec.guest else { return };
    guest.vcpu().save(Mtd::from_bits_retain(mtd), ec.gprs.get(), handler.architectural());
}

/// `handler` will run on `cpu` for an event of `guest`: later exits leave SYSCALL to the guest if it does without.
pub fn expect(cpu: &Cpu, guest: &GuestState, handler: &Ec) {
    leave(cpu);
    let off = handler.sysenter.get();
    if guest.syscall_off.replace(off) != off
        && let Vcpu::Vmx(vcpu) = guest.vcpu.get()
    {
        guest.pass_event.set(if off { fast::vmx_event } else { fast::vmx_event_for_syscall });
        vcpu.set_syscall_off(off);
    }
}

/// The state of `ec`'s guest, which ran last, is in the registers again.
pub extern "C" fn make_live(ec: &'static Ec) {
    if let Some(vcpu) = ec.guest.and_then(|guest| occupy(ec.cpu, guest)) {
        vcpu.load_live();
    }
}

/// State of `guest`, if it is VMX's, is about to replace the host's in registers.
fn occupy<'a>(cpu: &Cpu, guest: &'static GuestState) -> Option<&'a mut Vmx> {
    let Vcpu::Vmx(vcpu) = guest.vcpu.get() else { return None };
    cpu.guest.set(Some(guest));
    cpu.unusual.guest.set(true);
    cpu.task_register_stale.set(true);
    Some(vcpu)
}

/// The guest of an EC stopped; the exit stubs call this on the CPU's stack.
pub extern "C" fn vcpu_exit(ec: &'static Ec) -> ! {
    let cpu = ec.cpu;
    let Some(guest) = ec.guest else { portal::kill(cpu, ec, format_args!("not a vCPU")) };
    ec.continuation.set(Continuation::EnterGuest);
    match guest.vcpu().exit(ec.gprs.get()) {
        Exit::Event(number) => portal::raise(cpu, ec, number),
        Exit::Interrupt(Some(vector)) => interrupt::handle(cpu, vector),
        Exit::Interrupt(None) => registers::interrupt_window(),
        Exit::MachineCheck => crate::panic::fatal(format_args!("machine check in a guest")),
        Exit::Resume => {}
    }
    run::run(cpu, ec)
}
