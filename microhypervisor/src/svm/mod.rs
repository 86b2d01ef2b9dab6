//! AMD SVM with nested paging (AMD APM vol. 2, chapter 15), shown to the VMM in the vocabulary of VMX.
//!
//! Next-RIP and decode assists are used where the CPU has them. All state but DR0 to DR3 and TSC_AUX is switched by
//! VMRUN, VMLOAD and VMSAVE; those two when another vCPU is used.
#![allow(unsafe_code)] // MSRs, the control block, and the vCPU whose state is in the registers.

pub mod bitmap;
pub mod spec;
mod transfer;
mod vmcb;

use crate::registers::{EFER, rdmsr, wrmsr};
use crate::vcpu::register::{EFER_SVME, cpuid};
use crate::vcpu::{
    Common, Exit, Gprs, HOT, KERNEL_EXCEPTIONS, PhysPage, RESET, Spaces, Tag, Tags, Unavailable, VcpuPages, VirtualCpu,
    vector,
};
use abi::Mtd;
use abi::event::guest;
use abi::mtd::injection;
use abi::utcb::{Architectural, gpr};
use core::cell::Cell;
use kernel_core::virt::svm_usable;
use spec::{INFO_VALID, Vmcb, code, first, io, nested, virtual_interrupt};

/// Entry of [`Gprs`] where the stub finds the host's block.
const STUB_HOST: usize = gpr::RSP;

/// SVM on one CPU.
pub struct Processor {
    /// Physical address of the block with what VMRUN does not switch of the host.
    host: u64,
    features: u32,
    page_1g: bool,
    tags: Tags,
    /// The vCPU whose debug registers and TSC_AUX are in the registers.
    current: Cell<*mut Svm>,
}

impl Processor {
    /// See [`crate::vcpu::Processor::enable`].
    ///
    /// # Errors
    /// What the CPU lacks.
    pub fn enable(pages: [PhysPage; 2]) -> Result<Self, Unavailable> {
        let [_, _, extended_ecx, extended_edx] = cpuid(0x8000_0001);
        let supported = extended_ecx & spec::CPUID_SVM != 0;
        // SAFETY: CPUs with SVM have the MSR.
        let vm_cr = if supported { unsafe { rdmsr(spec::VM_CR) } } else { 0 };
        svm_usable(supported, vm_cr).map_err(Unavailable::Unusable)?;
        let [_, asids, _, features] = cpuid(spec::CPUID_FEATURES);
        if features & spec::FEATURE_NESTED_PAGING == 0 {
            return Err(Unavailable::Missing("SVM features", spec::FEATURE_NESTED_PAGING));
        }
        let [save, host] = pages;
        // SAFETY: SVM exists and is not locked off; the pages are the CPU's.
        unsafe {
            wrmsr(EFER, rdmsr(EFER) | EFER_SVME);
            wrmsr(spec::VM_HSAVE_PA, save.pa);
            vmcb::vmsave(host.pa);
        }
        Ok(Self {
            host: host.pa,
            features,
            page_1g: extended_edx & spec::CPUID_PAGE_1G != 0,
            tags: Tags::new(asids),
            current: Cell::new(core::ptr::null_mut()),
        })
    }

    /// See [`crate::vcpu::Processor::max_leaf_level`].
    pub fn max_leaf_level(&self) -> u8 {
        if self.page_1g { 2 } else { 1 }
    }
}

/// A vCPU.
pub struct Svm {
    cpu: &'static Processor,
    control: PhysPage,
    /// Qualifications of the latest event.
    qualification: [u64; 3],
    /// Length of the latest event's instruction, 0 if unknown.
    instruction_length: u32,
    /// Windows that the VMM waits for, as in interruption information.
    windows: u32,
    /// Of the foreign state DR6 is in the control block instead.
    common: Common,
}

impl Svm {
    /// A vCPU of `cpu` in the state after reset. May be called on another CPU.
    pub fn new(cpu: &'static Processor, pages: VcpuPages) -> Self {
        let mut vcpu = Self {
            cpu,
            control: pages.control,
            qualification: [0; 3],
            instruction_length: 0,
            windows: 0,
            common: Common::new(),
        };
        let vmcb = vcpu.vmcb();
        vmcb.first_intercepts = spec::FIRST_INTERCEPTS;
        vmcb.second_intercepts = spec::SECOND_INTERCEPTS;
        vmcb.nested_control = 1;
        vmcb.virtual_interrupt = virtual_interrupt::MASKING | virtual_interrupt::IGNORE_TPR;
        vmcb.dr6 = 0xffff_0ff0;
        vmcb.rip = RESET.rip;
        transfer::load(&mut vcpu, Mtd::all(), &RESET);
        vcpu
    }

