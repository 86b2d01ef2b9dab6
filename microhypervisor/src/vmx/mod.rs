//! Intel VMX with EPT, unrestricted guests and VPID (Intel SDM vol. 3C, chapters 24 to 28).
//!
//! A VMCS is current from its vCPU's first use until another vCPU of the CPU is used. What the VMCS does not switch
//! is switched by software, as late as possible: "fast" state (SYSCALL, CR2) when host programs run, "slow" state (the
//! rest) when another vCPU is used.
#![allow(unsafe_code)] // MSRs, the current VMCS, the virtual-APIC page, and the vCPU whose state is in the registers.

mod processor;
pub mod spec;
mod transfer;
mod vmcs;

use crate::descriptors;
use crate::registers::{self, CR0_TS, Cr0, Cr4, Dr6, EFER, FMASK, LSTAR, PAT, STAR, rdmsr, wrmsr};
use crate::vcpu::register::{self, CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_MCE, CR4_VMXE, KERNEL_GS_BASE};
use crate::vcpu::{Common, Exit, Gprs, HOT, KERNEL_EXCEPTIONS, PhysPage, RESET, STACK_OFFSET, VirtualCpu, vector};
use abi::Mtd;
use abi::event::guest;
use abi::mtd::injection;
use abi::utcb::{Architectural, gpr};
pub use processor::Processor;
use spec::{CONTROLS, Controls, INFO_EVENT, INFO_VALID, PRIMARY, SECONDARY, field, primary};
use vmcs::Current;
use x86_64::instructions::tables;

/// Latest event: the CPU refused to enter.
const REFUSED: u16 = u16::MAX;
/// Entry of [`Gprs`] where the stub leaves 1 if the CPU did not enter the guest.
const STUB_REFUSED: usize = gpr::RSP;
/// Offset of the task priority in the virtual-APIC page.
const APIC_TPR: usize = 0x80;
/// Interruptibility: NMIs are blocked.
const BLOCKED_BY_NMI: u32 = 1 << 3;
/// Qualification of an EPT violation: an IRET that unblocked NMIs caused it.
const NMI_UNBLOCKED: u64 = 1 << 12;

/// STAR, LSTAR, FMASK: the host's and the guests' SYSCALL.
type Syscall = [u64; 3];

/// # Safety
/// The values are legal, and the host's before a host program runs.
unsafe fn set_syscall(values: &Syscall) {
    let [star, lstar, fmask] = *values;
    // SAFETY: the caller's promise.
    unsafe {
        wrmsr(STAR, star);
        wrmsr(LSTAR, lstar);
        wrmsr(FMASK, fmask);
    }
}

/// A control register of which some bits are shown to the guest with another value than they have.
struct ControlRegister {
    /// What the guest sees in masked bits.
    shadow: u64,
    /// Bits that the VMM owns.
    vmm: u64,
    /// Bits that the kernel owns.
    kernel: u64,
    /// Bits that are always set.
    set: u64,
}

impl ControlRegister {
    /// Bits that are always set belong to the kernel, as do those of `kernel`.
    const fn new(set: u64, kernel: u64) -> Self {
        Self { shadow: 0, vmm: 0, kernel: set | kernel, set }
    }
    const fn mask(&self) -> u64 {
        self.vmm | self.kernel
    }
    const fn view(&self, real: u64) -> u64 {
        real & !self.mask() | self.shadow & self.mask()
    }
    const fn real(&self, view: u64) -> u64 {
        view & !self.kernel | self.set
    }
}

/// A vCPU.
pub struct Vmx {
    cpu: &'static Processor,
    control: PhysPage,
    /// The virtual-APIC page.
    apic: PhysPage,
    initialized: bool,
    launched: bool,
    /// The latest event, for its qualifications.
    event: u16,
    /// Primary and secondary controls as in the VMCS.
    controls: [u32; 2],
    /// For which the preemption timer is set. It begins anew with each entry: it is there for CPUs that, with their
    /// interrupts off, do not let the timer's interrupt end the guest's run (docs/emulators.md).
    deadline: u64,
    /// Task priority below which the VMM wants an exit.
    threshold: u8,
    common: Common,
    cr0: ControlRegister,
    cr4: ControlRegister,
    host_cr3: u64,
    first_rsp: u64,
    gprs: *mut Gprs,
    /// 0, with which no entry succeeds, before there is a guest space.
    ept_pointer: u64,
    fast_live: bool,
    syscall: Syscall,
    cr2: u64,
    kernel_gs_base: u64,
}

