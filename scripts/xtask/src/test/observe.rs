//! What the kernel counts and records reaches the user, and is right: the monitor keeps books of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Lab, Test};
use crate::emulator::Emulator;
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("observe::counters and trace of a guest", guest),
    Test::new("observe::counters of 4 CPUs", processors),
    Test::new("observe::a command's output stays as it is", command).only(&[Emulator::Qemu]),
];

/// A copy of a system of `tests/systems` under the test's name: runs of the same system use the same files.
pub fn copy(lab: &Lab, system: &str) -> Result<String> {
    let text = workspace::read(&workspace::root().join(format!("tests/systems/{system}.toml")))?;
    let file = workspace::folder(&format!("run/{}", lab.name))?.join(format!("{}.toml", lab.name));
    workspace::write(&file, &text)?;
    Ok(file.display().to_string())
}

/// Standard output and standard error of a run that has to succeed.
fn run(arguments: &[&str]) -> Result<(String, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.current_dir(workspace::root()).arg("run").args(arguments).args(["--timeout", "400"]);
    let output = command.stdin(Stdio::null()).output()?;
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(output.status.success(), "{}: {out}{error}", output.status);
    Ok((out, error))
}

/// The numbers of a line of the table, one for each CPU.
fn row(table: &str, heading: &str, name: &str) -> Result<Vec<u64>> {
    let section = table.split_once(&format!("\n{heading}\n")).with_context(|| format!("no {heading}: {table}"))?.1;
    let line =
        section.lines().take_while(|line| line.starts_with("  ")).find_map(|line| line.trim().strip_prefix(name));
    let line = line.with_context(|| format!("no {name:?}: {table}"))?;
    line.split_whitespace().map(|number| Ok(number.parse()?)).collect()
}

/// The kernel's counts of exits and the trace's are those of the monitor.
fn guest(lab: &Lab) -> Result<()> {
    let file = workspace::folder(&format!("run/{}", lab.name))?.join("trace.json");
    let name = file.display().to_string();
    let system = copy(lab, "micro")?;
    let (console, table) = run(&[&system, "--on", lab.emulator.name(), "--stats", "--trace", &name])?;
    // Some may be: the line has 11,520 bytes a second in Bochs, and in QEMU a busy host leaves the guest less idle time.
    let whole = table.contains(" 0 lost;");
    let trace = Trace::read(&file)?;
    for reason in ["CPUID", "RDMSR", "WRMSR", "HLT", "port I/O", "memory access"] {
        let text = format!("[micro] exits by {reason}: ");
        let told = console.lines().find_map(|line| line.trim_end().strip_prefix(&text));
        let told: u64 = told.with_context(|| format!("the monitor counts no {reason}: {console}"))?.parse()?;
        ensure!(row(&table, "exits by reason", reason)? == [told], "{told} exits by {reason}: {table}");
        let traced = trace.instants.get(reason).copied().unwrap_or_default();
        let right = if whole { traced == told } else { traced <= told };
        ensure!(right, "the trace has {traced} exits by {reason}, not {told}: {table}");
    }
    ensure!(trace.instants.contains_key("port I/O"), "the trace has no exits: {:?}", trace.instants);
    ensure!(whole != trace.instants.contains_key("lost"), "the trace does not tell of losses: {:?}", trace.instants);
    ensure!(trace.cpus == 1, "the trace has {} CPUs", trace.cpus);
    // A program is known by the first turn of its main EC, which may be among what was lost; then it has a number for a name.
    for (program, ec) in [("micro", "vCPU"), ("serial", "main")] {
        let ran = |name: &String| name.strip_suffix(ec).is_some_and(|rest| rest.trim() == program || !whole);
        ensure!(trace.slices.keys().any(ran), "nobody ran as {program} {ec}: {table}{:?}", trace.slices);
    }
    // Its name may be among what was lost.
    let root = !whole || trace.slices.keys().any(|name| name.starts_with("root "));
    ensure!(root, "the root task never ran: {:?}", trace.slices);
    ensure!(trace.instants.contains_key("ipc_reply"), "there are no hypercalls: {:?}", trace.instants);
    Ok(())
}

/// With several CPUs, all of them count; what one takes away the others confirm.
fn processors(lab: &Lab) -> Result<()> {
    let system = copy(lab, "micro")?;
    let (_, table) = run(&[&system, "--on", lab.emulator.name(), "--cpus", "4", "--take-turns", "--stats"])?;
    let calls = row(&table, "hypercalls", "ipc_reply")?;
    ensure!(calls.len() == 4 && calls[0] > 0, "the hypercalls are not counted: {table}");
    // Destroying the virtual machine takes two rounds.
    ensure!(row(&table, "shootdowns", "rounds begun")?[0] >= 2, "no rounds: {table}");
    let answers = row(&table, "shootdowns", "rounds of others answered")?;
    ensure!(answers[1..].iter().all(|answers| *answers >= 2), "not all CPUs answered: {table}");
    Ok(())
}

fn command(lab: &Lab) -> Result<()> {
    let (output, table) = run(&[&copy(lab, "linux")?, "--exec", "echo all there is", "--stats"])?;
    ensure!(output == "all there is\n", "the output is {output:?}");
    ensure!(row(&table, "exits by reason", "CPUID")?[0] > 10, "no exits: {table}");
    Ok(())
}

/// What a viewer would find in a trace, checked as a viewer would have to.
struct Trace {
    cpus: usize,
    /// What ran, by name.
    slices: BTreeMap<String, u64>,
    /// What happened, by name.
    instants: BTreeMap<String, u64>,
}

impl Trace {
    fn read(file: &std::path::Path) -> Result<Self> {
        let file: Value = serde_json::from_reader(BufReader::new(File::open(file)?))?;
        let events = file["traceEvents"].as_array().context("there is no list of events")?;
        let mut trace = Self { cpus: 0, slices: BTreeMap::new(), instants: BTreeMap::new() };
        let mut titles = BTreeMap::new();
        let mut ends: BTreeMap<(u64, u64), f64> = BTreeMap::new();
        for event in events {
            let name = event["name"].as_str().context("an event has no name")?;
            let number = |key: &str| event[key].as_f64().with_context(|| format!("an event has no {key}: {event}"));
            let track = (number("pid")? as u64, number("tid")? as u64);
            let ts = number("ts")?;
            match event["ph"].as_str() {
                Some("X") => {
                    let end = ends.entry(track).or_default();
                    // Times are fractions of a microsecond, rounded.
                    ensure!(ts + 0.001 >= *end && number("dur")? >= 0.0, "slices of a track overlap: {event}");
                    *end = ts + number("dur")?;
                    if track.0 == 1 {
                        *trace.slices.entry(name.into()).or_default() += 1;
                    }
                }
                Some("i") => *trace.instants.entry(name.into()).or_default() += 1,
                Some("M") => {
                    let title = event["args"]["name"].as_str().context("a title is no text")?;
                    titles.insert((name.to_string(), track), title.to_string());
                }
                other => anyhow::bail!("an event of the unknown kind {other:?}"),
            }
        }
        for track in ends.keys() {
            ensure!(titles.contains_key(&("thread_name".into(), *track)), "the track {track:?} has no title");
        }
        trace.cpus = titles.values().filter(|title| title.starts_with("CPU ")).count();
        Ok(trace)
    }
}
