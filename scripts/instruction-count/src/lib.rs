//! QEMU plugin that counts every instruction between two places in the code that the machine runs, whoever runs it:
//! kernels, programs and guests, at every privilege level.
//!
//! `-plugin FILE,start=HEX,stop=HEX,end=HEX,out=FILE`: `start`, `stop` and `end` are the bytes of the code at three
//! places, wherever it is loaded. When `end` has been reached, the number of instructions from the first time at `start`
//! to the last time at `stop` is written to `out` as text: a program's entry alone does not say which process it is.
//!
//! Interface: QEMU's "TCG plugins" manual, version 3 or later of the interface (QEMU 9.1).
#![allow(unsafe_code)] // Calls QEMU, and is called by it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::ptr::without_provenance_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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
    start: Place,
    stop: Place,
    end: Place,
    out: String,
}

/// A place in the code, and how much of it was executed up to now. QEMU cuts code into blocks where it likes, so that a
/// place may be several of them, of which each alone would be found in many places.
struct Place {
    code: Vec<u8>,
    /// Bytes of `code` that were executed one after the other.
    seen: AtomicUsize,
    /// The count when the first of them was.
    since: AtomicU64,
}

static TASK: OnceLock<Task> = OnceLock::new();

/// The count at the start, and that at the last stop; the largest number before they were reached.
static STARTED: AtomicU64 = AtomicU64::new(u64::MAX);
static STOPPED: AtomicU64 = AtomicU64::new(u64::MAX);

/// The fewest bytes that identify a place.
const IDENTIFYING: usize = 12;
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
    let mut values = [const { String::new() }; 4];
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: as the function demands.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) }.to_string_lossy();
        for (name, value) in ["start=", "stop=", "end=", "out="].iter().zip(&mut values) {
            if let Some(text) = argument.strip_prefix(name) {
                *value = text.into();
            }
        }
    }
    let [start, stop, end, out] = values;
    let [Some(start), Some(stop), Some(end)] = [start, stop, end].map(|code| Place::parse(&code)) else {
        eprintln!("instruction-count: start=, stop= and end= take at least {IDENTIFYING} bytes of code in hexadecimal");
        return -1;
    };
    // SAFETY: an element is one 64-bit counter.
    let counter = Counter { scoreboard: unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) }, offset: 0 };
    let _ = TASK.set(Task { counter, start, stop, end, out });
    // SAFETY: the callback has the type that QEMU calls.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}

impl Place {
    fn parse(hexadecimal: &str) -> Option<Self> {
        let code: Option<Vec<u8>> = (0..hexadecimal.len())
            .step_by(2)
            .map(|at| hexadecimal.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
            .collect();
        let code = code.filter(|code| code.len() >= IDENTIFYING)?;
        Some(Self { code, seen: AtomicUsize::new(0), since: AtomicU64::new(0) })
    }

    /// The pieces of the place that a block may be, from an instruction of the block to its end. Only the beginning of
    /// the place may have something before it in the same block.
    fn pieces(&self, block: &[u8], at: usize) -> impl Iterator<Item = usize> {
        let last = if at == 0 { self.code.len() } else { 1 };
        (0..last).filter(move |&from| {
            let length = (block.len() - at).min(self.code.len() - from);
            block[at..at + length] == self.code[from..from + length]
        })
    }

    /// Counts a piece that is being executed. Gives the count at the beginning of the place when it is the last one.
    fn executed(&self, piece: Piece, now: u64) -> Option<u64> {
        if piece.from == 0 {
            self.since.store(now, Ordering::Relaxed);
        } else if piece.from != self.seen.load(Ordering::Relaxed) {
            return None;
        }
        self.seen.store(piece.end, Ordering::Relaxed);
        (piece.end == self.code.len()).then(|| self.since.load(Ordering::Relaxed))
    }
}

/// A part of a place, by the bytes where it begins and ends.
#[derive(Clone, Copy)]
struct Piece {
    from: usize,
    end: usize,
}

impl Piece {
    /// As QEMU keeps it for the callback.
    fn word(self) -> *mut c_void {
        without_provenance_mut(self.from << 16 | self.end)
    }

    fn of(word: *mut c_void) -> Self {
        Self { from: word.addr() >> 16, end: word.addr() & 0xffff }
    }
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
        for (place, callback) in [(&task.start, at_start as Executed), (&task.stop, at_stop), (&task.end, at_end)] {
            for from in place.pieces(&code, at) {
                let piece = Piece { from, end: (from + code.len() - at).min(place.code.len()) };
                // SAFETY: the instruction is valid during the call.
                unsafe { qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, NO_REGISTERS, piece.word()) };
            }
        }
    }
}

impl Task {
    fn now(&self) -> u64 {
        // SAFETY: the counter was made by QEMU.
        unsafe { qemu_plugin_u64_sum(self.counter) }
    }
}

extern "C" fn at_start(_cpu: c_uint, piece: *mut c_void) {
    let Some(task) = TASK.get() else { return };
    if let Some(count) = task.start.executed(Piece::of(piece), task.now()) {
        let _ = STARTED.compare_exchange(u64::MAX, count, Ordering::Relaxed, Ordering::Relaxed);
    }
}

extern "C" fn at_stop(_cpu: c_uint, piece: *mut c_void) {
    let Some(task) = TASK.get() else { return };
    if let Some(count) = task.stop.executed(Piece::of(piece), task.now()) {
        STOPPED.store(count, Ordering::Relaxed);
    }
}

extern "C" fn at_end(_cpu: c_uint, piece: *mut c_void) {
    let Some(task) = TASK.get() else { return };
    let (started, stopped) = (STARTED.load(Ordering::Relaxed), STOPPED.load(Ordering::Relaxed));
    if started == u64::MAX || stopped == u64::MAX || task.end.executed(Piece::of(piece), 0).is_none() {
        return;
    }
    // Only the first time counts.
    if fs::File::create_new(&task.out).is_ok() {
        let _ = fs::write(&task.out, format!("{}\n", stopped - started));
    }
}
