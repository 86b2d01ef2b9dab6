//! The formats, bit by bit as the specification has them; DMAR tables, good and bad; and a unit against a model.

mod dmar;
mod fuzz;
mod model;
mod unit;

use crate::entry::*;

#[test]
fn root_and_context_entries() {
    // 9.1: present, context-table pointer in bits 63:12.
    assert_eq!(root(0x1234_5000), [0x1234_5001, 0]);
    // 9.3: present, translation type 0, pointer; address width 2 for four levels (bits 66:64), domain in bits 87:72.
    assert_eq!(context(0x7_0000_1000, 4, 0xabcd), [0x7_0000_1001, 0xab_cd02]);
    assert_eq!(context(0x1000, 3, 1), [0x1001, 0x101]);
    assert_eq!(domain(context(0x1000, 4, 0x123)), 0x123);
    assert_eq!(domain([0, 0x123 << 8]), 0, "not present");
}

#[test]
fn interrupt_entries() {
    let interrupt = Interrupt { vector: 0x31, destination: 5, source: Some(0x1a8), level: false };
    // 9.9: present; vector in bits 23:16; xAPIC destination in bits 47:40; source id, all bits compared (SQ 0, SVT 1).
    assert_eq!(interrupt.entry(false), [1 | 0x31 << 16 | 5 << 40, 0x1a8 | 1 << 18]);
    let wide = Interrupt { destination: 0x1_0203, level: true, source: None, ..interrupt };
    // x2APIC destination in bits 63:32; trigger mode in bit 4; nobody's id is compared.
    assert_eq!(wide.entry(true), [1 | 1 << 4 | 0x31 << 16 | 0x1_0203 << 32, 0]);
}

#[test]
fn messages() {
    // 5.1.2.2: format in bit 4, index in bits 19:5 and 2, no subhandle.
    assert_eq!(message(0), (0xfee0_0010, 0));
    assert_eq!(message(0x8005), (0xfee0_00b4, 0));
    // 5.1.5.1: index in bits 63:49, format in bit 48.
    assert_eq!(redirection(0x17), 0x2f_0000);
    // SDM 11.11: destination in bits 19:12.
    let interrupt = Interrupt { vector: 0x98, destination: 3, source: None, level: false };
    assert_eq!(interrupt.plain_message(), (0xfee0_3000, 0x98));
}

#[test]
fn descriptors() {
    // 6.5.2: types 1, 2, 4, 5; global, or a domain in bits 31:16; drain reads and writes (bits 7, 6); status write (bit 5).
    assert_eq!(FORGET_CONTEXTS, [0x11, 0]);
    assert_eq!(FORGET_TRANSLATIONS, [0xd2, 0]);
    assert_eq!(forget_domain(0x1234), [0x1234_00e2, 0]);
    assert_eq!(FORGET_INTERRUPTS, [0x4, 0]);
    assert_eq!(wait(0x5000), [0x25, 0x5000]);
}

#[test]
fn fault_records() {
    // 11.4.14.6: F in bit 127, a read in bit 126, the reason in bits 103:96, the source in 79:64, the page in 63:12.
    assert_eq!(fault([0x4567_8fff, 0x123, 0xffff_00f8, 0xc000_0005]), Some((0x0105_00f8, 0x123_4567_8000)));
    assert_eq!(fault([0x1000, 0, 0x10, 0x8000_0006]), Some((0x6_0010, 0x1000)));
    assert_eq!(fault([0x1000, 0, 0x10, 0x4000_0006]), None);
}

proptest::proptest! {
    #[test]
    fn faults_never_lie(words: [u32; 4]) {
        let told = fault(words);
        assert_eq!(told.is_some(), words[3] >> 31 != 0);
        if let Some((told, address)) = told {
            assert_eq!((told & 0xffff, told >> 16 & 0xff, told >> 25), (words[2] as u64 & 0xffff, words[3] as u64 & 0xff, 0));
            assert_eq!((address & 0xfff, address >> 32), (0, words[1].into()));
        }
    }
}
