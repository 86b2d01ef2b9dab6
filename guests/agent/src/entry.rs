//! Where Linux starts the program, and what a program without a C library owes the compiler.
//!
//! System V ABI, AMD64 supplement, 3.4.1 (initial stack): argument count, argument pointers, null, environment.
#![allow(unsafe_code)] // The initial stack is only known by its address.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use crate::linux;

global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {start}",
    "ud2",
    start = sym start,
    options(att_syntax)
);

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: Linux enters with RSP at the argument count.
    let count = unsafe { stack.read() };
    let arguments = (1..=count).map(|index| {
        // SAFETY: that many pointers to strings ending in NUL follow, and stay as long as the program.
        unsafe { CStr::from_ptr(stack.add(index).read() as *const c_char) }
    });
    linux::exit(crate::main(arguments))
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    linux::exit(crate::FAILED)
}
