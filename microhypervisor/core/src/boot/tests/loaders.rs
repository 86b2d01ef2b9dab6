use super::*;
use crate::boot::memory_map::{MemoryMap, UefiMap};
use crate::boot::{multiboot1, multiboot2, pvh};
use proptest::prelude::*;
use std::string::ToString;

pub const AT: u64 = 0x9000;

fn tag(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut tag = bytes![kind, payload.len() as u32 + 8];
    tag.extend_from_slice(payload);
    tag.resize(tag.len().next_multiple_of(8), 0xee);
    tag
}

/// Multiboot2 information with the given tags and the end tag.
fn multiboot2_information(tags: &[Vec<u8>]) -> Vec<u8> {
    let tags = [tags.concat(), tag(0, &[])].concat();
    [bytes![tags.len() as u32 + 8, 0u32], tags].concat()
}

/// An entry of UEFI firmware's memory map.
fn descriptor(kind: u32, start: u64, pages: u64) -> Vec<u8> {
    bytes![kind, 0u32, start, 0u64, pages, 1u64 << 63, 0u64]
}

/// As GRUB hands it over, with two modules, old and new root pointer and a UEFI memory map.
pub fn grub() -> Vec<u8> {
    let region = |base: u64, len: u64, kind: u32| bytes![base, len, kind, 0u32];
    let map = [region(0, 0x9fc00, 1), region(0x9fc00, 0x400, 2), region(0x100000, 0x3fe00000, 1)].concat();
    multiboot2_information(&[
        tag(1, b"console=com1\0"),
        tag(3, &[bytes![0x20_0000u32, 0x28_1234u32], b"root arguments\0".to_vec()].concat()),
        tag(3, &[bytes![0x30_0000u32, 0x38_0000u32], b"\0".to_vec()].concat()),
        tag(6, &[bytes![24u32, 0u32], map].concat()),
        tag(15, &[0; 36]),
        tag(14, &[0; 20]),
        tag(17, &[bytes![48u32, 1u32], descriptor(7, 0x10_0000, 99), descriptor(6, 0x7_0000, 3)].concat()),
        tag(0x1234, &[1, 2, 3]),
    ])
}

#[test]
fn multiboot2_gives_what_the_kernel_needs() {
    let ram = Ram::with(AT, grub());
    // Behind the header: command line 24, modules 32 and 24, memory map 88; the root pointer stands in its tag.
    let rsdp = AT + 8 + 24 + 32 + 24 + 88 + 8;
    let found = read_by(multiboot2::parse, &ram, AT).unwrap();
    assert_eq!((found.module, found.rsdp), (Some((0x20_0000, 0x28_1234)), Some(rsdp)));
    assert_eq!(found.map.ram(&ram), Some(0x9fc00 + 0x3fe0_0000));
    // Behind the root pointers, new and old, and the head of the map's own tag.
    let map = UefiMap { start: rsdp + 40 + 32 + 16, size: 96, descriptor_size: 48, descriptor_version: 1 };
    assert_eq!(found.uefi, Some(map));
    assert_eq!(map.runtime(&ram).collect::<Vec<_>>(), [(0x7_0000, 0x7_3000)]);
    let none = read_by(multiboot2::parse, &Ram::with(AT, multiboot2_information(&[])), AT);
    assert_eq!(none, Ok(BootInformation::default()));
}

