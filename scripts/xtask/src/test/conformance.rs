//! The conformance root tasks of `tests/abi` on a kernel: every clause of the interface, and what we add to it.

#[cfg(test)]
mod clauses;
mod fuzz;
mod mutants;
mod tap;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Lab, Test};
use crate::emulator::qemu::IOMMU;
use crate::emulator::{Boot, Emulator, Machine};
use crate::programs::Programs;
use crate::session::{Ending, Event, Next, Session};
use crate::{setup, workspace};
pub use fuzz::{Arguments as Fuzz, TESTS as FUZZ, run as fuzz};
pub use mutants::{Arguments as Mutants, run as mutants};
pub use tap::Report;

pub const TESTS: &[Test] = &[
    Test::new("conformance::the specification", |lab| specification(lab, 1)),
    Test::new("conformance::the specification, 4 CPUs", |lab| specification(lab, 4)).only(&[Emulator::Qemu]),
    Test::new("conformance::the specification, 2 CPUs", |lab| specification(lab, 2)).only(&[Emulator::Qemu]).long(),
    Test::new("conformance::the specification, 8 CPUs", |lab| specification(lab, 8)).only(&[Emulator::Qemu]).long(),
    Test::new("conformance::the specification, 4 CPUs", |lab| specification(lab, 4)).only(&[Emulator::Bochs]).long(),
    Test::new("conformance::the extensions", |lab| extensions(lab, 1, "", None)),
    Test::new("conformance::the extensions, 4 CPUs", |lab| extensions(lab, 4, "", None)).only(&[Emulator::Qemu]),
    Test::new("conformance::the extensions, 2 CPUs", |lab| extensions(lab, 2, "", None)).only(&[Emulator::Bochs]),
    Test::new("conformance::100,000 cycles of everything", |lab| extensions(lab, 1, CYCLES, Some(100_000)))
        .only(&[Emulator::Qemu])
        .long(),
    Test::new("conformance::100,000 cycles of everything, 4 CPUs", |lab| extensions(lab, 4, CYCLES, Some(100_000)))
        .only(&[Emulator::Qemu])
        .long(),
    Test::new("conformance::10,000 pages taken away, 4 CPUs", |lab| extensions(lab, 4, SHOOTDOWN, Some(10_000))).long(),
    Test::new("conformance::devices behind an IOMMU", |lab| devices(lab, &EDU_BEHIND_IOMMU)).only(&[Emulator::Qemu]),
    Test::new("conformance::devices without an IOMMU", |lab| devices(lab, &EDU)).only(&[Emulator::Qemu]),
    Test::new("conformance::the specification, with an IOMMU", |lab| {
        passes(lab, Suite { devices: &IOMMU, ..Suite::new("conformance") })
    })
    .only(&[Emulator::Qemu]),
    Test::new("conformance::a reset starts the machine again", reset),
    Test::new("conformance::a few faults of the kernel are noticed", |lab| mutants::test(lab.programs, true))
        .only(&[Emulator::Qemu]),
    Test::new("conformance::all other faults of the kernel are noticed", |lab| mutants::test(lab.programs, false))
        .only(&[Emulator::Qemu])
        .long(),
];

/// The test that creates and destroys everything over and over.
const CYCLES: &str = "reclaim::cycles";
/// The test that takes a page away from those who write it.
const SHOOTDOWN: &str = "shootdown::";

/// Where the arguments of a suite stand in its file: behind this.
const MARKER: &[u8] = b"conformance arguments:";
/// Most bytes of arguments.
const ARGUMENTS: usize = 480;
/// For QEMU: time is what the instructions take, so that a busy host changes nothing. CPUs take turns.
const COUNTED: [&str; 2] = ["-icount", "shift=1,sleep=off"];
/// QEMU's device for attacks, with and without an IOMMU before it.
const EDU: [&str; 2] = ["-device", "edu,dma_mask=0xffffffff"];
const EDU_BEHIND_IOMMU: [&str; 4] = [IOMMU[0], IOMMU[1], EDU[0], EDU[1]];
/// RAM of the machine in MiB.
const MEMORY: u32 = 512;

/// Seconds that a suite with many rounds may take.
const LONG: u64 = 3600;

