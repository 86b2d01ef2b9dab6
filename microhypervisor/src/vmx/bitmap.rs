//! The MSR bitmap (Intel SDM vol. 3C, 25.6.9): one page, a set bit means exit.

/// Offset of the bits for writing.
const WRITE: usize = 2048;

/// Byte and bit of `msr` for reading.
const fn position(msr: u32) -> Option<(usize, u8)> {
    let base = match msr {
        0..0x2000 => 0,
        0xc000_0000..0xc000_2000 => 1024,
        _ => return None,
    };
    let index = msr & 0x1fff;
    Some((base + index as usize / 8, 1 << (index % 8)))
}

/// Sets whether reading and writing `msr` pass.
pub fn set(bitmap: &mut [u8], msr: u32, read: bool, write: bool) {
    let Some((byte, bit)) = position(msr) else { return };
    for (offset, pass) in [(byte, read), (byte + WRITE, write)] {
        if let Some(byte) = bitmap.get_mut(offset) {
            *byte = if pass { *byte & !bit } else { *byte | bit };
        }
    }
}
