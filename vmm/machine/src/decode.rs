//! From an instruction pointer to a decoded instruction, and a vCPU's registers by the decoder's names.
//!
//! Intel SDM vol. 2A, chapter 2 (instruction format), vol. 1, 3.3.7 (address calculation).

use abi::event::guest as event;
use abi::utcb::Architectural;
use iced_x86::{Decoder, DecoderOptions, Instruction, Register};

use crate::memory::GuestMemory;
use crate::walk::{PageFault, Paging, efer};

/// Longest instruction.
pub const LENGTH_MAX: usize = 15;

/// Why an instruction cannot be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undecodable {
    /// Its first byte cannot be fetched.
    Fault(PageFault),
    /// It does not lie in RAM.
    NotInRam,
    /// Its bytes are no instruction.
    Invalid,
}

/// Bits of the code segment's mode: 16, 32 or 64. Needs CS_SS and EFER.
pub fn bitness(state: &Architectural) -> u32 {
    const L: u16 = 1 << 9;
    const D: u16 = 1 << 10;
    match state.cs.access {
        access if access & L != 0 && state.efer & efer::LMA != 0 => 64,
        access if access & D != 0 => 32,
        _ => 16,
    }
}

/// Linear address of the instruction pointer.
pub fn linear_rip(state: &Architectural) -> u64 {
    if bitness(state) == 64 { state.rip } else { state.cs.base.wrapping_add(state.rip) & 0xffff_ffff }
}

/// Fetches the bytes at the instruction pointer; returns how many there are.
pub fn fetch(state: &Architectural, memory: &impl GuestMemory, bytes: &mut [u8]) -> Result<usize, PageFault> {
    Paging::of(state).fetch(memory, linear_rip(state), bytes)
}

/// The instruction at the instruction pointer. Needs RIP, RFLAGS, CS_SS, CR, EFER.
pub fn instruction(state: &Architectural, memory: &impl GuestMemory) -> Result<Instruction, Undecodable> {
    let mut bytes = [0; LENGTH_MAX];
    let length = fetch(state, memory, &mut bytes).map_err(Undecodable::Fault)?;
    if length == 0 {
        return Err(Undecodable::NotInRam);
    }
    let instruction = Decoder::with_ip(bitness(state), &bytes[..length], state.rip, DecoderOptions::NONE).decode();
    if instruction.is_invalid() { Err(Undecodable::Invalid) } else { Ok(instruction) }
}

/// Length without prefixes of an instruction that always exits; 0 if the event does not tell.
const fn bare_length(number: u16) -> u32 {
    match number {
        event::HLT => 1,
        event::CPUID | event::RDMSR | event::WRMSR | event::RDTSC | event::RDPMC | event::INVD | event::WBINVD => 2,
        event::VMCALL | event::XSETBV | event::RDTSCP | event::MONITOR | event::MWAIT => 3,
        _ => 0,
    }
}

const fn is_prefix(byte: u8, bitness: u32) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3)
        || (bitness == 64 && byte & 0xf0 == 0x40)
}

/// Whether `code` begins with the instruction of two bytes that caused an exit in long mode: CPUID, RDMSR, WRMSR, without
/// prefixes.
#[inline(always)]
pub fn is_bare(number: u16, code: u64) -> bool {
    let opcode = match number {
        event::CPUID => 0xa20f,
        event::RDMSR => 0x320f,
        event::WRMSR => 0x300f,
        _ => return false,
    };
    code & 0xffff == opcode
}

/// First byte of the instruction that caused an exit in 64-bit mode.
fn first_byte(state: &Architectural, memory: &impl GuestMemory) -> Option<u8> {
    let gpa = Paging::of(state).executed(memory, state.rip)?;
    let word = memory.read_u64(gpa & !7).ok()?;
    Some((word >> (8 * (gpa & 7))) as u8)
}

/// Length of the instruction that caused an exit where the hardware does not tell: its prefixes are counted. Needs
/// RIP, RFLAGS, CS_SS, CR, EFER.
pub fn length(number: u16, state: &Architectural, memory: &impl GuestMemory) -> u32 {
    let bare = bare_length(number);
    if bitness(state) == 64 && first_byte(state, memory).is_some_and(|byte| !is_prefix(byte, 64)) {
        return bare;
    }
    let mut bytes = [0; LENGTH_MAX];
    match fetch(state, memory, &mut bytes) {
        Ok(length) if length > 0 => {
            let bitness = bitness(state);
            let prefixes = bytes[..length].iter().take_while(|&&byte| is_prefix(byte, bitness)).count();
            prefixes as u32 + bare
        }
        _ => bare,
    }
}

