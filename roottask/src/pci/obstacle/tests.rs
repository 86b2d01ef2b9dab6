//! Machines of made-up functions, each with one thing in the way.

use super::*;
use crate::pci::tests::{Fake, Space, at, behind_bridges, nvme, space};
use crate::pci::{enumerate, groups, heading, row};
use std::string::ToString;
use std::vec::Vec;

/// A table with a unit for all, and `more` behind it.
fn dmar(more: &[u8]) -> Dmar {
    let unit = [&[0, 0, 16, 0, 1, 0, 0, 0][..], &0xfed9_0000_u64.to_le_bytes()].concat();
    Dmar::read(&[&[0; 48][..], &unit, more].concat())
}

/// What is in the way of `guest` or else of a driver, on a machine where these functions have these owners.
fn obstacle(
    mut machine: Space,
    owners: &[(PciAddress, &str)],
    dmar: Option<&Dmar>,
    which: PciAddress,
    guest: bool,
) -> Option<Obstacle> {
    let functions = enumerate(&mut machine, 0);
    let owner =
        |function: &Function| owners.iter().find(|(at, _)| *at == function.address).map(|(_, who)| (*who).into());
    let situation = Situation {
        groups: &groups(&functions),
        owners: &functions.iter().map(owner).collect::<Vec<_>>(),
        functions: &functions,
        dmar,
    };
    let number = functions.iter().position(|function| function.address == which).expect("is there");
    let (purpose, who) = if guest { (Use::PassThrough, "vm a") } else { (Use::Driver, "driver a") };
    situation.obstacle(purpose, number, who)
}

fn alone() -> Space {
    space([(at(0, 4, 0), nvme())])
}

#[test]
fn nothing_is_in_the_way() {
    let dmar = dmar(&[]);
    for guest in [false, true] {
        assert_eq!(obstacle(alone(), &[], Some(&dmar), at(0, 4, 0), guest), None);
        let own = [(at(0, 4, 0), if guest { "vm a" } else { "driver a" })];
        assert_eq!(obstacle(alone(), &own, Some(&dmar), at(0, 4, 0), guest), None, "its own");
    }
}

#[test]
fn without_an_iommu_nothing_is_passed_through() {
    assert_eq!(obstacle(alone(), &[], None, at(0, 4, 0), true), Some(Obstacle::NoIommu));
    assert_eq!(obstacle(alone(), &[], None, at(0, 4, 0), false), None, "drivers are trusted");
    let none = Dmar::default();
    for guest in [false, true] {
        assert_eq!(obstacle(alone(), &[], Some(&none), at(0, 4, 0), guest), Some(Obstacle::Ungoverned));
    }
}

#[test]
fn an_owner_keeps_what_he_has() {
    let owners = [(at(0, 4, 0), "driver disk0")];
    for guest in [false, true] {
        let found = obstacle(alone(), &owners, Some(&dmar(&[])), at(0, 4, 0), guest).expect("it has an owner");
        assert_eq!(found.to_string(), "it is that of the driver disk0");
    }
}

#[test]
fn bridges_stay() {
    let found = |address| obstacle(behind_bridges(), &[], Some(&dmar(&[])), address, true);
    assert_eq!(found(at(0, 1, 0)), Some(Obstacle::Bridge));
    assert_eq!(found(at(0, 0, 0)), Some(Obstacle::Bridge), "a host bridge, whose header is a device's");
}

#[test]
fn a_page_is_one_owners() {
    let two = space([(at(0, 4, 0), nvme()), (at(0, 5, 0), nvme().bar(0, 0xfebd_7804, 0xffff_f800))]);
    let found = obstacle(two, &[], None, at(0, 5, 0), false);
    assert_eq!(found, Some(Obstacle::SharedPage(at(0, 4, 0))));
}

#[test]
fn reserved_memory_stays_the_firmwares() {
    let numbers = [0x7000_0000_u64, 0x7000_ffff].map(u64::to_le_bytes).concat();
    let reserved = [&[1, 0, 32, 0, 0, 0, 0, 0][..], &numbers, &[1, 8, 0, 0, 0, 0, 4, 0]].concat();
    for guest in [false, true] {
        let found = obstacle(alone(), &[], Some(&dmar(&reserved)), at(0, 4, 0), guest).expect("is reserved");
        assert_eq!(found, Obstacle::Reserved(PhysRange::new(0x7000_0000, 0x7001_0000)));
        assert!(
            found.to_string().starts_with("the firmware reserved memory for it at 0x70000000 to 0x7000ffff (RMRR):")
        );
    }
}

