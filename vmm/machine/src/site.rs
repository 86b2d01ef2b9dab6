//! Instructions that touched devices, kept as they were decoded, for they do so again and again.
//!
//! The guest may change its code, and its page tables, at any time: an instruction is found by its address, and counts
//! only if the bytes that the guest's tables show there now are those that were decoded. Only moves between a register, or
//! a constant, and one place in memory are kept, of 64-bit code, in segments that begin at 0.

use abi::utcb::Architectural;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::bus::Width;
use crate::decode::mask;
use crate::memory::GuestMemory;
use crate::walk::Paging;

/// Instructions that are kept; those of a loop, which stand close together, all have places of their own.
const SITES: usize = 128;
/// Bytes that are compared at most.
const COMPARED: u64 = 16;

/// What goes to or comes from memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operand {
    /// A general register: its number, where in it, how many bytes of it.
    Register { number: u8, shift: u8, bytes: u8 },
    /// A constant.
    Immediate(u64),
}

/// Part of an address: a general register's number, or one of these.
const NOTHING: u8 = 16;
const NEXT_INSTRUCTION: u8 = 17;

/// A move between a register, or a constant, and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Bytes of code.
    length: u8,
    /// Width of the access.
    pub width: Width,
    /// Whether memory is written.
    pub write: bool,
    /// Whether what is read is extended by its sign.
    signed: bool,
    operand: Operand,
    base: u8,
    index: u8,
    scale: u8,
    displacement: u64,
}

/// The number of a 64-bit general register, of the next instruction's address, or of nothing.
fn part(register: Register) -> Option<u8> {
    match register {
        Register::None => Some(NOTHING),
        Register::RIP => Some(NEXT_INSTRUCTION),
        register if register.is_gpr64() => Some(register.number() as u8),
        _ => None,
    }
}

fn general(register: Register) -> Option<Operand> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    let number = register.full_register().number() as u8;
    let place = Operand::Register { number, shift: if high { 8 } else { 0 }, bytes: register.size() as u8 };
    register.is_gpr().then_some(place)
}

impl Move {
    /// The move that `instruction`, of 64-bit code, is; None for all others.
    pub fn of(instruction: &Instruction) -> Option<Self> {
        let signed = match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movzx => false,
            Mnemonic::Movsx | Mnemonic::Movsxd => true,
            _ => return None,
        };
        let write = instruction.op0_kind() == OpKind::Memory;
        let other = if write { 1 } else { 0 };
        if !write && instruction.op1_kind() != OpKind::Memory
            || matches!(instruction.memory_segment(), Register::FS | Register::GS)
        {
            return None;
        }
        let operand = match instruction.op_kind(other) {
            OpKind::Register => general(instruction.op_register(other))?,
            _ => Operand::Immediate(instruction.try_immediate(other).ok()?),
        };
        let base = part(instruction.memory_base())?;
        Some(Self {
            length: instruction.len() as u8,
            width: Width::from_bytes(instruction.memory_size().size())?,
            write,
            signed,
            operand,
            base,
            index: part(instruction.memory_index())?,
            scale: instruction.memory_index_scale() as u8,
            // The decoder has added the next instruction's address already.
            displacement: match base {
                NEXT_INSTRUCTION => instruction.memory_displacement64().wrapping_sub(instruction.next_ip()),
                _ => instruction.memory_displacement64(),
            },
        })
    }

    /// Address of the next instruction.
    #[inline]
    pub fn next(&self, state: &Architectural) -> u64 {
        state.rip.wrapping_add(self.length.into())
    }

    /// Linear address of the access.
    #[inline]
    pub fn address(&self, state: &Architectural) -> u64 {
        let value = |part: u8| match part {
            NEXT_INSTRUCTION => self.next(state),
            number => state.gpr.get(usize::from(number)).copied().unwrap_or(0),
        };
        let index = value(self.index).wrapping_mul(self.scale.into());
        value(self.base).wrapping_add(index).wrapping_add(self.displacement)
    }

    /// Whether it is what touched guest-physical `gpa`, in one piece.
    #[inline]
    pub fn touches(&self, state: &Architectural, gpa: u64) -> bool {
        const OFFSET: u64 = 0xfff;
        let offset = gpa & OFFSET;
        self.address(state) & OFFSET == offset && offset + self.width as u64 <= OFFSET + 1
    }

    /// The value that is written.
    #[inline]
    pub fn source(&self, state: &Architectural) -> u64 {
        let value = match self.operand {
            Operand::Register { number, shift, .. } => state.gpr[usize::from(number & 15)] >> (shift & 8),
            Operand::Immediate(value) => value,
        };
        value & self.width.ones()
    }

    /// Puts a value that was read into its register.
    #[inline]
    pub fn complete(&self, state: &mut Architectural, value: u64) {
        let Operand::Register { number, shift, bytes } = self.operand else { return };
        let value = match self.signed {
            true => {
                let unused = 64 - 8 * self.width as u32;
                ((value << unused) as i64 >> unused) as u64
            }
            false => value,
        };
        let register = &mut state.gpr[usize::from(number & 15)];
        let field = mask(bytes.into()) << (shift & 8);
        *register = match bytes {
            4 | 8 => value & field,
            _ => *register & !field | value << (shift & 8) & field,
        };
    }
}

