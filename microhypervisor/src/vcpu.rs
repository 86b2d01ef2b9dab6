//! The narrow door between the kernel and the two virtualization extensions: above it nobody asks which vendor it is.
//!
//! A [`Processor`] is what a CPU has (one per CPU), a [`VirtualCpu`] what a guest EC has. Both stay at one address from
//! their first use on, and are used on their own CPU only, with interrupts off.
//!
//! The round trip: [`VirtualCpu::enter`] runs the guest. When the guest stops, the entry stub leaves the general
//! registers in [`Gprs`] (which begins the EC), takes the stack pointer at [`STACK_OFFSET`] and calls `vcpu_exit` with
//! interrupts off; CR0.TS is set on VMX and as it was at entry on SVM. That calls [`VirtualCpu::exit`] first. An event
//! then travels by [`VirtualCpu::save`] into the UTCB and by [`VirtualCpu::load`] back. Before the CPU runs a host EC
//! in user mode the kernel calls `Vmx::restore_host` of the vCPU that ran last, if it is one. Everything else that must be
//! switched between vCPUs (VMCS, tags, debug registers) the implementations switch themselves.
//!
//! What they rely on: kernel and programs leave FS and GS bases zero; the handler of vector 2 returns to the kernel;
//! the kernel never uses breakpoints or SWAPGS; XCR0 and FPU state are switched by [`crate::fpu`].
//!
//! Events are numbered and qualified as on VMX (see [`abi::event`]). For the event EXCEPTION the second qualification
//! is the interruption information of the exception in the encoding of NOVA 8.7.3.2, the third its error code.
//! Execution controls that a VMM may set are those of [`vmx::spec::VMM_PRIMARY`] and, as far as they make
//! anything exit or are VMX's, of [`vmx::spec::VMM_SECONDARY`]. A guest is never entered in another activity state than active: waiting is the VMM's work.
#![allow(unsafe_code)] // Entry stubs are assembly, and the processor objects refer to the vCPU whose state is loaded.

pub mod legal;
pub mod register;

use crate::{registers, svm, vmx};
use abi::Mtd;
use abi::utcb::{Architectural, DescriptorTable, Segment, gpr};
use core::cell::Cell;
use kernel_core::reason::Reason;

/// General registers as the entry stubs save them: the index is the instruction encoding (see [`abi::utcb::gpr`]).
/// Entry 4 (RSP) is the stubs' scratch: RSP lives in VMCS or VMCB.
#[repr(C)]
pub struct Gprs(pub [u64; 16]);

/// Offset from the [`Gprs`] of an EC to the stack pointer (u64, aligned to 16) that `vcpu_exit` runs on.
pub const STACK_OFFSET: usize = core::mem::size_of::<Gprs>();

/// Exceptions that always exit: machine check for the kernel, and the two whose delivery can recur for ever inside
/// the CPU without an interrupt getting through (#DB, #AC); those are given back to the guest.
pub const KERNEL_EXCEPTIONS: u32 = 1 << vector::DEBUG | 1 << vector::ALIGNMENT_CHECK | 1 << vector::MACHINE_CHECK;

/// Exception vectors (Intel SDM vol. 3A, 6.3).
pub mod vector {
    /// #DB.
    pub const DEBUG: u8 = 1;
    /// #BP.
    pub const BREAKPOINT: u8 = 3;
    /// #OF.
    pub const OVERFLOW: u8 = 4;
    /// #PF.
    pub const PAGE_FAULT: u8 = 14;
    /// #AC.
    pub const ALIGNMENT_CHECK: u8 = 17;
    /// #MC.
    pub const MACHINE_CHECK: u8 = 18;
}

impl Gprs {
    /// Copies what `mtd` names to `utcb`, with RSP from elsewhere.
    #[inline(always)]
    pub fn save(&self, mtd: Mtd, utcb: &mut Architectural, rsp: impl FnOnce() -> u64) {
        if mtd.contains(Mtd::GPR_0_7) {
            utcb.gpr[..8].copy_from_slice(&self.0[..8]);
            utcb.gpr[gpr::RSP] = rsp();
        }
        if mtd.contains(Mtd::GPR_8_15) {
            utcb.gpr[8..].copy_from_slice(&self.0[8..]);
        }
    }

    /// Copies what `mtd` names from `utcb`, RSP to elsewhere.
    #[inline(always)]
    pub fn load(&mut self, mtd: Mtd, utcb: &Architectural, rsp: impl FnOnce(u64)) {
        if mtd.contains(Mtd::GPR_0_7) {
            self.0[..8].copy_from_slice(&utcb.gpr[..8]);
            rsp(utcb.gpr[gpr::RSP]);
        }
        if mtd.contains(Mtd::GPR_8_15) {
            self.0[8..].copy_from_slice(&utcb.gpr[8..]);
        }
    }
}

