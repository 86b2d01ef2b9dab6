use super::*;
use crate::cpuid::policy::Register::{Ebx, Ecx, Edx};
use proptest::prelude::*;

const ALONE: Place = Place { index: 0, count: 1 };
const CLOCKS: Clocks = Clocks { tsc: 2_400_000_000, crystal: 1_200_000_000, crystal_shift: 1 };

fn intel(leaf: u32, subleaf: u32) -> Registers {
    let name = b"GenuineIntel";
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    match (leaf, subleaf) {
        (0, _) => [0x1b, word(0), word(8), word(4)],
        (4, 0) => [0xfc00_4121, 1, 2, 3],
        (4, 1) => [0xfc1f_c163, 1, 2, 3],
        (4, _) => [0; 4],
        (0xd, 0) => [0x2e7, 0xa80, 0xa88, 0],
        (0xd, 1) => [0xf, 0, 0, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [64, 1088, 0, 0],
        (0xd, 6) => [512, 1152, 0, 0],
        (0xd, 7) => [1024, 1664, 0, 0],
        (0xd, 9) => [8, 2688, 0, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0008, _) => [0x3027 | 0x900, 0, 0, 0],
        _ => [u32::MAX; 4],
    }
}

fn amd(leaf: u32, subleaf: u32) -> Registers {
    let name = b"AuthenticAMD";
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    match leaf {
        0 => [0xd, word(0), word(8), word(4)],
        0x8000_0000 => [0x8000_000a, 0, 0, 0],
        _ => intel(leaf, subleaf),
    }
}

#[test]
fn the_table_has_no_contradictions() {
    for (index, line) in FEATURES.iter().enumerate() {
        for other in &FEATURES[..index] {
            let same = other.leaf == line.leaf && other.register == line.register;
            assert!(!same || other.bits & line.bits == 0, "{line:?} against {other:?}");
        }
        assert!(!line.reason.is_empty());
    }
}

#[test]
fn hidden_and_given() {
    for cpuid in [Cpuid::new(&intel, CLOCKS, ALONE), Cpuid::new(&amd, CLOCKS, ALONE)] {
        for (leaf, register, bit) in [(1, Ecx, 3), (1, Ecx, 5), (1, Ecx, 15), (7, Ecx, 16), (7, Ecx, 3), (1, Edx, 7)] {
            assert!(!cpuid.has(leaf, register, bit), "{leaf:#x} {register:?} {bit}");
        }
        for (leaf, register, bit) in [(1, Ecx, 21), (1, Ecx, 24), (1, Ecx, 31), (7, Ebx, 1), (0x8000_0007, Edx, 8)] {
            assert!(cpuid.has(leaf, register, bit), "{leaf:#x} {register:?} {bit}");
        }
        assert_eq!(cpuid.query(0xa, 0, 0, 1), [0; 4]);
        assert_eq!(cpuid.query(0x4000_0000, 0, 0, 1), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(cpuid.query(0x4000_0001, 0, 0, 1)[0], 1 << 24 | 1 << 3 | 1 << 1);
        assert_eq!(cpuid.query(0x4000_0010, 0, 0, 1), [2_400_000, 1_200_000, 0, 0]);
    }
}

#[test]
fn nothing_comes_from_a_bare_host() {
    let bare = |leaf, _| if leaf == 0 { [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69] } else { [0; 4] };
    let cpuid = Cpuid::new(&bare, CLOCKS, ALONE);
    assert!(cpuid.has(1, Ecx, 31) && !cpuid.has(1, Ecx, 0));
    assert_eq!(cpuid.query(0xd, 0, 0, 1), [0; 4]);
    assert!(cpuid.accepts_xcr0(1) && !cpuid.accepts_xcr0(3));
}

#[test]
fn clocks_on_intel_only() {
    assert_eq!(Cpuid::new(&intel, CLOCKS, ALONE).query(0x15, 0, 0, 1), [1, 2, 1_200_000_000, 0]);
    assert_eq!(Cpuid::new(&intel, CLOCKS, ALONE).query(0x16, 0, 0, 1)[0], 2400);
    assert_eq!(Cpuid::new(&amd, CLOCKS, ALONE).query(0x15, 0, 0, 1), [0; 4]);
    // Beyond the last leaf.
    assert_eq!(Cpuid::new(&intel, CLOCKS, ALONE).query(0x1234, 1, 0, 1), [0, 0, 0, 0]);
    assert_eq!(Cpuid::new(&amd, CLOCKS, ALONE).query(0x1234, 0, 0, 1), [0; 4]);
}

#[test]
fn xsave_follows_xcr0() {
    let cpuid = Cpuid::new(&intel, CLOCKS, ALONE);
    assert_eq!(cpuid.query(0xd, 0, 0, 1), [0xe7, 576, 2688, 0]);
    assert_eq!(cpuid.query(0xd, 0, 0, 7)[1], 832);
    assert_eq!(cpuid.query(0xd, 1, 0, 7), [5, 0, 0, 0]);
    assert_eq!(cpuid.query(0xd, 9, 0, 0xe7), [0; 4]);
    assert_eq!(cpuid.query(1, 0, 1 << 18, 1)[2] >> 27 & 1, 1);
    assert_eq!(cpuid.query(1, 0, 0, 1)[2] >> 27 & 1, 0);
    for (value, good) in [
        (1, true),
        (3, true),
        (7, true),
        (0xe7, true),
        (5, false),
        (6, false),
        (0x27, false),
        (0xe3, false),
        (0x207, false),
    ] {
        assert_eq!(cpuid.accepts_xcr0(value), good, "{value:#x}");
    }
}

#[test]
fn linear_addresses_have_48_bits() {
    assert_eq!(Cpuid::new(&intel, CLOCKS, ALONE).query(0x8000_0008, 0, 0, 1)[0], 0x3027);
}

/// What software of either vendor computes from the leaves: package and core of an APIC id, and who shares a cache.
#[test]
fn topology_is_consistent() {
    for count in 1..=16 {
        for index in 0..count {
            let place = Place { index, count };
            let (intel, amd) = (Cpuid::new(&intel, CLOCKS, place), Cpuid::new(&amd_with_caches, CLOCKS, place));
            for cpuid in [&intel, &amd] {
                let [_, ebx, _, edx] = cpuid.query(1, 0, 0, 1);
                assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (index, count));
                assert_eq!(edx >> 28 & 1, (count > 1).into());
                let [smt, cores] = [0, 1].map(|level| cpuid.query(0xb, level, 0, 1));
                assert_eq!((smt[0], smt[1], smt[2], smt[3]), (0, 1, 1 << 8, index));
                assert!(cores[1] == count && cores[2] == 2 << 8 | 1 && cores[3] == index);
                assert!(1 << cores[0] >= count && (count == 1 || 1 << cores[0] < 2 * count), "{count}: {}", cores[0]);
                assert_eq!(index >> cores[0], 0, "one package");
            }
            assert_eq!(intel.query(0x1f, 1, 0, 1), intel.query(0xb, 1, 0, 1));
            let [first, last] = [0, 1].map(|cache| intel.query(4, cache, 0, 1)[0]);
            let ids = count.next_power_of_two();
            assert_eq!((first >> 14 & 0xfff, first >> 26, last >> 14 & 0xfff), (0, ids - 1, ids - 1));
            assert_eq!(amd.has(0x8000_0001, Ecx, 22), count > 1);
            if count > 1 {
                assert_eq!(amd.query(0x8000_0008, 0, 0, 1)[2], ids.trailing_zeros() << 12 | (count - 1));
                assert_eq!(amd.query(0x8000_001e, 0, 0, 1), [index, index, 0, 0]);
                assert_eq!(amd.query(0x8000_001d, 1, 0, 1)[0] >> 14, ids - 1);
            }
        }
    }
}

fn amd_with_caches(leaf: u32, subleaf: u32) -> Registers {
    match leaf {
        0x8000_0000 => [0x8000_001f, 0, 0, 0],
        0x8000_001d => intel(4, subleaf),
        _ => amd(leaf, subleaf),
    }
}

proptest! {
    /// What is told at once is what is told otherwise, whatever was asked before.
    #[test]
    fn at_once_or_not(asked in prop::collection::vec((0u32..0x22, 0u32..4, 0u32..9, any::<u64>(), any::<bool>()), 1..200)) {
        for host in [intel as fn(u32, u32) -> Registers, amd] {
            let (mut cpuid, mut xcr0) = (Cpuid::new(&host, CLOCKS, ALONE), 1);
            for &(leaf, base, subleaf, cr4, other) in &asked {
                let leaf = base << 30 | leaf;
                if other {
                    xcr0 ^= 6;
                    cpuid.forget();
                }
                let expected = cpuid.query(leaf, subleaf, cr4, xcr0);
                if cpuid.plain(leaf, subleaf, cr4).is_none() {
                    cpuid.give(leaf, subleaf, cr4, xcr0);
                }
                let (answer, more) = cpuid.plain(leaf, subleaf, cr4).unwrap();
                prop_assert_eq!([answer[0], answer[1], answer[2] | more, answer[3]], expected, "{:#x}.{}", leaf, subleaf);
            }
        }
    }
}
