//! The MSR permission map (AMD APM vol. 2, 15.11): two pages, two bits for each MSR, a set bit means exit.

use crate::registers::{FMASK, LSTAR, PAT, STAR};
use crate::vcpu::register::{CSTAR, FS_BASE, KERNEL_GS_BASE, SYSENTER_CS, SYSENTER_EIP, TSC, TSC_AUX};

/// What of reading and writing `msr` may pass: all that is switched between guest and host, and reading the clock.
/// EFER may not: its SVME is the kernel's.
pub const fn passable(msr: u32) -> (bool, bool) {
    match msr {
        TSC => (true, false),
        SYSENTER_CS..=SYSENTER_EIP | PAT | STAR | LSTAR | CSTAR | FMASK | FS_BASE..=KERNEL_GS_BASE | TSC_AUX => {
            (true, true)
        }
        _ => (false, false),
    }
}

/// Byte, and number of the bit for reading; the bit for writing is the next one.
const fn position(msr: u32) -> Option<(usize, u32)> {
    let base = match msr {
        0..0x2000 => 0,
        0xc000_0000..0xc000_2000 => 0x800,
        0xc001_0000..0xc001_2000 => 0x1000,
        _ => return None,
    };
    let index = msr & 0x1fff;
    Some((base + index as usize / 4, index % 4 * 2))
}

/// Sets what of `msr` passes; see [`crate::vcpu::Processor::set_msr`].
pub fn set(bitmap: &mut [u8], msr: u32, read: bool, write: bool) -> (bool, bool) {
    let Some((byte, shift)) = position(msr) else { return (false, false) };
    let (may_read, may_write) = passable(msr);
    let pass = (read && may_read, write && may_write);
    if let Some(byte) = bitmap.get_mut(byte) {
        *byte = *byte & !(3 << shift) | (u8::from(!pass.0) | u8::from(!pass.1) << 1) << shift;
    }
    pass
}
