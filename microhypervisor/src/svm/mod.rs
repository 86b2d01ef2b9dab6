//! AMD SVM with nested paging (AMD APM vol. 2, chapter 15), shown to the VMM in the vocabulary of VMX.
//!
//! Next-RIP and decode assists are used where the CPU has them. All state but DR0 to DR3 and TSC_AUX is switched by
//! VMRUN, VMLOAD and VMSAVE; those two when another vCPU is used. There are no PDPTEs: the CPU reads them from memory.
#![allow(unsafe_code)] // MSRs, the control block, and the vCPU whose state is in the registers.

pub mod spec;
mod step;
mod transfer;

use crate::registers::{EFER, rdmsr, wrmsr};
use crate::vcpu::register::{DR6_CONDITIONS, EFER_SVME, cpuid};
use crate::vcpu::{Common, Exit, Gprs, HOT, KERNEL_EXCEPTIONS, PhysPage, RESET, Tags, VirtualCpu, vector};
use abi::Mtd;
use abi::event::guest;
use abi::mtd::injection;
use abi::utcb::{Architectural, gpr};
use core::cell::Cell;
use kernel_core::reason::Reason;
use kernel_core::virt::svm_usable;
use spec::{INFO_VALID, Vmcb, code, io, nested, virtual_interrupt};
use step::Watch;

/// Entry of [`Gprs`] where the stub finds the host's block.
const STUB_HOST: usize = gpr::RSP;

/// SVM on one CPU.
pub struct Processor {
    /// Physical address of the block with what VMRUN does not switch of the host.
    host: u64,
    features: u32,
    pub has_page_1g: bool,
    tags: Tags,
    /// The vCPU whose debug registers and TSC_AUX are in the registers.
    current: Cell<*mut Svm>,
}

impl Processor {
    /// See [`crate::vcpu::Processor::enable`]; the CPU has SVM.
    ///
    /// # Errors
    /// What the CPU lacks.
    pub fn enable(pages: [PhysPage; 2]) -> Result<Self, Reason> {
        let [.., extended_edx] = cpuid(0x8000_0001);
        // SAFETY: CPUs with SVM have the MSR.
        svm_usable(unsafe { rdmsr(spec::VM_CR) })?;
        let [_, asids, _, features] = cpuid(spec::CPUID_FEATURES);
        if features & spec::FEATURE_NESTED_PAGING == 0 {
            return Err(Reason(&"the CPU lacks nested paging", 0));
        }
        let [save, host] = pages;
        // SAFETY: SVM exists and is not locked off; the pages are the CPU's.
        unsafe {
            wrmsr(EFER, rdmsr(EFER) | EFER_SVME);
            wrmsr(spec::VM_HSAVE_PA, save.pa);
            core::arch::asm!("vmsave rax", in("rax") host.pa, options(nostack));
        }
        Ok(Self {
            host: host.pa,
            features,
            has_page_1g: extended_edx & spec::CPUID_PAGE_1G != 0,
            tags: Tags::new(asids),
            current: Cell::new(core::ptr::null_mut()),
        })
    }
}

/// A vCPU.
pub struct Svm {
    cpu: &'static Processor,
    control: PhysPage,
    /// The latest event came before the guest ran.
    early: bool,
    /// Windows that the VMM waits for, as in interruption information.
    windows: u32,
    /// Control-register intercepts that the VMM asked for.
    cr_intercepts: u32,
    /// Error codes of page faults that are treated other than the exception intercepts say: mask, match.
    page_faults: [u32; 2],
    /// Bytes by which RIP moves at the next entry, behind the instruction whose interrupt is injected.
    injection_length: u64,
    watch: Watch,
    /// Of the foreign state DR6 is in the control block instead.
    common: Common,
}

