//! System calls and the program's entry (x86-64 psABI; Linux `arch/x86/entry/syscalls/syscall_64.tbl`).
//!
//! Unsafe: system calls by the instruction; the entry reads the arguments that the kernel put on the stack.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};
use core::ffi::CStr;

const READ: usize = 0;
const WRITE: usize = 1;
const CLOSE: usize = 3;
const POLL: usize = 7;
const PIPE: usize = 22;
const DUP2: usize = 33;
const FORK: usize = 57;
const EXECVE: usize = 59;
const EXIT: usize = 60;
const WAIT4: usize = 61;
const IOPL: usize = 172;

/// `poll`: there is something to read.
pub const POLLIN: i16 = 1;
/// Interrupted by a signal.
pub const EINTR: isize = -4;

/// One entry for `poll`.
#[repr(C)]
pub struct PollEntry {
    /// File descriptor; negative: ignored.
    pub descriptor: i32,
    /// What to wait for.
    pub events: i16,
    /// What happened.
    pub happened: i16,
}

/// # Safety
/// The call must not break what Rust relies on.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the kernel preserves all but RAX, RCX and R11; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// Reads into `buffer`; bytes read, 0 at the end, or a negative error.
pub fn read(descriptor: i32, buffer: &mut [u8]) -> isize {
    // SAFETY: writes `buffer` only.
    unsafe { call(READ, descriptor as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0) }
}

/// Writes all of `bytes`, or as much as possible.
pub fn write(descriptor: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: reads `bytes` only.
        let count = unsafe { call(WRITE, descriptor as usize, bytes.as_ptr() as usize, bytes.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => bytes = &bytes[count.min(bytes.len())..],
            Err(_) if count == EINTR => {}
            Err(_) => return,
        }
    }
}

/// Closes a descriptor.
pub fn close(descriptor: i32) {
    // SAFETY: descriptors are numbers.
    unsafe { call(CLOSE, descriptor as usize, 0, 0, 0) };
}

/// Makes `to` the same file as `from`.
pub fn duplicate(from: i32, to: i32) {
    // SAFETY: descriptors are numbers.
    unsafe { call(DUP2, from as usize, to as usize, 0, 0) };
}

/// A pipe: read end and write end.
pub fn pipe() -> Option<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: writes two numbers.
    let result = unsafe { call(PIPE, ends.as_mut_ptr() as usize, 0, 0, 0) };
    (result == 0).then_some(ends)
}

/// Waits until something happens on one of the entries.
pub fn poll(entries: &mut [PollEntry]) -> isize {
    const FOREVER: usize = usize::MAX;
    // SAFETY: writes the entries only.
    unsafe { call(POLL, entries.as_mut_ptr() as usize, entries.len(), FOREVER, 0) }
}

/// A copy of this process: 0 in the copy, its number in the original, negative on failure.
pub fn fork() -> isize {
    // SAFETY: the copy has memory of its own, and this program one thread.
    unsafe { call(FORK, 0, 0, 0, 0) }
}

/// Replaces this process by a program with this environment.
pub fn execute(program: &CStr, arguments: &[Option<&CStr>; 3], environment: *const *const u8) {
    let mut pointers = [core::ptr::null(); 4];
    for (pointer, argument) in pointers.iter_mut().zip(arguments) {
        *pointer = argument.map_or(core::ptr::null(), CStr::as_ptr);
    }
    // SAFETY: all strings and arrays end with zero.
    unsafe { call(EXECVE, program.as_ptr() as usize, pointers.as_ptr() as usize, environment as usize, 0) };
}

/// Ends the program.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: never returns.
        unsafe { call(EXIT, status as usize, 0, 0, 0) };
    }
}

/// Waits for the end of a child; its wait status.
pub fn wait(child: isize) -> Option<u32> {
    let mut status = 0u32;
    loop {
        // SAFETY: writes `status` only.
        let result = unsafe { call(WAIT4, child as usize, &raw mut status as usize, 0, 0) };
        match result {
            EINTR => {}
            result => return (result == child).then_some(status),
        }
    }
}

/// Asks for the right to use I/O ports.
pub fn use_ports() -> bool {
    // SAFETY: gives this program more rights; only `channel` uses them.
    unsafe { call(IOPL, 3, 0, 0, 0) == 0 }
}

/// The program's arguments and environment.
#[derive(Clone, Copy)]
pub struct Arguments {
    first: *const *const u8,
    count: usize,
}

impl Arguments {
    /// Argument `index`; 0 is the program's name.
    pub fn get(&self, index: usize) -> Option<&'static CStr> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the kernel put `count` pointers to strings there, which stay for the program's life.
        unsafe { Some(CStr::from_ptr((*self.first.add(index)).cast())) }
    }

    /// The environment: behind the arguments and a null.
    pub fn environment(&self) -> *const *const u8 {
        // SAFETY: the same array.
        unsafe { self.first.add(self.count + 1) }
    }
}

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel's initial stack: count, then the pointers.
    let arguments = unsafe { Arguments { count: *stack, first: stack.add(1).cast() } };
    exit(crate::run::run(arguments))
}

/// Entry: the stack pointer is the only argument.
// SAFETY: no other item has this name.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {start}", "ud2", start = sym start)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}
