//! Emulation of the instructions with which guests touch device registers in memory.
//!
//! The set is what compilers and kernels emit for that: moves, arithmetic on memory, exchanges and string
//! instructions. Everything else is reported, never guessed. Intel SDM vol. 2; flags: vol. 1, appendix A.

use abi::utcb::{Architectural, gpr};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::bus::Width;
use crate::decode::{address_part, advance, mask, read, write};
use crate::memory::GuestMemory;
use crate::walk::{Access, PageFault, Paging};

/// Units of a repeated string instruction done at a time, so that interrupts are not kept waiting.
const REPEAT_MAX: u64 = 512;

/// Devices in guest-physical memory.
pub trait Devices {
    /// A read outside RAM.
    fn read(&mut self, gpa: u64, width: Width) -> u64;
    /// A write outside RAM.
    fn write(&mut self, gpa: u64, width: Width, value: u64);
}

/// Why an instruction was not emulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The guest's page tables do not permit an access: the fault is the guest's to handle.
    Fault(PageFault),
    /// The instruction is not in the set.
    Unsupported,
}

impl From<PageFault> for Failure {
    fn from(fault: PageFault) -> Self {
        Failure::Fault(fault)
    }
}

/// One instruction being emulated.
pub struct Emulator<'a, M, D> {
    /// The vCPU.
    pub state: &'a mut Architectural,
    /// Its RAM.
    pub memory: &'a M,
    /// Its devices.
    pub devices: &'a mut D,
    paging: Paging,
}

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

impl<'a, M: GuestMemory, D: Devices> Emulator<'a, M, D> {
    /// For one instruction of this vCPU, whose whole state must be in `state`.
    pub fn new(state: &'a mut Architectural, memory: &'a M, devices: &'a mut D) -> Self {
        let paging = Paging::of(state);
        Self { state, memory, devices, paging }
    }

    /// Loads from a linear address.
    pub fn load(&mut self, linear: u64, width: Width) -> Result<u64, Failure> {
        let bytes = width.bytes();
        if linear & 0xfff > 0x1000 - bytes as u64 {
            return (0..bytes as u64)
                .try_fold(0, |value, i| Ok(value | self.load(linear.wrapping_add(i), Width::Byte)? << (8 * i)));
        }
        let gpa = self.paging.translate(self.memory, linear, Access::Read)?;
        let mut buffer = [0; 8];
        match self.memory.read(gpa, &mut buffer[..bytes]) {
            Ok(()) => Ok(u64::from_le_bytes(buffer)),
            Err(_) => Ok(self.devices.read(gpa, width)),
        }
    }

    /// Stores to a linear address.
    pub fn store(&mut self, linear: u64, width: Width, value: u64) -> Result<(), Failure> {
        let bytes = width.bytes();
        if linear & 0xfff > 0x1000 - bytes as u64 {
            // Both pages must be writable before the first byte is written.
            self.paging.translate(self.memory, linear.wrapping_add(bytes as u64 - 1), Access::Write)?;
            return (0..bytes as u64)
                .try_for_each(|i| self.store(linear.wrapping_add(i), Width::Byte, value >> (8 * i) & 0xff));
        }
        let gpa = self.paging.translate(self.memory, linear, Access::Write)?;
        if self.memory.write(gpa, &value.to_le_bytes()[..bytes]).is_err() {
            self.devices.write(gpa, width, value & mask(bytes));
        }
        Ok(())
    }

    fn address(&self, instruction: &Instruction, operand: u32) -> Result<u64, Failure> {
        let state = &*self.state;
        instruction
            .virtual_address(operand, 0, |register, _, _| address_part(state, register))
            .ok_or(Failure::Unsupported)
    }

