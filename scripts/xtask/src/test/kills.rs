//! Drivers and switches that are killed again and again while virtual machines work with them: these see delay, and
//! nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::boot::Outcome;
use super::network::{MEBIBYTE, checksum, noise};
use super::{Lab, QEMU, Test};
use crate::emulator::qemu::devices::image;
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("kills::an NVMe driver with two writers", |lab| writers(lab, "nvme", FEW)).only(QEMU),
    Test::new("kills::an NVMe driver with two writers 100 times", |lab| writers(lab, "nvme", MANY)).only(QEMU).long(),
    Test::new("kills::an AHCI driver with two writers 100 times", |lab| writers(lab, "ahci", MANY)).only(QEMU).long(),
    Test::new("kills::a virtio-blk driver with two writers 100 times", |lab| writers(lab, "virtio-blk", MANY))
        .only(QEMU)
        .long(),
    Test::new("kills::a virtio-net driver with a connection", |lab| connection(lab, "nic0", "virtio-net", FEW))
        .only(QEMU),
    Test::new("kills::a virtio-net driver with a connection 100 times", |lab| {
        connection(lab, "nic0", "virtio-net", MANY)
    })
    .only(QEMU)
    .long(),
    Test::new("kills::an e1000e driver with a connection 100 times", |lab| connection(lab, "nic0", "e1000e", MANY))
        .only(QEMU)
        .long(),
    Test::new("kills::a switch with a connection 100 times", |lab| connection(lab, "lan", "virtio-net", MANY))
        .only(QEMU)
        .long(),
];

/// Seconds of the load, and how often the driver is killed meanwhile at least.
type Kills = (u64, usize);
const FEW: Kills = (8, 10);
const MANY: Kills = (60, 100);

/// Bytes of a block that is written as one.
const BLOCK: usize = 4096;
/// The disk's size, and of each machine's region.
const DISK: usize = 64 * MEBIBYTE;
const REGION: usize = 16 * MEBIBYTE;

/// A virtual machine that writes: the number in its content, and where its region begins.
struct Writer {
    seed: u64,
    first: usize,
}

const WRITERS: [Writer; 2] = [Writer { seed: 1, first: MEBIBYTE }, Writer { seed: 2, first: 32 * MEBIBYTE }];

/// An acknowledged write: its number among the machine's, its first block and how many.
type Write = (u32, usize, usize);

/// Two virtual machines read and write at random and tell each write when it is acknowledged, the first one by its exec
/// channel, the other one on its console. Afterwards the whole disk is compared with what these logs make of it.
fn writers(lab: &Lab, interface: &str, (seconds, least): Kills) -> Result<()> {
    // The command line tells the pattern, too.
    let work = |seed: u64| {
        format!(
            "agent verify /dev/vda {seed} 16 1 {seconds} log; echo status $?; \
             dmesg | grep -v run= | grep -iE 'i/o error|BUG:|blocked for more'; echo complaints end"
        )
    };
    let system = lab.write_system(&format!(
        "[machine.disk.d0]
size = \"64M\"
pci  = \"00:04.0\"

[driver.disk0]
program    = \"{interface}\"
pci        = \"00:04.0\"
kill_every = 250

[vm.one]
memory  = \"256M\"
kernel  = \"debian-cloud\"
initrd  = \"busybox\"
cmdline = \"console=ttyS0\"

[vm.one.disk.data]
driver = \"disk0\"
first  = \"1M\"
size   = \"16M\"

[vm.two]
memory  = \"256M\"
kernel  = \"debian-cloud\"
initrd  = \"busybox\"
console = true
cmdline = '''console=ttyS0 run=\"{two}\"'''

[vm.two.disk.data]
driver = \"disk0\"
first  = \"32M\"
size   = \"16M\"
",
        two = work(WRITERS[1].seed)
    ))?;
    let timeout = 3 * lab.boot_time().as_secs() + 4 * seconds;
    let outcome = lab.boot(&system).exec(&work(WRITERS[0].seed)).timeout(timeout).run()?;
    outcome.status(0)?;
    let one: Vec<&str> = outcome.text()?.lines().collect();
    let two: Vec<&str> = outcome.lines.iter().filter_map(|line| line.strip_prefix("[two] ")).collect();
    let errors = String::from_utf8_lossy(&outcome.error);
    for (name, lines, errors) in [("one", &one, &*errors), ("two", &two, "")] {
        let end = lines.iter().position(|line| *line == "status 0").and_then(|at| lines.get(at + 1));
        let fine = end == Some(&"complaints end") && lines.iter().any(|line| line.ends_with("nothing is wrong"));
        let mut said = lines.iter().copied().chain(errors.lines());
        let why = said.find(|line| line.starts_with("verify: block") || line.contains("rror")).or(end.copied());
        ensure!(fine, outcome.failure(&format!("machine {name} failed: {why:?}")));
        lines.iter().filter(|line| line.starts_with("verify: ")).for_each(|line| println!("{name}: {line}"));
    }
    let killed = during_the_load(&outcome, "program disk0 was started again");
    println!("killed {killed} times");
    ensure!(killed >= least, outcome.failure(&format!("the driver was killed {killed} times")));

    let mut expected = vec![0; DISK];
    for (writer, lines) in WRITERS.iter().zip([one, two]) {
        let log = log(&lines).map_err(|error| outcome.failure(&format!("{error:#}")))?;
        writer.replay(&log, &mut expected[writer.first..][..REGION]);
    }
    let disk = image(&workspace::folder(&format!("run/{}", lab.name))?, "d0");
    let found = fs::read(&disk).with_context(|| format!("cannot read {}", workspace::shown(&disk)))?;
    compare(&found, &expected).map_err(|error| outcome.failure(&format!("{error:#}")))
}

