//! Port input and output, single and string.
//!
//! Exit qualification: Intel SDM vol. 3C, table 28-5.

use abi::Mtd;
use abi::event::guest;
use abi::utcb::{Architectural, gpr};

use super::{EVERYTHING, Next, Platform, Vcpu};
use crate::board::Effect;
use crate::bus::Width;
use crate::decode::{self, address_part, advance, mask};
use crate::emulate::{Devices, Emulator, Failure, string_address_bytes};
use crate::exec_port;
use crate::memory::GuestMemory;
use crate::report::Cause;
use crate::walk::{Access, Paging};

const DIRECTION_FLAG: u64 = 1 << 10;
/// Units of a repeated transfer done at a time, so that interrupts are not kept waiting.
const REPEAT_MAX: u64 = 256;

/// The exit qualification of a port access.
#[derive(Clone, Copy, Debug)]
struct Qualification(u64);

impl Qualification {
    fn width(self) -> Option<Width> {
        Width::from_bytes((self.0 & 7) as usize + 1)
    }
    fn input(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    fn string(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    fn repeated(self) -> bool {
        self.0 & 1 << 5 != 0
    }
    fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// String transfers between ports and device memory do not exist in practice: such memory reads as ones.
struct NoDevices;

impl Devices for NoDevices {
    fn read(&mut self, _gpa: u64, width: Width) -> u64 {
        width.ones()
    }
    fn write(&mut self, _gpa: u64, _width: Width, _value: u64) {}
}

impl<P: Platform> Vcpu<P> {
    #[inline]
    pub(super) fn port_access(
        &mut self,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        let access = Qualification(state.qualification[0]);
        let Some(width) = access.width() else { return Next::Crash(Cause::Unexpected(guest::IO)) };
        if access.string() {
            return self.string_access(access, width, have, state, memory, now);
        }
        self.statistics.port(access.port());
        if access.input() {
            let value = self.with_board(now, |board| board.io_read(access.port(), width, now)) as u64;
            let rax = &mut state.gpr[gpr::RAX];
            *rax = if width == Width::Dword { value } else { *rax & !width.ones() | value & width.ones() };
            return self.complete(guest::IO, have, state, memory, Mtd::GPR_0_7);
        }
        let value = state.gpr[gpr::RAX] as u32 & width.ones() as u32;
        let effect = self.with_board(now, |board| board.io_write(access.port(), width, value, now));
        if let Some(next) = self.effect(effect) {
            return next;
        }
        self.complete(guest::IO, have, state, memory, Mtd::empty())
    }

    /// INS, OUTS. A repeated one is done in pieces: the instruction pointer stays until the count is zero.
    #[inline(never)]
    fn string_access(
        &mut self,
        access: Qualification,
        width: Width,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        if !have.contains(EVERYTHING) {
            return Next::More(EVERYTHING);
        }
        self.statistics.port(access.port());
        let instruction = match decode::instruction(state, memory) {
            Ok(instruction) => instruction,
            Err(why) => return Next::Crash(Cause::Undecodable(why)),
        };
        let bytes = string_address_bytes(&instruction);
        let reply = Mtd::GPR_0_7 | Mtd::RIP;
        let mut left = if access.repeated() { state.gpr[gpr::RCX] & mask(bytes) } else { 1 };
        let step = if state.rflags & DIRECTION_FLAG != 0 { -(width.bytes() as i64) } else { width.bytes() as i64 };
        let mut budget = REPEAT_MAX;
        while left != 0 && budget != 0 {
            let operand = if access.input() { 0 } else { 1 };
            let Some(linear) = instruction.virtual_address(operand, 0, |register, _, _| address_part(state, register))
            else {
                return Next::Crash(Cause::Unexpected(guest::IO));
            };
            let done = match access.input() {
                true => self.input_unit(access.port(), width, linear, state, memory, now),
                false => match self.exec_piece(access.port(), width, step, left, linear, state, memory, now) {
                    Ok(0) => self.output_unit(access.port(), width, linear, state, memory, now),
                    other => other.map(|count| (count, Effect::None)),
                },
            };
            let (count, effect) = match done {
                Ok(done) => done,
                Err(Failure::Fault(fault)) => return self.raise_page_fault(fault, state, reply),
                Err(Failure::Unsupported) => return Next::Crash(Cause::Unexpected(guest::IO)),
            };
            let pointer = if access.input() { gpr::RDI } else { gpr::RSI };
            advance(state, pointer, bytes, step * count as i64);
            if access.repeated() {
                advance(state, gpr::RCX, bytes, -(count as i64));
            }
            left -= count;
            budget -= 1;
            if let Some(next) = self.effect(effect) {
                return next;
            }
            // The queues are drained between exits.
            if self.platform.board().exec_room() == 0 {
                break;
            }
        }
        if left == 0 {
            state.rip = instruction.next_ip();
        }
        self.resume_after_instruction(state, reply)
    }

    fn input_unit(
        &mut self,
        port: u16,
        width: Width,
        linear: u64,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Result<(u64, Effect), Failure> {
        // A page fault must come before the device loses the value.
        Paging::of(state).translate(memory, linear, Access::Write)?;
        let value = self.with_board(now, |board| board.io_read(port, width, now)) as u64;
        Emulator::new(state, memory, &mut NoDevices).store(linear, width, value)?;
        Ok((1, Effect::None))
    }

    fn output_unit(
        &mut self,
        port: u16,
        width: Width,
        linear: u64,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Result<(u64, Effect), Failure> {
        let value = Emulator::new(state, memory, &mut NoDevices).load(linear, width)?;
        Ok((1, self.with_board(now, |board| board.io_write(port, width, value as u32, now))))
    }

    /// Bytes to the execution channel go by the page. Returns how many went; 0 if this is something else.
    #[expect(clippy::too_many_arguments, reason = "one string instruction's operands")]
    fn exec_piece(
        &mut self,
        port: u16,
        width: Width,
        step: i64,
        left: u64,
        linear: u64,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Result<u64, Failure> {
        if port != exec_port::PORT || width != Width::Byte || step != 1 {
            return Ok(0);
        }
        let gpa = Paging::of(state).translate(memory, linear, Access::Read)?;
        let mut buffer = [0; 4096];
        let count = left.min(4096 - (linear & 0xfff)) as usize;
        // What finds no room by now is sent again.
        if memory.read(gpa, &mut buffer[..count]).is_err() {
            return Ok(0);
        }
        Ok(self.with_board(now, |board| board.exec_output(&buffer[..count])) as u64)
    }
}
