//! Runs of measuring programs. Each is made when a figure first needs it, and once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::count::Counts;
use super::exits::{self, Costs, Host};
use super::io;
use super::linux::{self, Linux};
use super::scale::{self, Scale};
use super::window::{self, Span, Trace, Window};
use crate::emulator::Emulator;
use crate::programs::{self, Programs};
use crate::test::{Report, Suite};
use crate::{setup, workspace};

/// What the bench root task did on one emulator.
struct Operations {
    /// The windows of each name, in their order.
    windows: BTreeMap<String, Vec<Window>>,
    /// What went wrong.
    failures: String,
    off: Option<Span>,
}

/// How often the bench root task makes each operation.
const ROUNDS: usize = 8;

/// Everything that is measured at once.
pub struct Runs {
    /// Another kernel than ours.
    pub kernel: Option<PathBuf>,
    operations: Vec<(Emulator, Result<Operations, String>)>,
    exits: Vec<((Host, Emulator), Result<Costs, String>)>,
    /// By the number of virtual machines.
    scales: Vec<(usize, Result<Scale, String>)>,
    /// In a virtual machine, and on the machine itself.
    linux: [Option<Result<Linux, String>>; 2],
    /// The same, of requests to a disk.
    io: [Option<Result<io::Costs, String>>; 2],
}

impl Runs {
    /// Nothing measured yet.
    pub fn new(kernel: Option<PathBuf>) -> Self {
        Self {
            kernel,
            operations: Vec::new(),
            exits: Vec::new(),
            scales: Vec::new(),
            linux: [None, None],
            io: [None, None],
        }
    }

    /// What an exit and a machine cost among `count` machines.
    pub fn scale(&mut self, count: usize) -> Result<Scale> {
        let known = match self.scales.iter().position(|(known, _)| *known == count) {
            Some(known) => known,
            None => {
                let made = scale::measure(count).map_err(|error| format!("{error:#}"));
                self.scales.push((count, made));
                self.scales.len() - 1
            }
        };
        self.scales[known].1.clone().map_err(|error| anyhow!("{error}"))
    }

