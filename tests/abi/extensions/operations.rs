//! The extension's hypercalls: number 0xf, which the laboratory's own way into the kernel refuses.
#![allow(unsafe_code)]

use lab::spec::{Selector, Status};

/// Results in RSI and RDX.
pub struct Results(pub Status, pub u64, pub u64);

/// Any operation.
pub fn call(operation: u8, selector: Selector, rsi: u64) -> Results {
    let (mut rdi, mut rsi, mut rdx) = (selector << 8 | u64::from(operation) << 4 | 0xf, rsi, 0u64);
    // SAFETY: hypercalls preserve all other registers but RCX and R11.
    unsafe {
        core::arch::asm!("syscall", inout("rdi") rdi, inout("rsi") rsi, inout("rdx") rdx, out("rcx") _, out("r11") _);
    }
    Results(Status(rdi as u8), rsi, rdx)
}

/// Moves frames of allowance to the protection domain `pd`.
pub fn move_allowance(pd: Selector, frames: u64) -> Status {
    call(0, pd, frames).0
}

/// Destroys what `target` names and `owner` owns.
pub fn destroy(target: Selector, owner: Selector) -> Status {
    call(1, target, owner).0
}

/// Frames that `pd` could still use, and those that are free in the whole kernel.
pub fn balance(pd: Selector) -> (u64, u64) {
    let results = call(2, pd, 0);
    (results.1, results.2)
}
