//! RDMSR, WRMSR and control-register accesses that exit.

use abi::Mtd;
use abi::event::guest;
use abi::utcb::{Architectural, gpr};

use super::{DECODE, GENERAL_PROTECTION, Next, Platform, Vcpu};
use crate::decode;
use crate::memory::GuestMemory;
use crate::msr::Rule;
use crate::report::Cause;
use crate::walk::{cr0, efer};

/// x2APIC task priority: the same register as CR8.
const MSR_TPR: u32 = 0x808;
/// Registers that show it: task priority, processor priority.
const PRIORITY_MSRS: [u32; 2] = [MSR_TPR, 0x80a];

impl<P: Platform> Vcpu<P> {
    /// Makes sure that the length of RDMSR or WRMSR is told, or can be found. False: it takes the state [`DECODE`].
    fn length_is_known(&self, number: u16, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory) -> bool {
        if self.lengths_told || have.contains(DECODE) {
            return true;
        }
        let length = self.untold_length(number, state, memory);
        state.instruction_length = length.unwrap_or(0);
        length.is_some()
    }

    pub(super) fn read_msr(
        &mut self,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        if !self.length_is_known(guest::RDMSR, have, state, memory) {
            return Next::More(DECODE);
        }
        let index = state.gpr[gpr::RCX] as u32;
        let value = match self.msrs.rule(index) {
            Some(Rule::State(register)) if !have.contains(register.mtd()) => return Next::More(register.mtd()),
            Some(Rule::State(register)) => Some(*register.place(state)),
            Some(Rule::Fixed(value) | Rule::ReadOnly(value)) => Some(value),
            Some(Rule::Kept(initial)) => Some(self.msrs.read_kept(index, initial)),
            Some(Rule::Zero) => Some(0),
            Some(Rule::Tsc) => Some(now),
            Some(Rule::Board) => {
                if PRIORITY_MSRS.contains(&index) {
                    if !have.contains(Mtd::CR) {
                        return Next::More(Mtd::CR);
                    }
                    self.sync_priority(state);
                }
                self.touched = true;
                self.lapic.rdmsr(index, now).ok()
            }
            Some(Rule::KvmClock) => self.kvmclock.read(index),
            None => None,
        };
        self.statistics.msr(index);
        let Some(value) = value else {
            self.msrs.note_unknown(index, false);
            return self.raise(GENERAL_PROTECTION, Some(0), state, Mtd::empty());
        };
        (state.gpr[gpr::RAX], state.gpr[gpr::RDX]) = (value & 0xffff_ffff, value >> 32);
        self.complete(guest::RDMSR, have, state, memory, Mtd::GPR_0_7)
    }

    pub(super) fn write_msr(
        &mut self,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        if !self.length_is_known(guest::WRMSR, have, state, memory) {
            return Next::More(DECODE);
        }
        let index = state.gpr[gpr::RCX] as u32;
        let value = state.gpr[gpr::RDX] << 32 | state.gpr[gpr::RAX] & 0xffff_ffff;
        let mut reply = Mtd::empty();
        let accepted = match self.msrs.rule(index) {
            Some(Rule::State(register)) if !have.contains(register.mtd()) => return Next::More(register.mtd()),
            Some(Rule::State(register)) => {
                reply = register.reply_mtd();
                self.msrs.write_state(register, value, state).is_ok()
            }
            Some(Rule::Fixed(_)) => true,
            Some(Rule::Kept(_)) => {
                self.msrs.write_kept(index, value);
                true
            }
            Some(Rule::Zero) => value == 0,
            Some(Rule::ReadOnly(_) | Rule::Tsc) | None => false,
            Some(Rule::Board) if PRIORITY_MSRS.contains(&index) && !have.contains(Mtd::CR) => {
                return Next::More(Mtd::CR);
            }
            Some(Rule::Board) => {
                let result = self.lapic.wrmsr(index, value, now);
                if index == MSR_TPR {
                    reply = self.priority_written(state);
                }
                result.map(|outcome| self.carry_out(outcome, now)).is_ok()
            }
            Some(Rule::KvmClock) => self.kvmclock.write(index, value, now, memory).is_ok(),
        };
        self.statistics.msr(index);
        if !accepted {
            self.msrs.note_unknown(index, true);
            return self.raise(GENERAL_PROTECTION, Some(0), state, Mtd::empty());
        }
        self.complete(guest::WRMSR, have, state, memory, reply)
    }

    /// MOV to and from control registers that the kernel or the monitor intercepts (Intel SDM vol. 3C, table 28-3).
    pub(super) fn control_register(&mut self, state: &mut Architectural, memory: &impl GuestMemory) -> Next {
        let qualification = state.qualification[0];
        let mut register = (qualification >> 8 & 15) as usize;
        if state.instruction_length == 0 {
            // Without decode assists the qualification does not tell the general register either.
            let Ok(instruction) = decode::instruction(state, memory) else {
                return Next::Crash(Cause::Unexpected(guest::CR_ACCESS));
            };
            state.instruction_length = instruction.len() as u32;
            let operands = [instruction.op0_register(), instruction.op1_register()];
            register = operands.iter().find(|operand| operand.is_gpr()).map_or(0, |operand| operand.number());
        }
        let have = super::EVERYTHING;
        let mut reply = Mtd::CR | Mtd::EFER | Mtd::GPR_0_7 | Mtd::GPR_8_15;
        match (qualification & 15, qualification >> 4 & 3) {
            (8, 0) => {
                self.lapic.set_cr8(state.gpr[register] as u8 & 15);
                self.touched = true;
                reply |= self.priority_written(state);
            }
            (8, 1) => state.gpr[register] = state.cr8,
            (0, 0) => {
                let value = state.gpr[register];
                if state.efer & efer::LME != 0 {
                    let active = if value & cr0::PG != 0 { efer::LMA } else { 0 };
                    state.efer = state.efer & !efer::LMA | active;
                }
                state.cr0 = value;
            }
            (3, 0) => state.cr3 = state.gpr[register],
            (4, 0) => state.cr4 = state.gpr[register],
            (0, 2) => state.cr0 &= !(1 << 3), // CLTS
            _ => return Next::Crash(Cause::Unexpected(guest::CR_ACCESS)),
        }
        self.complete(guest::CR_ACCESS, have, state, memory, reply)
    }
}
