//! A virtual CPU's exits: what each means, what it changes, and which state travels for it.
//!
//! [`Vcpu::handle`] is a pure function of the exit's state, the guest's memory and the devices. It says which state
//! it wrote, as a message transfer descriptor. Each event's portal asks for little ([`Vcpu::portal_mtd`]); an exit
//! that turns out to need more is answered with [`Next::More`], happens again and finds it.
//!
//! Intel SDM vol. 3C, chapter 28 (exits), 27.2.1.5 (injection); events are numbered so on both vendors.

mod apic;
mod interrupts;
mod io;
mod mmio;
mod quick;
mod registers;
mod startup;

use alloc::sync::Arc;
use core::ops::DerefMut;

use abi::event::{self, guest};
use abi::utcb::{Architectural, gpr};
use abi::{Mtd, mtd};

use crate::backplane::{Backplane, VcpuSet};
use crate::board::{Board, Config, Effect};
use crate::clock::Clock;
use crate::cpuid::policy::Register;
use crate::cpuid::{Clocks, Cpuid, HostCpuid, Place, Vendor};
use crate::decode;
use crate::kvmclock::KvmClock;
use crate::lapic::Lapic;
use crate::lapic::timer::CrystalClock;
use crate::memory::GuestMemory;
use crate::msr;
use crate::pci::bus::Bus;
use crate::report::{Cause, History};
use crate::site::Sites;
use crate::statistics::Statistics;
use crate::trail::Trails;

pub use interrupts::set_controls;

/// All state that a report or the emulator wants.
pub const EVERYTHING: Mtd = Mtd::GPR_0_7
    .union(Mtd::GPR_8_15)
    .union(Mtd::RFLAGS)
    .union(Mtd::RIP)
    .union(Mtd::STA)
    .union(Mtd::QUAL)
    .union(Mtd::INJ)
    .union(Mtd::CS_SS)
    .union(Mtd::DS_ES)
    .union(Mtd::FS_GS)
    .union(Mtd::TR)
    .union(Mtd::LDTR)
    .union(Mtd::GDTR)
    .union(Mtd::IDTR)
    .union(Mtd::CR)
    .union(Mtd::EFER);

/// Everything that the processor or the kernel can refuse.
const REFUSABLE: Mtd = EVERYTHING
    .union(Mtd::DR)
    .union(Mtd::XSAVE)
    .union(Mtd::SYSCALL)
    .union(Mtd::SYSENTER)
    .union(Mtd::PAT)
    .union(Mtd::KERNEL_GS)
    .union(Mtd::TSC);

/// What fetching and decoding the instruction needs.
pub const DECODE: Mtd = Mtd::RIP.union(Mtd::RFLAGS).union(Mtd::CS_SS).union(Mtd::CR).union(Mtd::EFER);

/// The state that a reply sets when a vCPU starts or restarts. The spaces are the monitor's to add.
pub const INITIAL: Mtd = EVERYTHING
    .difference(Mtd::QUAL)
    .union(Mtd::XSAVE)
    .union(Mtd::SYSCALL)
    .union(Mtd::SYSENTER)
    .union(Mtd::PAT)
    .union(Mtd::KERNEL_GS)
    .union(Mtd::TSC)
    .union(Mtd::DR)
    .union(Mtd::TPR)
    .union(Mtd::CTRL)
    .union(Mtd::TLB);

/// The task priority sank below the threshold (Intel SDM vol. 3D, appendix C).
const TPR_BELOW_THRESHOLD: u16 = 0x2b;
/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;
/// Interruptibility: blocked by STI or MOV SS.
const BLOCKED_BY_INSTRUCTION: u32 = 0b11;
/// "There is no such hypercall", as KVM says it.
const KVM_ENOSYS: u64 = (-1000i64) as u64;
const UNDEFINED_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// How it goes on after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Reply with this descriptor.
    Resume(Mtd),
    /// Ask for this state too at this event, and reply with nothing: the exit happens again.
    More(Mtd),
    /// The vCPU is halted: sleep until [`Vcpu::deadline`] or until someone makes it look, then call [`Vcpu::wake`].
    Halt,
    /// As [`Next::Halt`], but with interrupts disabled: only another vCPU can wake it.
    HaltDisabled,
    /// INIT came: call [`Vcpu::initialize`], then [`Vcpu::startup`] until it says how to go on.
    Init,
    /// The machine is off.
    PowerOff,
    /// The machine resets: load it again, call [`Vcpu::reset`] and start.
    Reset,
    /// The guest cannot go on.
    Crash(Cause),
}

