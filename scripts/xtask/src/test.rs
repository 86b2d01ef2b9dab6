//! `cargo xtask test`: the host's tests, then whole systems in emulators. One table of tests, one body for each, run
//! on every emulator it is meant for.

mod attack;
mod bench;
mod boot;
mod broken;
mod clock;
mod conformance;
mod crash;
mod debugger;
mod devices;
mod dialogue;
mod disk;
mod disk_net;
mod endings;
mod fault;
mod firmware;
mod front;
mod host;
mod isolation;
mod kills;
mod linux;
mod loader;
mod micro;
mod network;
mod observe;
mod passthrough;
mod remapping;
mod restart;
mod transfer_nmi;
mod virtio;
mod written;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::Result;

use crate::emulator::Emulator;
use crate::programs::Programs;
use crate::{setup, workspace};

pub use conformance::{Arguments as Conformance, Fuzz, Mutants, Report, Suite, fuzz, mutants, run as conformance};

/// What `test` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this; "host" stands for all tests on the host
    filter: Option<String>,
    /// The long ones, too
    #[arg(long)]
    all: bool,
}

/// Systems that run side by side: an emulator keeps one core busy.
const SIDE_BY_SIDE: usize = 2;

/// How many tests there were.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that did not.
    pub failed: u32,
}

/// One for each vendor's virtualization.
const BOTH: &[Emulator] = &[QEMU[0], BOCHS[0]];
const QEMU: &[Emulator] = &[Emulator::Qemu];
const BOCHS: &[Emulator] = &[Emulator::Bochs];

/// A system test.
struct Test {
    /// `topic::name`.
    name: &'static str,
    /// Where it runs.
    on: &'static [Emulator],
    /// Where it takes minutes, and so needs `--all`.
    long: &'static [Emulator],
    body: fn(&Lab) -> Result<()>,
}

impl Test {
    /// A test that runs on both vendors.
    const fn new(name: &'static str, body: fn(&Lab) -> Result<()>) -> Self {
        Self { name, on: BOTH, long: &[], body }
    }

    const fn only(mut self, on: &'static [Emulator]) -> Self {
        self.on = on;
        self
    }

    const fn long(self) -> Self {
        self.long_on(BOTH)
    }

    const fn long_on(mut self, on: &'static [Emulator]) -> Self {
        self.long = on;
        self
    }
}

/// What a system test's body works with.
struct Lab<'a> {
    emulator: Emulator,
    programs: &'a Programs,
    /// The test's name with the emulator's, fit for a file name.
    name: String,
}

/// Runs tests; says how many at the end.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::everything()?;
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let mut count = host::run(filter)?;
    let topics = [
        conformance::TESTS,
        conformance::FUZZ,
        micro::TESTS,
        linux::TESTS,
        disk::TESTS,
        network::TESTS,
        fault::TESTS,
        broken::TESTS,
        firmware::TESTS,
        front::TESTS,
        isolation::TESTS,
        crash::TESTS,
        devices::TESTS,
        remapping::TESTS,
        attack::TESTS,
        disk_net::TESTS,
        kills::TESTS,
        passthrough::TESTS,
        endings::TESTS,
        restart::TESTS,
        observe::TESTS,
        transfer_nmi::TESTS,
        virtio::TESTS,
        bench::TESTS,
    ];
    let jobs: VecDeque<(&Test, Emulator)> = topics
        .into_iter()
        .flatten()
        .flat_map(|test| test.on.iter().map(move |&emulator| (test, emulator)))
        .filter(|(test, emulator)| arguments.all || !test.long.contains(emulator))
        .filter(|(test, emulator)| title(test, *emulator).contains(filter))
        .collect();
    if !jobs.is_empty() {
        let systems = in_emulators(jobs)?;
        count.passed += systems.passed;
        count.failed += systems.failed;
    }
    if count.passed + count.failed == 0 {
        eprintln!("no test has {filter:?} in its name; the long ones run with --all");
    }
    // Read by machines, too.
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 && count.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn title(test: &Test, emulator: Emulator) -> String {
    format!("{} on {}", test.name, emulator.name())
}

fn in_emulators(jobs: VecDeque<(&Test, Emulator)>) -> Result<Count> {
    println!("running {} tests of whole systems", jobs.len());
    let programs = Programs::all()?;
    workspace::folder("run")?;
    let jobs = Mutex::new(jobs);
    let count = Mutex::new(Count::default());
    let take = || jobs.lock().expect("no holder panics").pop_front();
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some((test, emulator)) = take() {
                    let start = Instant::now();
                    let name = format!("{}-{}", test.name.replace("::", "-").replace([' ', ','], "-"), emulator.name());
                    let outcome = (test.body)(&Lab { emulator, programs: &programs, name });
                    let mut count = count.lock().expect("no holder panics");
                    let time = start.elapsed().as_secs_f32();
                    match outcome {
                        Ok(()) => {
                            count.passed += 1;
                            println!("test {} ... ok ({time:.1} s)", title(test, emulator));
                        }
                        Err(error) => {
                            count.failed += 1;
                            println!("test {} ... FAILED ({time:.1} s)\n{error:#}", title(test, emulator));
                        }
                    }
                }
            });
        }
    });
    Ok(count.into_inner().expect("no holder panics"))
}
