use super::*;
use crate::boot::acpi::*;
use proptest::prelude::*;
use std::{
    format,
    string::{String, ToString},
    vec,
};

const RSDP: u64 = 0xf_5ac0;
const RSDT: u64 = 0x10_0000;
const XSDT: u64 = 0x10_1000;
const MADT: u64 = 0x10_2000;
const FADT: u64 = 0x10_3000;
const DSDT: u64 = 0x10_4000;

/// Makes the sum of `bytes` zero by the byte at `offset`.
pub fn fix(bytes: &mut [u8], offset: usize) {
    bytes[offset] = 0;
    bytes[offset] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = [&signature[..], &bytes![36 + body.len() as u32], &[0; 28], body].concat();
    fix(&mut table, 9);
    table
}

fn rsdp(xsdt: Option<u64>) -> Vec<u8> {
    let mut rsdp =
        [&b"RSD PTR "[..], b"\0FIRMWA", &[if xsdt.is_some() { 2 } else { 0 }], &bytes![RSDT as u32]].concat();
    fix(&mut rsdp, 8);
    if let Some(xsdt) = xsdt {
        rsdp.extend(bytes![36u32, xsdt, 0u32]);
        fix(&mut rsdp, 32);
    }
    rsdp
}

fn madt() -> Vec<u8> {
    let entries: [&[u8]; 13] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 2, 0, 0, 0, 0],
        &[0, 8, 2, 4, 2, 0, 0, 0],
        &[0, 8, 3, 254, 3, 0, 0, 0],
        &[0, 8, 4, 255, 1, 0, 0, 0],
        &[1, 12, 8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[1, 12, 9, 0, 0, 0, 0xc1, 0xfe, 24, 0, 0, 0],
        &[2, 10, 0, 9, 20, 0, 0, 0, 13, 0],
        &[4, 6, 0xff, 5, 0, 1],
        &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
        &[9, 16, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 8, 0, 0, 0],
        &[9, 17, 0, 0, 0xfe, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 1, 0, 1, 0],
        &[5, 12, 0, 0, 0, 0, 0xe1, 0xfe, 0, 0, 0, 0],
    ];
    table(b"APIC", &[bytes![0xfee0_0000u32, 1u32], entries.concat()].concat())
}

/// The FADT of ACPI 1.0, as Bochs has it.
fn old_fadt() -> Vec<u8> {
    let mut fadt = vec![0; 116 - 36];
    for (offset, port) in [(48, 0xb2u32), (64, 0xb004), (76, 0xb008)] {
        put(&mut fadt, offset - 36, &port.to_le_bytes());
    }
    table(b"FACP", &fadt)
}

/// A FADT of ACPI 6, with some registers in extended fields only.
fn new_fadt() -> Vec<u8> {
    let mut fadt = vec![0; 276 - 36];
    for (offset, value) in [(48, 0xb2u32), (64, 0x604), (68, 0x1_0000), (76, 0x608), (112, 1 << 8 | 1 << 10)] {
        put(&mut fadt, offset - 36, &value.to_le_bytes());
    }
    for (offset, space, address) in [(116, 1u8, 0xcf9u64), (172, 1, 0x704), (196, 1, 0x50), (208, 0, 0xfed0_0000)] {
        fadt[offset - 36] = space;
        put(&mut fadt, offset - 36 + 4, &address.to_le_bytes());
    }
    fadt[128 - 36] = 6;
    table(b"FACP", &fadt)
}

fn root(signature: &[u8; 4], entries: &[u64]) -> Vec<u8> {
    let entry = |entry: &u64| if signature == b"XSDT" { bytes![*entry] } else { bytes![*entry as u32] };
    table(signature, &entries.iter().flat_map(entry).collect::<Vec<_>>())
}

pub fn old_machine() -> Ram {
    let mut bios = vec![0; 0x2_0000];
    put(&mut bios, RSDP as usize - 0xe_0000, &rsdp(None));
    let root = root(b"RSDT", &[DSDT, FADT, MADT]);
    Ram::with(0xe_0000, bios)
        .and(RSDT, root)
        .and(MADT, madt())
        .and(FADT, old_fadt())
        .and(DSDT, table(b"SSDT", &[1; 99]))
}

pub fn new_machine() -> Ram {
    let root = root(b"XSDT", &[FADT, DSDT, MADT]);
    Ram::with(0x8000, rsdp(Some(XSDT))).and(XSDT, root).and(MADT, madt()).and(FADT, new_fadt()).and(DSDT, [0xff; 36])
}

fn complaints(tables: &Tables) -> Vec<String> {
    tables.complaints().iter().map(Complaint::to_string).collect()
}