impl Vmx {
    /// A vCPU of `cpu` in the state after reset. Exits load `host_cr3`. May be called on another CPU.
    pub fn new(cpu: &'static Processor, control: PhysPage, apic: PhysPage, host_cr3: u64, rsp: u64) -> Self {
        let free = CR0_PE | CR0_PG; // An unrestricted guest chooses these.
        Self {
            cpu,
            control,
            apic,
            initialized: false,
            launched: false,
            event: 0,
            controls: [cpu.controls[PRIMARY], cpu.controls[SECONDARY]],
            deadline: 1,
            threshold: 0,
            common: Common::new(),
            cr0: ControlRegister::new(cpu.cr0 & !free, CR0_CD | CR0_NW),
            cr4: ControlRegister::new(cpu.cr4 | CR4_VMXE | CR4_MCE, 0),
            host_cr3,
            first_rsp: rsp,
            gprs: core::ptr::null_mut(),
            ept_pointer: 0,
            fast_live: false,
            syscall: [0; 3],
            cr2: 0,
            kernel_gs_base: 0,
        }
    }

    /// Makes this vCPU's VMCS current; the first time it is filled.
    #[inline(always)]
    fn current(&mut self) -> Current {
        if self.cpu.current.get() == core::ptr::from_mut(self) {
            // SAFETY: `current` says so.
            return unsafe { Current::assume() };
        }
        self.make_current()
    }

    #[inline(never)]
    fn make_current(&mut self) -> Current {
        let previous = self.cpu.current.replace(self);
        // SAFETY: a vCPU stays where it is until `release`.
        if let Some(previous) = unsafe { previous.as_mut() } {
            previous.park_fast();
            previous.park_slow();
        }
        // SAFETY: the page is this vCPU's own, and `initialize` clears it before it is loaded first.
        unsafe {
            if !self.initialized {
                self.control.va.cast::<u32>().write(self.cpu.revision);
                vmcs::vmclear(self.control.pa);
            }
            let vmcs = Current::load(self.control.pa);
            if !self.initialized {
                self.initialized = true;
                self.initialize(vmcs);
            }
            vmcs
        }
    }

    /// Fills a new VMCS.
    fn initialize(&mut self, vmcs: Current) {
        for (Controls(_, field, ..), value) in CONTROLS.into_iter().zip(self.cpu.controls) {
            vmcs.write32(field, value);
        }
        field::ZERO.into_iter().for_each(|field| vmcs.write(field, 0));
        let cpu = crate::cpu::Cpu::this();
        // SAFETY: every CPU with long mode has it.
        let pat = unsafe { rdmsr(PAT) };
        for (field, value) in [
            (field::LINK_POINTER, u64::MAX),
            (field::VIRTUAL_APIC, self.apic.pa),
            (field::HOST_CS, u64::from(descriptors::KERNEL_CS)),
            (field::HOST_SS, u64::from(descriptors::KERNEL_SS)),
            (field::HOST_TR, u64::from(descriptors::TSS)),
            (field::HOST_EFER, self.cpu.efer),
            (field::HOST_SYSENTER_CS, u64::from(descriptors::KERNEL_CS)),
            (field::HOST_SYSENTER_ESP, core::ptr::from_ref(cpu) as u64),
            (field::HOST_SYSENTER_EIP, &raw const crate::fast::sysenter_entry as u64),
            (field::HOST_PAT, pat),
            (field::HOST_CR0, Cr0::read_raw() | CR0_TS),
            (field::HOST_CR3, self.host_cr3),
            (field::HOST_CR4, Cr4::read_raw()),
            (field::HOST_TR_BASE, descriptors::task(cpu.number.into()).0),
            (field::HOST_GDTR_BASE, tables::sgdt().base.as_u64()),
            (field::HOST_IDTR_BASE, tables::sidt().base.as_u64()),
            (field::RIP, RESET.rip),
            (field::RSP, self.first_rsp),
        ] {
            vmcs.write(field, value);
        }
        transfer::load(self, vmcs, Mtd::all(), &mut { RESET });
    }

