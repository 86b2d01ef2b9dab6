//! Devices on a virtual machine's PCI bus, driven by Linux's own drivers.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::dialogue::{self, PROMPT};
use super::{BOCHS, Lab, QEMU, Test};
use crate::session::Ending;

pub const TESTS: &[Test] = &[
    Test::new("virtio::Linux draws random numbers from the machine", entropy),
    Test::new("virtio::what Linux writes to a disk at random comes back", disk).only(QEMU),
    Test::new("virtio::a shell on a virtio console loses no byte", console).long_on(BOCHS),
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

/// Output whose pieces are longer than what the monitor keeps of it (2 KiB where the terminal changes nothing), and a line of
/// more input than it keeps, come whole. What Linux says before it has a driver is on the serial port, also when it starts
/// again.
fn console(lab: &Lab) -> Result<()> {
    const OUTPUT: usize = 48 << 10;
    let mut session = lab.session("virtio-console")?;
    let typed: String = (0..1000u32).map(|number| char::from(b'a' + (number * number % 23) as u8)).collect();
    let ask = format!(
        "tty; head -c {OUTPUT} /dev/urandom | base64 >/tmp/text; echo its check''sum $(sha256sum </tmp/text); \
         stty -opost; cat /tmp/text; stty opost -echo; echo now ty''pe; read -r typed; stty echo; \
         echo typed wi''th $(echo $typed | sha256sum); reboot\n"
    );
    let steps = [
        (PROMPT, ask.as_str()),
        ("now type", &format!("{typed}\n")),
        ("the guest reset its machine", ""),
        (PROMPT, "tty; poweroff\n"),
    ];
    let (ending, lines) = dialogue::hold(&mut session, lab.boot_time(), &steps)?;
    ensure!(ending == Ending::PoweredOff, "the machine did not switch itself off\n{}", session.tail());
    for line in ["Run /init as init process", "/dev/hvc0", "console [hvc0] enabled"] {
        let times = lines.iter().filter(|found| found.contains(line)).count();
        ensure!(times == 2, "{line:?} was shown {times} times\n{}", session.tail());
    }
    let told = |words: &str| {
        let found = lines.iter().find_map(|line| line.split_once(words)?.1.split(' ').next().map(str::to_string));
        found.with_context(|| format!("no {words}\n{}", session.tail()))
    };
    let checksum = |text: &str| Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // Lines of other programs, which may stand between, have blanks.
    let is_text = |line: &&str| (1..=76).contains(&line.len()) && !line.contains(' ');
    let shown = lines.iter().map(|line| line.trim_end()).skip_while(|line| !line.starts_with("its checksum "));
    let shown = shown.take_while(|line| !line.starts_with("now type"));
    let text: String = shown.filter(is_text).map(|line| format!("{line}\n")).collect();
    ensure!(checksum(&text).starts_with(&told("its checksum ")?), "{} bytes arrived\n{}", text.len(), session.tail());
    ensure!(checksum(&format!("{typed}\n")) == told("typed with ")?, "the input did not arrive\n{}", session.tail());
    Ok(())
}