    /// The control block.
    fn vmcb(&mut self) -> &mut Vmcb {
        // SAFETY: the page belongs to this vCPU, whose guest does not run now, and any bits are a control block.
        unsafe { &mut *self.control.va.cast::<Vmcb>() }
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

    /// Has the guest exit when it can take an interrupt, if the VMM waits for a window: by a virtual interrupt that is
    /// intercepted instead of delivered (AMD APM vol. 2, 15.21.4). The window for NMIs is taken to be the same.
    fn set_windows(&mut self, windows: u32) {
        self.windows = windows;
        let vmcb = self.vmcb();
        vmcb.virtual_interrupt &= !virtual_interrupt::PENDING;
        vmcb.first_intercepts &= !first::VIRTUAL_INTERRUPT;
        if windows != 0 {
            vmcb.virtual_interrupt |= virtual_interrupt::PENDING;
            vmcb.first_intercepts |= first::VIRTUAL_INTERRUPT;
        }
    }

    /// An event for the VMM, with qualifications.
    fn event(&mut self, event: u16, qualification: [u64; 3]) -> Exit {
        self.qualification = qualification;
        Exit::Event(event)
    }

    /// Bytes from RIP to `next`, if that can be an instruction.
    fn length_to(&mut self, next: u64) -> u32 {
        match next.wrapping_sub(self.vmcb().rip) {
            length @ 1..=15 => length as u32,
            _ => 0,
        }
    }

    /// Exceptions.
    fn exception(&mut self, number: u8, info: [u64; 2]) -> Exit {
        if number == vector::MACHINE_CHECK {
            return Exit::MachineCheck;
        }
        // These push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP.
        const WITH_ERROR: u32 = 0x0022_7d00;
        let bit = 1u32 << (number & 31);
        let error = if WITH_ERROR & bit != 0 { injection::ERROR_CODE } else { 0 };
        let event = injection::VALID | injection::TYPE_EXCEPTION | error | u32::from(number);
        if self.common.exceptions & bit == 0 && KERNEL_EXCEPTIONS & bit != 0 {
            let code = if error != 0 { info[0] << 32 } else { 0 };
            self.vmcb().injection = u64::from(event) | code;
            return Exit::Resume;
        }
        self.event(guest::EXCEPTION, [info[1], u64::from(event), info[0]])
    }

    /// Qualification of a control-register or debug-register exit. The operand is known only with decode assists;
    /// CLTS, LMSW and SMSW look like MOV, so that a VMM decodes.
    fn register_qualification(&self, exit_code: u64, info: u64) -> u64 {
        let (number, write) = (exit_code & 0xf, exit_code & 0x10 != 0);
        let operand = if self.cpu.features & spec::FEATURE_DECODE_ASSISTS != 0 { (info & 0xf) << 8 } else { 0 };
        number | u64::from(!write) << 4 | operand
    }
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
    let access = if info & nested::FETCH != 0 {
        1 << 2
    } else if info & nested::WRITE != 0 {
        1 << 1
    } else {
        1 << 0
    };
    let granted = if info & nested::PRESENT != 0 { 1 << 3 } else { 0 };
    access | granted | if info & nested::FINAL != 0 { 1 << 8 } else { 0 }
}

impl VirtualCpu for Svm {
    fn exit(&mut self, gprs: &mut Gprs) -> Exit {
        let next_rip_known = self.cpu.features & spec::FEATURE_NEXT_RIP != 0;
        let vmcb = self.vmcb();
        gprs.0[gpr::RAX] = vmcb.rax;
        let (exit_code, info, next) = (vmcb.exit_code, vmcb.exit_info, vmcb.next_rip);
        if exit_code == code::INVALID {
            self.instruction_length = 0;
            return self.event(guest::INVALID_STATE, [0; 3]);
        }
        let interrupted = vmcb.interrupted;
        vmcb.injection =
            if interrupted & INFO_VALID != 0 && !transfer::is_software(interrupted) { interrupted } else { 0 };
        self.instruction_length = match exit_code {
            code::IO => self.length_to(info[1]),
            _ if next_rip_known => self.length_to(next),
            _ => 0,
        };
        match exit_code {
            code::INTERRUPT => Exit::Interrupt(None),
            code::NMI => Exit::Nmi,
            code::EXCEPTION..=code::EXCEPTION_LAST => self.exception((exit_code - code::EXCEPTION) as u8, info),
            code::VIRTUAL_INTERRUPT => {
                let window = self.windows & injection::INTERRUPT_WINDOW != 0;
                self.set_windows(0);
                self.event(if window { guest::INTERRUPT_WINDOW } else { guest::NMI_WINDOW }, [0; 3])
            }
            code::IO => self.event(guest::IO, [io_qualification(info[0]), 0, 0]),
            code::MSR => self.event(if info[0] & 1 != 0 { guest::WRMSR } else { guest::RDMSR }, [0; 3]),
            code::NESTED_FAULT => self.event(guest::PAGE_FAULT, [fault_qualification(info[0]), 0, info[1]]),
            code::INVLPG => {
                let assisted = self.cpu.features & spec::FEATURE_DECODE_ASSISTS != 0;
                self.event(guest::INVLPG, [if assisted { info[0] } else { 0 }, 0, 0])
            }
            code::CR..=code::DR_LAST => {
                let event = if exit_code < code::DR { guest::CR_ACCESS } else { guest::DR_ACCESS };
                self.event(event, [self.register_qualification(exit_code, info[0]), 0, 0])
            }
            _ => match spec::PLAIN.iter().find(|(plain, _)| *plain == exit_code) {
                Some((_, event)) => self.event(*event, [0; 3]),
                // Not intercepted; a VMM that gets it reports it.
                None => self.event(guest::INVALID_STATE, [exit_code, 0, 0]),
            },
        }
    }