/// A kept instruction. Its size is a power of two, for it is looked for at every exit.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Site {
    rip: u64,
    /// Its bytes, and zeros.
    code: [u64; 2],
    access: Move,
}

/// The kept instructions of a vCPU.
#[derive(Clone, Debug)]
pub struct Sites([Option<Site>; SITES]);

impl Default for Sites {
    fn default() -> Self {
        Self([None; SITES])
    }
}

/// The code at the instruction pointer, if it lies in one page of RAM. Needs RIP, CR, EFER.
#[inline(always)]
fn code(state: &Architectural, memory: &impl GuestMemory) -> Option<u64> {
    let gpa = Paging::of(state).executed(memory, state.rip)?;
    (gpa & 0xfff <= 0x1000 - COMPARED).then_some(gpa)
}

/// The first `length` bytes of two words.
fn first(length: u8, words: [u64; 2]) -> [u64; 2] {
    let length = usize::from(length);
    [words[0] & mask(length), if length > 8 { words[1] & mask(length - 8) } else { 0 }]
}

impl Sites {
    fn slot(rip: u64) -> usize {
        rip as usize % SITES
    }

    /// The instruction at the instruction pointer, if it was kept and is still there. Needs RIP, CR, EFER, but not the code
    /// segment, as [`crate::vcpu::Vcpu::quick_cpuid`].
    #[inline]
    pub fn find(&self, state: &Architectural, memory: &impl GuestMemory) -> Option<&Move> {
        let site = self.0[Self::slot(state.rip)].as_ref().filter(|site| site.rip == state.rip)?;
        let gpa = code(state, memory)?;
        let bits = 8 * u32::from(site.access.length);
        let low = memory.read_u64(gpa).ok()? ^ site.code[0];
        let same = if bits <= u64::BITS {
            low << (u64::BITS - bits) == 0
        } else {
            let high = memory.read_u64(gpa + 8).ok()? ^ site.code[1];
            low == 0 && high << (2 * u64::BITS - bits) == 0
        };
        same.then_some(&site.access)
    }

    /// Keeps the instruction at the instruction pointer, of 64-bit code, if it can be.
    pub fn keep(&mut self, instruction: &Instruction, state: &Architectural, memory: &impl GuestMemory) {
        let (Some(access), Some(gpa)) = (Move::of(instruction), code(state, memory)) else { return };
        let (Ok(low), Ok(high)) = (memory.read_u64(gpa), memory.read_u64(gpa + 8)) else { return };
        let code = first(access.length, [low, high]);
        // What was decoded, should the guest have changed it since.
        if decoded_again(instruction, code) {
            self.0[Self::slot(state.rip)] = Some(Site { rip: state.rip, code, access });
        }
    }
}

/// Whether these bytes are that instruction.
fn decoded_again(instruction: &Instruction, code: [u64; 2]) -> bool {
    use iced_x86::{Decoder, DecoderOptions};
    let [low, high] = code.map(u64::to_le_bytes);
    let mut bytes = [0; COMPARED as usize];
    bytes[..8].copy_from_slice(&low);
    bytes[8..].copy_from_slice(&high);
    Decoder::with_ip(64, &bytes, instruction.ip(), DecoderOptions::NONE).decode() == *instruction
}

#[cfg(test)]
mod tests;
