//! Accesses to guest-physical memory that is not RAM.

use abi::Mtd;
use abi::utcb::Architectural;

use super::{EVERYTHING, Next, Vcpu};
use crate::board::{Board, Effect};
use crate::bus::Width;
use crate::decode;
use crate::emulate::{Devices, Emulator, Failure};
use crate::memory::GuestMemory;
use crate::report::Cause;

/// Exit qualification of a memory access (Intel SDM vol. 3C, table 28-7): it was an instruction fetch.
const FETCH: u64 = 1 << 2;

/// The board during one instruction.
struct OnBoard<'a> {
    board: &'a mut Board,
    now: u64,
    effect: Effect,
}

impl Devices for OnBoard<'_> {
    fn read(&mut self, gpa: u64, width: Width) -> u64 {
        self.board.mmio_read(gpa, width, self.now)
    }

    fn write(&mut self, gpa: u64, width: Width, value: u64) {
        let effect = self.board.mmio_write(gpa, width, value, self.now);
        if effect != Effect::None {
            self.effect = effect;
        }
    }
}

impl Vcpu {
    pub(super) fn memory_access(
        &mut self,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        let gpa = state.qualification[2];
        if memory.ram().contains(gpa) {
            return Next::Crash(Cause::RamNotMapped(gpa));
        }
        if state.qualification[0] & FETCH != 0 {
            return Next::Crash(Cause::FetchOutsideRam(gpa));
        }
        let instruction = match decode::instruction(state, memory) {
            Ok(instruction) => instruction,
            Err(why) => return Next::Crash(Cause::Undecodable(why)),
        };
        self.touched = true;
        self.sync_priority(state);
        let mut devices = OnBoard { board: &mut self.board, now, effect: Effect::None };
        let result = Emulator::new(state, memory, &mut devices).run(&instruction);
        let effect = devices.effect;
        let mut reply = Mtd::GPR_0_7 | Mtd::GPR_8_15 | Mtd::RFLAGS | Mtd::RIP;
        if u64::from(self.board.cr8()) != state.cr8 {
            reply |= self.priority_written(state);
        }
        match result {
            Ok(()) => match self.effect(effect) {
                Some(next) => next,
                // An event whose delivery the access interrupted is queued again; nothing may replace it.
                None if have.contains(EVERYTHING) && state.interruption_info & abi::mtd::injection::VALID != 0 => {
                    Next::Resume(if self.wants_window() { reply | self.request_window(state) } else { reply })
                }
                None => self.resume_after_instruction(state, reply),
            },
            Err(Failure::Fault(fault)) => self.raise_page_fault(fault, state, reply),
            Err(Failure::Unsupported) => Next::Crash(Cause::NotEmulated(gpa)),
        }
    }
}