    /// What Linux measured, on the machine itself if `bare`.
    pub fn linux(&mut self, bare: bool) -> Result<&Linux> {
        let made = || linux::measure(bare).map_err(|error| format!("{error:#}"));
        self.linux[usize::from(bare)].get_or_insert_with(made).as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// What Linux' requests to a disk cost, on the machine itself if `bare`.
    pub fn io(&mut self, bare: bool) -> Result<&io::Costs> {
        let made = || io::measure(bare).map_err(|error| format!("{error:#}"));
        self.io[usize::from(bare)].get_or_insert_with(made).as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// What the micro guest's operations cost on a host.
    pub fn exits(&mut self, host: Host, on: Emulator) -> Result<&Costs> {
        let key = (host, on);
        let known = match self.exits.iter().position(|(known, _)| *known == key) {
            Some(known) => known,
            None => {
                let made = exits::measure(host, on).map_err(|error| format!("{error:#}"));
                self.exits.push((key, made));
                self.exits.len() - 1
            }
        };
        self.exits[known].1.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// The kernel that is measured.
    pub fn kernel(&self) -> Result<PathBuf> {
        match &self.kernel {
            Some(kernel) => Ok(kernel.clone()),
            None => Ok(Programs::build(["microhypervisor"])?.file("microhypervisor")),
        }
    }

    fn operations(&mut self, on: Emulator) -> Result<&Operations> {
        let known = match self.operations.iter().position(|(emulator, _)| *emulator == on) {
            Some(known) => known,
            None => {
                let made = operations(on, self.kernel.as_deref()).map_err(|error| format!("{error:#}"));
                self.operations.push((on, made));
                self.operations.len() - 1
            }
        };
        self.operations[known].1.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// The longest span of the kernel with interrupts off.
    pub fn off(&mut self) -> Result<Span> {
        self.operations(Emulator::Qemu)?.off.context("the plugin saw no span with interrupts off")
    }

    /// All windows with this name.
    pub fn windows(&mut self, on: Emulator, name: &str) -> Result<&[Window]> {
        let operations = self.operations(on)?;
        let windows = operations.windows.get(name).map(Vec::as_slice).unwrap_or_default();
        let (made, failures) = (windows.len(), &operations.failures);
        ensure!(made == ROUNDS, "the bench root task did this {made} times instead of {ROUNDS}{failures}");
        Ok(windows)
    }

    /// The first window with this name: nothing that it needs has been used before.
    pub fn cold(&mut self, on: Emulator, name: &str) -> Result<Counts> {
        self.windows(on, name)?.first().map(Counts::of).context("no window")
    }

    /// The usual window with this name: the median of all but the first, by the kernel's instructions.
    pub fn usual(&mut self, on: Emulator, name: &str) -> Result<Counts> {
        self.usual_window(on, name).map(|window| Counts::of(&window))
    }

    /// The window that [`Runs::usual`] counts.
    pub fn usual_window(&mut self, on: Emulator, name: &str) -> Result<Window> {
        let windows = self.windows(on, name)?;
        let mut warm: Vec<_> = windows.iter().skip(1).map(|window| (Counts::of(window).kernel, window)).collect();
        warm.sort_by_key(|(kernel, _)| *kernel);
        let (_, window) = warm.get(warm.len() / 2).context("only one window")?;
        Ok((*window).clone())
    }
}

/// Runs the bench root task.
fn operations(on: Emulator, kernel: Option<&Path>) -> Result<Operations> {
    setup::for_machine(on)?;
    let programs = Programs::build(["microhypervisor", "bench"])?;
    build_plugin()?;
    let kernel = kernel.map_or_else(|| programs.file("microhypervisor"), PathBuf::from);
    let name = format!("bench-{}", on.name());
    let (report, trace) = traced(&programs, &kernel, on, ("bench", &name))?;
    by_name(&report, trace)
}

/// The longest span of the kernel with interrupts off in a conformance suite, by which everything is called.
pub fn off_in_conformance(kernel: Option<&Path>) -> Result<Span> {
    let programs = Programs::build(["microhypervisor", "conformance"])?;
    build_plugin()?;
    let kernel = kernel.map_or_else(|| programs.file("microhypervisor"), PathBuf::from);
    let (_, trace) = traced(&programs, &kernel, Emulator::Qemu, ("conformance", "bench-conformance"))?;
    trace.off.context("the plugin saw no span with interrupts off")
}

/// Runs a root task to its end; its report, and what was written down.
fn traced(programs: &Programs, kernel: &Path, on: Emulator, (suite, name): (&str, &str)) -> Result<(Report, Trace)> {
    // Tests run side by side.
    let name = format!("{name}-{}", std::process::id());
    let folder = workspace::folder(&format!("run/{name}"))?;
    let mut suite = Suite::new(suite);
    suite.trace = Some(folder.join("trace"));
    let (report, ending) = suite.run(programs, kernel, on, &name)?;
    if !report.complete() {
        bail!("the root task came to no end: {:?} ({ending:?})", report.failures());
    }
    let text = String::from_utf8_lossy(&workspace::read(&folder.join("trace"))?).into_owned();
    let trace = if on == Emulator::Bochs { window::of_bochs(&text)? } else { window::of_qemu(&text)? };
    let _ = fs::remove_file(folder.with_extension("log"));
    let _ = fs::remove_dir_all(folder);
    Ok((report, trace))
}

/// The windows by the names that the root task told.
fn by_name(report: &Report, trace: Trace) -> Result<Operations> {
    let name = |remark: &str| {
        let (number, name) = remark.strip_prefix("window ")?.split_once(" is ")?;
        Some((number.parse().ok()?, name.to_string()))
    };
    let names: BTreeMap<u8, String> = report.remarks.iter().filter_map(|remark| name(remark)).collect();
    ensure!(!names.is_empty(), "the bench root task named no windows");
    let failures = report.failures().iter().map(|(name, text)| format!("; {name}: {text}")).collect();
    let mut operations = Operations { windows: BTreeMap::new(), failures, off: trace.off };
    for window in trace.windows {
        let name = names.get(&window.number).with_context(|| format!("window {} has no name", window.number))?;
        operations.windows.entry(name.clone()).or_default().push(window);
    }
    Ok(operations)
}

/// Builds the QEMU plugin.
pub fn build_plugin() -> Result<()> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).args(["build", "--quiet", "--package", "window-trace"]);
    programs::run(&mut cargo, "building the QEMU plugin")
}
