//! QEMU plugin that counts every instruction between two places in the code that the machine runs, whoever runs it:
//! kernels, programs and guests, at every privilege level.
//!
//! `-plugin FILE,start=HEX,stop=HEX,out=FILE`: `start` and `stop` are the bytes of the code at the two places, wherever
//! it is loaded. When `stop` has been reached after `start`, the number is written to `out` as text.
//!
//! Interface: QEMU's "TCG plugins" manual, version 3 or later of the interface (QEMU 9.1).
#![allow(unsafe_code)] // Calls QEMU, and is called by it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, ptr};

/// The version of the interface that the plugin was written for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // QEMU looks for this name.
pub static qemu_plugin_version: c_int = 3;

/// A counter that every virtual CPU has for itself.
#[repr(C)]
#[derive(Clone, Copy)]
struct Counter {
    scoreboard: *mut c_void,
    offset: usize,
}

// SAFETY: QEMU allocates the scoreboard once, keeps it for ever, and synchronizes its uses.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

/// `QEMU_PLUGIN_INLINE_ADD_U64`.
const ADD: c_int = 0;
/// `QEMU_PLUGIN_CB_NO_REGS`.
const NO_REGISTERS: c_int = 0;

type Translated = extern "C" fn(id: u64, block: *mut c_void);
type Executed = extern "C" fn(cpu: c_uint, place: *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut c_void,
        callback: Executed,
        flags: c_int,
        place: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        instruction: *mut c_void,
        operation: c_int,
        counter: Counter,
        value: u64,
    );
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(instruction: *const c_void, to: *mut c_void, length: usize) -> usize;
    fn qemu_plugin_insn_size(instruction: *const c_void) -> usize;
    fn qemu_plugin_scoreboard_new(element: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(counter: Counter) -> u64;
}

/// What the user asked for.
struct Task {
    counter: Counter,
    start: Vec<u8>,
    stop: Vec<u8>,
    out: String,
}

static TASK: OnceLock<Task> = OnceLock::new();

/// The count at the start; the largest number before it was reached.
static STARTED: AtomicU64 = AtomicU64::new(u64::MAX);

/// The fewest bytes that identify a place: a shorter piece of code may be anything.
const IDENTIFYING: usize = 8;
/// The longest instruction of the architecture.
const LONGEST: usize = 15;

/// Called by QEMU when the plugin is loaded.
///
/// # Safety
/// `arguments` points to `count` strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _information: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let mut values = [const { String::new() }; 3];
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: as the function demands.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) }.to_string_lossy();
        for (name, value) in ["start=", "stop=", "out="].iter().zip(&mut values) {
            if let Some(text) = argument.strip_prefix(name) {
                *value = text.into();
            }
        }
    }
    let [start, stop, out] = values;
    let (Some(start), Some(stop)) = (bytes(&start), bytes(&stop)) else {
        eprintln!("instruction-count: start= and stop= take at least {IDENTIFYING} bytes of code in hexadecimal");
        return -1;
    };
    // SAFETY: an element is one 64-bit counter.
    let counter = Counter { scoreboard: unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) }, offset: 0 };
    let _ = TASK.set(Task { counter, start, stop, out });
    // SAFETY: the callback has the type that QEMU calls.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = (0..hexadecimal.len())
        .step_by(2)
        .map(|at| hexadecimal.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
        .collect();
    bytes.filter(|bytes| bytes.len() >= IDENTIFYING)
}

/// Whether the code begins with a piece of the pattern that is long enough. It need not begin the pattern: QEMU cuts code
/// into blocks where it likes, and a block's first bytes may be too few.
fn is_part(code: &[u8], pattern: &[u8]) -> bool {
    (0..=pattern.len() - IDENTIFYING).any(|from| {
        let length = code.len().min(pattern.len() - from);
        length >= IDENTIFYING && code[..length] == pattern[from..from + length]
    })
}

extern "C" fn translated(_id: u64, block: *mut c_void) {
    let Some(task) = TASK.get() else { return };
    let mut code = Vec::new();
    let mut instructions = Vec::new();
    // SAFETY: QEMU gives a block that is valid during the call, and so are its instructions; a buffer of the longest
    // instruction's size takes any.
    unsafe {
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let instruction = qemu_plugin_tb_get_insn(block, index);
            qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, ADD, task.counter, 1);
            let mut data = [0; LONGEST];
            let length = qemu_plugin_insn_size(instruction).min(LONGEST);
            qemu_plugin_insn_data(instruction, data.as_mut_ptr().cast(), length);
            instructions.push((code.len(), instruction));
            code.extend_from_slice(&data[..length]);
        }
    }
    for (at, instruction) in instructions {
        for (pattern, callback) in [(&task.start, reached_start as Executed), (&task.stop, reached_stop)] {
            if is_part(&code[at..], pattern) {
                // SAFETY: the instruction is valid during the call.
                unsafe {
                    qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, NO_REGISTERS, ptr::null_mut());
                }
            }
        }
    }
}

extern "C" fn reached_start(_cpu: c_uint, _place: *mut c_void) {
    if let Some(task) = TASK.get() {
        // SAFETY: the counter was made by QEMU.
        let now = unsafe { qemu_plugin_u64_sum(task.counter) };
        let _ = STARTED.compare_exchange(u64::MAX, now, Ordering::Relaxed, Ordering::Relaxed);
    }
}

extern "C" fn reached_stop(_cpu: c_uint, _place: *mut c_void) {
    let started = STARTED.load(Ordering::Relaxed);
    let Some(task) = TASK.get() else { return };
    if started == u64::MAX {
        return;
    }
    // SAFETY: the counter was made by QEMU.
    let now = unsafe { qemu_plugin_u64_sum(task.counter) };
    // Only the first time counts.
    if fs::File::create_new(&task.out).is_ok() {
        let _ = fs::write(&task.out, format!("{}\n", now - started));
    }
}
