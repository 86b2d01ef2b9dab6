//! The hypercall fuzzer of `tests/abi/fuzz`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::super::{Lab, Test};
use super::{Report, Suite, passes, switched_off};
use crate::emulator::Emulator;
use crate::programs::Programs;
use crate::setup;

pub const TESTS: &[Test] = &[
    Test::new("fuzz::a hostile program", |lab| short(lab, 1)),
    Test::new("fuzz::a hostile program, 4 CPUs", |lab| short(lab, 4)).only(&[Emulator::Qemu]),
    Test::new("fuzz::a seed determines what happens", repeatable).only(&[Emulator::Qemu]),
    Test::new("fuzz::a million calls", |lab| passes(lab, suite(1, 1, 1_000_000))).only(&[Emulator::Qemu]).long(),
    Test::new("fuzz::a million calls, 4 CPUs", |lab| passes(lab, suite(4, 1, 1_000_000)))
        .only(&[Emulator::Qemu])
        .long(),
];

/// What `fuzz` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where its random numbers begin; each episode takes the next
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Ends after so many hypercalls
    #[arg(long, value_name = "N", default_value = "1000000")]
    calls: u64,
    /// CPUs of the machine
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// Where it runs
    #[arg(long, value_enum, default_value = "qemu")]
    on: Emulator,
    /// Another kernel with the same interface
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Shows each call of the watched threads
    #[arg(long)]
    trace: bool,
}

fn suite(cpus: u32, seed: u64, calls: u64) -> Suite<'static> {
    let further = format!("seed={seed}\ncalls={calls}\n");
    // On a single CPU everything happens again in the same order; several shall run at once.
    Suite { cpus, further, counted: cpus == 1, ..Suite::new("fuzz") }
}

/// `cargo xtask fuzz`: shows the report as it comes.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    arguments.on.check_host()?;
    setup::for_machine(arguments.on)?;
    let programs = Programs::build(["microhypervisor", "conformance"])?;
    let kernel = arguments.kernel.clone().unwrap_or_else(|| programs.file("microhypervisor"));
    let mut suite = Suite { show: true, ..suite(arguments.cpus, arguments.seed, arguments.calls) };
    if arguments.trace {
        suite.further += "trace=1\n";
    }
    let name = format!("fuzz-{}-{}-{}", arguments.on.name(), arguments.cpus, arguments.seed);
    let (report, ending) = suite.run(&programs, &kernel, arguments.on, &name)?;
    for (name, text) in report.failures() {
        println!("# failed: {name}: {text}");
    }
    if report.failures().is_empty() {
        switched_off(&ending)?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// A short run, from a seed of its own on each machine.
fn short(lab: &Lab, cpus: u32) -> Result<()> {
    let seed = 1000 * u64::from(cpus) + lab.emulator as u64 * 100;
    passes(lab, suite(cpus, seed, if lab.emulator == Emulator::Bochs { 10_000 } else { 50_000 }))
}

/// Two runs from one seed are the same to the last result.
fn repeatable(lab: &Lab) -> Result<()> {
    let digest = |seed: u64| -> Result<String> {
        let kernel = lab.programs.file("microhypervisor");
        let (report, _) = suite(1, seed, 5_000).run(lab.programs, &kernel, lab.emulator, &lab.name)?;
        ensure!(report.failures().is_empty(), "{:?}", report.failures());
        digest(&report).context("there is no digest")
    };
    let first = digest(7)?;
    ensure!(digest(7)? == first, "the same seed, something else happened");
    ensure!(digest(8)? != first, "another seed, and the same happened");
    Ok(())
}

fn digest(report: &Report) -> Option<String> {
    report.remarks.iter().find_map(|line| Some(line.split_once("digest ")?.1.into()))
}
