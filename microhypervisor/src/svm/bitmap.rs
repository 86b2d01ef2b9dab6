//! The MSR permission map (AMD APM vol. 2, 15.11): two pages, two bits for each MSR, a set bit means exit.

/// Byte of `msr`, and its bit for reading; the bit for writing is the next one.
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

/// Sets whether reading and writing `msr` pass.
pub fn set(bitmap: &mut [u8], msr: u32, read: bool, write: bool) {
    if let Some((byte, shift)) = position(msr)
        && let Some(byte) = bitmap.get_mut(byte)
    {
        *byte = *byte & !(3 << shift) | (u8::from(!read) | u8::from(!write) << 1) << shift;
    }
}
