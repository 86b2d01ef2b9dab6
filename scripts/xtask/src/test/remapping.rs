//! Machines whose IOMMU is absent, broken, or has conditions: what the kernel and the root task make of them.

use anyhow::Result;

use super::boot::Outcome;
use super::devices::{boot, system};
use super::loader::{Loader, MEMORY, RAM_END, bytes, table};
use super::{Lab, QEMU, Test};

pub const TESTS: &[Test] = &[
    Test::new("devices::an IOMMU that is required is there or nothing starts", required).only(QEMU),
    Test::new("devices::an IOMMU that is preferred is missed aloud", preferred).only(QEMU),
    Test::new("devices::an IOMMU that the firmware describes wrongly", broken).only(QEMU),
    Test::new("devices::configuration space that the firmware hides", hidden).only(QEMU),
    Test::new("devices::memory that the firmware reserved for a device", reserved).only(QEMU),
    Test::new("devices::two owners in one group", group).only(QEMU),
    Test::new("devices::a device behind a conventional bridge", conventional).only(QEMU),
];

/// Where QEMU's unit is, and where its firmware puts configuration space.
const UNIT: u64 = 0xfed9_0000;
const ECAM: u64 = 0xb000_0000;
/// The configuration space of a function that is not there.
const NOBODY: u64 = ECAM + (200 << 20);

const RUNS: &str = "[disk0] QEMU NVMe Ctrl";
const AT: &str = "pci = \"00:04.0\"\n";

fn with(iommu: &str) -> String {
    system(&format!("iommu = \"{iommu}\"\n")) + AT
}

/// Without the emulator's IOMMU.
fn without(lab: &Lab, system: &str) -> Result<Outcome> {
    lab.boot(&lab.write_system(system)?).without("iommu").until(RUNS).timeout(240).run()
}

/// With tables of the test's own beside those that every machine has.
fn firmware(lab: &Lab, system: &str, tables: &[Vec<u8>]) -> Result<Outcome> {
    let start = |kernel: &[u8], bundle: Vec<u8>| {
        let mut loader = Loader::new(lab.emulator);
        loader.tables.extend_from_slice(tables);
        loader.list_tables();
        loader.file(kernel, bundle)
    };
    lab.boot(&lab.write_system(system)?).memory(MEMORY).loader(&start).until(RUNS).timeout(240).run()
}

/// PCI Firmware Specification 4.1, MCFG: one range, all buses of segment 0.
fn mcfg() -> Vec<u8> {
    table(b"MCFG", &bytes![0u64, ECAM, 0u16, 0u8, 255u8, 0u32])
}

/// VT-d specification 8.1.
fn dmar(structures: &[Vec<u8>]) -> Vec<u8> {
    table(b"DMAR", &[bytes![47u8, 1u8, 0u64, 0u16], structures.concat()].concat())
}

/// 8.3: a unit for all devices, and the I/O APIC as QEMU has it.
fn unit(registers: u64) -> Vec<u8> {
    bytes![0u16, 24u16, 1u8, 0u8, 0u16, registers, 3u8, 8u8, 0u16, 0u8, 0xffu8, 0u8, 0u8]
}

/// 8.4, for the device `number` of bus 0.
fn reserved_memory(start: u64, last: u64, number: u8) -> Vec<u8> {
    bytes![1u16, 32u16, 0u16, 0u16, start, last, 1u8, 8u8, 0u16, 0u8, 0u8, number, 0u8]
}

fn required(lab: &Lab) -> Result<()> {
    boot(lab, &with("required"), RUNS)?.ended()?;
    let line = "root: fatal: the plan has iommu = \"required\", but there is no IOMMU: the firmware names none";
    without(lab, &with("required"))?.fatal(line)
}

fn preferred(lab: &Lab) -> Result<()> {
    let warning = "root: warning: without an IOMMU the drivers' devices reach all memory";
    for word in ["preferred", "off"] {
        let outcome = without(lab, &with(word))?;
        outcome.ended()?;
        outcome.says_before(warning, RUNS)?;
    }
    // A guest is not trusted with a device.
    let passed = with("preferred").replace("[driver.disk0]\nprogram = \"nvme\"", "[vm.micro.pci.disk]");
    let refused = "root: fatal: vm micro: the PCI function 00:04.0 cannot be given to it: there is no IOMMU in use";
    without(lab, &passed)?.fatal(refused)
}

