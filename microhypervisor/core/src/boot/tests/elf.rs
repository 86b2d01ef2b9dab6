use super::*;
use crate::boot::elf::*;
use abi::ROOT_UTCB_ADDRESS;
use abi::capability::Permissions;
use proptest::prelude::*;
use std::string::{String, ToString};

pub const LOAD: u64 = 0x50_0000;
const PROGRAM_HEADERS: usize = 64;
const SIZE: usize = 0x4000;

fn program_header(kind: u32, flags: u32, offset: u64, va: u64, file_size: u64, size: u64) -> Vec<u8> {
    bytes![kind, flags, offset, va, va, file_size, size, 0x1000u64]
}

fn image(segments: &[Vec<u8>]) -> Vec<u8> {
    let mut file = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0].to_vec();
    file.extend(bytes![0u64, 2u16, 62u16, 1u32, 0x1000_0120u64, 64u64, 0u64, 0u32, 64u16, 56u16]);
    file.extend(bytes![segments.len() as u16, 64u16, 0u16, 0u16]);
    segments.iter().for_each(|segment| file.extend(segment));
    file.resize(SIZE.max(file.len()), 0);
    file
}

/// Code, data, and headers of other types.
pub fn good() -> Vec<u8> {
    image(&[
        program_header(1, 5, 0, 0x1000_0000, 0xa75, 0xa75),
        program_header(1, 6, 0xff8, 0x1000_2ff8, 0x1010, 0x1010),
        program_header(0x6474_e551, 6, 0, 0, 0, 0),
        program_header(1, 4, 0x3000, 0x2000_0000, 0, 0),
    ])
}

fn parse(file: &[u8]) -> Result<RootElf, String> {
    RootElf::parse(&Ram::with(LOAD, file), LOAD, LOAD + file.len() as u64).map_err(|error| error.to_string())
}

#[test]
fn a_good_image_is_mapped_where_it_lies() {
    let elf = parse(&good()).unwrap();
    assert_eq!(elf.entry, 0x1000_0120);
    let code = Permissions::READ | Permissions::EXECUTE_USER;
    let data = Permissions::READ | Permissions::WRITE;
    assert_eq!(
        elf.segments(),
        [
            Segment { va: 0x1000_0000, pa: LOAD, pages: 1, permissions: code },
            Segment { va: 0x1000_2000, pa: LOAD, pages: 3, permissions: data },
        ]
    );
    // Loaded off a page border, and linked for that.
    let file = image(&[program_header(1, 5, 0, 0x1000_0010, 0x1000, 0x1000)]);
    let elf = RootElf::parse(&Ram::with(LOAD + 16, &*file), LOAD + 16, LOAD + 16 + SIZE as u64).unwrap();
    assert_eq!(elf.segments(), [Segment { va: 0x1000_0000, pa: LOAD, pages: 2, permissions: code }]);
}

#[test]
fn each_broken_rule_is_named() {
    let header = |offset, value: &[u8]| {
        let mut file = good();
        put(&mut file, offset, value);
        parse(&file).unwrap_err()
    };
    let segment = |offset, value: u64| header(PROGRAM_HEADERS + offset, &value.to_le_bytes());
    assert_eq!(header(0, b"\0"), "not a 64-bit little-endian ELF file");
    assert_eq!(header(4, &[1]), "not a 64-bit little-endian ELF file");
    assert_eq!(header(16, &[3]), "not an executable with fixed addresses (ET_EXEC)");
    assert_eq!(header(18, &[183]), "not for x86-64");
    assert_eq!(header(24, &bytes![0x1000_2ff8u64]), "the entry point 0x10002ff8 is not in an executable segment");
    assert_eq!(header(32, &bytes![u64::MAX]), "truncated: the file ends inside its headers");
    assert_eq!(header(32, &bytes![SIZE as u64 - 223]), "truncated: the file ends inside its headers");
    assert_eq!(header(54, &[32]), "program headers of unknown size");
    assert_eq!(header(56, &[0]), "the entry point 0x10000120 is not in an executable segment");
    assert_eq!(segment(8, u64::MAX), "truncated: the file ends inside segment 0");
    assert_eq!(segment(8, SIZE as u64 - 0xa74), "truncated: the file ends inside segment 0");
    assert_eq!(segment(8, 1), "segment 0 is not where the file's load address needs it within a page");
    assert_eq!(segment(16, ROOT_UTCB_ADDRESS), "segment 0 lies outside the addresses of programs");
    assert_eq!(segment(16, u64::MAX), "segment 0 lies outside the addresses of programs");
    assert_eq!(segment(16, 0x1000_4000), "segment 1 shares pages with another one");
    assert_eq!(segment(32, 0xa74), "segment 0 has different sizes in file and memory");
    assert_eq!(segment(40, 0x1a75), "segment 0 has different sizes in file and memory");
    let many: Vec<_> = (0..17).map(|page| program_header(1, 5, 0, 0x1000_0000 + (page << 12), 64, 64)).collect();
    assert_eq!(parse(&image(&many)).unwrap_err(), "more than 16 loadable segments");
    assert_eq!(parse(&image(&many[..16])).unwrap().segments().len(), 16);
    for len in 0..PROGRAM_HEADERS + 4 * 56 {
        assert!(parse(&good()[..len]).is_err());
    }
    assert_eq!(parse(&good()[..0x2007]).unwrap_err(), "truncated: the file ends inside segment 1");
    assert!(RootElf::parse(&Ram::default(), LOAD, LOAD + 4096).is_err());
    assert!(RootElf::parse(&Ram::default(), LOAD, LOAD - 1).is_err());
}

proptest! {
    #[test]
    fn what_is_accepted_keeps_the_rules(changes in prop::collection::vec((0..PROGRAM_HEADERS + 4 * 56, any::<u8>()), 0..6)) {
        let mut file = good();
        changes.into_iter().for_each(|(offset, value)| file[offset] = value);
        if let Ok(elf) = parse(&file) {
            let mut pages = std::collections::HashSet::new();
            for &Segment { va, pa, pages: count, .. } in elf.segments() {
                prop_assert_eq!((va % 4096, pa % 4096), (0, 0));
                prop_assert!(va + count * 4096 <= ROOT_UTCB_ADDRESS);
                prop_assert!(pa >= LOAD && pa + count * 4096 <= LOAD + SIZE as u64);
                prop_assert!((0..count).all(|page| pages.insert(va + page * 4096)));
            }
        }
    }
}
