//! What is said about a guest that cannot go on: why, its registers, the code it was at, its last exits.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use abi::Mtd;
use abi::event::guest;
use abi::utcb::{Architectural, Segment, gpr};
use iced_x86::{Decoder, DecoderOptions, FastFormatter};

use crate::decode::{self, LENGTH_MAX, Undecodable};
use crate::event_name::event_name;
use crate::memory::GuestMemory;

/// Exits that are remembered.
const REMEMBERED: usize = 32;
/// Instructions shown from the instruction pointer on.
const SHOWN: usize = 4;

/// Why a guest cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// An exception in the delivery of a double fault.
    TripleFault,
    /// The processor refuses the vCPU's state, or the kernel does what the monitor has written into it.
    InvalidState,
    /// HLT with interrupts disabled.
    HaltedForever,
    /// An instruction fetch from where there is no RAM.
    FetchOutsideRam(u64),
    /// An instruction that touched device memory and is not in the emulator's set.
    NotEmulated(u64),
    /// The instruction that exited cannot be decoded.
    Undecodable(Undecodable),
    /// The guest touched RAM that it should have: a fault of the monitor or the kernel.
    RamNotMapped(u64),
    /// An exit that nothing asked for.
    Unexpected(u16),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::TripleFault => f.write_str("triple fault"),
            Cause::InvalidState => f.write_str("the processor or the kernel refuses the state of the virtual CPU"),
            Cause::HaltedForever => f.write_str("halted with interrupts disabled: nothing can wake it"),
            Cause::FetchOutsideRam(gpa) => write!(f, "jump into nothing: no RAM at guest-physical {gpa:#x}"),
            Cause::NotEmulated(gpa) => write!(f, "an instruction that is not emulated touched the device at {gpa:#x}"),
            Cause::Undecodable(Undecodable::Fault(fault)) => {
                write!(f, "the instruction that exited cannot be fetched: page fault at {:#x}", fault.address)
            }
            Cause::Undecodable(Undecodable::NotInRam) => f.write_str("the instruction that exited is not in RAM"),
            Cause::Undecodable(Undecodable::Invalid) => f.write_str("the instruction that exited is not valid"),
            Cause::RamNotMapped(gpa) => write!(f, "RAM at guest-physical {gpa:#x} is not mapped"),
            Cause::Unexpected(number) => write!(f, "unexpected exit {number:#x} ({})", event_name(*number)),
        }
    }
}

/// One remembered exit. Its size is a power of two: remembering is part of every exit.
#[derive(Clone, Copy, Debug, Default)]
struct Exit {
    /// The event's number, and [`LOCATED`].
    what: u32,
    rip: u64,
    detail: [u64; 2],
}

/// The instruction pointer is known.
const LOCATED: u32 = 1 << 16;

/// The last exits of a vCPU.
#[derive(Clone, Debug)]
pub struct History {
    exits: [Exit; REMEMBERED],
    count: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { exits: [Exit::default(); REMEMBERED], count: 0 }
    }
}

impl History {
    /// Remembers an exit.
    #[inline]
    pub fn push(&mut self, number: u16, have: Mtd, state: &Architectural) {
        let detail = match number {
            guest::IO => [state.qualification[0], state.gpr[gpr::RAX]],
            guest::CPUID => [state.gpr[gpr::RAX], state.gpr[gpr::RCX]],
            guest::RDMSR | guest::WRMSR => {
                [state.gpr[gpr::RCX], state.gpr[gpr::RDX] << 32 | state.gpr[gpr::RAX] & 0xffff_ffff]
            }
            guest::PAGE_FAULT => [state.qualification[0], state.qualification[2]],
            _ => [0; 2],
        };
        self.remember(number, have.contains(Mtd::RIP), state.rip, detail);
    }

    /// As [`History::push`], with what is to be remembered of an exit of this kind.
    #[inline]
    pub fn remember(&mut self, number: u16, located: bool, rip: u64, detail: [u64; 2]) {
        let what = u32::from(number) | if located { LOCATED } else { 0 };
        self.exits[self.count % REMEMBERED] = Exit { what, rip, detail };
        self.count = self.count.wrapping_add(1);
    }

    /// The remembered exits, oldest first.
    fn iter(&self) -> impl Iterator<Item = &Exit> {
        let kept = self.count.min(REMEMBERED);
        (self.count - kept..self.count).map(|index| &self.exits[index % REMEMBERED])
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.what as u16;
        match event_name(number) {
            "" => write!(f, "event {number:#x}")?,
            name => f.write_str(name)?,
        }
        let [a, b] = self.detail;
        match number {
            guest::IO => {
                let direction = if a & 8 != 0 { "in" } else { "out" };
                write!(f, " {direction} port {:#x}, {} bytes, rax {b:#x}", a >> 16 & 0xffff, (a & 7) + 1)?;
            }
            guest::CPUID => write!(f, " leaf {:#x}.{:#x}", a as u32, b as u32)?,
            guest::RDMSR => write!(f, " {:#x}", a as u32)?,
            guest::WRMSR => write!(f, " {:#x} = {b:#x}", a as u32)?,
            guest::PAGE_FAULT => write!(f, " at {b:#x}, qualification {a:#x}")?,
            _ => {}
        }
        if self.what & LOCATED != 0 { write!(f, ", rip {:#x}", self.rip) } else { Ok(()) }
    }
}

fn segment(name: &str, segment: &Segment) -> String {
    format!(
        "{name} {:04x} base {:x} limit {:x} access {:x}",
        segment.selector, segment.base, segment.limit, segment.access
    )
}