    /// Sets the bits of `mask` in a word of controls, 0 the primary, 1 the secondary, to those of `value`.
    fn set_controls(&mut self, vmcs: Current, word: usize, mask: u32, value: u32) {
        let controls = self.controls[word] & !mask | value & mask;
        if controls != self.controls[word] {
            self.controls[word] = controls;
            vmcs.write32([field::PRIMARY_CONTROLS, field::SECONDARY_CONTROLS][word], controls);
        }
    }

    fn cr8(&self) -> u64 {
        // SAFETY: the virtual-APIC page belongs to this vCPU, whose guest does not run now.
        unsafe { u64::from(self.apic.va.add(APIC_TPR).cast::<u32>().read_volatile() >> 4 & 0xf) }
    }

    fn set_cr8(&mut self, cr8: u64) {
        // SAFETY: as above.
        unsafe { self.apic.va.add(APIC_TPR).cast::<u32>().write_volatile((cr8 as u32 & 0xf) << 4) };
    }

    /// Takes the fast state out of the registers.
    fn park_fast(&mut self) {
        if core::mem::take(&mut self.fast_live) {
            self.cr2 = crate::cpu::Cpu::this().guest_cr2.get();
            // SAFETY: the values were there before the guest ran.
            unsafe { set_syscall(&self.cpu.host) };
        }
    }

    /// Makes the CPU ready to run user programs: syscall MSRs are the host's again, and on if exits left them off. TR keeps
    /// the limit that the exit gave it, 0x67. Cheap if nothing has to be done.
    pub fn restore_host(&mut self, syscall_off: bool) {
        if syscall_off {
            // SAFETY: what it was before the first exit; SYSCALL is the host's again before a program runs.
            unsafe { wrmsr(EFER, self.cpu.efer) };
        }
        self.park_fast();
    }

    /// Undoes that for the vCPU that ran last: puts all state into the registers that is not there.
    pub fn load_live(&mut self) {
        if !core::mem::replace(&mut self.fast_live, true) {
            // SAFETY: legal values, from the hardware or made so; no host program runs before they are taken back.
            unsafe {
                set_syscall(&self.syscall);
                registers::set_cr2(self.cr2);
            }
        }
        if self.common.foreign.enter() {
            // SAFETY: as above; the kernel does not use SWAPGS.
            unsafe { wrmsr(KERNEL_GS_BASE, self.kernel_gs_base) };
        }
    }

    /// Exits turn the host's SYSCALL off, or leave it on.
    pub fn set_syscall_off(&mut self, off: bool) {
        let vmcs = self.current();
        vmcs.write(field::HOST_EFER, self.cpu.efer & !u64::from(off));
    }

    /// Takes the state that host programs do not see out of the registers.
    fn park_slow(&mut self) {
        if self.common.foreign.leave() {
            // SAFETY: every CPU with long mode has it.
            self.kernel_gs_base = unsafe { rdmsr(KERNEL_GS_BASE) };
        }
    }

    /// Queues what `info` (from an exit) says, with its error code from `error`, for the next entry.
    fn queue(&self, vmcs: Current, info: u32, error: u32) {
        vmcs.write32(field::ENTRY_INFO, info & INFO_EVENT);
        if info & injection::ERROR_CODE != 0 {
            vmcs.write32(field::ENTRY_ERROR, vmcs.read32(error));
        }
        if info & injection::TYPE_MASK >= injection::TYPE_SOFTWARE {
            vmcs.write32(field::ENTRY_LENGTH, vmcs.read32(field::INSTRUCTION_LENGTH));
        }
    }

    /// An event whose delivery the exit interrupted will be delivered at the next entry (Intel SDM vol. 3C, 28.2.4).
    fn queue_interrupted(&self, vmcs: Current) {
        let info = vmcs.read32(field::VECTORING_INFO);
        if info & INFO_VALID != 0 {
            self.queue(vmcs, info, field::VECTORING_ERROR);
            if info & injection::TYPE_MASK == injection::TYPE_NMI {
                let state = vmcs.read32(field::INTERRUPTIBILITY);
                vmcs.write32(field::INTERRUPTIBILITY, state & !BLOCKED_BY_NMI);
            }
        } else if self.event == guest::PAGE_FAULT && vmcs.read(field::QUALIFICATION) & NMI_UNBLOCKED != 0 {
            let state = vmcs.read32(field::INTERRUPTIBILITY);
            vmcs.write32(field::INTERRUPTIBILITY, state | BLOCKED_BY_NMI);
        }
    }

