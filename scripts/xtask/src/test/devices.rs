//! Devices and their drivers: the root task finds functions, starts drivers, and starts them anew.

use anyhow::{Result, ensure};

use super::boot::Outcome;
use super::{Lab, QEMU, Test, front};
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("devices::a driver gets its device", one_driver).only(QEMU),
    Test::new("devices::two of one kind have a driver each", two).only(QEMU),
    Test::new("devices::all devices are listed", listed).only(QEMU),
    Test::new("devices::a driver that is killed comes back", killed).only(QEMU),
    Test::new("devices::what cannot be had is refused", refused).only(QEMU),
];

/// A disk, its driver with `more` keys, and a guest that lives as long as the test.
pub fn system(more: &str) -> String {
    format!(
        "{more}
[machine.disk.d0]
interface = \"nvme\"
size      = \"64M\"
pci       = \"00:04.0\"

[vm.micro]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"count=100000000 hello\"

[driver.disk0]
program = \"nvme\"
"
    )
}

pub fn boot(lab: &Lab, system: &str, until: &str) -> Result<Outcome> {
    lab.boot(&lab.write_system(system)?).until(until).timeout(240).run()
}

fn one_driver(lab: &Lab) -> Result<()> {
    let system = system("") + "id = \"1b36:0010\"\n[vm.micro.disk.root]\ndriver = \"disk0\"\nfirst = \"1M\"\n";
    let outcome = boot(lab, &system, "client micro.root")?;
    outcome.ended()?;
    let line = outcome.says("root: pci 00:04.0 1b36:0010 NVMe, group ")?;
    ensure!(line.ends_with(", 65 MSI-X, FLR"), outcome.failure(&format!("other features: {line}")));
    outcome.says("root: each driver's device reaches only what it is given")?;
    outcome.says("root: started driver disk0 for 00:04.0, with 4 interrupt(s)")?;
    // 64 MiB of 512 bytes, and all but the first of them.
    outcome.says("[disk0] QEMU NVMe Ctrl, serial number d0: 131072 sectors")?;
    outcome.says("[disk0] client micro.root: 129024 sectors from 2048").map(|_| ())
}

/// The second one by its id: the first that is still free.
fn two(lab: &Lab) -> Result<()> {
    let disk = "[machine.disk.d1]\ninterface = \"nvme\"\nsize = \"1M\"\npci = \"00:06.0\"\n";
    let text = system(disk) + "pci = \"00:04.0\"\n[driver.disk1]\nprogram = \"nvme\"\nid = \"1b36:0010\"\n";
    let outcome = boot(lab, &text, "[disk1] no clients")?;
    outcome.ended()?;
    outcome.says("root: started driver disk1 for 00:06.0")?;
    outcome.says("[disk1] QEMU NVMe Ctrl, serial number d1: 2048 sectors").map(drop)
}

/// What docs/drivers.md shows, by the command that it shows.
fn listed(lab: &Lab) -> Result<()> {
    let (status, output, error) = front::call(&["devices"])?;
    ensure!(status == 0, "status {status}: {output}{error}");
    let book = String::from_utf8(workspace::read(&workspace::root().join("docs/drivers.md"))?)?;
    let mut shown = book.lines().skip_while(|line| *line != "    cargo xtask devices").skip(2);
    for line in output.lines() {
        let expected = shown.next().unwrap_or_default().trim_start();
        ensure!(line == expected, "docs/drivers.md has {expected:?}, and the list has {line:?}");
    }
    ensure!(output.lines().count() > 5, "few devices: {output}");
    // Of what is not there, too, and without an IOMMU.
    let file = lab.write_system(&(system("iommu = \"off\"\n") + "pci = \"00:07.0\"\n"))?;
    let (status, output, error) = front::call(&["devices", &file])?;
    ensure!(status == 0, "status {status}: {output}{error}");
    for line in ["driver disk0: this machine has no PCI function 00:07.0; those", "no: there is no IOMMU in use"] {
        ensure!(output.contains(line), "nothing of {line:?} in {output}");
    }
    Ok(())
}

fn killed(lab: &Lab) -> Result<()> {
    let system = system("") + "pci = \"00:04.0\"\nkill_every = 300\n";
    let mut starts = 0;
    let outcome = boot(lab, &system, "root: program disk0 was started again (4)")?;
    outcome.ended()?;
    let mut frames = Vec::new();
    for line in &outcome.lines {
        starts += u32::from(line.contains("[disk0] QEMU NVMe Ctrl, serial number d0: 131072 sectors"));
        frames.extend(line.strip_prefix("root: kernel memory: ").map(String::from));
    }
    ensure!(starts >= 4, outcome.failure(&format!("the device worked {starts} times")));
    // The first line is that of the start; then one after each end.
    let after = frames.get(2..).unwrap_or_default();
    ensure!(after.len() >= 2 && after.windows(2).all(|two| two[0] == two[1]), "it leaks: {frames:?}");
    Ok(())
}

fn refused(lab: &Lab) -> Result<()> {
    for absent in ["pci = \"00:07.0\"\n", "id = \"1b36:0011\"\n"] {
        let name = absent.split('"').nth(1).unwrap_or_default();
        let expected = format!("root: fatal: driver disk0: this machine has no PCI function {name}; those that");
        boot(lab, &(system("") + absent), "nothing")?.fatal(&expected)?;
    }
    let taken = system("") + "pci = \"00:04.0\"\n[driver.disk1]\nprogram = \"nvme\"\nid = \"1b36:0010\"\n";
    let expected =
        "root: fatal: driver disk1: the PCI function 00:04.0 cannot be given to it: it is that of the driver disk0";
    boot(lab, &taken, "nothing")?.fatal(expected)?;
    Ok(())
}
