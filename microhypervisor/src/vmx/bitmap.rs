//! The MSR bitmap (Intel SDM vol. 3C, 25.6.9): one page, a set bit means exit.

use crate::registers::{EFER, FMASK, LSTAR, PAT, STAR};
use crate::vcpu::register::{FS_BASE, KERNEL_GS_BASE, SYSENTER_CS, SYSENTER_EIP, TSC, TSC_AUX};

/// Offset of the bits for writing.
const WRITE: usize = 2048;

/// What of reading and writing `msr` may pass: all that is switched between guest and host, and reading the clock.
pub const fn passable(msr: u32) -> (bool, bool) {
    match msr {
        TSC => (true, false),
        SYSENTER_CS..=SYSENTER_EIP | PAT | EFER | STAR | LSTAR | FMASK | FS_BASE..=KERNEL_GS_BASE | TSC_AUX => {
            (true, true)
        }
        _ => (false, false),
    }
}

/// Byte and bit of the read permission of `msr`.
const fn position(msr: u32) -> Option<(usize, u8)> {
    let base = match msr {
        0..0x2000 => 0,
        0xc000_0000..0xc000_2000 => 1024,
        _ => return None,
    };
    let index = msr & 0x1fff;
    Some((base + index as usize / 8, 1 << (index % 8)))
}

/// Sets what of `msr` passes; see [`crate::vcpu::Processor::set_msr`].
pub fn set(bitmap: &mut [u8], msr: u32, read: bool, write: bool) -> (bool, bool) {
    let Some((byte, bit)) = position(msr) else { return (false, false) };
    let (may_read, may_write) = passable(msr);
    let pass = (read && may_read, write && may_write);
    for (offset, pass) in [(byte, pass.0), (byte + WRITE, pass.1)] {
        if let Some(byte) = bitmap.get_mut(offset) {
            *byte = if pass { *byte & !bit } else { *byte | bit };
        }
    }
    pass
}
