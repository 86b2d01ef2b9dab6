//! A boot of Linux in a virtual machine beside the same boot on the machine itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use plan::observation::Wanted;

use super::figures::Measured;
use super::runs::Runs;
use crate::bundle::{self, Built};
use crate::emulator::{Emulator, Machine};
use crate::programs::{self, Programs};
use crate::session::{Event, Next, Session};
use crate::system::Size;
use crate::workspace;

/// How many times the instructions of a bare boot one in a virtual machine may take.
pub const MOST: f64 = 1.3;

/// The line with which `/init` greets.
const GREETING: &str = "This is Linux inside Kilonova.";
/// Bytes of code that identify a place, none of which is behind a branch.
const PLACE: usize = 12;

/// The CPU of the bare machine: QEMU's without what the monitor hides from a virtual machine's, so that Linux does the
/// same on both (with LA57, for one, it would have page tables of five levels).
pub const GUEST_CPU: &str = "max,-svm,-la57,-monitor,-mpx,-pku,-wbnoinvd,-mce,-mca,-acpi";

/// From the kernel's first instruction to the first of `/init`, whoever executes it: guest, kernel, root task, monitor.
pub fn boot(_: &mut Runs) -> Result<Measured> {
    compare(0)
}

/// The same with time that passes faster. Much of a bare boot is waiting for a time to pass, to measure clocks, which a
/// virtual machine is spared; here that takes few instructions, and what is compared is work.
pub fn boot_with_short_waits(_: &mut Runs) -> Result<Measured> {
    compare(4)
}

/// Fails where a boot takes too much more than a bare one.
pub fn check() -> Result<()> {
    for shift in [0, 4] {
        let ratio = compare(shift)?.ours;
        ensure!(ratio <= MOST, "a boot takes {ratio:.3} times a bare one (-icount shift={shift}), at most {MOST}");
    }
    Ok(())
}

fn compare(shift: u32) -> Result<Measured> {
    let peer = count(bundle::build_bare("linux", Size::default())?, Some(GUEST_CPU), shift)?;
    let ours = count(bundle::build("linux", Size::default(), None, None, Wanted::default())?, None, shift)?;
    Ok(Measured::beside(ours / peer, 1.0, "bare boot"))
}

fn count(built: Built, cpu_model: Option<&str>, shift: u32) -> Result<f64> {
    let plugin = plugin()?;
    let name = format!("{}-count", built.name);
    let folder = workspace::folder(&format!("run/{name}"))?;
    let out = folder.join("count");
    let _ = fs::remove_file(&out);
    // The kernel starts programs before `/init`, and these are the same file: the first process is the one that then
    // starts the agent.
    let (start, stop, end) = (kernel_entry()?, shell_entry()?, agent_entry()?);
    let task = format!("{plugin},start={start},stop={stop},end={end},out={}", out.display());
    let time = format!("shift={shift},sleep=off");
    let further = ["-icount", &time, "-rtc", "base=2026-01-01,clock=vm", "-seed", "1", "-plugin", &task];
    let machine = Machine {
        boot: built.boot,
        memory: built.memory,
        cpus: 1,
        take_turns: false,
        cpu_model: cpu_model.map(String::from),
        devices: built.devices,
        further: further.map(String::from).into(),
        folder,
        trace: None,
    };
    let log = workspace::folder("run")?.join(format!("{name}.log"));
    let mut session = Session::start(Emulator::Qemu, &machine, &log)?;
    let mut greeted = false;
    let ending = session.watch(Some(Duration::from_secs(600)), |event| {
        greeted |= matches!(event, Event::Line(line) if line.contains(GREETING));
        Ok(if greeted { Next::Finish(Duration::ZERO) } else { Next::Continue })
    })?;
    if !greeted {
        bail!("{}\n{}", ending.failure().unwrap_or_default(), session.tail());
    }
    let number = fs::read_to_string(&out).context("the plugin counted nothing")?;
    number.trim().parse().context("the plugin wrote no number")
}

/// Builds the plugin and gives its path.
fn plugin() -> Result<String> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).args(["build", "--quiet", "--package", "instruction-count"]);
    programs::run(&mut cargo, "building the QEMU plugin")?;
    Ok(workspace::target().join("debug/libinstruction_count.so").display().to_string())
}

/// The 64-bit entry of the guest kernel: Linux's documentation, "The Linux/x86 Boot Protocol", 64-bit boot protocol.
fn kernel_entry() -> Result<String> {
    let image = workspace::read(&workspace::folder("guests/linux-image-cloud-amd64")?.join("vmlinuz"))?;
    let setup_sectors = usize::from(*image.get(0x1f1).context("the guest kernel is cut short")?);
    place(&image, (setup_sectors + 1) * 512 + 0x200)
}

/// The entry of the shell that is the first process.
fn shell_entry() -> Result<String> {
    entry_of(&workspace::folder("guests/busybox-static")?.join("busybox"))
}

/// The entry of the first program that the shell starts.
fn agent_entry() -> Result<String> {
    entry_of(&Programs::build(["agent"])?.file("agent"))
}

/// The code at the entry of an ELF file.
fn entry_of(file: &Path) -> Result<String> {
    let content = workspace::read(file)?;
    let code = || {
        let elf =
            elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&content).map_err(|error| anyhow!("{error}"))?;
        let entry = elf.ehdr.e_entry;
        let segments = elf.segments().context("no segments")?;
        let segment = segments
            .iter()
            .find(|segment| (segment.p_vaddr..segment.p_vaddr + segment.p_filesz).contains(&entry))
            .context("outside all segments")?;
        place(&content, usize::try_from(segment.p_offset + entry - segment.p_vaddr)?)
    };
    code().with_context(|| format!("{} has no entry", workspace::shown(file)))
}

fn place(content: &[u8], at: usize) -> Result<String> {
    let code = content.get(at..at + PLACE).context("the code is cut short")?;
    Ok(code.iter().map(|byte| format!("{byte:02x}")).collect())
}
