//! Exceptions and interrupts.
//!
//! Unsafe: builds the interrupt table; handlers touch the interrupted frame.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{rdmsr, write32, wrmsr};
use crate::println;
use crate::verdict::{Check, check, verdict};

const CODE: u64 = 0x08;
/// Distance between stubs.
const STUB: u64 = 16;
/// Present, interrupt gate.
const GATE: u64 = 0x8e00;
/// x2APIC mode in IA32_APIC_BASE.
const X2APIC: u64 = 1 << 10;

static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

#[repr(C, align(16))]
struct Gates([[u64; 2]; 256]);

static mut GATES: Gates = Gates([[0; 2]; 256]);

/// Limit and address as LIDT takes them.
#[repr(C, packed)]
pub struct Table {
    limit: u16,
    base: u64,
}

impl Table {
    /// No table at all.
    pub const EMPTY: Self = Self { limit: 0, base: 0 };
}

/// What the stubs push.
#[repr(C)]
struct Frame {
    registers: [u64; 9],
    vector: u64,
    code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// Installs the interrupt table.
pub fn install() {
    let gates = &raw mut GATES;
    let base = &raw const interrupt_stubs as u64;
    for vector in 0..256 {
        let at = base + vector as u64 * STUB;
        let low = at & 0xffff | CODE << 16 | GATE << 32 | (at >> 16 & 0xffff) << 48;
        // SAFETY: only this function touches the table, once, before any interrupt.
        unsafe { (*gates).0[vector] = [low, at >> 32] };
    }
    let table = Table { limit: size_of::<Gates>() as u16 - 1, base: gates as u64 };
    // SAFETY: the table's gates are all present and stay.
    unsafe { asm!("lidt [{}]", in(reg) &raw const table, options(readonly, nostack, preserves_flags)) };
}

/// How often `vector` came.
pub fn count(vector: u8) -> u64 {
    COUNTS[vector as usize].load(Ordering::SeqCst)
}

/// Called by the stubs.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &mut Frame) {
    COUNTS[frame.vector as usize & 255].fetch_add(1, Ordering::SeqCst);
    match frame.vector {
        3 => {}
        // UD2 and the faulting load of the tests below are two and three bytes long.
        6 if EXPECTED.load(Ordering::SeqCst) == 6 => frame.rip += 2,
        13 | 14 if EXPECTED.load(Ordering::SeqCst) == frame.vector => {
            CODE_SEEN.store(frame.code, Ordering::SeqCst);
            frame.rip += LENGTH.load(Ordering::SeqCst);
        }
        32..=255 => end_of_interrupt(),
        vector => {
            println!("micro: unexpected exception {vector}, code {:#x}, rip {:#x}", frame.code, frame.rip);
            verdict("exception", Err("unexpected exception"))
        }
    }
}

static EXPECTED: AtomicU64 = AtomicU64::new(u64::MAX);
static LENGTH: AtomicU64 = AtomicU64::new(0);
static CODE_SEEN: AtomicU64 = AtomicU64::new(0);

fn end_of_interrupt() {
    if rdmsr(0x1b) & X2APIC != 0 {
        wrmsr(0x80b, 0);
    } else {
        write32(0xfee0_00b0, 0);
    }
}

/// Lets the exception `vector` pass once, over an instruction of `length` bytes.
fn expect(vector: u64, length: u64) {
    LENGTH.store(length, Ordering::SeqCst);
    EXPECTED.store(vector, Ordering::SeqCst);
}

/// RDMSR of a register that may not exist: `None` when it raises #GP.
pub fn try_rdmsr(index: u32) -> Option<u64> {
    expect(13, 2);
    let before = count(13);
    let value = rdmsr(index);
    (count(13) == before).then_some(value)
}

/// Exceptions are taken, tell what they should, and are returned from.
pub fn faults() -> Check {
    // SAFETY: the handler returns behind it.
    unsafe { asm!("int3") };
    check(count(3) == 1, "breakpoint did not come")?;
    expect(6, 2);
    // SAFETY: the handler returns behind it.
    unsafe { asm!("ud2") };
    check(count(6) == 1, "undefined instruction did not come")?;
    expect(14, 3);
    let address: u64;
    // SAFETY: 1 TiB is not mapped; the handler returns behind the three-byte load.
    unsafe {
        asm!("mov rax, [rcx]", "mov {}, cr2", out(reg) address, in("rcx") 1u64 << 40, out("rax") _);
    }
    check(count(14) == 1, "page fault did not come")?;
    check(address == 1 << 40, "page fault's address is wrong")?;
    check(CODE_SEEN.load(Ordering::SeqCst) == 0, "page fault's error code is wrong")
}