#[test]
fn a_group_is_one_owners() {
    // Two functions of one device.
    let two = || {
        let second = nvme().bar(0, 0xfebe_4004, 0xffff_c000);
        space([(at(0, 4, 0), nvme().header(0x80)), (at(0, 4, 1), second)])
    };
    let other = [(at(0, 4, 0), "driver disk0")];
    let dmar = dmar(&[]);
    for guest in [false, true] {
        let found = obstacle(two(), &other, Some(&dmar), at(0, 4, 1), guest).expect("the other one has an owner");
        let line = "it shares its group with 00:04.0 of the driver disk0: no IOMMU keeps the two apart";
        assert_eq!(found.to_string(), line);
        let same = [(at(0, 4, 0), if guest { "vm a" } else { "driver a" })];
        assert_eq!(obstacle(two(), &same, Some(&dmar), at(0, 4, 1), guest), None);
        assert_eq!(obstacle(two(), &[], Some(&dmar), at(0, 4, 1), guest), None, "nobody has the other one");
    }
    assert_eq!(obstacle(two(), &other, None, at(0, 4, 1), false), None, "nothing keeps any two apart");
}

#[test]
fn conventional_bridges_hide_who_sends() {
    // A bridge from PCI Express (7) behind a port, and a device behind that.
    let port = Fake::new(0x0001_8086, 0x06_04_00).bridge(1, 9).capability(0x40, &[0x0042_0010, 0]);
    let bridge = Fake::new(0x0002_8086, 0x06_04_00).bridge(2, 9).capability(0x40, &[0x0072_0010, 0]);
    let machine = || space([(at(0, 1, 0), port.clone()), (at(1, 0, 0), bridge.clone()), (at(2, 3, 0), nvme())]);
    let dmar = dmar(&[]);
    assert_eq!(obstacle(machine(), &[], Some(&dmar), at(2, 3, 0), true), Some(Obstacle::Behind(at(1, 0, 0))));
    assert_eq!(obstacle(machine(), &[], None, at(2, 3, 0), false), None);
    // One without the capability of PCI Express is one, too.
    let old = Fake::new(0x0002_8086, 0x06_04_00).bridge(1, 9);
    let machine = space([(at(0, 30, 0), old), (at(1, 1, 0), nvme())]);
    assert_eq!(obstacle(machine, &[], Some(&dmar), at(1, 1, 0), false), Some(Obstacle::Behind(at(0, 30, 0))));
}

#[test]
fn a_guest_gets_what_can_be_reset() {
    let fixed = || space([(at(0, 4, 0), Fake::new(1, 0x02_00_00))]);
    assert_eq!(obstacle(fixed(), &[], Some(&dmar(&[])), at(0, 4, 0), true), Some(Obstacle::NoReset));
    assert_eq!(obstacle(fixed(), &[], Some(&dmar(&[])), at(0, 4, 0), false), None, "its driver resets it");
}

#[test]
fn rows_tell_it_all() {
    let numbers = [0x7000_0000_u64, 0x7000_ffff].map(u64::to_le_bytes).concat();
    let reserved = [&[1, 0, 32, 0, 0, 0, 0, 0][..], &numbers, &[1, 8, 0, 0, 0, 0, 5, 0]].concat();
    let dmar = dmar(&reserved);
    let usb = Fake::new(0x0003_8086, 0x0c_03_30).capability(0x40, &[0x0080_0005, 0, 0, 0]);
    let mut machine = space([(at(0, 4, 0), nvme()), (at(0, 5, 0), usb), (at(0, 6, 0), nvme().bar(0, 0, 0))]);
    let functions = enumerate(&mut machine, 0);
    let owners = [Some("driver disk0".into()), None, None];
    let groups = groups(&functions);
    let situation = Situation { functions: &functions, groups: &groups, owners: &owners, dmar: Some(&dmar) };
    let rows: Vec<_> = core::iter::once(heading()).chain((0..4).filter_map(|number| row(&situation, number))).collect();
    let expected = [
        "address  id         class          group  RMRR               MSI-X  reset  owner                pass-through",
        "00:04.0  1b36:0010  NVMe               0  -                     65  FLR    driver disk0         no: it is that of the driver disk0",
        "00:05.0  8086:0003  USB                1  70000000-7000ffff    MSI  -      -                    no: the firmware reserved memory for it at 0x70000000 to 0x7000ffff (RMRR): turn what needs it off in the firmware's set-up",
        "00:06.0  1b36:0010  NVMe               2  -                     65  FLR    -                    yes",
    ];
    assert_eq!(rows, expected);
    // With what the log writes before it, none is cut.
    assert!(rows.iter().all(|row| row.len() + 16 < 240));
}