/// The value of a general or segment-base register, as the decoder asks for it in address calculations.
pub fn address_part(state: &Architectural, register: Register) -> Option<u64> {
    let flat = bitness(state) == 64;
    Some(match register {
        Register::FS => state.fs.base,
        Register::GS => state.gs.base,
        Register::CS | Register::DS | Register::ES | Register::SS if flat => 0,
        Register::CS => state.cs.base,
        Register::DS => state.ds.base,
        Register::ES => state.es.base,
        Register::SS => state.ss.base,
        other => return read(state, other),
    })
}

/// Index in [`Architectural::gpr`], shift and width in bytes of a general register.
fn place(register: Register) -> Option<(usize, u32, usize)> {
    if !register.is_gpr() {
        return None;
    }
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    Some((register.full_register().number(), if high { 8 } else { 0 }, register.size()))
}

/// Mask of the low `bytes` bytes.
pub const fn mask(bytes: usize) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

/// Reads a general register.
pub fn read(state: &Architectural, register: Register) -> Option<u64> {
    let (index, shift, size) = place(register)?;
    Some(state.gpr[index] >> shift & mask(size))
}

/// Writes a general register; 32-bit writes clear the upper half.
pub fn write(state: &mut Architectural, register: Register, value: u64) -> Option<()> {
    let (index, shift, size) = place(register)?;
    let field = mask(size) << shift;
    state.gpr[index] = match size {
        4 | 8 => value & mask(size),
        _ => state.gpr[index] & !field | value << shift & field,
    };
    Some(())
}

/// Adds to a counter or pointer register of `bytes` width, as string instructions do.
pub fn advance(state: &mut Architectural, index: usize, bytes: usize, by: i64) {
    let value = state.gpr[index].wrapping_add(by as u64);
    state.gpr[index] = match bytes {
        2 => state.gpr[index] & !0xffff | value & 0xffff,
        _ => value & mask(bytes),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;

    fn long_mode_at(rip: u64) -> Architectural {
        let mut state = Architectural::default();
        // Paging off, but the segment and EFER of long mode: the walk is tested elsewhere.
        state.cs.access = 0xa9b;
        state.efer = efer::LMA;
        state.rip = rip;
        state
    }

    #[test]
    fn lengths_count_prefixes() {
        let memory = VecMemory::new(0x2000);
        memory.write(0x1000, &[0x66, 0x48, 0x0f, 0xa2]).unwrap();
        memory.write(0x1ffe, &[0x0f, 0x32]).unwrap();
        assert_eq!(length(event::CPUID, &long_mode_at(0x1000), &memory), 4);
        assert_eq!(length(event::RDMSR, &long_mode_at(0x1ffe), &memory), 2);
        assert_eq!(length(event::HLT, &long_mode_at(0x9000), &memory), 1);
    }

    #[test]
    fn registers_by_name() {
        let mut state = Architectural::default();
        state.gpr[0] = 0x1122_3344_5566_7788;
        assert_eq!(read(&state, Register::AH), Some(0x77));
        write(&mut state, Register::AH, 0xff).unwrap();
        assert_eq!(state.gpr[0], 0x1122_3344_5566_ff88);
        write(&mut state, Register::AX, 0x1_2345).unwrap();
        assert_eq!(state.gpr[0], 0x1122_3344_5566_2345);
        write(&mut state, Register::EAX, 1).unwrap();
        assert_eq!(state.gpr[0], 1);
        write(&mut state, Register::R15L, 7).unwrap();
        write(&mut state, Register::SIL, 9).unwrap();
        assert_eq!((state.gpr[15], state.gpr[6]), (7, 9));
        assert_eq!(read(&state, Register::XMM0), None);
        state.gpr[1] = 0xffff_0000;
        advance(&mut state, 1, 2, -1);
        assert_eq!(state.gpr[1], 0xffff_ffff);
        advance(&mut state, 1, 4, 1);
        assert_eq!(state.gpr[1], 0);
    }

    #[test]
    fn decoding() {
        let memory = VecMemory::new(0x2000);
        memory.write(0x1000, &[0x8b, 0x04, 0x25, 0, 0, 0, 0]).unwrap();
        assert_eq!(instruction(&long_mode_at(0x1000), &memory).map(|i| i.len()), Ok(7));
        memory.write(0x1000, &[0x06]).unwrap();
        assert_eq!(instruction(&long_mode_at(0x1000), &memory), Err(Undecodable::Invalid));
        assert_eq!(instruction(&long_mode_at(0x8000), &memory), Err(Undecodable::NotInRam));
    }
}
