//! Windows: what is executed between two marks.
//!
//! A mark is a NOP that no compiler emits, and that tells a number: `0f 1f 80 NUMBER WHAT 4b 4d`. Emulators that cannot
//! look for an instruction stop at `xchg bx, bx`, which does nothing either.
#![allow(unsafe_code)] // Marks are instructions.

use core::arch::asm;

use lab::registers::Registers;
use lab::spec::{Selector, Status};

/// How often each operation is made.
pub const ROUNDS: usize = 8;

/// The names of all windows; the number of a window is its place here.
pub const NAMES: &[&str] = &[
    "ipc.same_pd.0",
    "ipc.cross_pd.0",
    "ipc.cross_pd.32",
    "ipc.cross_pd.512",
    "hypercall.invalid",
    "sm.up",
    "sm.down",
    "sm.pingpong",
    "create.sm",
    "create.pt",
    "create.pd",
    "create.ec",
    "create.ec.second",
    "create.sc",
    "destroy.sm",
    "destroy.pt",
    "destroy.pd",
    "destroy.ec",
    "map.4k",
    "unmap.4k",
    "map.4k.own",
    "unmap.4k.own",
    "map.64_pages",
    "unmap.64_pages",
    "delegate.cap",
    "recall",
    "recall.event",
    "irq.user",
    "exit.cpuid",
    "exit.cpuid.syscall",
    "exit.out",
];

/// The number of the window with this name; an unknown name does not compile.
pub const fn number(name: &str) -> u8 {
    let mut index = 0;
    while index < NAMES.len() {
        if same(NAMES[index].as_bytes(), name.as_bytes()) {
            return index as u8;
        }
        index += 1;
    }
    panic!("no window has this name")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

/// Assembly that begins window `{NUMBER}`.
#[macro_export]
macro_rules! begin {
    ($number:literal) => {
        concat!("xchg bx, bx; .byte 0x0f, 0x1f, 0x80, ", $number, ", 1, 0x4b, 0x4d")
    };
}

/// Assembly that ends window `{NUMBER}`.
#[macro_export]
macro_rules! end {
    ($number:literal) => {
        concat!(".byte 0x0f, 0x1f, 0x80, ", $number, ", 2, 0x4b, 0x4d; xchg bx, bx")
    };
}

/// What a hypercall takes: RDI without the number, RSI, RDX, RAX, R8.
#[derive(Clone, Copy, Default)]
pub struct Call {
    /// The capability.
    pub selector: Selector,
    /// Number, and flags above it.
    pub identifier: u8,
    /// RSI.
    pub rsi: u64,
    /// RDX.
    pub rdx: u64,
    /// RAX.
    pub rax: u64,
    /// R8.
    pub r8: u64,
}

impl Call {
    /// Makes the call.
    pub fn make(&self) -> Status {
        let mut registers = Registers::new(self.rdi(), self.rsi, self.rdx, self.rax, self.r8);
        registers.call();
        Status(registers.gpr[7] as u8)
    }

    fn rdi(&self) -> u64 {
        self.selector << 8 | u64::from(self.identifier)
    }

    /// Makes the call within window `NUMBER`.
    #[inline(never)]
    pub fn within<const NUMBER: u8>(&self) -> Status {
        let mut rdi = self.rdi();
        // SAFETY: the kernel keeps all other registers; what the call does is the caller's business.
        unsafe {
            asm!(
                begin!("{number}"),
                "syscall",
                end!("{number}"),
                number = const NUMBER,
                inout("rdi") rdi,
                inout("rsi") self.rsi => _,
                inout("rdx") self.rdx => _,
                inout("rax") self.rax => _,
                inout("r8") self.r8 => _,
                lateout("rcx") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            );
        }
        Status(rdi as u8)
    }
}