/// What `conformance` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Where it runs
    #[arg(long, value_enum, default_value = "qemu")]
    on: Emulator,
    /// CPUs of the machine
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Another kernel with the same interface
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// What this kernel adds to the interface, instead
    #[arg(long)]
    extensions: bool,
    /// What devices can do, instead (QEMU only)
    #[arg(long, conflicts_with = "extensions")]
    devices: bool,
    /// With an IOMMU (QEMU only)
    #[arg(long)]
    iommu: bool,
    /// How often tests repeat what they repeat
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
}

/// One run of a root task that reports by the Test Anything Protocol.
pub struct Suite<'a> {
    program: &'a str,
    cpus: u32,
    only: &'a str,
    /// Further lines `key=value`.
    further: String,
    /// Time on QEMU is what the instructions take; CPUs then take turns instead of running at once.
    counted: bool,
    /// What else the machine has.
    devices: &'static [&'static str],
    reset: bool,
    show: bool,
    /// How long it may take.
    patience: Duration,
    /// File for what is executed between marks.
    pub trace: Option<PathBuf>,
}

impl<'a> Suite<'a> {
    /// All of a program's tests on one CPU.
    pub fn new(program: &'a str) -> Self {
        Self {
            program,
            cpus: 1,
            only: "",
            further: String::new(),
            counted: true,
            devices: &[],
            reset: false,
            show: false,
            patience: Duration::from_secs(600),
            trace: None,
        }
    }

    /// Boots it on `kernel`; what it said, and how the machine ended.
    pub fn run(&self, programs: &Programs, kernel: &Path, emulator: Emulator, name: &str) -> Result<(Report, Ending)> {
        let folder = workspace::folder(&format!("run/{name}"))?;
        let module = folder.join(self.program);
        workspace::write(&module, &self.image(programs)?)?;
        let machine = Machine {
            boot: Boot { kernel: kernel.into(), module: Some(module.clone()), linux: None },
            memory: MEMORY,
            cpus: self.cpus,
            // The fuzzer's are to meet each other.
            take_turns: false,
            cpu_model: None,
            devices: Vec::new(),
            further: self.further_arguments(emulator),
            folder,
            trace: self.trace.clone(),
        };
        let log = workspace::folder("run")?.join(format!("{name}.log"));
        let mut session = Session::start(emulator, &machine, &log)?;
        let mut report = Report::default();
        let timeout = if self.further.is_empty() { self.patience } else { Duration::from_secs(LONG) };
        let ending = session.watch(Some(timeout), |event| {
            if let Event::Line(line) = event {
                if self.show {
                    println!("{line}");
                }
                report.line(line);
            }
            Ok(if report.over() { Next::Finish(Duration::ZERO) } else { Next::Continue })
        })?;
        drop(session);
        for file in [module, machine.folder.join("boot.iso")] {
            let _ = std::fs::remove_file(file);
        }
        Ok((report, ending))
    }

    fn further_arguments(&self, emulator: Emulator) -> Vec<String> {
        if emulator != Emulator::Qemu {
            return Vec::new();
        }
        let counted: &[&str] = if self.counted { &COUNTED } else { &[] };
        counted.iter().chain(self.devices).map(ToString::to_string).collect()
    }

    /// The program's file with its arguments.
    fn image(&self, programs: &Programs) -> Result<Vec<u8>> {
        let mut image = programs.stripped(self.program)?;
        let place = image.windows(MARKER.len()).rposition(|window| window == MARKER);
        let place = place.with_context(|| format!("{} has no place for arguments", self.program))? + MARKER.len();
        let end = if self.reset { "reset" } else { "off" };
        let arguments = format!("\nend={end}\ncpus={}\nonly={}\n{}", self.cpus, self.only, self.further);
        ensure!(arguments.len() <= ARGUMENTS, "the arguments are too long");
        image[place..place + arguments.len()].copy_from_slice(arguments.as_bytes());
        Ok(image)
    }
}

