//! A hostile driver program (`runtime/examples/hostile.rs`) whose device attacks all memory, others' interrupts, and the
//! log; beside it a virtual machine and a disk's driver that shall notice nothing.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::boot::Outcome;
use super::{Lab, QEMU, Test};
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("devices::a hostile driver reaches nobody's memory", confined).only(QEMU),
    Test::new("devices::a hostile driver reaches all memory without an IOMMU", free).only(QEMU),
    Test::new("devices::a storm of 100,000 faults", storm).only(QEMU),
];

/// Instructions take 2^3 ns, so that pauses of devices cost nothing.
const SHIFT: u32 = 3;

/// A disk with its driver, and a guest with this command line.
fn system(iommu: &str, cmdline: &str) -> String {
    format!(
        "iommu = \"{iommu}\"
[machine.disk.d0]
interface = \"nvme\"
size      = \"64M\"
pci       = \"00:04.0\"

[driver.disk0]
program = \"nvme\"
pci     = \"00:04.0\"

[driver.evil]
program = \"hostile\"
pci     = \"00:07.0\"

[vm.micro]
memory  = \"32M\"
kernel  = \"micro\"
cmdline = \"{cmdline}\"
"
    )
}

fn run(lab: &Lab, system: &str, arguments: &[&str], until: &str) -> Result<Outcome> {
    let further = arguments.iter().map(ToString::to_string).collect();
    let file = lab.write_system(system)?;
    let trial = lab.boot(&file).further(further).time_by_instructions(SHIFT).timeout(400);
    if until.is_empty() { trial.run() } else { trial.until(until).run() }
}

const EDU: [&str; 2] = ["-device", "edu,dma_mask=0xffffffff,bus=pcie.0,addr=7"];
const GUARD: &str = "guard=30000 size=20";

fn confined(lab: &Lab) -> Result<()> {
    let outcome = run(lab, &system("required", GUARD), &EDU, "")?;
    outcome.ended()?;
    outcome.says("[evil] the device reads and writes its own memory")?;
    // Not even what is in everybody's memory.
    outcome.says("[evil] read at 33 addresses, and found something at 0")?;
    outcome.says("[evil] wrote at 33 addresses")?;
    outcome.says("[evil] raised 40 interrupts, and the device still works")?;
    outcome.says("root: pci 00:07.0 read memory at 0x1000 that it does not have (reason 6)")?;
    outcome.says("root: pci 00:07.0 wrote memory at 0x")?;
    // QEMU does not know who sent a message that is written by DMA.
    outcome.says("raised an interrupt that is not its own (entry ")?;
    outcome.says("micro: ok guard")?;
    nobody_else(&outcome)
}

/// Nobody died, and nobody else's device did anything.
fn nobody_else(outcome: &Outcome) -> Result<()> {
    outcome.never_says("root: pci 00:04.0 read")?;
    outcome.never_says("root: pci 00:04.0 wrote")?;
    outcome.never_says("crashed")?;
    outcome.never_says("died")?;
    Ok(())
}

fn free(lab: &Lab) -> Result<()> {
    let outcome = run(lab, &system("off", GUARD), &EDU, "micro: failed guard")?;
    outcome.says("[evil] wrote into guarded memory at 0x")?;
    outcome.says("holds 0xa77ac000a77ac000").map(|_| ())
}

/// What the guest has counted.
fn counted(outcome: &Outcome) -> Result<u64> {
    let line = outcome.says("micro: count ")?;
    let number = line.split("micro: count ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.with_context(|| format!("no number in {line}"))
}

fn storm(lab: &Lab) -> Result<()> {
    let network = ["-netdev", "user,id=n", "-device", "e1000e,netdev=n,romfile=,bus=pcie.0,addr=7"];
    let traced = [&network[..], &["-trace", "vtd_dmar_fault"]].concat();
    let text = system("required", "count=1000 idle");
    let outcome = run(lab, &text, &traced, "[evil] the storm is over")?;
    outcome.says("[evil] the storm is over: 204750 requests")?;
    nobody_else(&outcome)?;
    let messages = workspace::folder(&format!("run/{}", lab.name))?.join("messages");
    let faults = fs::read_to_string(&messages)?.lines().filter(|line| line.contains("vtd_dmar_fault")).count();
    ensure!(faults >= 100_000, "there were {faults} faults only");
    let _ = fs::remove_file(&messages);
    // Told four at a time, a second apart.
    let told = outcome.lines.iter().filter(|line| line.starts_with("root: pci 00:07.0 read memory")).count();
    ensure!((2..=24).contains(&told), outcome.failure(&format!("{told} faults are told")));
    // The same without the storm: the machine's own driver runs the device.
    let quiet = run(lab, &text.replace("program = \"hostile\"", "program = \"e1000e\""), &network, "micro: ok count")?;
    let (with, without) = (counted(&outcome)?, counted(&quiet)?);
    println!("a guest counts {with} in a storm of {faults} faults, and {without} without");
    ensure!(with * 10 >= without * 8, "a guest counts {with} in the storm, and {without} without");
    Ok(())
}