    fn save(&mut self, mtd: Mtd, gprs: &Gprs, utcb: &mut Architectural) {
        let instruction_length = self.instruction_length;
        let vmcb = self.vmcb();
        gprs.save(mtd, utcb, || vmcb.rsp);
        if mtd.contains(Mtd::RIP) {
            utcb.rip = vmcb.rip;
            utcb.instruction_length = instruction_length;
            utcb.instruction_info = 0;
        }
        if mtd.contains(Mtd::QUAL) {
            utcb.qualification = self.qualification;
        }
        if !mtd.difference(HOT).is_empty() {
            transfer::save(self, mtd, utcb);
        }
    }

    fn load(&mut self, mtd: Mtd, gprs: &mut Gprs, utcb: &Architectural) {
        let vmcb = self.vmcb();
        gprs.load(mtd, utcb, |rsp| vmcb.rsp = rsp);
        if mtd.contains(Mtd::RIP) {
            vmcb.rip = utcb.rip;
        }
        if !mtd.difference(HOT).is_empty() {
            transfer::load(self, mtd, utcb);
        }
    }

    fn assign(&mut self, spaces: &Spaces) {
        self.common.tag = Tag::default();
        let vmcb = self.vmcb();
        vmcb.nested_cr3 = spaces.nested_root;
        vmcb.io_bitmap = spaces.io_bitmap;
        vmcb.msr_bitmap = spaces.msr_bitmap;
    }

    fn flush(&mut self) {
        self.common.tag = Tag::default();
    }

    fn set_host_cr3(&mut self, _: u64) {}

    fn xcr0(&self) -> u64 {
        self.common.xcr0
    }

    fn restore_host(&mut self) {}

    fn release(&mut self) {
        if self.cpu.current.get() == core::ptr::from_mut(self) {
            self.common.foreign.leave();
            self.cpu.current.set(core::ptr::null_mut());
        }
    }

    unsafe fn enter(&mut self, gprs: *mut Gprs, _deadline: u64) -> ! {
        self.make_current();
        self.common.foreign.enter();
        let flush_all = self.cpu.tags.renew(&mut self.common.tag).unwrap_or(false);
        let (asid, control, host) = (self.common.tag.number, self.control.pa, self.cpu.host);
        let vmcb = self.vmcb();
        vmcb.tlb_control = if flush_all { spec::FLUSH_ALL } else { 0 };
        // Without a guest space ASID 0 keeps the guest from being entered.
        vmcb.asid = if vmcb.nested_cr3 == 0 { 0 } else { asid };
        // SAFETY: the caller's promise; the control block is complete.
        unsafe {
            vmcb.rax = (*gprs).0[gpr::RAX];
            (*gprs).0[STUB_HOST] = host;
            vmcb::enter(gprs, control)
        }
    }
}
