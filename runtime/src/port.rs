//! Byte-wide I/O ports. A program without the capability for a port gets #GP, which its parent reports.
#![allow(unsafe_code)]

use core::arch::asm;

/// Reads a port.
///
/// # Safety
/// The caller answers for what the device behind the port does to memory; a UART or CMOS clock does nothing.
pub unsafe fn read(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a port.
///
/// # Safety
/// See [`read`].
pub unsafe fn write(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}