fn broken(lab: &Lab) -> Result<()> {
    // As it should be, by the test's tables: what is refused below is refused for its own sake.
    let good = firmware(lab, &with("required"), &[mcfg(), dmar(&[unit(UNIT)])])?;
    good.ended()?;
    good.says(RUNS)?;
    let cases = [
        (
            vec![unit(UNIT), bytes![2u16, 3u16]],
            "ACPI: table DMAR has a structure or a device scope of impossible length",
        ),
        (vec![unit(UNIT + 8)], "ACPI: table DMAR has a unit or reserved memory where none can be"),
        (vec![], "ACPI: table DMAR names no unit"),
        (vec![unit(NOBODY)], "the IOMMU at 0xbc800000 is left out: its registers read all ones"),
    ];
    for (structures, why) in cases {
        let outcome = firmware(lab, &with("required"), &[mcfg(), dmar(&structures)])?;
        let line =
            "root: fatal: the plan has iommu = \"required\", but there is no IOMMU: the kernel uses none of those";
        outcome.fatal(line)?;
        outcome.says(why)?;
    }
    // One of two is not there, and would have the device.
    let scope = bytes![1u8, 8u8, 0u16, 0u8, 0u8, 4u8, 0u8];
    let absent = [bytes![0u16, 24u16, 0u8, 0u8, 0u16, NOBODY], scope].concat();
    let outcome = firmware(lab, &with("preferred"), &[mcfg(), dmar(&[absent, unit(UNIT)])])?;
    outcome
        .fatal("root: fatal: driver disk0: the PCI function 00:04.0 cannot be given to it: no IOMMU in use governs it")
}

fn hidden(lab: &Lab) -> Result<()> {
    let outcome = firmware(lab, &with("off"), &[])?;
    let line = "root: fatal: driver disk0: the PCI function 00:04.0 cannot be found: the firmware does not tell where";
    outcome.fatal(line)
}

fn reserved(lab: &Lab) -> Result<()> {
    let with_memory = |number| [mcfg(), dmar(&[unit(UNIT), reserved_memory(RAM_END, RAM_END + 0xffff, number)])];
    let outcome = firmware(lab, &with("required"), &with_memory(4))?;
    outcome.says("device 0x20 keeps its memory at 0xfe00000")?;
    outcome.fatal(
        "root: fatal: driver disk0: the PCI function 00:04.0 cannot be given to it: the firmware reserved memory for it at 0xfe00000 to 0xfe0ffff (RMRR)",
    )?;
    let others = firmware(lab, &with("required"), &with_memory(5))?;
    others.ended()?;
    others.says(RUNS).map(drop)
}

fn group(lab: &Lab) -> Result<()> {
    let second = "[machine.nic.n0]\ninterface = \"e1000e\"\npci = \"00:04.1\"\n";
    let drivers = format!("{AT}[driver.nic0]\nprogram = \"e1000e\"\npci = \"00:04.1\"\n");
    let outcome = boot(lab, &(system(second) + &drivers), "nothing")?;
    outcome.fatal(
        "root: fatal: driver nic0: the PCI function 00:04.1 cannot be given to it: it shares its group with 00:04.0 of the driver disk0",
    )?;
    // Of one device each.
    let apart = |text: &str| text.replace("00:04.1", "00:06.0");
    boot(lab, &(apart(&system(second)) + &apart(&drivers)), "root: started driver nic0 for 00:06.0")?.ended().map(drop)
}

fn conventional(lab: &Lab) -> Result<()> {
    let text = system("") + AT + "[driver.nic0]\nprogram = \"e1000e\"\nid = \"8086:100e\"\n";
    let devices = ["pcie-pci-bridge,id=old,bus=pcie.0,addr=6", "e1000,bus=old,addr=1,romfile="];
    let further = devices.iter().flat_map(|device| ["-device".into(), (*device).into()]).collect();
    let outcome = lab.boot(&lab.write_system(&text)?).further(further).until("nothing").timeout(240).run()?;
    outcome.fatal(
        "root: fatal: driver nic0: the PCI function 01:01.0 cannot be given to it: the conventional PCI bridge 00:06.0 sends its requests as its own",
    )
}
