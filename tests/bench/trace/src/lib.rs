//! QEMU plugin that writes down every instruction and every memory access between two marks, whoever makes them: kernels,
//! programs and guests.
//!
//! `-plugin FILE,out=FILE`. A mark is the 7-byte NOP `0f 1f 80 NUMBER WHAT 4b 4d`, WHAT being 1 for the begin of a window
//! and 2 for its end, which any code may execute at any privilege. `out` has a line for each thing in a window:
//!
//! - `begin CPU NUMBER` and `end CPU NUMBER`: the marks themselves;
//! - `i CPU ADDRESS PLACE CODE`: an instruction by its linear address, a number of its place in memory, and its bytes;
//! - `r CPU ADDRESS PLACE` and `w CPU ADDRESS PLACE`: a read or write of the instruction above, by its linear and
//!   guest-physical addresses;
//! - `off LENGTH BEGIN END`, whether in a window or not: the longest span up to now of the kernel with interrupts off, in
//!   instructions, and where it begins and ends.
//!
//! `-plugin FILE,counts=FILE` counts instead, for windows too long to be written down: behind `n TIMES ADDRESS CODE` of each
//! instruction that was executed since the last begin comes `counted NUMBER` of the window that has ended.
//!
//! All numbers are hexadecimal. Interface: QEMU's "TCG plugins" manual, version 3 or later (QEMU 9.1).
#![allow(unsafe_code)] // Calls QEMU, and is called by it.

mod api;
mod counts;
mod interrupts;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::{LazyLock, Mutex, OnceLock};

use api::{
    CB_NO_REGISTERS, COND_NE, Counter, MEM_RW, qemu_plugin_get_hwaddr, qemu_plugin_hwaddr_phys_addr,
    qemu_plugin_insn_data, qemu_plugin_insn_haddr, qemu_plugin_insn_size, qemu_plugin_insn_vaddr,
    qemu_plugin_mem_is_store, qemu_plugin_register_vcpu_insn_exec_cb, qemu_plugin_register_vcpu_insn_exec_cond_cb,
    qemu_plugin_register_vcpu_mem_cb, qemu_plugin_register_vcpu_tb_trans_cb, qemu_plugin_scoreboard_new,
    qemu_plugin_tb_get_insn, qemu_plugin_tb_n_insns, qemu_plugin_u64_get, qemu_plugin_u64_set,
};

/// The version of the interface that the plugin was written for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // QEMU looks for this name.
pub static qemu_plugin_version: c_int = 3;

/// The longest instruction of the architecture.
const LONGEST: usize = 15;

/// What QEMU hands back at each execution of an instruction.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Instruction {
    address: u64,
    place: u64,
    code: [u8; LONGEST],
    length: u8,
}

/// What a mark says.
const BEGIN: u8 = 1;
const END: u8 = 2;

impl Instruction {
    fn code(&self) -> &[u8] {
        &self.code[..usize::from(self.length)]
    }

    /// The number of the window, and whether it begins or ends here.
    fn mark(&self) -> Option<(u8, u8)> {
        match *self.code() {
            [0x0f, 0x1f, 0x80, number, what @ (BEGIN | END), 0x4b, 0x4d] => Some((number, what)),
            _ => None,
        }
    }
}

/// Where the lines go.
static OUT: OnceLock<Mutex<BufWriter<File>>> = OnceLock::new();
/// Whether a CPU is in a window: what decides whether QEMU calls us at all.
static IN_WINDOW: OnceLock<Counter> = OnceLock::new();
/// Every instruction that QEMU knows, once: it translates the same one many times.
static KNOWN: LazyLock<Mutex<HashMap<Instruction, &'static Instruction>>> = LazyLock::new(Mutex::default);

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
    let arguments = (0..usize::try_from(count).unwrap_or(0)).map(|index| {
        // SAFETY: as the function demands.
        unsafe { CStr::from_ptr(*arguments.add(index)) }.to_string_lossy().into_owned()
    });
    let mut out = None;
    let mut counts = false;
    for argument in arguments {
        if let Some((what @ ("out" | "counts"), file)) = argument.split_once('=') {
            (counts, out) = (what == "counts", File::create(file).ok());
        }
    }
    let Some(file) = out else {
        eprintln!("window-trace: out= or counts= takes a file that can be written");
        return -1;
    };
    let _ = OUT.set(Mutex::new(BufWriter::new(file)));
    if counts {
        counts::install();
        // SAFETY: the callback has the type that QEMU calls.
        unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated_to_count) };
        return 0;
    }
    // SAFETY: an element is one 64-bit word.
    let _ = IN_WINDOW.set(Counter { scoreboard: unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) }, offset: 0 });
    interrupts::install();
    // SAFETY: the callback has the type that QEMU calls.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}

