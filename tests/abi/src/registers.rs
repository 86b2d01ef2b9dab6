//! The way into the kernel: the only two SYSCALL instructions of a root task, and what surrounds them (8.8).
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::portal::dispatch;

/// All registers of a hypercall: what is loaded before, and what is found after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Registers {
    /// General registers by their number in instruction encodings. RSP (4) is only read.
    pub gpr: [u64; 16],
    /// RFLAGS, only read.
    pub rflags: u64,
}

/// RDI after a call that the stub did not make: number 0xf is reserved, and a conformance test never uses it.
pub const REFUSED: u64 = u64::MAX;

core::arch::global_asm!(
    ".pushsection .text.syscall, \"ax\", @progbits",
    ".globl syscall_stub, syscall_return, portal_entry",
    "syscall_stub:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15; push rdi",
    "mov rax, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rbx, [rdi + 24]; mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]; mov r8, [rdi + 64]; mov r9, [rdi + 72]; mov r10, [rdi + 80]; mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]; mov r13, [rdi + 104]; mov r14, [rdi + 112]; mov r15, [rdi + 120]; mov rdi, [rdi + 56]",
    // Number 0xf is refused here, whoever asks for it.
    "push rdi; and qword ptr [rsp], 15; cmp qword ptr [rsp], 15; lea rsp, [rsp + 8]; je 2f",
    "syscall",
    "syscall_return:",
    "xchg rdi, [rsp]",
    "mov [rdi], rax; mov [rdi + 8], rcx; mov [rdi + 16], rdx; mov [rdi + 24], rbx; mov [rdi + 32], rsp",
    "mov [rdi + 40], rbp; mov [rdi + 48], rsi; mov [rdi + 64], r8; mov [rdi + 72], r9; mov [rdi + 80], r10",
    "mov [rdi + 88], r11; mov [rdi + 96], r12; mov [rdi + 104], r13; mov [rdi + 112], r14; mov [rdi + 120], r15",
    "pop qword ptr [rdi + 56]",
    "pushfq; pop qword ptr [rdi + 128]",
    "cld",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
    "2: mov rdi, -1; jmp syscall_return",
    // A message has arrived: RDI = identifier, RSI = descriptor. After the handler the stack is as it was.
    "portal_entry:",
    "mov rdx, rcx; mov rcx, r11",
    "call {dispatch}",
    "mov esi, eax; mov edi, 1",
    "syscall",
    "ud2",
    ".popsection",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    fn syscall_stub(registers: *mut Registers);
    static syscall_return: u8;
    static portal_entry: u8;
}

impl Registers {
    /// A call with these in the registers that calls read, and a pattern in all others.
    pub fn new(rdi: u64, rsi: u64, rdx: u64, rax: u64, r8: u64) -> Self {
        let mut gpr = [0; 16];
        for (number, register) in gpr.iter_mut().enumerate() {
            *register = 0x5a5a_0000_1234_0000 | number as u64;
        }
        (gpr[7], gpr[6], gpr[2], gpr[0], gpr[8]) = (rdi, rsi, rdx, rax, r8);
        Self { gpr, rflags: 0 }
    }

    /// Executes SYSCALL with these registers; afterwards they are as the kernel left them.
    pub fn call(&mut self) {
        // SAFETY: the stub saves what Rust needs preserved. A call can change this program's memory only as the caller
        // asks for, by names of pages, which is what these tests are about.
        unsafe { syscall_stub(self) }
    }
}

/// Where a hypercall returns to.
pub fn return_address() -> u64 {
    &raw const syscall_return as u64
}

/// Another entry of portals, unless 0: for suites with other ways to reply.
pub static OTHER_ENTRY: AtomicU64 = AtomicU64::new(0);

/// Entry of every portal whose identifier is a [`crate::portal::Handler`].
pub fn portal_address() -> u64 {
    match OTHER_ENTRY.load(Relaxed) {
        0 => &raw const portal_entry as u64,
        other => other,
    }
}

core::arch::global_asm!(
    ".pushsection .text.syscall, \"ax\", @progbits",
    ".globl bare_portal",
    // The initial stack pointer is where a record begins; the reply carries what came.
    "bare_portal:",
    "mov [rsp], rdi; mov [rsp + 8], rsi; mov [rsp + 16], rcx; mov [rsp + 24], r11; mov [rsp + 32], rsp",
    "lea rsp, [rsp + 48]; pushfq; lea rsp, [rsp - 40]",
    "mov edi, 1",
    "syscall",
    "ud2",
    ".popsection",
);

unsafe extern "C" {
    static bare_portal: u8;
}

/// Entry of a portal that notes its registers in a [`Record`], where the stack pointer points, and echoes the message.
pub fn bare_portal_address() -> u64 {
    &raw const bare_portal as u64
}

/// What [`bare_portal_address`] notes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Record {
    /// RDI: the portal's identifier.
    pub pid: u64,
    /// RSI: the descriptor.
    pub mtd: u64,
    /// RCX.
    pub rcx: u64,
    /// R11.
    pub r11: u64,
    /// RSP.
    pub rsp: u64,
    /// RFLAGS.
    pub rflags: u64,
}