/// What [`VirtualCpu::save`] and [`VirtualCpu::load`] treat before all else, because almost every event has it.
pub const HOT: Mtd = Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RIP).union(Mtd::QUAL);

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// For the VMM: a number of [`abi::event::guest`].
    Event(u16),
    /// A physical interrupt: its vector if the CPU acknowledged it (VMX), else it may be pending until the kernel opens
    /// the interrupt flag.
    Interrupt(Option<u8>),
    /// A machine check, still to be handled.
    MachineCheck,
    /// Settled here, as a physical NMI whose handler has run: enter again.
    Resume,
}

/// A frame of kernel memory.
#[derive(Clone, Copy, Debug)]
pub struct PhysPage {
    /// Its physical address.
    pub pa: u64,
    /// Where the kernel sees it.
    pub va: *mut u8,
}

/// One virtual CPU.
pub trait VirtualCpu {
    /// After each exit, once, before anything else: makes host state whole again, queues an event whose delivery was
    /// interrupted for the next entry, and translates the reason.
    fn exit(&mut self, gprs: &mut Gprs) -> Exit;
    /// Copies the state that `mtd` names from the vCPU into `utcb`. Qualifications are those of the latest exit.
    fn save(&mut self, mtd: Mtd, gprs: &Gprs, utcb: &mut Architectural);
    /// Copies the state that `mtd` names from `utcb`, which [`legal::check`] has seen, into the vCPU.
    /// What else is illegal makes the next entry fail.
    fn load(&mut self, mtd: Mtd, gprs: &mut Gprs, utcb: &mut Architectural);
    /// Assigns the spaces by their physical addresses: the root of the EPT or nested page tables (4 levels); four
    /// contiguous frames with 65536 bits, 1 = the port exits, the third frame all ones; two contiguous frames in the
    /// vendor's format, see [`Processor::msr_bits`]. An entry before that fails.
    fn assign(&mut self, nested_root: u64, io_bitmap: u64, msr_bitmap: u64);
    /// Whether nothing has to be done at exits and further entries but what the fast path does.
    fn is_plain(&mut self) -> bool;
    /// What does not depend on the vendor.
    fn common(&mut self) -> &mut Common;
    /// Takes its state out of the CPU: it is not used again, and its frames are free.
    fn release(&mut self);
    /// Enters the guest until it exits, at `deadline`, a value of the TSC, or not long after. Returns only if there is an
    /// event before the guest's first instruction.
    ///
    /// # Safety
    /// `gprs` begins a live EC with a stack pointer at [`STACK_OFFSET`]; nothing on the current stack is needed again;
    /// the host CR3 is set and the assigned spaces are valid until the vCPU is assigned others.
    unsafe fn enter(&mut self, gprs: *mut Gprs, deadline: u64) -> u16;
}

/// What a CPU has for running guests.
pub enum Processor {
    /// Intel.
    Vmx(vmx::Processor),
    /// AMD.
    Svm(svm::Processor),
}

impl Processor {
    /// Turns the extension of the current CPU on. The two zeroed pages belong to the CPU from then on.
    ///
    /// To be called when the CPU has its final GDT, IDT, TR, CR0, CR4, EFER, PAT, syscall MSRs and XCR0 (the largest
    /// that the kernel can save): they are what exits return to.
    ///
    /// # Errors
    /// Why the CPU cannot run guests.
    pub fn enable(pages: [PhysPage; 2]) -> Result<Self, Reason> {
        if register::cpuid(0x8000_0001)[2] & svm::spec::CPUID_SVM != 0 {
            svm::Processor::enable(pages).map(Self::Svm)
        } else {
            vmx::Processor::enable(pages[0]).map(Self::Vmx)
        }
    }

    /// Largest leaf of a guest space's page tables: 1 for 2 MiB, 2 for 1 GiB.
    pub fn max_leaf_level(&self) -> u8 {
        let (Self::Vmx(vmx::Processor { has_page_1g, .. }) | Self::Svm(svm::Processor { has_page_1g, .. })) = self;
        1 + u8::from(*has_page_1g)
    }

    /// Bits, in 8192 bytes, of which a set one has reads of `msr` exit, and another one writes (Intel SDM vol. 3C, 25.6.9;
    /// AMD APM vol. 2, 15.11). `None` if they always exit: on SVM also those of EFER, whose SVME is the kernel's.
    pub fn msr_bits(&self, msr: u32) -> Option<[usize; 2]> {
        let index = match (msr, self) {
            (registers::EFER, Self::Svm(_)) => return None,
            (0..0x2000, _) => msr as usize,
            (0xc000_0000..0xc000_2000, _) => 0x2000 + (msr as usize & 0x1fff),
            _ => return None,
        };
        Some(if let Self::Vmx(_) = self { [index, index + 0x4000] } else { [2 * index, 2 * index + 1] })
    }
}