/// Bytes that go through the connection each way, for each second of the load.
const EXCHANGED: usize = MEBIBYTE / 4;

/// One TCP connection with the host, through which something goes there and then something else comes back, while `victim`
/// is killed again and again.
fn connection(lab: &Lab, victim: &str, driver: &str, (seconds, least): Kills) -> Result<()> {
    let kill = |name: &str| if name == victim { "kill_every = 400" } else { "" };
    let system = lab.write_system(&format!(
        "[machine.nic.n0]
pci = \"00:05.0\"

[driver.nic0]
program = \"{driver}\"
pci     = \"00:05.0\"
{}

[switch.lan]
uplink = \"nic0\"
{}

[vm.linux]
memory  = \"256M\"
kernel  = \"debian-cloud\"
initrd  = \"busybox\"
cmdline = \"console=ttyS0 address=10.0.2.21/24\"

[vm.linux.nic.eth0]
switch = \"lan\"
",
        kill("nic0"),
        kill("lan")
    ))?;
    let content = noise(EXCHANGED * seconds as usize);
    let (port, received) = exchange(content.clone())?;
    let command = format!(
        "head -c {length} /dev/urandom >/tmp/there; echo the load begins >/dev/console
         nc 10.0.2.2 {port} </tmp/there >/tmp/back || exit 1
         echo the load ends >/dev/console; sha256sum </tmp/there; sha256sum </tmp/back",
        length = content.len()
    );
    let outcome = lab.boot(&system).exec(&command).timeout(2 * lab.boot_time().as_secs() + 10 * seconds).run()?;
    outcome.status(0)?;
    let text = outcome.text()?;
    let there = received.try_recv().unwrap_or_else(|_| "nothing".into());
    let expected = format!("{there}  -\n{}  -\n", checksum(&content));
    ensure!(text == expected, outcome.failure(&format!("the output is {text:?}, not {expected:?}")));
    let again = format!("program {victim} was started again");
    let load = outcome.lines.iter().skip_while(|line| !line.contains("the load begins"));
    let killed = load.take_while(|line| !line.contains("the load ends")).filter(|line| line.contains(&again)).count();
    println!("killed {killed} times");
    ensure!(killed >= least, outcome.failure(&format!("{victim} was killed {killed} times")));
    Ok(())
}

/// Takes one connection and as many bytes from it as `content` has, tells their checksum, and answers with `content`, all at
/// [`EXCHANGED`] bytes in half a second at most. Returns the port.
fn exchange(content: Vec<u8>) -> Result<(u16, Receiver<String>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let (tell, received) = channel();
    // One every 50 ms.
    let piece = EXCHANGED / 10;
    let pause = || thread::sleep(Duration::from_millis(50));
    thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut body = vec![0; content.len()];
        for part in body.chunks_mut(piece) {
            stream.read_exact(part)?;
            pause();
        }
        tell.send(checksum(&body))?;
        for part in content.chunks(piece) {
            stream.write_all(part)?;
            pause();
        }
        Ok(())
    });
    Ok((port, received))
}

