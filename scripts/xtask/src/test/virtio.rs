//! Devices on a virtual machine's PCI bus, driven by Linux's own drivers.

use anyhow::{Result, ensure};

use super::{Lab, QEMU, Test};

pub const TESTS: &[Test] = &[
    Test::new("virtio::Linux draws random numbers from the machine", entropy),
    Test::new("virtio::what Linux writes to a disk at random comes back", disk).only(QEMU),
];

/// PCI, MSI-X and a queue, end to end; a driver that lets go of its device and takes it again.
fn entropy(lab: &Lab) -> Result<()> {
    let command = "cd /sys/bus/virtio/drivers/virtio_rng
         cat /sys/class/misc/hw_random/rng_current
         for turn in 1 2; do
           head -c 4096 /dev/hwrng >/tmp/random; wc -c </tmp/random; gzip -c /tmp/random | wc -c
           awk '/PCI-MSI.*virtio0-input/ { print ($2 > 2) }' /proc/interrupts
           echo virtio0 >unbind; echo virtio0 >bind
         done
         dmesg | grep -E 'fail to add MMCONFIG|not using MMCONFIG|virtio.*(fail|error)|BUG:|WARNING: CPU'; true";
    let outcome = lab.boot("entropy").exec(command).timeout(lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    let text = outcome.text()?;
    let lines: Vec<&str> = text.lines().collect();
    let expected = |turn: usize| {
        let compressed = lines.get(2 + turn).and_then(|line| line.parse::<u32>().ok()).unwrap_or(0);
        lines.get(1 + turn) == Some(&"4096") && compressed > 4096 && lines.get(3 + turn) == Some(&"1")
    };
    let right = lines.first() == Some(&"virtio_rng.0") && expected(0) && expected(3) && lines.len() == 7;
    ensure!(right, outcome.failure(&format!("the output is {text:?}")));
    Ok(())
}

/// The driver is an NVMe driver's client by the monitor. Each block tells where it belongs; in between Linux' driver lets
/// go of the device while requests are on their way, and takes it again.
fn disk(lab: &Lab) -> Result<()> {
    let command = "cat /sys/block/vda/size /sys/block/vda/serial; echo
         agent disk fill /dev/vda 32 1024 1 && agent disk check /dev/vda 32 1024 1 || exit 1
         agent disk read /dev/vda 32 1024 1 2>/dev/null & sleep 1
         echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind; wait
         echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
         agent disk check /dev/vda 1 1024 1 && agent disk fill /dev/vda 7 1024 2 && agent disk check /dev/vda 64 1024 2
         echo $?
         dmesg | grep -E 'BUG:|WARNING: CPU|blocked for more'; true";
    let outcome = lab.boot("disk").exec(command).timeout(2 * lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    let text = outcome.text()?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("disk: ")).collect();
    ensure!(lines == ["131072", "root", "0"], outcome.failure(&format!("the output is {text:?}")));
    outcome.says("vm linux: powered off")?;
    Ok(())
}
