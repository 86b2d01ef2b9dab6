//! The execution port of the virtual machine: bytes, a magic number, milestones.
#![allow(unsafe_code)] // Port instructions.

use core::arch::asm;

use crate::linux::{self, Errno};

/// Takes the bytes of the frames.
const DATA: u16 = 0xe90;
/// Reads as [`MAGIC`] where there is a channel.
const MAGIC_PORT: u16 = 0xe94;
/// Takes milestones.
const MARK: u16 = 0xe98;
const MAGIC: u32 = u32::from_le_bytes(*b"KNVX");

/// The right to use I/O ports.
pub struct Ports(());

impl Ports {
    /// Asks Linux for the right.
    pub fn open() -> Result<Self, Errno> {
        linux::iopl(3).map(|()| Self(()))
    }

    /// Whether the machine has a channel.
    pub fn has_channel(&self) -> bool {
        let value: u32;
        // SAFETY: `iopl` allowed it; without a channel nobody decodes the port.
        unsafe { asm!("in eax, dx", in("dx") MAGIC_PORT, out("eax") value, options(nomem, nostack, preserves_flags)) };
        value == MAGIC
    }

    /// Sends bytes. The machine takes them all, however long it needs.
    pub fn send(&self, bytes: &[u8]) {
        // SAFETY: `iopl` allowed it; the instruction reads just these bytes. The ABI keeps the direction flag clear.
        unsafe {
            asm!("rep outsb", in("dx") DATA, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
                options(readonly, nostack, preserves_flags));
        }
    }

    /// Reports a milestone. A machine without the port ignores it.
    pub fn mark(&self, number: u32) {
        // SAFETY: `iopl` allowed it; nobody else decodes the port.
        unsafe { asm!("out dx, eax", in("dx") MARK, in("eax") number, options(nomem, nostack, preserves_flags)) };
    }
}