fn check_ioapics(tables: &Tables) {
    let chips = [(0xfec0_0000, 0, 8), (0xfec1_0000, 24, 9)];
    assert_eq!(tables.ioapics(), chips.map(|(address, gsi_base, id)| IoApic { address, gsi_base, id }));
}

fn processors(tables: &Tables, ram: &Ram) -> Vec<u32> {
    let mut found = Vec::new();
    tables.processors(ram, |id| found.push(id));
    found
}

#[test]
fn old_tables_are_found_by_searching() {
    let ram = old_machine();
    let tables = find(&ram, None);
    assert_eq!((tables.rsdp, complaints(&tables)), (Some(RSDP), vec![]));
    check_ioapics(&tables);
    let fadt = tables.fadt.unwrap();
    assert_eq!((fadt.pm1a_control, fadt.pm1b_control, fadt.pm2_control, fadt.smi_command), (0xb004, 0, 0, 0xb2));
    assert_eq!((fadt.pm_timer, fadt.reset), (Some((0xb008, false)), None));
    // In the extended BIOS data area, which wins.
    let ram = ram.and(0x40e, bytes![0x9fc0u16]).and(0x9_fc40, rsdp(None));
    assert_eq!(find(&ram, None).rsdp, Some(0x9_fc40));
}

#[test]
fn new_tables_are_found_where_the_loader_says() {
    let ram = new_machine();
    let tables = find(&ram, Some(0x8000));
    assert_eq!((tables.rsdp, complaints(&tables)), (Some(0x8000), vec![]));
    check_ioapics(&tables);
    // Without the disabled ones and the ids that address everybody.
    assert_eq!(processors(&tables, &ram), [0, 254, 0x100, 0xffff_fffe]);
    let fadt = tables.fadt.unwrap();
    assert_eq!((fadt.pm1a_control, fadt.pm1b_control, fadt.pm2_control, fadt.smi_command), (0x704, 0, 0x50, 0xb2));
    assert_eq!((fadt.pm_timer, fadt.reset), (Some((0x608, true)), Some((0xcf9, 6))));
}

/// The machine with the region at `address` replaced.
fn replaced(mut ram: Ram, address: u64, bytes: Vec<u8>) -> Ram {
    ram.regions.retain(|region| region.0 != address);
    ram.and(address, bytes)
}