    fn operand_width(instruction: &Instruction, operand: u32) -> Result<Width, Failure> {
        let bytes = match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size(),
            _ => instruction.memory_size().size(),
        };
        Width::from_bytes(bytes).ok_or(Failure::Unsupported)
    }

    fn get(&mut self, instruction: &Instruction, operand: u32) -> Result<u64, Failure> {
        match instruction.op_kind(operand) {
            OpKind::Register => read(self.state, instruction.op_register(operand)).ok_or(Failure::Unsupported),
            OpKind::Memory => {
                let linear = self.address(instruction, operand)?;
                self.load(linear, Self::operand_width(instruction, operand)?)
            }
            _ => instruction.try_immediate(operand).map_err(|_| Failure::Unsupported),
        }
    }

    fn put(&mut self, instruction: &Instruction, operand: u32, value: u64) -> Result<(), Failure> {
        match instruction.op_kind(operand) {
            OpKind::Register => write(self.state, instruction.op_register(operand), value).ok_or(Failure::Unsupported),
            OpKind::Memory => {
                let linear = self.address(instruction, operand)?;
                self.store(linear, Self::operand_width(instruction, operand)?, value)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn set_flags(&mut self, flags: u64, which: u64) {
        self.state.rflags = self.state.rflags & !which | flags & which;
    }

    /// Flags of a result: zero, sign, parity.
    fn result_flags(result: u64, bytes: usize) -> u64 {
        let result = result & mask(bytes);
        let mut flags = 0;
        if result == 0 {
            flags |= ZF;
        }
        if result >> (bytes * 8 - 1) & 1 != 0 {
            flags |= SF;
        }
        if (result as u8).count_ones().is_multiple_of(2) {
            flags |= PF;
        }
        flags
    }

    /// Carry, auxiliary and overflow of a sum `result = a + b (+ carry)`, from its carry chain.
    fn sum_flags(carries: u64, bytes: usize) -> u64 {
        let top = bytes * 8 - 1;
        let (into, out) = (carries >> (top - 1) & 1, carries >> top & 1);
        (out * CF) | ((carries >> 3 & 1) * AF) | ((into ^ out) * OF)
    }

    /// Two operands, result to the first if `keep`.
    fn arithmetic(
        &mut self,
        instruction: &Instruction,
        keep: bool,
        operation: impl Fn(u64, u64, u64) -> (u64, u64),
    ) -> Result<(), Failure> {
        let bytes = Self::operand_width(instruction, 0)?.bytes();
        let a = self.get(instruction, 0)?;
        let b = self.get(instruction, 1)?;
        let (result, carries) = operation(a, b, self.state.rflags & CF);
        let flags = Self::result_flags(result, bytes) | Self::sum_flags(carries, bytes);
        if keep {
            self.put(instruction, 0, result & mask(bytes))?;
        }
        self.set_flags(flags, ARITHMETIC);
        Ok(())
    }

    /// Emulates `instruction`; the instruction pointer moves on when it is complete.
    pub fn run(&mut self, instruction: &Instruction) -> Result<(), Failure> {
        let add = |a: u64, b: u64, carry: u64| {
            let sum = a.wrapping_add(b).wrapping_add(carry);
            (sum, (a & b) | ((a | b) & !sum))
        };
        let sub = |a: u64, b: u64, borrow: u64| {
            let difference = a.wrapping_sub(b).wrapping_sub(borrow);
            (difference, (!a & b) | ((!a | b) & difference))
        };
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti => {
                let value = self.get(instruction, 1)?;
                self.put(instruction, 0, value)?;
            }
            Mnemonic::Movzx => {
                let value = self.get(instruction, 1)?;
                self.put(instruction, 0, value)?;
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let bits = 64 - 8 * Self::operand_width(instruction, 1)?.bytes() as u32;
                let value = self.get(instruction, 1)?;
                self.put(instruction, 0, ((value << bits) as i64 >> bits) as u64)?;
            }
            Mnemonic::And => self.arithmetic(instruction, true, |a, b, _| (a & b, 0))?,
            Mnemonic::Or => self.arithmetic(instruction, true, |a, b, _| (a | b, 0))?,
            Mnemonic::Xor => self.arithmetic(instruction, true, |a, b, _| (a ^ b, 0))?,
            Mnemonic::Test => self.arithmetic(instruction, false, |a, b, _| (a & b, 0))?,
            Mnemonic::Add => self.arithmetic(instruction, true, |a, b, _| add(a, b, 0))?,
            Mnemonic::Adc => self.arithmetic(instruction, true, add)?,
            Mnemonic::Sub => self.arithmetic(instruction, true, |a, b, _| sub(a, b, 0))?,
            Mnemonic::Sbb => self.arithmetic(instruction, true, sub)?,
            Mnemonic::Cmp => self.arithmetic(instruction, false, |a, b, _| sub(a, b, 0))?,
            Mnemonic::Inc | Mnemonic::Dec => self.increment(instruction)?,
            Mnemonic::Not => {
                let value = self.get(instruction, 0)?;
                self.put(instruction, 0, !value)?;
            }
            Mnemonic::Xchg => {
                let (a, b) = (self.get(instruction, 0)?, self.get(instruction, 1)?);
                self.put(instruction, 0, b)?;
                self.put(instruction, 1, a)?;
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit_test(instruction)?,
            mnemonic => {
                if !self.string(instruction, mnemonic)? {
                    return Ok(());
                }
            }
        }
        self.state.rip = instruction.next_ip();
        Ok(())
    }

    fn increment(&mut self, instruction: &Instruction) -> Result<(), Failure> {
        let bytes = Self::operand_width(instruction, 0)?.bytes();
        let up = instruction.mnemonic() == Mnemonic::Inc;
        let a = self.get(instruction, 0)?;
        let result = if up { a.wrapping_add(1) } else { a.wrapping_sub(1) };
        let carries = if up { (a & 1) | ((a | 1) & !result) } else { (!a & 1) | ((!a | 1) & result) };
        self.put(instruction, 0, result & mask(bytes))?;
        let flags = Self::result_flags(result, bytes) | Self::sum_flags(carries, bytes);
        self.set_flags(flags, ARITHMETIC & !CF);
        Ok(())
    }

    fn bit_test(&mut self, instruction: &Instruction) -> Result<(), Failure> {
        if instruction.op_kind(1) == OpKind::Register && instruction.op_kind(0) == OpKind::Memory {
            // The bit offset reaches beyond the operand: nobody does that to a device.
            return Err(Failure::Unsupported);
        }
        let bits = Self::operand_width(instruction, 0)?.bytes() as u64 * 8;
        let value = self.get(instruction, 0)?;
        let bit = 1u64 << (self.get(instruction, 1)? % bits);
        match instruction.mnemonic() {
            Mnemonic::Bts => self.put(instruction, 0, value | bit)?,
            Mnemonic::Btr => self.put(instruction, 0, value & !bit)?,
            Mnemonic::Btc => self.put(instruction, 0, value ^ bit)?,
            _ => {}
        }
        self.set_flags(if value & bit != 0 { CF } else { 0 }, CF);
        Ok(())
    }

    /// MOVS, STOS, LODS with and without REP. False if it has to go on after an interrupt window.
    fn string(&mut self, instruction: &Instruction, mnemonic: Mnemonic) -> Result<bool, Failure> {
        let (bytes, from, to) = match mnemonic {
            Mnemonic::Movsb => (1, true, true),
            Mnemonic::Movsw => (2, true, true),
            Mnemonic::Movsd if !instruction.op0_register().is_xmm() && instruction.op_count() == 2 => (4, true, true),
            Mnemonic::Movsq => (8, true, true),
            Mnemonic::Stosb => (1, false, true),
            Mnemonic::Stosw => (2, false, true),
            Mnemonic::Stosd => (4, false, true),
            Mnemonic::Stosq => (8, false, true),
            Mnemonic::Lodsb => (1, true, false),
            Mnemonic::Lodsw => (2, true, false),
            Mnemonic::Lodsd => (4, true, false),
            Mnemonic::Lodsq => (8, true, false),
            _ => return Err(Failure::Unsupported),
        };
        let width = Width::from_bytes(bytes).ok_or(Failure::Unsupported)?;
        let address_bytes = string_address_bytes(instruction);
        let step = if self.state.rflags & DF != 0 { -(bytes as i64) } else { bytes as i64 };
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let mut left = if repeated { self.state.gpr[gpr::RCX] & mask(address_bytes) } else { 1 };
        let mut budget = REPEAT_MAX;
        while left != 0 && budget != 0 {
            let value = match from {
                true => {
                    let operand = if to { 1 } else { 1.min(instruction.op_count() - 1) };
                    let linear = self.address(instruction, operand)?;
                    self.load(linear, width)?
                }
                false => self.state.gpr[gpr::RAX] & mask(bytes),
            };
            match to {
                true => {
                    let linear = self.address(instruction, 0)?;
                    self.store(linear, width, value)?;
                    advance(self.state, gpr::RDI, address_bytes, step);
                }
                false => {
                    write(self.state, instruction.op0_register(), value).ok_or(Failure::Unsupported)?;
                }
            }
            if from {
                advance(self.state, gpr::RSI, address_bytes, step);
            }
            if repeated {
                advance(self.state, gpr::RCX, address_bytes, -1);
            }
            left -= 1;
            budget -= 1;
        }
        Ok(left == 0)
    }
}

/// Width in bytes of the address registers of a string instruction.
pub fn string_address_bytes(instruction: &Instruction) -> usize {
    let kinds = (0..instruction.op_count()).map(|operand| instruction.op_kind(operand));
    for kind in kinds {
        match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => return 8,
            _ => {}
        }
    }
    8
}

#[cfg(test)]
mod tests;