    /// Exceptions and NMIs.
    fn exception(&mut self, vmcs: Current) -> Exit {
        let info = vmcs.read32(field::EXIT_INFO);
        let number = info as u8;
        if info & injection::TYPE_MASK == injection::TYPE_NMI {
            // NMIs are blocked after an exit for one until an IRET, which ends the host's handler.
            // SAFETY: it returns with all registers as they were.
            unsafe { core::arch::asm!("int 2") };
            return Exit::Resume;
        }
        if number == vector::MACHINE_CHECK {
            return Exit::MachineCheck;
        }
        if number == vector::DEBUG {
            // The exit left DR6 and DR7 as they were; delivery would have changed them (vol. 3C, 28.1).
            let dr6 = Dr6::read_raw() & !0xf | vmcs.read(field::QUALIFICATION) & register::DR6_CONDITIONS;
            // SAFETY: conditions are in the lower half.
            unsafe { registers::set_dr6(dr6) };
            vmcs.write(field::DR7, vmcs.read(field::DR7) & !(1 << 13));
        }
        let bit = 1 << (number & 31);
        if self.common.exceptions & bit != 0 || KERNEL_EXCEPTIONS & bit == 0 {
            return Exit::Event(guest::EXCEPTION);
        }
        self.queue(vmcs, info, field::EXIT_ERROR);
        Exit::Resume
    }

    /// MOV to CR0 or CR4 that changes only bits which the kernel owns is let through: the guest's view is changed as
    /// the instruction would change it, and the instruction done again.
    fn control_register(&mut self, vmcs: Current, gprs: &Gprs) -> Exit {
        let qualification = vmcs.read(field::QUALIFICATION);
        let (register, shadow) = match qualification & 0x3f {
            0 => (&mut self.cr0, field::CR0_SHADOW),
            4 => (&mut self.cr4, field::CR4_SHADOW),
            _ => return Exit::Event(guest::CR_ACCESS),
        };
        let index = (qualification >> 8 & 0xf) as usize;
        let value = if index == gpr::RSP { vmcs.read(field::RSP) } else { gprs.0[index] };
        let changed = (value ^ register.shadow) & register.mask();
        if changed & register.vmm != 0 || changed == 0 {
            return Exit::Event(guest::CR_ACCESS);
        }
        register.shadow ^= changed;
        vmcs.write(shadow, register.shadow);
        Exit::Resume
    }
}

impl VirtualCpu for Vmx {
    fn exit(&mut self, gprs: &mut Gprs) -> Exit {
        let vmcs = self.current();
        if gprs.0[STUB_REFUSED] != 0 {
            self.event = REFUSED;
            return Exit::Event(guest::INVALID_STATE);
        }
        let reason = vmcs.read32(field::REASON);
        self.launched |= reason & spec::ENTRY_FAILED == 0;
        self.event = reason as u16;
        match self.event {
            guest::EXCEPTION => {
                self.queue_interrupted(vmcs);
                self.exception(vmcs)
            }
            guest::EXTERNAL_INTERRUPT => Exit::Interrupt(Some(vmcs.read32(field::EXIT_INFO) as u8)),
            spec::REASON_MACHINE_CHECK => Exit::MachineCheck,
            spec::REASON_TIMER => Exit::Interrupt(None),
            guest::CR_ACCESS => self.control_register(vmcs, gprs),
            event @ (guest::INTERRUPT_WINDOW | guest::NMI_WINDOW) => {
                let window = if event == guest::NMI_WINDOW { primary::NMI_WINDOW } else { primary::INTERRUPT_WINDOW };
                self.set_controls(vmcs, 0, window, 0);
                Exit::Event(event)
            }
            guest::TASK_SWITCH | guest::APIC_ACCESS | guest::PAGE_FAULT | guest::EPT_MISCONFIGURATION => {
                self.queue_interrupted(vmcs);
                Exit::Event(self.event)
            }
            event => Exit::Event(event),
        }
    }