/// What the virtualization hardware does by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hardware {
    /// It tells the length of an instruction that exits.
    pub lengths_told: bool,
    /// How it tells that the task priority sank.
    pub priority_exit: PriorityExit,
}

/// How an interrupt that only the task priority holds back is told that its time has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PriorityExit {
    /// An exit when the priority sinks below the TPR threshold (VMX).
    Threshold,
    /// An exit at writes of CR8, asked for while it is needed, and, should the kernel not offer that for this
    /// processor, a look every millisecond (SVM).
    Write,
}

/// What the vCPUs of a machine share, and what the monitor does for them.
pub trait Platform {
    /// The board, for one access: it is behind a lock.
    fn board(&self) -> impl DerefMut<Target = Board>;
    /// The board, if nobody else has it now.
    fn try_board(&self) -> Option<impl DerefMut<Target = Board>>;
    /// Makes vCPUs look: they leave the guest ([`event::RECALL`]), or wake. Also the one that asks.
    fn wake(&self, vcpus: VcpuSet);
}

/// What a vCPU is made from.
pub struct Setup<'a, H> {
    /// The machine's devices and clocks.
    pub config: &'a Config,
    /// The host's CPUID.
    pub host: &'a H,
    /// What the virtualization hardware does.
    pub hardware: Hardware,
    /// The machine's backplane.
    pub backplane: Arc<Backplane>,
    /// The machine's PCI bus.
    pub bus: Arc<Bus>,
    /// The vCPU's number, which is its APIC id; 0 is the bootstrap processor.
    pub index: usize,
    /// STC value at the start of the machine, the same for all its vCPUs.
    pub now: u64,
}

/// One virtual CPU.
pub struct Vcpu<P> {
    platform: P,
    backplane: Arc<Backplane>,
    bus: Arc<Bus>,
    index: usize,
    lapic: Lapic,
    /// It has not run since the machine was started.
    fresh: bool,
    output_waits: bool,
    /// Exits so far.
    pub statistics: Statistics,
    /// The last exits.
    pub history: History,
    cpuid: Cpuid,
    msrs: msr::Registers,
    kvmclock: KvmClock,
    clock: (Clock, Config),
    sites: Sites,
    lengths_told: bool,
    trails: Trails,
    xcr0: u64,
    deadline: u64,
    /// The deadline may be another one than [`Vcpu::take_deadline`] gave.
    rearm: bool,
    touched: bool,
    window_requested: bool,
    priority_exit: PriorityExit,
    /// Class of the vector that only the task priority holds back; 0: none.
    awaited_class: u8,
    mark: Option<u32>,
}