impl Svm {
    /// A vCPU of `cpu` in the state after reset. May be called on another CPU.
    pub fn new(cpu: &'static Processor, control: PhysPage, rsp: u64) -> Self {
        let mut vcpu = Self {
            cpu,
            control,
            early: false,
            windows: 0,
            cr_intercepts: 0,
            page_faults: [0; 2],
            injection_length: 0,
            watch: Watch::default(),
            common: Common::new(),
        };
        let vmcb = vcpu.vmcb();
        vmcb.first_intercepts = spec::FIRST_INTERCEPTS;
        vmcb.second_intercepts = spec::SECOND_INTERCEPTS;
        vmcb.nested_control = 1;
        vmcb.virtual_interrupt = virtual_interrupt::MASKING | virtual_interrupt::IGNORE_TPR;
        vmcb.dr6 = 0xffff_0ff0;
        vmcb.rip = RESET.rip;
        vmcb.rsp = rsp;
        transfer::load(&mut vcpu, Mtd::all(), &mut { RESET });
        vcpu
    }

    /// The control block.
    fn vmcb(&mut self) -> &mut Vmcb {
        self.parts().0
    }

    fn parts(&mut self) -> (&mut Vmcb, &mut Watch) {
        // SAFETY: the page belongs to this vCPU, whose guest does not run now, and any bits are a control block.
        (unsafe { &mut *self.control.va.cast::<Vmcb>() }, &mut self.watch)
    }

    /// Exceptions that exit while nothing is watched.
    fn exception_intercepts(&self) -> u32 {
        let page_faults = if self.page_faults == [0; 2] { 0 } else { 1 << vector::PAGE_FAULT };
        self.common.exceptions | KERNEL_EXCEPTIONS | page_faults
    }

    /// Makes this the vCPU whose foreign state may be in the registers.
    fn make_current(&mut self) {
        let this: *mut Self = self;
        let previous = self.cpu.current.replace(this);
        if previous != this {
            // SAFETY: a vCPU stays where it is until `release`.
            if let Some(previous) = unsafe { previous.as_mut() } {
                previous.common.foreign.leave();
            }
        }
    }

    /// Length of the latest event's instruction, 0 if unknown.
    #[inline(always)]
    fn instruction_length(&mut self) -> u32 {
        let Vmcb { exit_code, exit_info: [_, next_port], next_rip, rip, .. } = self.vmcb();
        let next = if *exit_code == code::IO { next_port } else { next_rip };
        let length = next.wrapping_sub(*rip);
        if self.early || length > 15 { 0 } else { length as u32 }
    }

    /// Qualifications of the latest event.
    #[inline(never)]
    fn qualification(&mut self) -> [u64; 3] {
        let Vmcb { exit_code, exit_info: info, dr6, .. } = *self.vmcb();
        match exit_code {
            _ if self.early => [0; 3],
            code::IO => [io_qualification(info[0]), 0, 0],
            code::EXCEPTION..=code::EXCEPTION_LAST => {
                let number = (exit_code - code::EXCEPTION) as u8;
                let address = match number {
                    vector::PAGE_FAULT => info[1],
                    vector::DEBUG => dr6 & DR6_CONDITIONS,
                    _ => 0,
                };
                [address, u64::from(exception_info(number)), info[0]]
            }
            code::NESTED_FAULT => [fault_qualification(info[0]), 0, info[1]],
            code::INVLPG if self.cpu.features & spec::FEATURE_DECODE_ASSISTS != 0 => [info[0], 0, 0],
            code::CR..=code::DR_LAST => [self.register_qualification(exit_code, info[0]), 0, 0],
            // Not intercepted; a VMM that gets it reports it.
            code if event_of(code).is_none() && code != code::INVALID => [code, 0, 0],
            _ => [0; 3],
        }
    }

    /// Exceptions: those that the VMM does not want are given back to the guest.
    fn exception(&mut self, number: u8, info: [u64; 2]) -> Exit {
        if number == vector::MACHINE_CHECK {
            return Exit::MachineCheck;
        }
        let event = exception_info(number);
        let bit = 1u32 << (number & 31);
        let [mask, match_] = self.page_faults;
        // Intel SDM vol. 3C, 26.2.
        let other = number == vector::PAGE_FAULT && info[0] as u32 & mask != match_;
        if (self.common.exceptions & bit != 0) == other {
            let vmcb = self.vmcb();
            vmcb.injection = transfer::injection_to_vmcb(event, info[0] as u32);
            if number == vector::PAGE_FAULT {
                vmcb.cr2 = info[1];
            }
            return Exit::Resume;
        }
        Exit::Event(guest::EXCEPTION)
    }