/// How many lines of the console contain `text` while the second machine writes.
fn during_the_load(outcome: &Outcome, text: &str) -> usize {
    let is_write = |line: &String| line.starts_with("[two] w ");
    let first = outcome.lines.iter().position(is_write).unwrap_or_default();
    let last = outcome.lines.iter().rposition(is_write).unwrap_or_default();
    outcome.lines[first..last].iter().filter(|line| line.contains(text)).count()
}

/// The writes that a machine told, in the order of their acknowledgement.
fn log(lines: &[&str]) -> Result<Vec<Write>> {
    let mut numbers = BTreeSet::new();
    let mut writes = Vec::new();
    for line in lines.iter().filter_map(|line| line.strip_prefix("w ")) {
        let words: Vec<usize> = line.split(' ').map(str::parse).collect::<Result<_, _>>().context(line.to_string())?;
        let [number, block, blocks] = words[..] else { anyhow::bail!("a write without its three numbers: {line}") };
        ensure!(numbers.insert(number) && (block + blocks) * BLOCK <= REGION, "an impossible write: {line}");
        writes.push((number as u32, block, blocks));
    }
    // Each number once, from 1 on: none was sent whose acknowledgement did not come.
    ensure!(
        numbers.last() == Some(&numbers.len()) && numbers.len() > 100,
        "of {} writes some are missing",
        numbers.len()
    );
    Ok(writes)
}

impl Writer {
    /// What `writes` make of the machine's region.
    fn replay(&self, writes: &[Write], region: &mut [u8]) {
        for &(number, block, blocks) in writes {
            for block in block..block + blocks {
                for (index, word) in region[block * BLOCK..][..BLOCK].chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&self.content(block as u64, number, index as u64).to_le_bytes());
                }
            }
        }
    }

    /// Word `index` of block `block` after write `write`, as the agent writes it (guests/agent/src/verify.rs).
    fn content(&self, block: u64, write: u32, index: u64) -> u64 {
        match index {
            0 => u64::from(write) << 32 | block,
            1 => self.seed,
            _ => (self.seed << 56 ^ u64::from(write) << 32 ^ block << 10 ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }
}

/// The disk has what it should have, and nothing else.
fn compare(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(found.len() == expected.len(), "the disk has {} bytes", found.len());
    let mut blocks = found.chunks(BLOCK).zip(expected.chunks(BLOCK)).enumerate();
    let Some((number, (found, expected))) = blocks.find(|(_, (found, expected))| found != expected) else {
        return Ok(());
    };
    let tell = |block: &[u8]| {
        let word =
            |index: usize| block[8 * index..][..8].iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        format!("write {} to block {} of machine {}", word(0) >> 32, word(0) as u32, word(1))
    };
    anyhow::bail!("block {number} of the disk has {}, not {}", tell(found), tell(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_or_misplaced_is_found() {
        let lines: Vec<String> = (1..=200).map(|n| format!("w {n} {} 2", n % 50)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let writes = log(&lines).expect("is whole");
        let missing: Vec<&str> = lines.iter().copied().filter(|line| !line.starts_with("w 77 ")).collect();
        assert!(log(&missing).is_err() && log(&[&lines[..], &["w 5 1 1"]].concat()).is_err());
        let [mut expected, mut found] = [vec![0; REGION], vec![0; REGION]];
        WRITERS[0].replay(&writes, &mut expected);
        WRITERS[0].replay(&writes[..199], &mut found);
        let error = compare(&found, &expected).expect_err("the last one is lost").to_string();
        assert_eq!(
            error,
            "block 0 of the disk has write 150 to block 0 of machine 1, not write 200 to block 0 of machine 1"
        );
        WRITERS[0].replay(&writes[199..], &mut found);
        assert!(compare(&found, &expected).is_ok());
        found[60 * BLOCK] = 1;
        assert!(compare(&found, &expected).is_err());
    }
}