/// `cargo xtask conformance`: shows the report as it comes.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    arguments.on.check_host()?;
    setup::for_machine(arguments.on)?;
    let programs = Programs::build(["microhypervisor", "conformance"])?;
    let kernel = arguments.kernel.clone().unwrap_or_else(|| programs.file("microhypervisor"));
    let suite = Suite {
        program: match (arguments.extensions, arguments.devices) {
            (true, _) => "extensions",
            (_, true) => "devices",
            _ => "conformance",
        },
        cpus: arguments.cpus,
        only: arguments.filter.as_deref().unwrap_or_default(),
        further: arguments.rounds.map(|rounds| format!("rounds={rounds}\n")).unwrap_or_default(),
        counted: !arguments.extensions || arguments.cpus == 1,
        devices: match (arguments.iommu, arguments.devices) {
            (false, false) => &[],
            (false, true) => &EDU,
            (true, false) => &IOMMU,
            (true, true) => &EDU_BEHIND_IOMMU,
        },
        show: true,
        ..Suite::new("")
    };
    let name = format!("{}-{}-{}", suite.program, arguments.on.name(), arguments.cpus);
    let (report, ending) = suite.run(&programs, &kernel, arguments.on, &name)?;
    let failures = report.failures();
    let (passed, skipped) = report.counts();
    println!("# {passed} passed, {skipped} skipped, {} failed", failures.len());
    for (name, text) in &failures {
        println!("# failed: {name}: {text}");
    }
    if failures.is_empty() {
        switched_off(&ending)?;
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All of a suite passes, and the machine is off when it has ended it.
fn passes(lab: &Lab, suite: Suite) -> Result<()> {
    let kernel = lab.programs.file("microhypervisor");
    let (report, ending) = suite.run(lab.programs, &kernel, lab.emulator, &lab.name)?;
    let failures = report.failures();
    if !failures.is_empty() {
        let lines: Vec<String> = failures.iter().map(|(name, text)| format!("{name}: {text}")).collect();
        bail!("{} of {} tests failed:\n{}", lines.len(), report.tests.len(), lines.join("\n"));
    }
    switched_off(&ending)?;
    let (passed, skipped) = report.counts();
    println!("{} on {}, {} CPU: {passed} passed, {skipped} skipped", suite.program, lab.emulator.name(), suite.cpus);
    Ok(())
}

fn specification(lab: &Lab, cpus: u32) -> Result<()> {
    passes(lab, Suite { cpus, ..Suite::new("conformance") })
}

/// What we add, on `cpus` CPUs: tests whose name contains `only`, which repeat what they repeat `rounds` times.
fn extensions(lab: &Lab, cpus: u32, only: &str, rounds: Option<u64>) -> Result<()> {
    let mut further = rounds.map(|rounds| format!("rounds={rounds}\n")).unwrap_or_default();
    if cpus == 1 {
        // Time counts instructions, here and in Bochs.
        further += "exact=1\n";
    }
    // Several CPUs shall run at once.
    passes(lab, Suite { cpus, only, further, counted: cpus == 1, ..Suite::new("extensions") })
}

/// What devices can do: without an IOMMU the attacks must work.
fn devices(lab: &Lab, devices: &'static [&'static str]) -> Result<()> {
    passes(lab, Suite { devices, ..Suite::new("devices") })
}

/// The end by ctrl_hw, sleep state S5: the machine stops without having been told from outside.
fn switched_off(ending: &Ending) -> Result<()> {
    match ending {
        Ending::Stopped(_) => Ok(()),
        Ending::Finished => bail!("the machine was reset instead of switched off"),
        ending => Err(anyhow!(ending.failure().unwrap_or_default())),
    }
}

/// The end by ctrl_hw, platform reset: QEMU then stops, as it is told; in Bochs everything begins anew.
fn reset(lab: &Lab) -> Result<()> {
    let suite = Suite { only: "information page::", reset: true, ..Suite::new("conformance") };
    let kernel = lab.programs.file("microhypervisor");
    let (report, ending) = suite.run(lab.programs, &kernel, lab.emulator, &lab.name)?;
    ensure!(report.complete() && report.failures().is_empty(), "the suite failed: {:?}", report.failures());
    match (lab.emulator, &ending) {
        (Emulator::Bochs, Ending::Finished) if report.reset() => Ok(()),
        (Emulator::Qemu | Emulator::Kvm, Ending::Stopped(_)) => Ok(()),
        (_, ending) => bail!("no reset: {ending:?}"),
    }
}