/// The state of a vCPU after reset (Intel SDM vol. 3A, table 10-1).
pub const RESET: Architectural = {
    const DATA: Segment = Segment { selector: 0, access: 0x93, limit: 0xffff, base: 0 };
    const TABLE: DescriptorTable = DescriptorTable { reserved: 0, limit: 0xffff, base: 0 };
    // SAFETY: all fields are integers, for which zero is a value.
    let zero: Architectural = unsafe { core::mem::zeroed() };
    Architectural {
        rflags: 2,
        rip: 0xfff0,
        cs: Segment { selector: 0xf000, access: 0x9b, limit: 0xffff, base: 0xffff_0000 },
        ss: DATA,
        ds: DATA,
        es: DATA,
        fs: DATA,
        gs: DATA,
        tr: Segment { access: 0x8b, ..DATA },
        ldtr: Segment { access: 0x82, ..DATA },
        gdtr: TABLE,
        idtr: TABLE,
        cr0: 0x6000_0010,
        dr7: 0x400,
        exec_controls_2: vmx::spec::VMM_INITIAL,
        xcr0: 1,
        pat: 0x0007_0406_0007_0406,
        ..zero
    }
};

/// Tags of TLB entries on one CPU (VPID, ASID): a vCPU whose tag is of an older generation needs a new one.
pub struct Tags {
    generation: Cell<u64>,
    next: Cell<u32>,
    end: u32,
}

/// A tag; the default one is never current.
#[derive(Clone, Copy, Default)]
pub struct Tag {
    generation: u64,
    /// The number that the hardware sees.
    pub number: u32,
}

impl Tags {
    /// Tags 1 to `end` - 1; there is at least one.
    pub const fn new(end: u32) -> Self {
        Self { generation: Cell::new(1), next: Cell::new(1), end: if end < 2 { 2 } else { end } }
    }

    /// Replaces `tag`, if it is not current, by one without entries. Then tells whether first the TLB must be flushed
    /// for all tags.
    #[inline(always)]
    pub fn renew(&self, tag: &mut Tag) -> Option<bool> {
        if tag.generation == self.generation.get() {
            return None;
        }
        let exhausted = self.next.get() >= self.end;
        if exhausted {
            self.generation.set(self.generation.get() + 1);
            self.next.set(1);
        }
        *tag = Tag { generation: self.generation.get(), number: self.next.get() };
        self.next.set(tag.number + 1);
        Some(exhausted)
    }
}

/// What a vCPU of either vendor has.
pub struct Common {
    /// Exceptions that the VMM intercepts.
    pub exceptions: u32,
    /// XCR0, always legal to load.
    pub xcr0: u64,
    /// State that is switched by software when another vCPU is used.
    pub foreign: register::Foreign,
    /// Tag of its TLB entries.
    pub tag: Tag,
    /// Translations of the guest space may be stale, whatever the tag (VMX).
    pub stale: bool,
}

impl Common {
    /// The state after reset.
    pub fn new() -> Self {
        Self { exceptions: 0, xcr0: 1, foreign: register::Foreign::new(), tag: Tag::default(), stale: false }
    }

    /// The guest space has changed: nothing cached of it may be used at the next entry.
    pub fn flush(&mut self) {
        (self.tag, self.stale) = (Tag::default(), true);
    }

    /// See [`VirtualCpu::save`].
    pub fn save(&mut self, mtd: Mtd, utcb: &mut Architectural) {
        if mtd.contains(Mtd::XSAVE) {
            utcb.xcr0 = self.xcr0;
            utcb.xss = 0; // No other is legal.
        }
        if mtd.contains(Mtd::TSC) {
            utcb.tsc_aux = self.foreign.tsc_aux().map_or(0, |value| *value);
        }
    }

    /// See [`VirtualCpu::load`].
    pub fn load(&mut self, mtd: Mtd, utcb: &Architectural) {
        if mtd.contains(Mtd::XSAVE) {
            self.xcr0 = utcb.xcr0;
        }
        if mtd.contains(Mtd::TSC) {
            self.foreign.tsc_aux().into_iter().for_each(|value| *value = utcb.tsc_aux);
        }
        if mtd.contains(Mtd::TLB) {
            self.tag = Tag::default();
        }
    }
}

/// EFER with LMA in agreement with LME and CR0.PG.
pub const fn consistent_efer(efer: u64, cr0: u64) -> u64 {
    use register::{CR0_PG, EFER_LMA, EFER_LME};
    if efer & EFER_LME != 0 && cr0 & CR0_PG != 0 { efer | EFER_LMA } else { efer & !EFER_LMA }
}