/// Writes a line.
fn say(line: std::fmt::Arguments<'_>, flush: bool) {
    let Some(out) = OUT.get() else { return };
    let Ok(mut out) = out.lock() else { return };
    let _ = writeln!(out, "{line}");
    if flush {
        // Whoever started QEMU kills it.
        let _ = out.flush();
    }
}

extern "C" fn translated_to_count(_id: u64, block: *mut c_void) {
    // SAFETY: QEMU gives a block that is valid during the call, and so are its instructions.
    unsafe {
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let instruction = qemu_plugin_tb_get_insn(block, index);
            counts::translated(instruction, known(instruction));
        }
    }
}

extern "C" fn translated(_id: u64, block: *mut c_void) {
    let Some(&in_window) = IN_WINDOW.get() else { return };
    // SAFETY: QEMU gives a block that is valid during the call, and so are its instructions; a buffer of the longest
    // instruction's size takes any. What is handed to QEMU lives for ever.
    unsafe {
        let mut before: Option<&'static Instruction> = None;
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let instruction = qemu_plugin_tb_get_insn(block, index);
            let known = known(instruction);
            let data = std::ptr::from_ref(known).cast_mut().cast();
            interrupts::translated(instruction, known, before.map(Instruction::code));
            before = Some(known);
            if known.mark().is_some() {
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, marked, CB_NO_REGISTERS, data);
            } else {
                qemu_plugin_register_vcpu_insn_exec_cond_cb(
                    instruction,
                    executed,
                    CB_NO_REGISTERS,
                    COND_NE,
                    in_window,
                    0,
                    data,
                );
                qemu_plugin_register_vcpu_mem_cb(instruction, accessed, CB_NO_REGISTERS, MEM_RW, data);
            }
        }
    }
}

/// What is kept about an instruction.
///
/// # Safety
/// QEMU has just given it.
unsafe fn known(instruction: *mut c_void) -> &'static Instruction {
    let mut code = [0; LONGEST];
    // SAFETY: as the function demands.
    let new = unsafe {
        let length = qemu_plugin_insn_size(instruction).min(LONGEST);
        qemu_plugin_insn_data(instruction, code.as_mut_ptr().cast(), length);
        let address = qemu_plugin_insn_vaddr(instruction);
        let place = qemu_plugin_insn_haddr(instruction) as u64;
        Instruction { address, place: if place == 0 { address } else { place }, code, length: length as u8 }
    };
    let mut all = KNOWN.lock().expect("no holder panics");
    all.entry(new.clone()).or_insert_with(|| Box::leak(Box::new(new)))
}

/// The instruction of a callback.
fn instruction_of(data: *mut c_void) -> &'static Instruction {
    // SAFETY: QEMU gives back what `translated` gave it, which lives for ever.
    unsafe { &*data.cast() }
}

extern "C" fn marked(cpu: c_uint, data: *mut c_void) {
    let (Some((number, what)), Some(&in_window)) = (instruction_of(data).mark(), IN_WINDOW.get()) else { return };
    // SAFETY: the counter was made by QEMU.
    unsafe { qemu_plugin_u64_set(in_window, cpu, u64::from(what == BEGIN)) };
    if what == BEGIN {
        say(format_args!("begin {cpu:x} {number:x}"), false);
    } else {
        say(format_args!("end {cpu:x} {number:x}"), true);
    }
}

extern "C" fn executed(cpu: c_uint, data: *mut c_void) {
    let Instruction { address, place, .. } = instruction_of(data);
    let code: String = instruction_of(data).code().iter().map(|byte| format!("{byte:02x}")).collect();
    say(format_args!("i {cpu:x} {address:x} {place:x} {code}"), false);
}

extern "C" fn accessed(cpu: c_uint, kind: u32, address: u64, _data: *mut c_void) {
    let Some(&in_window) = IN_WINDOW.get() else { return };
    // SAFETY: the counter was made by QEMU; it gives the access that is being made.
    let (inside, place, store) = unsafe {
        let place = qemu_plugin_get_hwaddr(kind, address);
        let place = if place.is_null() { address } else { qemu_plugin_hwaddr_phys_addr(place) };
        (qemu_plugin_u64_get(in_window, cpu) != 0, place, qemu_plugin_mem_is_store(kind))
    };
    if inside {
        say(format_args!("{} {cpu:x} {address:x} {place:x}", if store { 'w' } else { 'r' }), false);
    }
}
