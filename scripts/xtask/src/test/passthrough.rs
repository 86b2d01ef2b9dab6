//! Pass-through: guests that have PCI functions of the machine to themselves.

use anyhow::{Result, ensure};

use super::dialogue::{self, PROMPT};
use super::network::{MEBIBYTE, checksum, noise, serve};
use super::{Lab, QEMU, Test};
use crate::emulator::qemu::devices::image;
use crate::emulator::{Boot, Machine};
use crate::session::Session;
use crate::system::Size;
use crate::{bundle, workspace};

pub const TESTS: &[Test] = &[
    Test::new("passthrough::Linux' own drivers, and ten resets of each device", own_drivers).only(QEMU),
    Test::new("passthrough::a machine that is started again has its devices again", again).only(QEMU).long_on(QEMU),
    Test::new("passthrough::what cannot be had is refused", refused).only(QEMU),
    Test::new("passthrough::a hostile guest's device reaches nobody else's memory", hostile).only(QEMU),
];

/// Bytes that are fetched.
const LENGTH: usize = 4 * MEBIBYTE;
/// Resets of each device.
const RESETS: usize = 10;

/// For the shell in the guest: both devices, and `lease`, which brings the network up.
const SETUP: &str = "d=/sys/bus/pci/devices/0000:00:01.0; n=/sys/bus/pci/devices/0000:00:02.0
printf '#!/bin/sh\\n[ \"$1\" != bound ] || ip addr add $ip/$mask dev $interface\\n' > /tmp/lease
chmod +x /tmp/lease
lease() { ip link set eth0 up; udhcpc -i eth0 -n -q -t 30 -s /tmp/lease; }";