#[test]
fn multiboot2_says_what_is_wrong() {
    let parse = |tags: &[Vec<u8>]| read_by(multiboot2::parse, &Ram::with(AT, multiboot2_information(tags)), AT);
    let text = |error: Malformed| error.to_string();
    let length = |address| Malformed(&"the item at # does not fit where it stands", address);
    assert_eq!(
        text(parse(&[tag(3, &bytes![0x1000u32, 0x1000u32, 0u32])]).unwrap_err()),
        "the first module, at 0x1000, has no end behind its start"
    );
    assert_eq!(text(parse(&[tag(3, &[0; 7])]).unwrap_err()), "the item at 0x9008 does not fit where it stands");
    assert_eq!(parse(&[tag(14, &[0; 19])]), Err(length(AT + 8)));
    assert_eq!(parse(&[bytes![99u32, 7u32]]), Err(length(AT + 8)));
    assert_eq!(parse(&[bytes![99u32, 0u32]]), Err(length(AT + 8)));
    assert_eq!(parse(&[bytes![99u32, 1000u32]]), Err(length(AT + 8)));
    assert_eq!(parse(&[bytes![99u32, u32::MAX]]), Err(length(AT + 8)));
    assert_eq!(parse(&[tag(17, &bytes![48u32])]), Err(length(AT + 8)));
    assert_eq!(parse(&[tag(17, &bytes![1u32 << 16, 1u32])]), Err(length(AT + 8)));
    for stride in [0u32, 8, 19] {
        let error = parse(&[tag(6, &[bytes![stride, 0u32], std::vec![0; 48]].concat())]).unwrap_err();
        assert_eq!(text(error), "the memory map at 0x9018 has absurdly small or many entries");
    }
    assert_eq!(
        parse(&[tag(6, &[bytes![24u32, 0u32], std::vec![0; 24 * 1025]].concat())]),
        Err(Malformed(&"the memory map at # has absurdly small or many entries", AT + 24))
    );
    assert!(parse(&[tag(6, &[bytes![24u32, 0u32], std::vec![0; 24 * 1024]].concat())]).is_ok());
    let mut long = multiboot2_information(&[tag(99, &std::vec![0; 1 << 20])]);
    assert_eq!(read_by(multiboot2::parse, &Ram::with(AT, long.clone()), AT), Err(length(AT)));
    put(&mut long, 0, &(1u32 << 20).to_le_bytes());
    assert_eq!(read_by(multiboot2::parse, &Ram::with(AT, long), AT), Err(length(AT + 8)));
    let nowhere = read_by(multiboot2::parse, &Ram::default(), AT).unwrap_err();
    assert_eq!(text(nowhere), "physical address 0x9000 cannot be read");
    assert_eq!(read_by(multiboot2::parse, &Ram::default(), u64::MAX), Err(Malformed::unreadable(u64::MAX)));
    // Cut off anywhere, with the length saying so or not.
    let whole = grub();
    for len in 0..whole.len() {
        let mut cut = whole[..len].to_vec();
        assert!(read_by(multiboot2::parse, &Ram::with(AT, cut.clone()), AT).is_err());
        if len >= 8 {
            put(&mut cut, 0, &(len as u32).to_le_bytes());
            assert!(read_by(multiboot2::parse, &Ram::with(AT, cut), AT).is_err());
        }
    }
}

/// As QEMU hands it over: start information, module list and memory map in one region.
pub fn qemu() -> Vec<u8> {
    let (list, map) = (AT + 64, AT + 96);
    let mut information = bytes![pvh::MAGIC, 1u32, 0u32, 1u32, list, 0u64, 0xf_1234u64, map, 2u32, 0u32];
    information.resize(64, 0);
    information.extend(bytes![0x50_0000u64, 0x1_2345u64, 0u64, 0u64]);
    information.extend(bytes![0u64, 0x9_0000u64, 1u32, 0u32, 0x9_0000u64, 0x1_0000u64, 2u32, 0u32]);
    information
}

#[test]
fn pvh_gives_what_the_kernel_needs() {
    let ram = Ram::with(AT, qemu());
    let found = read_by(pvh::parse, &ram, AT).unwrap();
    assert_eq!((found.module, found.rsdp), (Some((0x50_0000, 0x51_2345)), Some(0xf_1234)));
    assert_eq!((found.map.ram(&ram), found.uefi), (Some(0x9_0000), None));
    let mut old = qemu();
    put(&mut old, 4, &0u32.to_le_bytes());
    let without_map = BootInformation { map: MemoryMap::default(), ..found };
    assert_eq!(read_by(pvh::parse, &Ram::with(AT, old.clone()), AT), Ok(without_map));
    put(&mut old, 12, &0u32.to_le_bytes());
    put(&mut old, 32, &0u64.to_le_bytes());
    assert_eq!(read_by(pvh::parse, &Ram::with(AT, old), AT), Ok(BootInformation::default()));
}

