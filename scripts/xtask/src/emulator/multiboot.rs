//! Kernels that only a boot loader of the Multiboot Specification 1 can start, for QEMU.
//!
//! QEMU's own loader takes such a kernel as a 32-bit ELF file only, whatever it switches to later. A 64-bit file of the
//! same content becomes one by its headers: they are smaller, so that nothing else moves.

use std::borrow::Cow;

/// Multiboot Specification 0.6.96, 3.1: the header begins with this, 4-byte aligned, within the first 8 KiB.
const MAGIC: [u8; 4] = 0x1bad_b002u32.to_le_bytes();
const SEARCHED: usize = 8192;
/// The note by which QEMU starts a 64-bit kernel (Xen's `elfnote.h`).
const PVH_ENTRY: u32 = 18;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The file that QEMU can start; the same one if it needs no change.
pub fn startable(kernel: &[u8]) -> Cow<'_, [u8]> {
    match converted(kernel) {
        Some(file) => Cow::Owned(file),
        None => Cow::Borrowed(kernel),
    }
}

/// A 64-bit file with a header of Multiboot 1 and no PVH note as a 32-bit one. None for all others, and if an address
/// needs more than 32 bits.
fn converted(kernel: &[u8]) -> Option<Vec<u8>> {
    let has_header = kernel.chunks_exact(4).take(SEARCHED / 4).any(|word| word == MAGIC);
    if !kernel.starts_with(b"\x7fELF\x02\x01") || !has_header {
        return None;
    }
    let segments = segments(kernel)?;
    if segments.iter().any(|segment| segment.kind == PT_NOTE && is_pvh(kernel, segment)) {
        return None;
    }
    let loaded: Vec<_> = segments.iter().filter(|segment| segment.kind == PT_LOAD).collect();
    // ELF32: a header of 52 bytes, then 32 for each segment.
    let mut headers = [&kernel[..4], &[1, 1, 1], &[0; 9]].concat();
    headers.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    headers.extend(u32::try_from(u64_at(kernel, 24)?).ok()?.to_le_bytes());
    headers.extend([52u32, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    headers.extend([52u16, 32, loaded.len() as u16, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    for segment in loaded {
        // Its virtual addresses are those before paging.
        let Segment { kind, flags, offset, physical, in_file, in_memory } = *segment;
        for value in [kind.into(), offset, physical, physical, in_file, in_memory, flags.into(), 1] {
            headers.extend(u32::try_from(value).ok()?.to_le_bytes());
        }
    }
    let mut file = kernel.to_vec();
    file.get_mut(..headers.len())?.copy_from_slice(&headers);
    Some(file)
}

/// What a program header tells.
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    physical: u64,
    in_file: u64,
    in_memory: u64,
}

fn segments(file: &[u8]) -> Option<Vec<Segment>> {
    let start = usize::try_from(u64_at(file, 32)?).ok()?;
    let size = u16_at(file, 54)? as usize;
    let segment = |index: usize| {
        let header = file.get(start.checked_add(index * size)?..)?;
        Some(Segment {
            kind: u64_at(header, 0)? as u32,
            flags: (u64_at(header, 0)? >> 32) as u32,
            offset: u64_at(header, 8)?,
            physical: u64_at(header, 24)?,
            in_file: u64_at(header, 32)?,
            in_memory: u64_at(header, 40)?,
        })
    };
    (0..u16_at(file, 56)? as usize).map(segment).collect()
}

/// Whether one of the notes in this segment says where PVH enters.
fn is_pvh(file: &[u8], segment: &Segment) -> bool {
    let mut notes = file.get(segment.offset as usize..).unwrap_or_default();
    notes = &notes[..notes.len().min(segment.in_file as usize)];
    while let (Some(sizes), Some(kind)) = (u64_at(notes, 0), notes.get(8..12)) {
        if kind == PVH_ENTRY.to_le_bytes() && notes.get(12..16) == Some(b"Xen\0") {
            return true;
        }
        let padded = |size: u64| (size as u32 as usize).next_multiple_of(4);
        notes = notes.get(12 + padded(sizes) + padded(sizes >> 32)..).unwrap_or_default();
    }
    false
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset.checked_add(2)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a header of Multiboot 1 at 0x1000 and one segment of `kind` there.
    fn kernel(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend([0x20_0000u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        file.extend([kind, 7].into_iter().flat_map(u32::to_le_bytes));
        let size = content.len() as u64;
        file.extend(
            [0x1000u64, 0xffff_8000_0020_0000, 0x20_0000, size, 0x3000, 1].into_iter().flat_map(u64::to_le_bytes),
        );
        file.resize(0x1000, 0);
        file.extend(content);
        file.extend(MAGIC);
        file
    }

    #[test]
    fn a_64_bit_kernel_becomes_a_32_bit_one() {
        let file = kernel(PT_LOAD, b"code");
        let made = startable(&file);
        assert!(made.starts_with(b"\x7fELF\x01\x01"));
        assert_eq!((u16_at(&made, 18), u16_at(&made, 44)), (Some(3), Some(1)), "i386, one segment");
        assert_eq!(made[24..32], [0, 0, 0x20, 0, 52, 0, 0, 0], "entry, program headers");
        let words: Vec<u32> =
            made[52..84].chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1, 0x1000, 0x20_0000, 0x20_0000, 4, 0x3000, 7, 1]);
        assert_eq!(made[0x1000..], file[0x1000..]);
    }

    #[test]
    fn what_qemu_takes_stays_as_it_is() {
        let mut old = kernel(PT_LOAD, b"code");
        old[4] = 1;
        let mut none = kernel(PT_LOAD, b"code");
        none.truncate(0x1004);
        let mut far = kernel(PT_LOAD, b"code");
        far[30] = 1;
        let note = kernel(
            PT_NOTE,
            b"\x04\0\0\0\x01\0\0\0\x07\0\0\0GNU\0x\0\0\0\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\0\0 \0\0\0\0\0",
        );
        for file in [old, none, far, note, b"\x7fELF\x02\x01".to_vec(), Vec::new()] {
            assert_eq!(startable(&file), file);
        }
    }
}