/// The code at the instruction pointer, decoded as far as it goes.
fn code(state: &Architectural, memory: &impl GuestMemory, lines: &mut Vec<String>) {
    let mut bytes = [0; SHOWN * LENGTH_MAX];
    let length = match decode::fetch(state, memory, &mut bytes) {
        Ok(0) => return lines.push(format!("no RAM at rip {:#x}", state.rip)),
        Err(_) => return lines.push(format!("no page at rip {:#x}", state.rip)),
        Ok(length) => length,
    };
    let mut decoder = Decoder::with_ip(decode::bitness(state), &bytes[..length], state.rip, DecoderOptions::NONE);
    let mut formatter = FastFormatter::new();
    for _ in 0..SHOWN {
        let start = decoder.position();
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        let mut line = format!("{:#x}:", instruction.ip());
        for byte in &bytes[start..decoder.position()] {
            let _ = write!(line, " {byte:02x}");
        }
        line.push_str("  ");
        if instruction.is_invalid() {
            line.push_str("(invalid)");
            lines.push(line);
            break;
        }
        formatter.format(&instruction, &mut line);
        lines.push(line);
    }
}

/// What else can be refused. What the kernel refused of a reply is as it was before.
fn further(state: &Architectural, lines: &mut Vec<String>) {
    let segments = [("ds", &state.ds), ("es", &state.es), ("fs", &state.fs), ("gs", &state.gs), ("ldtr", &state.ldtr)];
    lines.extend(segments.map(|(name, value)| segment(name, value)));
    lines.push(format!("cr8 {:x} dr7 {:x} xcr0 {:x} pat {:x}", state.cr8, state.dr7, state.xcr0, state.pat));
    lines.push(format!("star {:x} lstar {:x} fmask {:x}", state.star, state.lstar, state.fmask));
    lines.push(format!(
        "sysenter {:x} {:x} {:x}, kernel gs {:x} tsc aux {:x}",
        state.sysenter_cs, state.sysenter_esp, state.sysenter_eip, state.kernel_gs_base, state.tsc_aux
    ));
}

/// The report, line by line. `state` is the whole state of the vCPU.
pub fn lines(cause: Cause, state: &Architectural, history: &History, memory: &impl GuestMemory) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(format!("{cause}"));
    let bits = decode::bitness(state);
    lines
        .push(format!("rip {:04x}:{:016x} rflags {:08x}, {bits}-bit code", state.cs.selector, state.rip, state.rflags));
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15",
    ];
    for row in 0..4 {
        let mut line = String::new();
        for (name, value) in NAMES.iter().zip(state.gpr).skip(row * 4).take(4) {
            let _ = write!(line, "{name} {value:016x} ");
        }
        lines.push(line);
    }
    lines.push(format!(
        "cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} efer {:x}",
        state.cr0, state.cr2, state.cr3, state.cr4, state.efer
    ));
    lines.push(segment("cs", &state.cs));
    lines.push(segment("ss", &state.ss));
    lines.push(segment("tr", &state.tr));
    lines.push(format!(
        "gdt {:x}+{:x} idt {:x}+{:x}",
        state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit
    ));
    lines.push(format!(
        "qualification {:x} {:x} {:x}, interruption {:x}, vectoring {:x}, interruptibility {:x}",
        state.qualification[0],
        state.qualification[1],
        state.qualification[2],
        state.interruption_info,
        state.vectoring_info,
        state.interruptibility
    ));
    if cause == Cause::InvalidState {
        further(state, &mut lines);
    }
    code(state, memory, &mut lines);
    lines.push(format!("last exits, oldest first, of {}:", history.count));
    lines.extend(history.iter().map(|exit| format!("  {exit}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;

    #[test]
    fn a_report_says_where_and_what() {
        let memory = VecMemory::new(0x2000);
        memory.write(0x1000, &[0x0f, 0x0b, 0x48, 0x89, 0xc3, 0x06]).unwrap();
        let mut state = Architectural::default();
        (state.cs.access, state.efer, state.rip) = (0xa9b, 1 << 10, 0x1000);
        let mut history = History::default();
        for leaf in 0..40 {
            state.gpr[gpr::RAX] = leaf;
            history.push(guest::CPUID, Mtd::RIP, &state);
        }
        let text = lines(Cause::TripleFault, &state, &history, &memory);
        assert_eq!(text[0], "triple fault");
        assert!(text.contains(&"0x1000: 0f 0b  ud2".into()), "{text:#?}");
        assert!(text.contains(&"0x1002: 48 89 c3  mov rbx,rax".into()));
        assert!(text.iter().any(|line| line.starts_with("0x1005: 06") && line.ends_with("(invalid)")));
        assert_eq!(text.last().unwrap(), "  CPUID leaf 0x27.0x0, rip 0x1000");
        assert_eq!(text.iter().filter(|line| line.starts_with("  CPUID")).count(), REMEMBERED);
        assert!(!text.iter().any(|line| line.contains("lstar")));
        state.fmask = 0x4_7700;
        let text = lines(Cause::InvalidState, &state, &history, &memory);
        assert!(text.contains(&"star 0 lstar 0 fmask 47700".into()), "{text:#?}");
        state.rip = 0xd000_0000;
        let text = lines(Cause::FetchOutsideRam(0xd000_0000), &state, &history, &memory);
        assert_eq!(text[0], "jump into nothing: no RAM at guest-physical 0xd0000000");
        assert!(text.contains(&"no RAM at rip 0xd0000000".into()));
    }
}
