//! The interrupt descriptor table, counters of interrupts, and code that may raise exceptions.
//!
//! Intel SDM vol. 3A, chapter 7; 7.14.1 (gate descriptors in 64-bit mode).
#![allow(unsafe_code)] // The table holds addresses of assembly code; a failed attempt returns by another stack pointer.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{cpu, ending, lapic, say};

global_asm!(include_str!("interrupts.S"), options(att_syntax));

unsafe extern "C" {
    static interrupt_entries: [[u8; 16]; 256];
    fn attempt_call(function: extern "C" fn(*mut u8), argument: *mut u8, place: *const AtomicU64) -> u32;
    fn attempt_failed();
}

/// Vectors below are exceptions.
const EXCEPTIONS: u64 = 32;
const NON_MASKABLE: u64 = 2;
/// Vector of spurious interrupts of the LAPIC, which want no EOI.
pub const SPURIOUS: u8 = 0xff;
const CODE: u64 = 8;

struct Table(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: it is written once, before interrupts can come; before other CPUs start.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; 256]));
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// Stack pointer of the running attempt, or 0.
static ATTEMPT: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// What the entry code leaves on the stack.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// An exception that ended an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 if it has none.
    pub error: u32,
    /// CR2.
    pub address: u64,
}

impl Exception {
    /// #UD.
    pub const UNDEFINED: u8 = 6;
    /// #GP.
    pub const PROTECTION: u8 = 13;
    /// #PF.
    pub const PAGE: u8 = 14;
}

impl fmt::Display for Exception {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "exception {} error {:#x} CR2 {:#x}", self.vector, self.error, self.address)
    }
}

/// Fills and loads the table.
pub fn set_up() {
    // SAFETY: nobody else uses it; the entries are code of this program, which stays where it is.
    unsafe {
        let table = &mut *TABLE.0.get();
        for (gate, entry) in table.iter_mut().zip(&interrupt_entries) {
            let entry = entry.as_ptr() as u64;
            // A present interrupt gate of ring 0.
            gate[0] = entry & 0xffff | CODE << 16 | 0x8e00 << 32 | (entry & 0xffff_0000) << 32;
            gate[1] = entry >> 32;
        }
    }
    load_table();
}

/// Loads the table, on any CPU.
pub fn load_table() {
    load(TABLE.0.get() as u64, 4095);
}

/// Loads the table's register.
pub fn load(base: u64, limit: u16) {
    let mut pointer = [0; 10];
    pointer[..2].copy_from_slice(&limit.to_le_bytes());
    pointer[2..].copy_from_slice(&base.to_le_bytes());
    // SAFETY: without a proper table the machine ends at the next interrupt, which the caller wants then.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) };
}

/// How often a vector was taken.
pub fn count(vector: u8) -> u32 {
    COUNTS[vector as usize].load(Ordering::Relaxed)
}

/// Runs something that may raise an exception, which ends it.
pub fn attempt(mut action: impl FnMut()) -> Result<(), Exception> {
    extern "C" fn run<F: FnMut()>(action: *mut u8) {
        // SAFETY: it is the closure below, and nobody else has it.
        unsafe { (*action.cast::<F>())() }
    }
    fn runner<F: FnMut()>(_: &F) -> extern "C" fn(*mut u8) {
        run::<F>
    }
    let function = runner(&action);
    // SAFETY: the function fits the closure. Actions own nothing that would have to be dropped.
    let failed = unsafe { attempt_call(function, (&raw mut action).cast(), &ATTEMPT) };
    if failed == 0 {
        return Ok(());
    }
    Err(Exception {
        vector: VECTOR.load(Ordering::Relaxed) as u8,
        error: ERROR.load(Ordering::Relaxed) as u32,
        address: ADDRESS.load(Ordering::Relaxed),
    })
}

#[unsafe(no_mangle)]
extern "C" fn handle_interrupt(frame: &mut Frame) {
    COUNTS[frame.vector as usize % 256].fetch_add(1, Ordering::Relaxed);
    match frame.vector {
        NON_MASKABLE => {}
        0..EXCEPTIONS => {
            let stack = ATTEMPT.swap(0, Ordering::Relaxed);
            if stack == 0 {
                say!(
                    "failed: exception {} error {:#x} at {:#x}, CR2 {:#x}, RSP {:#x}",
                    frame.vector,
                    frame.error,
                    frame.rip,
                    cpu::cr2(),
                    frame.rsp
                );
                ending::finish(false);
            }
            VECTOR.store(frame.vector, Ordering::Relaxed);
            ERROR.store(frame.error, Ordering::Relaxed);
            ADDRESS.store(cpu::cr2(), Ordering::Relaxed);
            frame.rip = attempt_failed as *const () as u64;
            frame.rsp = stack;
        }
        vector if vector == SPURIOUS.into() => {}
        _ => lapic::end_of_interrupt(),
    }
}
