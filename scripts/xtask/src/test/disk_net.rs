//! A disk and a network together: Debian's kernel with its root file system on a disk, and the host behind its network.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::network::{MEBIBYTE, checksum, noise, serve};
use super::{Lab, QEMU, Test};
use crate::emulator::qemu::devices::image;
use crate::{system, workspace};

pub const TESTS: &[Test] = &[
    Test::new("disk-net::a root file system and the host by NVMe and virtio", |lab| whole(lab, &[], SHORT)).only(QEMU),
    Test::new("disk-net::a root file system and the host by AHCI and e1000e", |lab| whole(lab, OTHERS, SHORT))
        .only(QEMU),
    Test::new("disk-net::1 GiB at random and 64 MiB from the host by NVMe and virtio", |lab| whole(lab, &[], LONG))
        .only(QEMU)
        .long(),
    Test::new("disk-net::1 GiB at random and 64 MiB from the host by AHCI and e1000e", |lab| whole(lab, OTHERS, LONG))
        .only(QEMU)
        .long(),
    Test::new("disk-net::1 GiB at random and 64 MiB from the host by virtio alone", |lab| whole(lab, VIRTIO, LONG))
        .only(QEMU)
        .long(),
];

/// The two words of the system file that make it another machine with other drivers.
const OTHERS: &[(&str, &str)] = &[("\"nvme\"", "\"ahci\""), ("\"virtio-net\"", "\"e1000e\"")];

/// The same by one word.
const VIRTIO: &[(&str, &str)] = &[("\"nvme\"", "\"virtio-blk\"")];

/// How many mebibytes are read and written at random, and how many are fetched from the host.
type Amount = (usize, usize);
const SHORT: Amount = (64, 4);
const LONG: Amount = (1024, 64);

fn whole(lab: &Lab, words: &[(&str, &str)], (verified, fetched): Amount) -> Result<()> {
    let system = lab.write_system(&variant(words)?)?;
    let content = noise(fetched * MEBIBYTE);
    let kept = &content[..4 * MEBIBYTE];
    let port = serve(content.clone(), 2)?;
    let command = format!(
        "set -e
         grep -c '^/dev/vda / ext4 rw' /proc/mounts
         wget -q -O - http://10.0.2.2:{port}/ | sha256sum
         wget -q -O - http://10.0.2.2:{port}/ | head -c {length} >/fetched
         sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum </fetched
         agent verify /dev/vdb 1 {verified} {verified} 1 >&2
         dmesg | grep -iE 'i/o error|ext4-fs error|BUG:|blocked for more' || true",
        length = kept.len(),
    );
    let outcome = lab.boot(&system).exec(&command).timeout(2 * lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    let expected = format!("1\n{}  -\n{}  -\n", checksum(&content), checksum(kept));
    let text = outcome.text()?;
    ensure!(text == expected, outcome.failure(&format!("the output is {text:?}, not {expected:?}")));
    let said = String::from_utf8_lossy(&outcome.error);
    ensure!(said.contains("nothing is wrong"), outcome.failure(&format!("the verification says {said:?}")));
    println!("{}", said.trim());
    outcome.never_says("does not have")?.never_says("was started again")?;
    let disk = image(&workspace::folder(&format!("run/{}", lab.name))?, "d0");
    whole_file_system(&disk).map_err(|error| outcome.failure(&format!("{error:#}")))?;
    // It is large.
    Ok(fs::remove_file(disk)?)
}

/// The system file `disk-net` with other words, each of which it has once.
fn variant(words: &[(&str, &str)]) -> Result<String> {
    let mut text = fs::read_to_string(system::find("disk-net")?)?;
    for (old, new) in words {
        ensure!(text.matches(old).count() == 1, "the system file does not have {old} once");
        text = text.replace(old, new);
    }
    Ok(text)
}

/// The file system at the disk's beginning was left in good order.
fn whole_file_system(disk: &Path) -> Result<()> {
    let output = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(disk).output().context("cannot start e2fsck")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // It says so when it finds a journal that was not written back.
    let clean = output.status.success() && !said.contains("recovering") && !said.contains("Fix");
    ensure!(clean, "e2fsck says {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
