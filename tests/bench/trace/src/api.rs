//! What QEMU offers to plugins: its "TCG plugins" manual.

use std::ffi::{c_int, c_uint, c_void};

/// A word that every virtual CPU has for itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Counter {
    /// What it is in.
    pub scoreboard: *mut c_void,
    /// Where it is there.
    pub offset: usize,
}

// SAFETY: QEMU allocates the scoreboard once, keeps it for ever, and synchronizes its uses.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

/// `QEMU_PLUGIN_CB_NO_REGS`.
pub const CB_NO_REGISTERS: c_int = 0;
/// `QEMU_PLUGIN_INLINE_ADD_U64`.
pub const ADD: c_int = 0;
/// `QEMU_PLUGIN_COND_EQ`.
pub const COND_EQ: c_int = 2;
/// `QEMU_PLUGIN_COND_NE`.
pub const COND_NE: c_int = 3;
/// `QEMU_PLUGIN_MEM_RW`.
pub const MEM_RW: c_int = 3;

/// Called when a block has been translated.
pub type Translated = extern "C" fn(id: u64, block: *mut c_void);
/// Called when an instruction is executed.
pub type Executed = extern "C" fn(cpu: c_uint, data: *mut c_void);
/// Called when an instruction reads or writes memory.
pub type Accessed = extern "C" fn(cpu: c_uint, kind: u32, address: u64, data: *mut c_void);

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut c_void,
        callback: Executed,
        flags: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_insn_exec_cond_cb(
        instruction: *mut c_void,
        callback: Executed,
        flags: c_int,
        condition: c_int,
        word: Counter,
        value: u64,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        instruction: *mut c_void,
        operation: c_int,
        word: Counter,
        value: u64,
    );
    pub fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut c_void,
        callback: Accessed,
        flags: c_int,
        kinds: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    pub fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    pub fn qemu_plugin_insn_data(instruction: *const c_void, to: *mut c_void, length: usize) -> usize;
    pub fn qemu_plugin_insn_size(instruction: *const c_void) -> usize;
    pub fn qemu_plugin_insn_vaddr(instruction: *const c_void) -> u64;
    pub fn qemu_plugin_insn_haddr(instruction: *const c_void) -> *mut c_void;
    pub fn qemu_plugin_scoreboard_new(element: usize) -> *mut c_void;
    pub fn qemu_plugin_u64_get(word: Counter, cpu: c_uint) -> u64;
    pub fn qemu_plugin_u64_sum(word: Counter) -> u64;
    pub fn qemu_plugin_u64_set(word: Counter, cpu: c_uint, value: u64);
    pub fn qemu_plugin_get_hwaddr(kind: u32, address: u64) -> *mut c_void;
    pub fn qemu_plugin_hwaddr_phys_addr(place: *const c_void) -> u64;
    pub fn qemu_plugin_mem_is_store(kind: u32) -> bool;
}
