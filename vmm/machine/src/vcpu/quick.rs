//! Exits from which nothing follows: registers that only hold a value, and CPUID.
//!
//! They are the ones that cost is counted for, and most of what a guest does. [`Vcpu::quick`] answers them without a look
//! at the clock, at mail, or at what else there is to do: all of that makes the vCPU exit by a recall when its time comes,
//! and is done then. An exit that it does not know in full it leaves as it was, for [`Vcpu::handle`].

use abi::Mtd;
use abi::event::guest;
use abi::utcb::{Architectural, gpr};

use super::mmio::MEMORY;
use super::{Platform, Vcpu};
use crate::cpuid::Registers;
use crate::decode;
use crate::lapic::{MSR_EOI, MSR_TSC_DEADLINE};
use crate::memory::GuestMemory;
use crate::report::History;
use crate::serial;
use crate::statistics::Statistics;
use crate::walk::Paging;

/// What a port access needs.
pub const PORT: Mtd = Mtd::GPR_0_7.union(Mtd::QUAL).union(Mtd::RIP);
/// What CPUID needs: its answer depends on CR4.
const CPUID: Mtd = Mtd::GPR_0_7.union(Mtd::CR).union(Mtd::RIP);
/// The same where no lengths are told, and the instruction has to be found.
const UNTOLD_CPUID: Mtd = CPUID.union(Mtd::EFER);
/// What RDMSR and WRMSR need.
const MSR: Mtd = Mtd::GPR_0_7.union(Mtd::RIP);
/// The same where no lengths are told.
const UNTOLD_MSR: Mtd = MSR.union(FINDING);
/// What finding an instruction needs: not the code segment, which costs more than all the rest. Should a program of 32 bits
/// have a segment that does not begin at 0, other bytes are looked at; it would have to put just these there, and a prefix
/// before its instruction, to be deceived, by itself.
pub(super) const FINDING: Mtd = Mtd::CR.union(Mtd::EFER);
/// The exit qualification of an OUT of a byte, and of an IN, but for the port and where it stands in the instruction.
const OUT_BYTE: u64 = 0;
const IN_BYTE: u64 = 1 << 3;
/// What of the qualification tells them from others: width, direction, string, REP.
const KIND: u64 = 0x3f;

/// The state that CPUID's portal asks for.
pub(super) fn cpuid_mtd(lengths_told: bool) -> Mtd {
    if lengths_told { CPUID } else { UNTOLD_CPUID }
}

/// The state that the portals of RDMSR and WRMSR ask for.
pub(super) fn msr_mtd(lengths_told: bool) -> Mtd {
    if lengths_told { MSR } else { UNTOLD_MSR }
}

impl<P: Platform> Vcpu<P> {
    /// Handles an access to a register from which nothing follows; the reply. None: nothing has happened, it is
    /// [`Vcpu::handle`]'s. It calls nothing.
    #[inline(always)]
    pub fn quick_port(&mut self, number: u16, have: Mtd, state: &mut Architectural) -> Option<Mtd> {
        if number != guest::IO || have != PORT || state.instruction_length == 0 {
            return None;
        }
        let qualification = state.qualification[0];
        let register = serial::register((qualification >> 16) as u16)?;
        // Each in one go: what they have in common would cost registers.
        match qualification & KIND {
            OUT_BYTE => {
                let written = self.platform.try_board()?.quiet_write(register, state.gpr[gpr::RAX] as u8);
                if !written {
                    return None;
                }
                self.pass_port(register, state);
                Some(Mtd::RIP)
            }
            IN_BYTE => {
                let byte = self.platform.try_board()?.quiet_read(register)?;
                self.pass_port(register, state);
                state.gpr[gpr::RAX] = state.gpr[gpr::RAX] & !0xff | u64::from(byte);
                Some(Mtd::GPR_0_7 | Mtd::RIP)
            }
            _ => None,
        }
    }

    /// Accounts for an access to a serial register and moves on.
    #[inline(always)]
    fn pass_port(&mut self, register: u16, state: &mut Architectural) {
        self.statistics.serial(register);
        self.history.push(guest::IO, PORT, state);
        state.rip = state.rip.wrapping_add(state.instruction_length.into());
    }

    /// The same for all that needs more; `now` tells the STC. The deadline may be another one then.
    #[inline]
    pub fn quick(
        &mut self,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: impl FnOnce() -> u64,
    ) -> Option<Mtd> {
        match number {
            guest::WRMSR if have == UNTOLD_MSR || have == MSR => self.quick_wrmsr(have, state, memory, now),
            guest::CPUID if have == UNTOLD_CPUID || have == CPUID => self.other_cpuid(have, state, memory),
            guest::PAGE_FAULT if have == MEMORY => self.quick_access(state, memory),
            _ => None,
        }
    }