impl<P: Platform> Vcpu<P> {
    /// A vCPU of a machine just powered on.
    pub fn new<H: HostCpuid>(setup: &Setup<'_, H>, platform: P) -> Self {
        let Setup { config, host, hardware, index, now, .. } = *setup;
        let crystal = CrystalClock::new(config.stc_frequency);
        let clocks = Clocks { tsc: config.stc_frequency, crystal: crystal.frequency, crystal_shift: crystal.shift };
        let place = Place { index: index as u32, count: setup.backplane.vcpus() as u32 };
        let cpuid = Cpuid::new(host, clocks, place);
        let physical_bits = cpuid.query(0x8000_0008, 0, 0, 1)[0] & 0xff;
        let fast_fxsave = cpuid.has(0x8000_0001, Register::Edx, 25);
        let clock = Clock::new(config.stc_frequency);
        let mut vcpu = Self {
            platform,
            backplane: setup.backplane.clone(),
            bus: setup.bus.clone(),
            index,
            lapic: Lapic::new(index as u32, index == 0, crystal),
            fresh: true,
            output_waits: false,
            statistics: Statistics::default(),
            history: History::default(),
            msrs: msr::Registers::new(cpuid.vendor(), physical_bits, fast_fxsave),
            cpuid,
            kvmclock: KvmClock::new(clock, config.wall_clock, now),
            clock: (clock, *config),
            sites: Sites::default(),
            lengths_told: hardware.lengths_told,
            trails: Trails::default(),
            xcr0: 1,
            deadline: u64::MAX,
            rearm: true,
            touched: true,
            window_requested: false,
            priority_exit: hardware.priority_exit,
            awaited_class: 0,
            mark: None,
        };
        vcpu.power_on();
        vcpu
    }

    /// RESET, at STC value `now`, the same for all vCPUs of the machine: registers and statistics start anew; the history
    /// stays. The board and the backplane are reset by whoever resets the machine, before.
    pub fn reset(&mut self, now: u64) {
        self.lapic.reset();
        self.power_on();
        self.msrs.reset();
        self.kvmclock = KvmClock::new(self.clock.0, self.clock.1.wall_clock, now);
        self.set_xcr0(1);
        self.window_requested = false;
        self.awaited_class = 0;
        self.statistics = Statistics::default();
        self.refresh_deadline(now);
    }

    /// The STC value at which the vCPU must be interrupted; `u64::MAX` for never.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Whether the last exit left anything to do but to resume: output, a milestone, another deadline.
    #[inline]
    pub fn left_something(&self) -> bool {
        self.output_waits | self.rearm | self.mark.is_some()
    }

    /// The deadline, for whoever will see to it from now on.
    pub fn take_deadline(&mut self) -> u64 {
        self.rearm = false;
        self.deadline
    }

    /// Whether an exit since the last call left output on the board.
    pub fn take_output_waits(&mut self) -> bool {
        core::mem::take(&mut self.output_waits)
    }

    /// A milestone that the guest marked since the last call.
    pub fn take_mark(&mut self) -> Option<u32> {
        self.mark.take()
    }

    /// Registers that the guest wanted and does not have.
    pub fn unknown_msrs(&self) -> &crate::bus::Unclaimed {
        self.msrs.unknown()
    }

    /// The guest's CPU vendor.
    pub fn vendor(&self) -> Vendor {
        self.cpuid.vendor()
    }

    /// The state that an event's portal asks for.
    pub fn portal_mtd(&self, number: u16) -> Mtd {
        let decode = if self.lengths_told { Mtd::RIP } else { DECODE };
        match number {
            guest::CPUID => quick::cpuid_mtd(self.lengths_told),
            guest::RDMSR | guest::WRMSR => quick::msr_mtd(self.lengths_told),
            guest::XSETBV | guest::VMCALL | guest::RDTSC => Mtd::GPR_0_7 | decode,
            guest::IO => quick::PORT,
            guest::PAGE_FAULT => mmio::MEMORY,
            guest::HLT => Mtd::RFLAGS | Mtd::STA | Mtd::CR | decode,
            guest::INVD | guest::WBINVD => decode,
            guest::INTERRUPT_WINDOW | guest::NMI_WINDOW => Mtd::INJ | Mtd::CR | Mtd::RIP,
            guest::RSM
            | guest::MWAIT
            | guest::MONITOR
            | guest::RDPMC
            | guest::GETSEC
            | guest::VMCLEAR..=guest::VMXON
            | guest::INVLPG => Mtd::RIP,
            number if number == event::GUEST_ARCH + event::RECALL || number == TPR_BELOW_THRESHOLD => {
                Mtd::INJ | Mtd::STA | Mtd::RFLAGS | Mtd::CR | Mtd::RIP
            }
            number if number == event::GUEST_ARCH + event::STARTUP => Mtd::empty(),
            guest::INVALID_STATE => REFUSABLE,
            _ => EVERYTHING,
        }
    }