    fn save(&mut self, mtd: Mtd, gprs: &Gprs, utcb: &mut Architectural) {
        let vmcs = self.current();
        gprs.save(mtd, utcb, || vmcs.read(field::RSP));
        if mtd.contains(Mtd::RIP) {
            utcb.rip = vmcs.read(field::RIP);
            utcb.instruction_length = vmcs.read32(field::INSTRUCTION_LENGTH);
            utcb.instruction_info = vmcs.read32(field::INSTRUCTION_INFO);
        }
        if mtd.contains(Mtd::QUAL) {
            let fields = match self.event {
                guest::EXCEPTION => [field::QUALIFICATION, field::EXIT_INFO, field::EXIT_ERROR],
                REFUSED => [field::INSTRUCTION_ERROR; 3],
                _ => [field::QUALIFICATION, field::LINEAR_ADDRESS, field::PHYSICAL_ADDRESS],
            };
            utcb.qualification = fields.map(|field| vmcs.read(field));
        }
        if !mtd.difference(HOT).is_empty() {
            if self.fast_live {
                self.cr2 = crate::cpu::Cpu::this().guest_cr2.get();
            }
            transfer::save(self, vmcs, mtd, utcb);
        }
    }

    fn load(&mut self, mtd: Mtd, gprs: &mut Gprs, utcb: &mut Architectural) {
        let vmcs = self.current();
        gprs.load(mtd, utcb, |rsp| vmcs.write(field::RSP, rsp));
        if mtd.contains(Mtd::RIP) {
            vmcs.write(field::RIP, utcb.rip);
        }
        if !mtd.difference(HOT).is_empty() {
            transfer::load(self, vmcs, mtd, utcb);
        }
    }

    fn assign(&mut self, nested_root: u64, io_bitmap: u64, msr_bitmap: u64) {
        let vmcs = self.current();
        self.ept_pointer = nested_root | spec::EPT_POINTER_ATTRIBUTES;
        self.common.flush();
        vmcs.write(field::EPT_POINTER, self.ept_pointer);
        vmcs.write(field::IO_BITMAP_A, io_bitmap);
        vmcs.write(field::IO_BITMAP_B, io_bitmap + 0x1000);
        vmcs.write(field::MSR_BITMAP, msr_bitmap);
    }

    fn is_plain(&mut self) -> bool {
        self.launched && self.threshold == 0
    }

    fn common(&mut self) -> &mut Common {
        &mut self.common
    }

    fn release(&mut self) {
        if self.cpu.current.get() == core::ptr::from_mut(self) {
            self.park_fast();
            self.park_slow();
            self.cpu.current.set(core::ptr::null_mut());
        }
        if self.initialized {
            // SAFETY: the page is this vCPU's own. The processor may keep parts of a VMCS until it is cleared.
            unsafe { vmcs::vmclear(self.control.pa) };
        }
    }

    unsafe fn enter(&mut self, gprs: *mut Gprs, mut deadline: u64) -> u16 {
        let vmcs = self.current();
        if self.threshold != 0 && u64::from(self.threshold) > self.cr8() {
            if vmcs.read32(field::ENTRY_INFO) & INFO_VALID == 0 {
                self.event = guest::TPR_BELOW_THRESHOLD;
                return self.event;
            }
            deadline = 0;
        }
        let due = deadline != self.deadline || self.event == spec::REASON_TIMER;
        if let Some(shift) = self.cpu.timer_shift.filter(|_| due) {
            self.deadline = deadline;
            let ticks = deadline.saturating_sub(crate::cpu::now()) >> shift;
            vmcs.write(field::TIMER, ticks.min(u64::from(u32::MAX)));
        }
        self.event = 0;
        if self.gprs != gprs {
            self.gprs = gprs;
            vmcs.write(field::HOST_RSP, gprs as u64 + STACK_OFFSET as u64);
            vmcs.write(field::HOST_RIP, crate::fast::vmx_exit as *const () as u64);
        }
        if let Some(flush_all) = self.cpu.tags.renew(&mut self.common.tag) {
            if flush_all {
                vmcs::invvpid_all();
            }
            vmcs.write32(field::VPID, self.common.tag.number);
        }
        if core::mem::take(&mut self.common.stale) {
            vmcs::invept(self.ept_pointer);
        }
        self.load_live();
        // SAFETY: the caller's promise; the VMCS is complete.
        unsafe { crate::fast::vmx_enter(gprs, u64::from(self.launched)) }
    }
}
