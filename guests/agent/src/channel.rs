//! The monitor's ports.
//!
//! Unsafe: port instructions, which the kernel permits after `iopl`.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::linux;

/// Data: frames, byte by byte.
const DATA: u16 = 0xe90;
/// Reads [`MAGIC`] where the channel exists.
const MAGIC_PORT: u16 = 0xe94;
/// Takes milestones.
const MARK: u16 = 0xe98;
const MAGIC: u32 = u32::from_le_bytes(*b"KNVX");

/// Types of frames.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Frame {
    /// The agent is ready.
    Ready = 0,
    /// Standard output.
    Output = 1,
    /// Standard error.
    Error = 2,
    /// Exit status.
    Status = 3,
}

/// The channel, open.
pub struct Channel(());

impl Channel {
    /// Opens the channel; `None` where there is none.
    pub fn open() -> Option<Self> {
        if !linux::use_ports() {
            return None;
        }
        let magic: u32;
        // SAFETY: permitted by `use_ports`; reads a register.
        unsafe { asm!("in eax, dx", in("dx") MAGIC_PORT, out("eax") magic, options(nostack, preserves_flags)) };
        (magic == MAGIC).then_some(Self(()))
    }

    /// Sends a frame.
    pub fn send(&self, kind: Frame, payload: &[u8]) {
        let mut header = [kind as u8; 5];
        header[1..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        for bytes in [&header[..], payload] {
            // SAFETY: permitted by `use_ports`; reads `bytes` only.
            unsafe {
                asm!("rep outsb", in("dx") DATA, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
                    options(nostack, preserves_flags, readonly));
            }
        }
    }
}

/// Writes a milestone. Without the monitor the write vanishes.
pub fn mark(number: u32) -> bool {
    if !linux::use_ports() {
        return false;
    }
    // SAFETY: permitted by `use_ports`; nothing else is at that port.
    unsafe { asm!("out dx, eax", in("dx") MARK, in("eax") number, options(nostack, preserves_flags)) };
    true
}
