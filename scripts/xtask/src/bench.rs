//! `cargo xtask bench`: what things cost, in instructions, beside what they cost elsewhere.
//!
//! Instructions are counted by a QEMU plugin while virtual time is a function of them (`-icount`), so that two runs
//! give the same number. They are no cycles: emulators have neither caches nor the cost of a world switch.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::bundle::{self, Built};
use crate::emulator::{Emulator, Machine};
use crate::session::{Event, Next, Session};
use crate::{programs, setup, workspace};

/// The line with which `/init` greets.
const GREETING: &str = "This is Linux inside Kilonova.";
/// How much longer than a bare boot a boot in a virtual machine may be.
const MOST: f64 = 1.3;
/// Bytes of code that identify a place.
const PLACE: usize = 64;

/// Counts the instructions of a boot of Linux, bare and in a virtual machine, from the kernel's first to the first of
/// `/init`, whoever executes them; fails if the second is too much more.
pub fn run() -> Result<()> {
    setup::for_machine(Emulator::Qemu)?;
    let bare = count(bundle::build_bare("linux")?)?;
    println!("boot of Linux, bare:               {bare:>14} instructions");
    let virtual_machine = count(bundle::build("linux", None, None)?)?;
    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    let ratio = virtual_machine as f64 / bare as f64;
    println!("boot of Linux, in virtual machine: {virtual_machine:>14} instructions, {ratio:.3} times as many");
    ensure!(ratio <= MOST, "a boot in a virtual machine may take at most {MOST} times as many");
    Ok(())
}

fn count(built: Built) -> Result<u64> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).args(["build", "--quiet", "--package", "instruction-count"]);
    programs::run(&mut cargo, "building the QEMU plugin")?;
    let plugin = workspace::target().join("debug/libinstruction_count.so");
    let name = format!("{}-count", built.name);
    let folder = workspace::folder(&format!("run/{name}"))?;
    let out = folder.join("count");
    let _ = fs::remove_file(&out);
    let (start, stop) = (kernel_entry()?, shell_entry()?);
    let task = format!("{},start={start},stop={stop},out={}", plugin.display(), out.display());
    let further = ["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1", "-plugin", &task];
    let machine = Machine {
        boot: built.boot,
        memory: built.memory,
        cpus: 1,
        cpu_model: None,
        further: further.map(String::from).into(),
        folder,
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

/// The 64-bit entry of the guest kernel: Linux's documentation, "The Linux/x86 Boot Protocol", 64-bit boot protocol.
fn kernel_entry() -> Result<String> {
    let image = workspace::read(&workspace::folder("guests/linux-image-cloud-amd64")?.join("vmlinuz"))?;
    let setup_sectors = usize::from(*image.get(0x1f1).context("the guest kernel is cut short")?);
    place(&image, (setup_sectors + 1) * 512 + 0x200)
}

/// The entry of the shell that is the first process, by its ELF file.
fn shell_entry() -> Result<String> {
    let file = workspace::folder("guests/busybox-static")?.join("busybox");
    entry_of(&file).with_context(|| format!("{} has no entry", workspace::shown(&file)))
}

fn entry_of(file: &Path) -> Result<String> {
    let content = workspace::read(file)?;
    let elf =
        elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&content).map_err(|error| anyhow!("{error}"))?;
    let entry = elf.ehdr.e_entry;
    let segments = elf.segments().context("no segments")?;
    let segment = segments
        .iter()
        .find(|segment| (segment.p_vaddr..segment.p_vaddr + segment.p_filesz).contains(&entry))
        .context("outside all segments")?;
    place(&content, usize::try_from(segment.p_offset + entry - segment.p_vaddr)?)
}

fn place(content: &[u8], at: usize) -> Result<String> {
    let code = content.get(at..at + PLACE).context("the code is cut short")?;
    Ok(code.iter().map(|byte| format!("{byte:02x}")).collect())
}