    /// Qualification of a control-register or debug-register exit. The operand is known only with decode assists, and
    /// then only of MOV: not of CLTS, LMSW, SMSW.
    fn register_qualification(&self, exit_code: u64, info: u64) -> u64 {
        let (number, write) = (exit_code & 0xf, exit_code & 0x10 != 0);
        let told = self.cpu.features & spec::FEATURE_DECODE_ASSISTS != 0
            && (exit_code >= code::DR || info & spec::MOV_CR_TOLD != 0);
        number | u64::from(!write) << 4 | if told { (info & 0xf) << 8 } else { guest::UNKNOWN_OPERAND }
    }
}

/// Interruption information of an exception.
fn exception_info(number: u8) -> u32 {
    // These push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP.
    const WITH_ERROR: u32 = 0x0022_7d00;
    let error = if WITH_ERROR >> (number & 31) & 1 != 0 { injection::ERROR_CODE } else { 0 };
    let software = matches!(number, vector::BREAKPOINT | vector::OVERFLOW);
    let kind = if software { injection::TYPE_SOFTWARE_EXCEPTION } else { injection::TYPE_EXCEPTION };
    injection::VALID | kind | error | u32::from(number)
}

/// The event of VMX that an exit code corresponds to.
fn event_of(code: u64) -> Option<u16> {
    spec::EVENTS.get(code as usize).filter(|event| **event != 0).map(|event| u16::from(*event))
}

/// Port access: EXITINFO1 -> qualification of VMX (Intel SDM vol. 3C, table 28-5).
const fn io_qualification(info: u64) -> u64 {
    let size = info >> io::SIZE_SHIFT & 7;
    (size.wrapping_sub(1) & 7)
        | (info & io::INPUT) << 3
        | (info & io::STRING) << 2
        | (info & io::REPEAT) << 2
        | info & io::PORT
}

/// Nested page fault: EXITINFO1 -> qualification of VMX (Intel SDM vol. 3C, table 28-7).
const fn fault_qualification(info: u64) -> u64 {
    let access = 1 << if info & nested::FETCH != 0 { 2 } else { (info & nested::WRITE != 0) as u32 };
    let granted = if info & nested::PRESENT != 0 { 1 << 3 } else { 0 };
    access | granted | if info & nested::FINAL != 0 { 1 << 8 } else { 0 }
}

impl VirtualCpu for Svm {
    fn exit(&mut self, gprs: &mut Gprs) -> Exit {
        let length = self.injection_length;
        let vmcb = self.vmcb();
        gprs.0[gpr::RAX] = vmcb.rax;
        // A virtual interrupt in the place of an injected one that was not delivered.
        let virtual_one = vmcb.first_intercepts & spec::first::VIRTUAL_INTERRUPT == 0;
        if virtual_one && vmcb.virtual_interrupt & virtual_interrupt::PENDING != 0 {
            vmcb.injection = INFO_VALID | vmcb.virtual_interrupt >> 32 & 0xff;
            vmcb.interrupted = vmcb.injection;
        }
        let (exit_code, info) = (vmcb.exit_code, vmcb.exit_info);
        // An interrupt of software is injected again if it was before, or else its instruction done again.
        let again = vmcb.interrupted & INFO_VALID != 0 && (length != 0 || !transfer::is_software(vmcb.interrupted));
        if exit_code == code::INVALID {
            vmcb.interrupted = 0;
        } else {
            vmcb.injection = if again { vmcb.interrupted } else { 0 };
            self.injection_length = if again { length } else { 0 };
        }
        let length = self.injection_length;
        let vmcb = self.vmcb();
        vmcb.rip = vmcb.rip.wrapping_sub(length);
        if self.watched(exit_code) {
            return Exit::Resume;
        }
        match exit_code {
            code::INTERRUPT => Exit::Interrupt(None),
            code::NMI => Exit::Resume,
            code::EXCEPTION..=code::EXCEPTION_LAST => self.exception((exit_code - code::EXCEPTION) as u8, info),
            code::VIRTUAL_INTERRUPT => {
                self.windows &= !injection::INTERRUPT_WINDOW;
                Exit::Event(guest::INTERRUPT_WINDOW)
            }
            code::MSR if info[0] & 1 != 0 => Exit::Event(guest::WRMSR),
            code::NESTED_FAULT => Exit::Event(guest::PAGE_FAULT),
            code::CR..code::DR => Exit::Event(guest::CR_ACCESS),
            code::DR..=code::DR_LAST => Exit::Event(guest::DR_ACCESS),
            _ => Exit::Event(event_of(exit_code).unwrap_or(guest::INVALID_STATE)),
        }
    }

