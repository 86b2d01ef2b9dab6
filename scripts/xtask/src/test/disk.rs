//! Disks of Debian's kernel, which user-level drivers serve.

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Lab, QEMU, Test};
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("disk::regions of an NVMe disk", |lab| regions(lab, "nvme")).only(QEMU),
    Test::new("disk::regions of an AHCI disk", |lab| regions(lab, "ahci")).only(QEMU),
];

/// Where the regions begin on the disk, in bytes.
const FIRST: usize = 1 << 20;
const SECOND: usize = 32 << 20;
/// What is written to the first one, from its beginning on, and to the second, from block 100 on.
const LONG: usize = 12 << 20;
const SHORT: usize = 2 << 20;
const SKIPPED: usize = 100 << 12;

/// Two regions of one disk are written at once, through the page cache and past it, and read back; a third cannot be
/// written. Afterwards the disk has what was written, where it belongs, and nothing else.
fn regions(lab: &Lab, interface: &str) -> Result<()> {
    let system = lab.write_system(&format!(
        "[machine.disk.d0]
interface = \"{interface}\"
size      = \"64M\"
pci       = \"00:04.0\"

[driver.disk0]
program = \"{interface}\"
pci     = \"00:04.0\"

[vm.linux]
memory  = \"512M\"
kernel  = \"debian-cloud\"
initrd  = \"busybox\"
cmdline = \"console=ttyS0\"

[vm.linux.disk.long]
driver = \"disk0\"
first  = \"1M\"
size   = \"16M\"

[vm.linux.disk.short]
driver = \"disk0\"
first  = \"32M\"
size   = \"8M\"

[vm.linux.disk.fixed]
driver    = \"disk0\"
first     = \"40M\"
read_only = true
"
    ))?;
    let command = format!(
        "set -e
         cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/size /sys/block/vdc/ro
         head -c {LONG} /dev/urandom >/tmp/long; head -c {SHORT} /dev/urandom >/tmp/short
         dd if=/tmp/long of=/dev/vda bs=256k conv=fsync 2>/dev/null & one=$!
         dd if=/tmp/short of=/dev/vdb bs=4k seek=100 oflag=direct 2>/dev/null & two=$!
         wait $one; wait $two
         echo 3 >/proc/sys/vm/drop_caches
         head -c {LONG} /dev/vda | cmp - /tmp/long
         dd if=/dev/vdb bs=4k skip=100 count=512 iflag=direct 2>/dev/null | cmp - /tmp/short
         ! dd if=/tmp/short of=/dev/vdc bs=4k count=1 oflag=direct 2>/dev/null
         sha256sum </tmp/long; sha256sum </tmp/short"
    );
    let outcome = lab.boot(&system).exec(&command).timeout(3 * lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    outcome.says("131072 sectors, blocks of 512 bytes")?;
    outcome.says("vm linux: powered off")?;
    let text = outcome.text()?;
    let words: Vec<&str> = text.split_whitespace().filter(|word| *word != "-").collect();
    ensure!(words[..4] == ["32768", "16384", "49152", "1"], outcome.failure(&format!("the guest says {text}")));

    let disk = workspace::read(&workspace::folder(&format!("run/{}", lab.name))?.join("d0.img"))?;
    let places = [FIRST..FIRST + LONG, SECOND + SKIPPED..SECOND + SKIPPED + SHORT];
    for (place, expected) in places.iter().zip(&words[4..]) {
        let found: String = Sha256::digest(&disk[place.clone()]).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(found == **expected, outcome.failure(&format!("the disk has {found} at {place:?}: {text}")));
    }
    let [long, short] = places;
    let others = [&disk[..long.start], &disk[long.end..short.start], &disk[short.end..]];
    ensure!(others.iter().all(|part| part.iter().all(|&byte| byte == 0)), outcome.failure("something is misplaced"));
    Ok(())
}
