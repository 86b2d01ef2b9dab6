//! Disks of Debian's kernel, which user-level drivers serve.

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Lab, QEMU, Test};
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("disk::regions of an NVMe disk", |lab| regions(lab, "nvme", None)).only(QEMU),
    Test::new("disk::regions of an AHCI disk", |lab| regions(lab, "ahci", None)).only(QEMU),
    Test::new("disk::regions of a virtio disk", |lab| regions(lab, "virtio-blk", None)).only(QEMU).long(),
    Test::new("disk::regions of an NVMe disk whose driver is killed", |lab| regions(lab, "nvme", FEW)).only(QEMU),
    Test::new("disk::regions of a virtio disk whose driver is killed", |lab| regions(lab, "virtio-blk", FEW))
        .only(QEMU),
];

/// How often the guest writes and reads all while its driver is killed every [`KILL_MS`], and how often that happens at
/// least meanwhile.
type Kills = Option<(u32, usize)>;
const FEW: Kills = Some((1, 10));
const KILL_MS: u32 = 250;

/// Where the regions begin on the disk, in bytes.
const FIRST: usize = 1 << 20;
const SECOND: usize = 32 << 20;
/// What is written to the first one, from its beginning on, and to the second, from block 100 on.
const LONG: usize = 12 << 20;
const SHORT: usize = 2 << 20;
const SKIPPED: usize = 100 << 12;

/// Two regions of one disk are written at once, through the page cache and past it, and read back; a third cannot be
/// written. Meanwhile the driver may be killed: the guest must not notice. Afterwards the disk has what was written, where it belongs, and nothing else.
fn regions(lab: &Lab, driver: &str, kills: Kills) -> Result<()> {
    let kill = kills.map_or(String::new(), |_| format!("kill_every = {KILL_MS}"));
    let rounds = kills.map_or(1, |(rounds, _)| rounds);
    let system = lab.write_system(&format!(
        "[machine.disk.d0]
size = \"64M\"
pci  = \"00:04.0\"

[driver.disk0]
program = \"{driver}\"
pci     = \"00:04.0\"
{kill}

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
         echo the load begins >/dev/console
         for round in $(seq {rounds}); do
           head -c {LONG} /dev/urandom >/tmp/long; head -c {SHORT} /dev/urandom >/tmp/short
           dd if=/tmp/long of=/dev/vda bs=256k conv=fsync 2>/dev/null & one=$!
           dd if=/tmp/short of=/dev/vdb bs=4k seek=100 oflag=direct 2>/dev/null & two=$!
           wait $one; wait $two
           echo 3 >/proc/sys/vm/drop_caches
           head -c {LONG} /dev/vda | cmp - /tmp/long
           dd if=/dev/vdb bs=4k skip=100 count=512 iflag=direct 2>/dev/null | cmp - /tmp/short
         done
         echo the load ends >/dev/console
         ! dmesg | grep -i 'error'
         ! dd if=/tmp/short of=/dev/vdc bs=4k count=1 oflag=direct 2>/dev/null
         sha256sum </tmp/long; sha256sum </tmp/short"
    );
    let outcome =
        lab.boot(&system).exec(&command).timeout(3 * lab.boot_time().as_secs() + 10 * u64::from(rounds)).run()?;
    outcome.status(0)?;
    outcome.says("131072 sectors, blocks of 512 bytes")?;
    outcome.never_says("no interrupts")?;
    outcome.says("vm linux: powered off")?;
    if let Some((_, least)) = kills {
        let load = outcome.lines.iter().skip_while(|line| !line.contains("the load begins"));
        let load = load.take_while(|line| !line.contains("the load ends"));
        let killed = load.filter(|line| line.contains("program disk0 was started again")).count();
        ensure!(killed >= least, outcome.failure(&format!("the driver was killed {killed} times")));
    }
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