    /// Handles an exit: `have` says which state the portal asked for, `now` is the STC.
    #[inline]
    pub fn handle(
        &mut self,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        self.statistics.exit(number);
        self.history.push(number, have, state);
        self.collect();
        if now >= self.deadline {
            self.advance(now);
        }
        if self.lapic.signals().init {
            return Next::Init;
        }
        // A vCPU that runs ignores it.
        self.lapic.take_startup();
        let mut next = match number {
            guest::IO => self.port_access(have, state, memory, now),
            guest::CPUID => self.cpuid(have, state, memory),
            _ => self.dispatch(number, have, state, memory, now),
        };
        if matches!(next, Next::Crash(_)) && !have.contains(EVERYTHING) {
            // Nothing of it has reached the guest: let it happen again, for a whole report.
            next = Next::More(EVERYTHING);
        }
        if self.touched && !matches!(next, Next::Crash(_)) {
            self.refresh_deadline(now);
            self.touched = false;
        }
        next
    }

    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        self.cpuid.forget();
    }

    fn refresh_deadline(&mut self, now: u64) {
        self.rearm = true;
        self.deadline = self.lapic.next_deadline().unwrap_or(u64::MAX);
        if self.index == 0 {
            self.deadline = self.deadline.min(self.backplane.board_deadline());
        }
        if self.awaited_class != 0 && self.priority_exit == PriorityExit::Write {
            self.deadline = self.deadline.min(now + self.clock.0.frequency() / 1000);
        }
    }

    #[inline]
    fn cpuid(&mut self, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory) -> Next {
        if !self.lengths_told && !have.contains(DECODE) {
            return Next::More(DECODE);
        }
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        quick::set_answer(state, &self.cpuid.query(leaf, subleaf, state.cr4, self.xcr0));
        self.complete(guest::CPUID, have, state, memory, Mtd::GPR_0_7)
    }

    /// Exits that are not frequent enough to be handled in line.
    #[inline(never)]
    fn dispatch(
        &mut self,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        match number {
            guest::RDMSR => self.read_msr(have, state, memory, now),
            guest::WRMSR => self.write_msr(have, state, memory, now),
            guest::HLT => self.halt(have, state, memory, now),
            guest::INTERRUPT_WINDOW | guest::NMI_WINDOW => self.window_opened(number, state),
            guest::PAGE_FAULT => self.memory_access(have, state, memory, now),
            guest::XSETBV => {
                let value = state.gpr[gpr::RDX] << 32 | state.gpr[gpr::RAX] & 0xffff_ffff;
                if have.contains(Mtd::CR) && state.cr4 & crate::walk::cr4::OSXSAVE == 0 {
                    // VMX has checked it; not every SVM does before it exits.
                    return self.raise(UNDEFINED_OPCODE, None, state, Mtd::empty());
                }
                if state.gpr[gpr::RCX] as u32 != 0 || !self.cpuid.accepts_xcr0(value) {
                    return self.raise(GENERAL_PROTECTION, Some(0), state, Mtd::empty());
                }
                self.set_xcr0(value);
                (state.xcr0, state.xss) = (value, 0);
                self.complete(number, have, state, memory, Mtd::XSAVE)
            }
            guest::VMCALL => {
                state.gpr[gpr::RAX] = KVM_ENOSYS;
                self.complete(number, have, state, memory, Mtd::GPR_0_7)
            }
            guest::RDTSC => {
                (state.gpr[gpr::RAX], state.gpr[gpr::RDX]) = (now & 0xffff_ffff, now >> 32);
                self.complete(number, have, state, memory, Mtd::GPR_0_7)
            }
            // Caches are coherent: nothing to write back, nothing to lose.
            guest::INVD | guest::WBINVD => self.complete(number, have, state, memory, Mtd::empty()),
            // Hidden from CPUID, so undefined.
            guest::RSM | guest::MWAIT | guest::MONITOR | guest::GETSEC | guest::VMCLEAR..=guest::VMXON => {
                self.raise(UNDEFINED_OPCODE, None, state, Mtd::empty())
            }
            guest::RDPMC => self.raise(GENERAL_PROTECTION, Some(0), state, Mtd::empty()),
            guest::CR_ACCESS => self.control_register(state, memory),
            guest::TRIPLE_FAULT => Next::Crash(Cause::TripleFault),
            guest::INVALID_STATE => Next::Crash(Cause::InvalidState),
            number if number == event::GUEST_ARCH + event::RECALL || number == TPR_BELOW_THRESHOLD => {
                self.recalled(state, now)
            }
            _ => Next::Crash(Cause::Unexpected(number)),
        }
    }

    /// The exit's instruction is done: moves RIP behind it and replies with `reply` and what an interrupt needs.
    #[inline]
    fn complete(
        &mut self,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        reply: Mtd,
    ) -> Next {
        self.skip(number, have, state, memory);
        self.resume_after_instruction(state, reply | Mtd::RIP)
    }

    /// Moves RIP behind the exit's instruction.
    #[inline]
    fn skip(&self, number: u16, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory) {
        let rip = state.rip.wrapping_add(state.instruction_length.into());
        // Outside 64-bit mode the instruction pointer has 32 bits; where that matters the slow way knows the mode.
        if state.instruction_length != 0 && (state.rip ^ rip) >> 32 == 0 {
            state.rip = rip;
        } else {
            self.skip_by_mode(number, have, state, memory);
        }
    }

    #[inline(never)]
    fn skip_by_mode(&self, number: u16, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory) {
        let length = match state.instruction_length {
            0 if have.contains(DECODE) => decode::length(number, state, memory),
            // One-byte HLT, else two: only reached if a CPU that promised lengths does not tell one.
            0 => 2 - u32::from(number == guest::HLT),
            length => length,
        };
        let rip = state.rip.wrapping_add(length as u64);
        // The state may not tell the mode, the value does.
        state.rip = if state.rip <= u32::MAX as u64 && rip > u32::MAX as u64 && have.contains(DECODE) {
            if decode::bitness(state) == 64 { rip } else { rip & 0xffff_ffff }
        } else {
            rip
        };
    }

    /// Carries out what a device asked for; `None` to go on.
    #[inline]
    fn effect(&mut self, effect: Effect) -> Option<Next> {
        match effect {
            Effect::None | Effect::SerialOutput | Effect::ExecOutput | Effect::DebugOutput => None,
            Effect::Mark(number) => {
                self.mark = Some(number);
                None
            }
            Effect::PowerOff => Some(Next::PowerOff),
            Effect::Reset => Some(Next::Reset),
        }
    }

    /// Replies with an exception at the exit's instruction.
    fn raise(&mut self, vector: u8, code: Option<u32>, state: &mut Architectural, reply: Mtd) -> Next {
        use mtd::injection::{ERROR_CODE, INTERRUPT_WINDOW, TYPE_EXCEPTION, VALID};
        state.interruption_info = VALID | TYPE_EXCEPTION | vector as u32;
        if let Some(code) = code {
            state.interruption_info |= ERROR_CODE;
            state.interruption_error = code;
        }
        if self.wants_window() {
            return Next::Resume(reply | self.request_window(state));
        }
        if self.window_requested {
            state.interruption_info |= INTERRUPT_WINDOW;
        }
        Next::Resume(reply | Mtd::INJ)
    }

    /// Replies with a page fault; needs CR.
    fn raise_page_fault(&mut self, fault: crate::walk::PageFault, state: &mut Architectural, reply: Mtd) -> Next {
        state.cr2 = fault.address;
        self.raise(PAGE_FAULT, Some(fault.code), state, reply | Mtd::CR)
    }
}

#[cfg(test)]
mod tests;