#[test]
fn pvh_says_what_is_wrong() {
    let changed = |offset, value: &[u8]| {
        let mut information = qemu();
        put(&mut information, offset, value);
        read_by(pvh::parse, &Ram::with(AT, information), AT).unwrap_err().to_string()
    };
    assert_eq!(changed(0, b"ELF!"), "wrong signature 0x21464c45");
    assert_eq!(changed(16, &bytes![u64::MAX - 8]), "physical address 0xfffffffffffffff7 cannot be read");
    assert_eq!(changed(16, &bytes![0x1000u64]), "physical address 0x1000 cannot be read");
    assert_eq!(changed(72, &bytes![0u64]), "the first module, at 0x500000, has no end behind its start");
    assert_eq!(changed(48, &bytes![3u32]), "physical address 0x9060 cannot be read");
    let absurd = "the memory map at 0x9060 has absurdly small or many entries";
    assert_eq!((changed(48, &bytes![1025u32]), changed(48, &bytes![u32::MAX])), (absurd.into(), absurd.into()));
    assert_eq!(changed(40, &bytes![u64::MAX - 30]), "physical address 0xffffffffffffffe1 cannot be read");
    // The last field of the memory map is reserved.
    for len in 0..qemu().len() - 4 {
        assert!(read_by(pvh::parse, &Ram::with(AT, &qemu()[..len]), AT).is_err());
    }
}

/// As a loader of the first version of Multiboot hands it over: information, a module, two regions.
pub fn old_loader() -> Vec<u8> {
    let (list, map) = (AT as u32 + 52, AT as u32 + 68);
    let mut information = bytes![0x4cu32, 0u32, 0u32, 0u32, 0u32, 1u32, list, 0u64, 0u64, 48u32, map];
    information.extend(bytes![0x50_0000u32, 0x51_2345u32, 0u32, 0u32]);
    information.extend(bytes![20u32, 0u64, 0x9_0000u64, 1u32, 20u32, 0x10_0000u64, 0x8_0000u64, 1u32]);
    information
}

#[test]
fn multiboot1_gives_what_the_kernel_needs() {
    let ram = Ram::with(AT, old_loader());
    let found = read_by(multiboot1::parse, &ram, AT).unwrap();
    assert_eq!((found.module, found.rsdp, found.uefi), (Some((0x50_0000, 0x51_2345)), None, None));
    assert_eq!(found.map.ram(&ram), Some(0x11_0000));
    let changed = |offset, value: &[u8]| {
        let mut information = old_loader();
        put(&mut information, offset, value);
        read_by(multiboot1::parse, &Ram::with(AT, information), AT).map_err(|error| error.to_string())
    };
    assert_eq!(changed(0, &[0]), Ok(BootInformation::default()));
    assert_eq!(changed(20, &[0]), Ok(BootInformation { module: None, ..found }));
    let error = |offset, value: &[u8]| changed(offset, value).unwrap_err();
    assert_eq!(error(52, &bytes![0x51_2345u32]), "the first module, at 0x512345, has no end behind its start");
    assert_eq!(error(24, &bytes![u32::MAX]), "physical address 0xffffffff cannot be read");
    assert_eq!(error(44, &bytes![72u32]), "physical address 0x9048 cannot be read");
    let absurd = "has absurdly small or many entries";
    assert_eq!(error(44, &bytes![u32::MAX]), std::format!("the memory map at 0x9048 {absurd}"));
    assert_eq!(error(68 + 24, &[24]), std::format!("the memory map at 0x9044 {absurd}"));
}

type Parser<'a> = &'a dyn Fn(&Ram) -> Result<BootInformation, Malformed>;

proptest! {
    #[test]
    fn changed_bytes_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20), noise: Vec<u8>) {
        let multiboot2 = |ram: &Ram| read_by(multiboot2::parse, ram, AT);
        let pvh = |ram: &Ram| read_by(pvh::parse, ram, AT);
        let multiboot1 = |ram: &Ram| read_by(multiboot1::parse, ram, AT);
        let parsers: [(_, Parser); 3] = [(grub(), &multiboot2), (qemu(), &pvh), (old_loader(), &multiboot1)];
        for (mut information, parse) in parsers {
            for (index, value) in &changes {
                *index.get_mut(&mut information) = *value;
            }
            for bytes in [information, noise.clone()] {
                let ram = Ram::with(AT, bytes);
                let found = parse(&ram);
                prop_assert!(ram.reads.get() < 4000);
                if let Ok(BootInformation { module: Some((start, end)), .. }) = found {
                    prop_assert!(start < end);
                }
            }
        }
    }
}
