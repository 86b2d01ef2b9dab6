//! The longest span of the kernel with interrupts off.
//!
//! The kernel runs with interrupts off but for a few instructions behind an STI, so a span is everything from where it is
//! entered, or from such an STI, up to where it is left, by a return or into a guest, or to the next such STI. An
//! instruction is the kernel's if it is in the upper half of the address space, and no guest's: a guest runs from VMRUN
//! to the instruction behind it. Machines with VMX are not looked at: QEMU has none.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::api::{
    ADD, CB_NO_REGISTERS, COND_EQ, COND_NE, Counter, Executed, qemu_plugin_register_vcpu_insn_exec_cb,
    qemu_plugin_register_vcpu_insn_exec_cond_cb, qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu,
    qemu_plugin_scoreboard_new, qemu_plugin_u64_get, qemu_plugin_u64_set,
};
use crate::{Instruction, instruction_of, say};

/// Most CPUs that are looked at.
const CPUS: usize = 64;

/// Instructions of a CPU's span.
static LENGTH: OnceLock<Counter> = OnceLock::new();
/// Where it begins, and whether a guest runs meanwhile.
static BEGIN: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
static IN_GUEST: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];
/// Programs have begun: before, the kernel starts, and nobody waits for an interrupt.
static STARTED: AtomicBool = AtomicBool::new(false);
static LONGEST: AtomicU64 = AtomicU64::new(0);

const SYSCALL: &[u8] = &[0x0f, 0x05];
const CLGI: &[u8] = &[0x0f, 0x01, 0xdd];
const VMRUN: &[u8] = &[0x0f, 0x01, 0xd8];
const STI: &[u8] = &[0xfb];
const IRETQ: &[u8] = &[0x48, 0xcf];

/// Prepares the counters.
pub fn install() {
    // SAFETY: an element is one 64-bit word.
    let _ = LENGTH.set(Counter { scoreboard: unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) }, offset: 0 });
}

/// Looks at an instruction that has been translated; `before` is the one before it in its block.
///
/// # Safety
/// `place` is the instruction as QEMU has just given it.
pub unsafe fn translated(place: *mut c_void, instruction: &'static Instruction, before: Option<&[u8]>) {
    let Some(&length) = LENGTH.get() else { return };
    let data: *mut c_void = std::ptr::from_ref(instruction).cast_mut().cast();
    let always = |callback: Executed| {
        // SAFETY: as the function demands.
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(place, callback, CB_NO_REGISTERS, data) }
    };
    let when = |condition: c_int, callback: Executed| {
        // SAFETY: as above.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cond_cb(place, callback, CB_NO_REGISTERS, condition, length, 0, data);
        }
    };
    let kernel = instruction.address >> 63 == 1;
    match (kernel, instruction.code()) {
        (false, SYSCALL) if !STARTED.load(Relaxed) => always(programs_began),
        (true, STI) if before != Some(CLGI) => always(ends),
        (true, IRETQ) => always(ends),
        _ => {}
    }
    if !kernel {
        if before.is_none() {
            when(COND_NE, ends);
        }
        return;
    }
    if follows_vmrun(instruction) {
        always(guest_exits);
    }
    when(COND_EQ, begins);
    // SAFETY: as above.
    unsafe { qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(place, ADD, length, 1) };
    if instruction.code() == VMRUN {
        RESUMED.store(instruction.address + VMRUN.len() as u64, Relaxed);
        always(guest_runs);
    }
}

/// The instruction behind the kernel's VMRUN.
static RESUMED: AtomicU64 = AtomicU64::new(0);

fn follows_vmrun(instruction: &Instruction) -> bool {
    instruction.address == RESUMED.load(Relaxed)
}

extern "C" fn programs_began(cpu: c_uint, data: *mut c_void) {
    if !STARTED.swap(true, Relaxed) {
        begins(cpu, data);
        forget(cpu);
    }
}

extern "C" fn begins(cpu: c_uint, data: *mut c_void) {
    if let Some(begin) = BEGIN.get(cpu as usize) {
        begin.store(instruction_of(data).address, Relaxed);
    }
}

/// Ends the span, which may be the longest one.
extern "C" fn ends(cpu: c_uint, data: *mut c_void) {
    let (Some(&length), Some(begin)) = (LENGTH.get(), BEGIN.get(cpu as usize)) else { return };
    if IN_GUEST[cpu as usize].load(Relaxed) {
        return forget(cpu);
    }
    // SAFETY: the counter was made by QEMU.
    let length = unsafe { qemu_plugin_u64_get(length, cpu) };
    if STARTED.load(Relaxed) && LONGEST.fetch_max(length, Relaxed) < length {
        let (begin, end) = (begin.load(Relaxed), instruction_of(data).address);
        say(format_args!("off {length:x} {begin:x} {end:x}"), true);
    }
    forget(cpu);
}

extern "C" fn guest_runs(cpu: c_uint, data: *mut c_void) {
    ends(cpu, data);
    if let Some(guest) = IN_GUEST.get(cpu as usize) {
        guest.store(true, Relaxed);
    }
}

extern "C" fn guest_exits(cpu: c_uint, _data: *mut c_void) {
    if let Some(guest) = IN_GUEST.get(cpu as usize) {
        guest.store(false, Relaxed);
    }
    forget(cpu);
}

/// A new span.
fn forget(cpu: c_uint) {
    if let Some(&length) = LENGTH.get() {
        // SAFETY: the counter was made by QEMU.
        unsafe { qemu_plugin_u64_set(length, cpu, 0) };
    }
}
