//! Tests that do not come back.
//!
//! Unsafe: they end the guest, as they should.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::cpu::out8;
use crate::interrupts::Table;
use crate::println;

/// An address without RAM on any of the machines this runs on.
const NOTHING: u64 = 0xd000_0000;

/// Spins with interrupts disabled.
pub fn spin() -> ! {
    println!("micro: spinning with interrupts disabled");
    // SAFETY: never comes back.
    unsafe { asm!("cli", "2:", "jmp 2b", options(noreturn)) }
}

/// A breakpoint without an interrupt table.
pub fn triple() -> ! {
    println!("micro: about to triple-fault");
    let empty = Table::EMPTY;
    // SAFETY: never comes back.
    unsafe { asm!("lidt [{}]", "int3", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

/// Jumps to where there is no RAM.
pub fn jump() -> ! {
    println!("micro: about to jump into nothing");
    // SAFETY: never comes back.
    unsafe { asm!("jmp {}", in(reg) NOTHING, options(noreturn)) }
}

/// Halts for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: never comes back.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Resets the machine by the reset control register.
pub fn reset() -> ! {
    println!("micro: about to reset");
    out8(0xcf9, 0x02);
    out8(0xcf9, 0x06);
    halt()
}