    /// The same for CPUID.
    #[inline(always)]
    pub fn quick_cpuid(
        &mut self,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
    ) -> Option<Mtd> {
        if number != guest::CPUID {
            return None;
        }
        let next = if have == UNTOLD_CPUID {
            behind_cpuid(state, self.trails.code(state, |gpa| memory.near_u64(gpa))?)?
        } else if have == CPUID {
            behind(state.rip, state.instruction_length)?
        } else {
            return None;
        };
        self.answer(next, state)
    }

    /// The same for what comes with every tick of the timer: an interrupt's end behind which none waits, and the next
    /// deadline.
    fn quick_wrmsr(
        &mut self,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: impl FnOnce() -> u64,
    ) -> Option<Mtd> {
        let length =
            if have == MSR { state.instruction_length } else { self.untold_length(guest::WRMSR, state, memory)? };
        let next = behind(state.rip, length)?;
        let index = state.gpr[gpr::RCX] as u32;
        let value = state.gpr[gpr::RDX] << 32 | state.gpr[gpr::RAX] & 0xffff_ffff;
        if !matches!(index, MSR_EOI | MSR_TSC_DEADLINE) || self.external() || self.lapic.signals().nmi {
            return None;
        }
        let now = now();
        self.lapic.quiet_wrmsr(index, value, now).then_some(())?;
        if index == MSR_EOI {
            self.backplane.publish_priority(self.index, self.lapic.ppr());
        } else {
            self.refresh_deadline(now);
        }
        self.statistics.exit(guest::WRMSR);
        self.statistics.msr(index);
        self.history.push(guest::WRMSR, have, state);
        state.rip = next;
        Some(Mtd::RIP)
    }

    /// Length of an RDMSR or WRMSR in long mode that has no prefixes. Needs RIP, CR, EFER.
    pub(super) fn untold_length(&self, number: u16, state: &Architectural, memory: &impl GuestMemory) -> Option<u32> {
        let gpa = Paging::of(state).executed(memory, state.rip)?;
        let code = if gpa & 0xfff > 0xff8 { None } else { memory.read_u64(gpa).ok() }?;
        decode::is_bare(number, code).then_some(2)
    }

    /// The same for CPUID in another page than those of late, or with other tables, or whose answer is not at hand.
    #[inline(never)]
    fn other_cpuid(&mut self, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory) -> Option<Mtd> {
        let next = match have {
            UNTOLD_CPUID => behind_cpuid(state, self.trails.find(state, memory)?)?,
            _ => behind(state.rip, state.instruction_length)?,
        };
        if let Some(reply) = self.answer(next, state) {
            return Some(reply);
        }
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        self.cpuid.give(leaf, subleaf, state.cr4, self.xcr0);
        self.answer(next, state)
    }

    #[inline(always)]
    fn answer(&mut self, next: u64, state: &mut Architectural) -> Option<Mtd> {
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        let (answer, more) = self.cpuid.plain(leaf, subleaf, state.cr4)?;
        account_for_cpuid(&mut self.statistics, &mut self.history, state);
        state.rip = next;
        set_answer(state, answer);
        state.gpr[gpr::RCX] |= u64::from(more);
        Some(Mtd::GPR_0_7 | Mtd::RIP)
    }
}

#[inline(always)]
fn account_for_cpuid(statistics: &mut Statistics, history: &mut History, state: &Architectural) {
    statistics.exit(guest::CPUID);
    history.remember(guest::CPUID, true, state.rip, [state.gpr[gpr::RAX], state.gpr[gpr::RCX]]);
}

/// CPUID's answer in the registers.
#[inline]
pub(super) fn set_answer(state: &mut Architectural, [eax, ebx, ecx, edx]: &Registers) {
    (state.gpr[gpr::RAX], state.gpr[gpr::RBX]) = (u64::from(*eax), u64::from(*ebx));
    (state.gpr[gpr::RCX], state.gpr[gpr::RDX]) = (u64::from(*ecx), u64::from(*edx));
}

/// The instruction pointer behind a CPUID, if `code` is one. It does not end a page.
#[inline(always)]
fn behind_cpuid(state: &Architectural, code: u64) -> Option<u64> {
    decode::is_bare(guest::CPUID, code).then(|| state.rip.wrapping_add(2))
}

/// The instruction pointer behind an instruction, unless the length is unknown, or it leaves the lower 32 bits, where the
/// mode counts.
#[inline]
fn behind(rip: u64, length: u32) -> Option<u64> {
    let next = rip.wrapping_add(length.into());
    let changed = rip ^ next;
    (changed.wrapping_sub(1) >> 32 == 0).then_some(next)
}