/// What comes by the network goes to the disk and is read back, before and after resets, when both also work for a little.
fn own_drivers(lab: &Lab) -> Result<()> {
    let content = noise(LENGTH);
    let port = serve(content.clone(), 2)?;
    let command = format!(
        "{SETUP}
set -e
for f in $d $n; do basename $(readlink $f/driver); cat $f/msi_irqs/* | sort -u; done
lease 2>&1 | grep obtained
wget -q -O - http://10.0.2.2:{port}/ > /dev/nvme0n1
sync
for i in $(seq {RESETS}); do
    echo 1 > $d/reset
    ip link set eth0 down
    echo 1 > $n/reset
    ip link set eth0 up
    echo round $i | dd of=/dev/nvme0n1 bs=512 seek=$((50000 + i)) conv=sync,notrunc,fsync 2>/dev/null
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/nvme0n1 bs=512 skip=$((50000 + i)) count=1 2>/dev/null | grep -a round
    until ping -c 1 -W 1 10.0.2.2 >/dev/null; do :; done
done
head -c {LENGTH} /dev/nvme0n1 | sha256sum
wget -q -O - http://10.0.2.2:{port}/ | sha256sum
echo queues $(dmesg | grep -c 'default/read/poll queues')
grep -E 'nvme0q1|eth0-rx' /proc/interrupts
dmesg | grep -E 'nvme|e1000e' | grep -iE 'timeout|fail|error|hang' || true"
    );
    let outcome = lab.boot("passthrough").exec(&command).timeout(900).run()?;
    outcome.status(0)?;
    let text = outcome.text()?;
    let sum = checksum(&content);
    let mut expected = vec!["nvme".to_string(), "msix".into(), "e1000e".into(), "msix".into()];
    expected.push("udhcpc: lease of 10.0.2.15 obtained from 10.0.2.2, lease time 86400".into());
    expected.extend((1..=RESETS).map(|round| format!("round {round}")));
    expected.extend([format!("{sum}  -"), format!("{sum}  -"), format!("queues {}", RESETS + 1)]);
    let lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\0')).collect();
    let (found, rest) = lines.split_at(expected.len().min(lines.len()));
    ensure!(found == expected, outcome.failure(&format!("not {expected:?}, but {text}")));
    // The counts of interrupts; no line of the kernel's follows.
    let counts: Vec<u32> = rest.iter().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    ensure!(rest.len() == 2 && counts.iter().all(|count| *count > 10), outcome.failure(&rest.join("\n")));
    let disk = workspace::read(&image(&workspace::folder(&format!("run/{}", lab.name))?, "d0"))?;
    ensure!(disk.get(..LENGTH) == Some(&content[..]), outcome.failure("the image has another content"));
    for (device, number) in [("00:04.0", "disk, with 4"), ("00:05.0", "nic, with 4")] {
        outcome.says(&format!("root: passed {device} through to vm linux as {number} interrupt(s)"))?;
    }
    outcome.never_says("does not have")?.never_says("not its own").map(drop)
}

/// The guest resets itself while its devices are at work, then switches itself off; each time it finds its disk as it left
/// it, and its network works.
fn again(lab: &Lab) -> Result<()> {
    let mut system = bundle::load("passthrough", None)?;
    system.plan.name.clone_from(&lab.name);
    system.plan.vms[0].restart = plan::Restart { after: plan::RestartAfter::Any, limit: Some(1), delay: 0 };
    system.resize(Size { cpus: Some(2), vcpus: Some(2) })?;
    let machine = Machine {
        boot: Boot {
            kernel: lab.programs.file("microhypervisor"),
            module: Some(bundle::write(&mut system, lab.programs, "")?),
            linux: None,
        },
        memory: system.memory,
        cpus: system.cpus,
        take_turns: true,
        cpu_model: None,
        devices: system.devices.clone(),
        further: Vec::new(),
        folder: workspace::folder(&format!("run/{}", lab.name))?,
        trace: None,
    };
    let log = workspace::folder("run")?.join(format!("{}.log", lab.name));
    let mut session = Session::start(lab.emulator, &machine, &log)?;
    let setup = SETUP.replace('\n', "; ");
    let write = format!("{setup}; echo keep this | dd of=/dev/nvme0n1 conv=sync,fsync; lease\n");
    let look = format!("{setup}; lease; grep -c nvme0q2 /proc/interrupts; head -c 9 /dev/nvme0n1; echo\n");
    let busy = "dd if=/dev/nvme0n1 of=/dev/null bs=1M & ping -c 20 -i 0.1 10.0.2.2 & reboot -f\n";
    let steps = [
        (PROMPT, write.as_str()),
        ("obtained", ""),
        (PROMPT, busy),
        ("the guest reset its machine: starting it again", ""),
        (PROMPT, &look),
        ("1\r\nkeep this", ""),
        (PROMPT, "poweroff -f\n"),
        ("root: started vm linux again (1 of 1)", ""),
        (PROMPT, &look),
        ("\nkeep this", ""),
        (PROMPT, "poweroff -f\n"),
    ];
    let (_, lines) = dialogue::hold(&mut session, 4 * lab.boot_time(), &steps)?;
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    ensure!(count("lease of 10.0.2.15 obtained") == 3, "no lease each time\n{}", session.tail());
    ensure!(count("root: passed 00:0") == 4, "the devices were not passed twice\n{}", session.tail());
    ensure!(count("does not have") == 0, "a device left its memory\n{}", session.tail());
    Ok(())
}

/// A guest with one function of the machine, and `more` tables.
fn system(before: &str, function: &str, more: &str) -> String {
    format!(
        "{before}
[machine.disk.d0]
interface = \"nvme\"
size      = \"64M\"
pci       = \"00:04.0\"

[vm.micro]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"hello\"

[vm.micro.pci.disk]
{function}
{more}
"
    )
}

fn refused(lab: &Lab) -> Result<()> {
    let disk = "id = \"1b36:0010\"";
    let why = |reason: &str| format!("root: fatal: vm micro: the PCI function {reason}");
    let driver = "[driver.disk0]\nprogram = \"nvme\"\npci = \"00:04.0\"";
    let second = "[vm.micro.pci.more]\nid = \"1b36:0010\"";
    let cannot = "cannot be given to it:";
    for (before, function, more, line) in [
        ("iommu = \"off\"", disk, "", format!("00:04.0 {cannot} there is no IOMMU in use (VT-d is off")),
        ("", disk, driver, format!("00:04.0 {cannot} it is that of the driver disk0")),
        ("", "pci = \"00:1f.2\"", "", format!("00:1f.2 {cannot} it cannot be reset between two owners")),
        ("", "pci = \"00:1f.0\"", "", format!("00:1f.0 {cannot} it is a bridge, not a device")),
        ("", disk, second, "1b36:0010 is wanted twice, and there is one of it".into()),
    ] {
        let file = lab.write_system(&system(before, function, more))?;
        lab.boot(&file).timeout(240).run()?.fatal(&why(&line))?;
    }
    Ok(())
}

/// A guest takes its disk from Linux' driver, and has it write to and read from all that the machine has behind the guest's own
/// memory, and where nothing is. Meanwhile another guest guards its memory, which is there; then the disk works as before.
fn hostile(lab: &Lab) -> Result<()> {
    let file = lab.write_system(
        "[machine.disk.d0]
interface = \"nvme\"
size      = \"64M\"
pci       = \"00:04.0\"

[vm.linux]
memory  = \"512M\"
kernel  = \"debian-cloud\"
initrd  = \"busybox\"
cmdline = \"console=ttyS0\"

[vm.linux.pci.disk]
pci = \"00:04.0\"

[vm.micro]
memory  = \"32M\"
kernel  = \"micro\"
cmdline = \"guard=60000 size=20\"
console = true
",
    )?;
    // From 512 MiB to 768 MiB, then from 256 GiB. Faults are told when nobody has better things to do.
    let command = "d=/sys/bus/pci/devices/0000:00:01.0
echo 0000:00:01.0 > /sys/bus/pci/drivers/nvme/unbind
printf '\\006\\004' | dd of=$d/config bs=1 seek=4 conv=notrunc 2>/dev/null
set -e
sleep 2; agent dma write $d/resource0 536870912 65536 4096
sleep 2; agent dma read $d/resource0 536870912 65536 4096
sleep 2; agent dma write $d/resource0 274877906944 1048576 16
sleep 2; echo 0000:00:01.0 > /sys/bus/pci/drivers/nvme/bind
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
head -c 1048576 /dev/nvme0n1 | sha256sum";
    let outcome = lab.boot(&file).exec(command).time_by_instructions(3).timeout(900).run()?;
    outcome.status(0)?;
    let commands = |count| format!("own memory: status 0, model QEMU NVM; {count} commands\n");
    let disk = checksum(&vec![0; MEBIBYTE]);
    let expected = commands(4096) + &commands(4096) + &commands(16) + &format!("{disk}  -\n");
    let text = outcome.text()?;
    ensure!(text == expected, outcome.failure(&format!("the output is {text:?}, not {expected:?}")));
    for what in ["wrote memory at 0x20000000", "read memory at 0x20000000", "wrote memory at 0x4000000000"] {
        outcome.says(&format!("root: pci 00:04.0 {what} that it does not have"))?;
    }
    // It guarded until all was over.
    outcome.says_before("vm linux: powered off", "micro: ok guard")?;
    outcome.never_says("crashed")?.never_says("died").map(drop)
}
