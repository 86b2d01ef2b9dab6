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
use crate::memory::GuestMemory;
use crate::report::History;
use crate::serial;
use crate::statistics::Statistics;

/// What a port access needs.
pub const PORT: Mtd = Mtd::GPR_0_7.union(Mtd::QUAL).union(Mtd::RIP);
/// What CPUID needs: its answer depends on CR4.
const CPUID: Mtd = Mtd::GPR_0_7.union(Mtd::CR).union(Mtd::RIP);
/// The exit qualification of an OUT of a byte, and of an IN, but for the port and where it stands in the instruction.
const OUT_BYTE: u64 = 0;
const IN_BYTE: u64 = 1 << 3;
/// What of the qualification tells them from others: width, direction, string, REP.
const KIND: u64 = 0x3f;

/// The state that CPUID's portal asks for: where the length is not told, also what finding the instruction needs.
pub(super) fn cpuid_mtd(lengths_told: bool) -> Mtd {
    if lengths_told { CPUID } else { CPUID | Mtd::EFER }
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

    /// The same for all that needs more.
    #[inline]
    pub fn quick(
        &mut self,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
    ) -> Option<Mtd> {
        match number {
            guest::CPUID if have == self.cpuid_mtd => self.any_cpuid(state, memory),
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
        if number != guest::CPUID || have != self.cpuid_mtd {
            return None;
        }
        let next = self.behind_cpuid(state, |gpa| memory.near_u64(gpa))?;
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        let Some((answer, more)) = self.cpuid.plain(leaf, subleaf, state.cr4) else {
            return Some(self.other_cpuid(next, state));
        };
        account_for_cpuid(&mut self.statistics, &mut self.history, state);
        state.rip = next;
        set_answer(state, answer);
        state.gpr[gpr::RCX] |= u64::from(more);
        Some(Mtd::GPR_0_7 | Mtd::RIP)
    }

    /// The same for code that lies far up.
    fn any_cpuid(&mut self, state: &mut Architectural, memory: &impl GuestMemory) -> Option<Mtd> {
        let next = self.behind_cpuid(state, |gpa| memory.read_u64(gpa).ok())?;
        Some(self.other_cpuid(next, state))
    }

    #[cold]
    #[inline(never)]
    fn other_cpuid(&mut self, next: u64, state: &mut Architectural) -> Mtd {
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        account_for_cpuid(&mut self.statistics, &mut self.history, state);
        state.rip = next;
        set_answer(state, &self.cpuid.query(leaf, subleaf, state.cr4, self.xcr0));
        Mtd::GPR_0_7 | Mtd::RIP
    }

    /// The address of the instruction behind CPUID.
    #[inline(always)]
    fn behind_cpuid(&self, state: &Architectural, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let told = self.cpuid_mtd == CPUID;
        let length = if told { state.instruction_length } else { decode::cpuid_length(state, read)? };
        behind(state.rip, length)
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

/// The instruction pointer behind an instruction, unless the length is unknown, or it leaves the lower 32 bits, where the
/// mode counts.
#[inline]
fn behind(rip: u64, length: u32) -> Option<u64> {
    let next = rip.wrapping_add(length.into());
    let changed = rip ^ next;
    (changed.wrapping_sub(1) >> 32 == 0).then_some(next)
}