#[test]
fn broken_tables_are_ignored_and_reported() {
    let nothing = find(&Ram::default(), Some(0x8000));
    assert_eq!(complaints(&nothing), ["table RSDP at 0x8000 cannot be read", "table RSDP is absent"]);
    assert!(nothing.rsdp.is_none() && nothing.fadt.is_none() && nothing.ioapics().is_empty());

    // A bad pointer from the loader: the search goes on.
    let ram = old_machine().and(0x8000, vec![0; 64]);
    let tables = find(&ram, Some(0x8000));
    assert_eq!(complaints(&tables), ["table RSDP at 0x8000 has another signature"]);
    check_ioapics(&tables);

    // A bad XSDT: the RSDT serves.
    let mut bad = root(b"XSDT", &[FADT, MADT]);
    bad[40] ^= 1;
    let ram = replaced(new_machine(), XSDT, bad).and(RSDT, root(b"RSDT", &[MADT, FADT]));
    let tables = find(&ram, Some(0x8000));
    assert_eq!(complaints(&tables), ["table XSDT at 0x101000 has a wrong checksum"]);
    check_ioapics(&tables);

    let with_madt = |madt: Vec<u8>| {
        let ram = replaced(old_machine(), MADT, madt);
        let tables = find(&ram, None);
        assert!(tables.fadt.is_some());
        (complaints(&tables), tables.ioapics().len())
    };
    let at = |problem| format!("table APIC at 0x102000 {problem}");
    let mut changed = madt();
    changed[50] ^= 4;
    assert_eq!(with_madt(changed).0, [at("has a wrong checksum"), "table APIC is absent".into()]);
    for len in [0u32, 35, 1 << 21, u32::MAX] {
        let mut changed = madt();
        put(&mut changed, 4, &len.to_le_bytes());
        assert_eq!(with_madt(changed).0[0], at("has an impossible length"));
    }
    let mut changed = madt();
    put(&mut changed, 4, &4096u32.to_le_bytes());
    assert_eq!(with_madt(changed).0[0], at("cannot be read"));
    // An entry without length, behind one I/O APIC.
    let mut entries = [bytes![0u32, 0u32], vec![1, 12, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0], vec![0; 40]].concat();
    assert_eq!(with_madt(table(b"APIC", &entries)), (vec![at("has an entry of impossible length")], 1));
    // An I/O APIC that is too short, one that is cut off.
    entries[8 + 12..][..2].copy_from_slice(&[1, 11]);
    assert_eq!(with_madt(table(b"APIC", &entries)), (vec![at("has an entry of impossible length")], 1));
    entries.truncate(8 + 12 + 1);
    assert_eq!(with_madt(table(b"APIC", &entries)), (vec![at("has an entry of impossible length")], 1));
    let many = [vec![0; 8], [1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(17)].concat();
    assert_eq!(with_madt(table(b"APIC", &many)), (vec![at("has more entries than supported")], 16));

    let short = replaced(old_machine(), FADT, table(b"FACP", &[0; 79]));
    assert_eq!(
        complaints(&find(&short, None)),
        ["table FACP at 0x103000 has an impossible length", "table FACP is absent"]
    );
    let lost = replaced(old_machine(), RSDT, root(b"RSDT", &[0x7fff_0000, MADT, FADT]));
    assert_eq!(complaints(&find(&lost, None)), ["table ???? at 0x7fff0000 cannot be read"]);
}

#[test]
fn processors_before_a_malformed_entry_count() {
    let two: [&[u8]; 2] = [&[0, 8, 0, 5, 1, 0, 0, 0], &[9, 16, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 6, 0, 0, 0]];
    let bad: [&[u8]; 8] = [
        &[0],
        &[0, 0, 9, 9, 1, 0, 0, 0],
        &[0, 1, 9, 9, 1, 0, 0, 0],
        &[0, 7, 9, 9, 1, 0, 0, 0],
        &[0, 9, 9, 9, 1, 0, 0, 0],
        &[9, 15, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 6, 0, 0],
        &[9, 255, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 6, 0, 0, 0],
        &[77, 1],
    ];
    for bad in bad {
        let madt = [&[0; 8], two[0], two[1], bad].concat();
        let ram = replaced(old_machine(), MADT, table(b"APIC", &madt));
        let tables = find(&ram, None);
        assert_eq!(complaints(&tables), ["table APIC at 0x102000 has an entry of impossible length"], "{bad:?}");
        assert_eq!(processors(&tables, &ram), [5, 0x2_0000], "{bad:?}");
    }
    for len in 0..8 {
        let ram = replaced(old_machine(), MADT, table(b"APIC", &vec![0; len]));
        let tables = find(&ram, None);
        assert_eq!(complaints(&tables), ["table APIC at 0x102000 has an impossible length", "table APIC is absent"]);
        assert_eq!(processors(&tables, &ram), []);
    }
    assert_eq!(processors(&find(&Ram::default(), None), &Ram::default()), []);
    // As many as there can be; nothing has a size by their number.
    let many: Vec<u8> = (0..1500u32).flat_map(|id| [bytes![9u8, 16u8, 0u16, id * 64, 1u32, id]].concat()).collect();
    let madt = table(b"APIC", &[vec![0; 8], many].concat());
    let ram = replaced(old_machine(), RSDT, root(b"RSDT", &[0x20_0000])).and(0x20_0000, madt);
    let found = processors(&find(&ram, None), &ram);
    assert_eq!((found.len(), found.last()), (1500, Some(&(1499 * 64))));
}

#[test]
fn ioapics_where_none_can_be_are_forgotten() {
    let ram = old_machine();
    let mut tables = find(&ram, None);
    tables.check_ioapics(|_| true);
    check_ioapics(&tables);
    assert_eq!(complaints(&tables), [""; 0]);
    tables.check_ioapics(|chip| chip.gsi_base != 0);
    assert_eq!(tables.ioapics().iter().map(|chip| chip.gsi_base).collect::<Vec<_>>(), [24]);
    assert_eq!(complaints(&tables), ["table APIC at 0x102000 has an I/O APIC where none can be"]);
}

proptest! {
    #[test]
    fn changed_bytes_do_no_harm(
        new: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..300usize, any::<u8>()), 0..10),
        repair: bool,
    ) {
        let mut ram = if new { new_machine() } else { old_machine() };
        for (region, offset, value) in changes {
            let (address, bytes) = region.get_mut(&mut ram.regions);
            let offset = if *address == 0xe_0000 { (RSDP - 0xe_0000) as usize + offset % 20 } else { offset % bytes.len() };
            bytes[offset] = value;
            if repair && *address >= RSDT {
                let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
                if let Some(table) = bytes.get_mut(..len).filter(|table| table.len() > 9) {
                    fix(table, 9);
                }
            }
        }
        let tables = find(&ram, new.then_some(0x8000));
        prop_assert!(processors(&tables, &ram).len() < 1000);
        prop_assert!(ram.reads.get() < 50_000);
        prop_assert!(!tables.complaints().is_empty() || tables.fadt.is_some());
    }
}
