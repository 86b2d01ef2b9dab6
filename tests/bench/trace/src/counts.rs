//! How often each instruction is executed between marks.

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::{LazyLock, Mutex, OnceLock};

use crate::api::{
    ADD, CB_NO_REGISTERS, Counter, qemu_plugin_register_vcpu_insn_exec_cb,
    qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu, qemu_plugin_scoreboard_new, qemu_plugin_u64_sum,
};
use crate::{BEGIN, Instruction, instruction_of, say};

/// Most instructions that are told from each other; further ones are counted as the last.
const MOST: usize = 1 << 21;

/// A word for each instruction.
static WORDS: OnceLock<Counter> = OnceLock::new();

/// What is known of the instructions.
#[derive(Default)]
struct State {
    /// By the place of their descriptions, which are never freed.
    numbers: HashMap<usize, usize>,
    instructions: Vec<&'static Instruction>,
    /// What the words were at the last begin.
    begin: Vec<u64>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

/// Prepares the counters.
pub fn install() {
    // SAFETY: an element is so many 64-bit words.
    let scoreboard = unsafe { qemu_plugin_scoreboard_new(MOST * size_of::<u64>()) };
    let _ = WORDS.set(Counter { scoreboard, offset: 0 });
}

fn word(number: usize) -> Option<Counter> {
    WORDS.get().map(|words| Counter { offset: number * size_of::<u64>(), ..*words })
}

/// Has an instruction counted that has been translated.
///
/// # Safety
/// `place` is the instruction as QEMU has just given it.
pub unsafe fn translated(place: *mut c_void, instruction: &'static Instruction) {
    let data = std::ptr::from_ref(instruction);
    let number = {
        let mut state = STATE.lock().expect("no holder panics");
        let State { numbers, instructions, .. } = &mut *state;
        *numbers.entry(data.addr()).or_insert_with(|| {
            instructions.push(instruction);
            (instructions.len() - 1).min(MOST - 1)
        })
    };
    let Some(word) = word(number) else { return };
    // SAFETY: as the function demands; what is handed to QEMU lives for ever.
    unsafe {
        // A mark's callback comes before its count: a window is what follows its begin.
        if instruction.mark().is_some() {
            qemu_plugin_register_vcpu_insn_exec_cb(place, marked, CB_NO_REGISTERS, data.cast_mut().cast());
        } else {
            qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(place, ADD, word, 1);
        }
    }
}

extern "C" fn marked(_cpu: c_uint, data: *mut c_void) {
    let Some((window, what)) = instruction_of(data).mark() else { return };
    let mut state = STATE.lock().expect("no holder panics");
    let count = state.instructions.len().min(MOST);
    // SAFETY: the words were made by QEMU.
    let now: Vec<u64> = (0..count).filter_map(word).map(|word| unsafe { qemu_plugin_u64_sum(word) }).collect();
    if what == BEGIN {
        state.begin = now;
        return;
    }
    for (number, (now, instruction)) in now.iter().zip(&state.instructions).enumerate() {
        let times = now - state.begin.get(number).copied().unwrap_or(0);
        if times != 0 {
            let code: String = instruction.code().iter().map(|byte| format!("{byte:02x}")).collect();
            say(format_args!("n {times:x} {:x} {code}", instruction.address), false);
        }
    }
    say(format_args!("counted {window:x}"), true);
}
