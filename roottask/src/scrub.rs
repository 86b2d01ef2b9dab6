//! Clears memory; once the system runs, on a thread whose priority is that of the virtual machines, so that they lose no
//! more than their part of the time to the restart of another.
#![allow(unsafe_code)]

use crate::authority::selector;
use abi::Status;
use abi::scd::Scd;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use runtime::manifest::selector as own;
use runtime::sync::Semaphore;
use runtime::{syscall, thread};

/// As a virtual CPU's.
const SCD: Scd = Scd { budget: 10, priority: 30, cos: 0 };
const WORK: Semaphore = Semaphore::from_selector(selector::SCRUB);
const DONE: Semaphore = Semaphore::from_selector(selector::SCRUBBED);

/// Where the thread clears next. Once it has started only the keeper has it work, so there is one order at a time.
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);

/// Starts the thread.
pub fn start() -> Result<(), Status> {
    for semaphore in [selector::SCRUB, selector::SCRUBBED] {
        syscall::create_sm(semaphore, own::PROTECTION_DOMAIN, 0)?;
    }
    thread::spawn(SCD, || {
        while WORK.down().is_ok() {
            let length = LENGTH.load(Ordering::Acquire) as usize;
            // SAFETY: whoever gave the order waits for its end, and has promised this.
            unsafe { now(ADDRESS.load(Ordering::Relaxed) as *mut u8, length) };
            DONE.up();
        }
    })?;
    STARTED.store(1, Ordering::Release);
    Ok(())
}

/// Clears `length` bytes, a multiple of 8.
///
/// # Safety
/// Nobody refers to this memory, which is mapped, writable. After [`start`], only the keeper's thread may call this.
pub unsafe fn clear(address: *mut u8, length: usize) {
    if STARTED.load(Ordering::Acquire) == 0 {
        // SAFETY: the caller's promise.
        return unsafe { now(address, length) };
    }
    ADDRESS.store(address as u64, Ordering::Relaxed);
    LENGTH.store(length as u64, Ordering::Release);
    WORK.up();
    // It fails only for a semaphore that does not exist.
    while DONE.down().is_err() {}
}

/// # Safety
/// As for [`clear`].
unsafe fn now(address: *mut u8, length: usize) {
    // SAFETY: the caller's promise. String instructions in words are the fastest way in an emulator.
    unsafe {
        asm!(
            "rep stosq",
            inout("rdi") address => _,
            inout("rcx") length / 8 => _,
            in("rax") 0,
            options(nostack, preserves_flags)
        );
    }
}