    fn save(&mut self, mtd: Mtd, gprs: &Gprs, utcb: &mut Architectural) {
        gprs.save(mtd, utcb, || self.vmcb().rsp);
        if mtd.contains(Mtd::RIP) {
            utcb.rip = self.vmcb().rip;
            utcb.instruction_length = self.instruction_length();
            utcb.instruction_info = 0;
        }
        if mtd.contains(Mtd::QUAL) {
            utcb.qualification = self.qualification();
        }
        if !mtd.difference(HOT).is_empty() {
            transfer::save(self, mtd, utcb);
        }
    }

    fn load(&mut self, mtd: Mtd, gprs: &mut Gprs, utcb: &mut Architectural) {
        let vmcb = self.vmcb();
        gprs.load(mtd, utcb, |rsp| vmcb.rsp = rsp);
        if mtd.contains(Mtd::RIP) {
            vmcb.rip = utcb.rip;
        }
        if !mtd.difference(HOT).is_empty() {
            transfer::load(self, mtd, utcb);
        }
    }

    fn assign(&mut self, nested_root: u64, io_bitmap: u64, msr_bitmap: u64) {
        self.common.flush();
        let vmcb = self.vmcb();
        (vmcb.nested_cr3, vmcb.io_bitmap, vmcb.msr_bitmap) = (nested_root, io_bitmap, msr_bitmap);
    }

    fn is_plain(&mut self) -> bool {
        let plain = self.windows == 0 && self.injection_length == 0 && self.watch.is_idle();
        let vmcb = self.vmcb();
        plain && vmcb.injection == 0 && vmcb.nested_cr3 != 0
    }

    fn common(&mut self) -> &mut Common {
        &mut self.common
    }

    fn release(&mut self) {
        if self.cpu.current.get() == core::ptr::from_mut(self) {
            self.common.foreign.leave();
            self.cpu.current.set(core::ptr::null_mut());
        }
    }

    unsafe fn enter(&mut self, gprs: *mut Gprs, _deadline: u64) -> u16 {
        let due = self.watch();
        self.early = due.is_some();
        if let Some(event) = due {
            return event;
        }
        self.make_current();
        self.common.foreign.enter();
        let flush_all = self.cpu.tags.renew(&mut self.common.tag).unwrap_or(false);
        let (asid, control, host) = (self.common.tag.number, self.control.pa, self.cpu.host);
        let length = self.injection_length;
        let tells_next = self.cpu.features & spec::FEATURE_NEXT_RIP != 0;
        let vmcb = self.vmcb();
        vmcb.rip = vmcb.rip.wrapping_add(length);
        // It says where the injected interrupt returns to. CPUs that do not tell it at exits leave it as it is: 0.
        vmcb.next_rip = if tells_next { vmcb.rip } else { 0 };
        vmcb.tlb_control = if flush_all { spec::FLUSH_ALL } else { 0 };
        // Without a guest space ASID 0 keeps the guest from being entered.
        vmcb.asid = if vmcb.nested_cr3 == 0 { 0 } else { asid };
        // SAFETY: the caller's promise; the control block is complete.
        unsafe {
            vmcb.rax = (*gprs).0[gpr::RAX];
            (*gprs).0[STUB_HOST] = host;
            crate::fast::svm_enter(gprs, control)
        }
    }
}
