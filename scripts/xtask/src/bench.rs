//! `cargo xtask bench`: what things cost beside what they cost elsewhere.
//!
//! Instructions are counted by a QEMU plugin while virtual time is a function of them (`-icount`), so that two runs
//! give the same number. They are no cycles: emulators have neither caches nor the cost of a world switch.

mod boot;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::emulator::Emulator;
use crate::setup;

/// What `bench` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only benchmarks whose name contains this
    filter: Option<String>,
    /// Writes the table to FILE, too, as an array of objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One line of the table.
#[derive(Serialize)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// What it takes here.
    pub ours: f64,
    /// What it takes elsewhere.
    pub peer: f64,
    /// Where that is.
    pub peer_name: &'static str,
    /// What both are counted in.
    pub unit: &'static str,
    /// How both were counted.
    pub method: &'static str,
}

impl Row {
    /// How many times as much it takes here as elsewhere.
    pub fn ratio(&self) -> f64 {
        self.ours / self.peer
    }
}

/// Something to measure.
struct Benchmark {
    name: &'static str,
    /// The largest ratio that is accepted.
    most: f64,
    measure: fn(name: &'static str) -> Result<Row>,
}

impl Benchmark {
    fn run(&self) -> Result<Row> {
        (self.measure)(self.name)
    }

    /// Why the result is not accepted.
    fn complaint(&self, row: &Row) -> Option<String> {
        let ratio = row.ratio();
        (ratio > self.most).then(|| format!("{} is {ratio:.3} times its peer, at most {}", row.name, self.most))
    }
}

/// Measures everything whose name begins like this; fails where something takes too much more than elsewhere.
pub fn check(prefix: &str) -> Result<()> {
    for benchmark in BENCHMARKS.iter().filter(|benchmark| benchmark.name.starts_with(prefix)) {
        if let Some(complaint) = benchmark.complaint(&benchmark.run()?) {
            bail!(complaint);
        }
    }
    Ok(())
}

/// All benchmarks.
const BENCHMARKS: &[Benchmark] = &[
    Benchmark { name: "linux::boot", most: boot::MOST, measure: boot::boot },
    Benchmark { name: "linux::boot, waiting cheap", most: boot::MOST, measure: boot::boot_with_short_waits },
];

/// Measures, prints the table, and fails where something takes too much more than elsewhere.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::for_machine(Emulator::Qemu)?;
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let mut rows = Vec::new();
    let mut errors = Vec::new();
    println!("{:<28} {:>14} {:>14} {:>6}  unit and peer", "benchmark", "ours", "peer", "ratio");
    for benchmark in BENCHMARKS.iter().filter(|benchmark| benchmark.name.contains(filter)) {
        let row = benchmark.run()?;
        let ratio = row.ratio();
        println!("{:<28} {:>14} {:>14} {ratio:>6.3}  {}, {}", row.name, row.ours, row.peer, row.unit, row.peer_name);
        errors.extend(benchmark.complaint(&row));
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "no benchmark's name contains {filter:?}");
    if let Some(file) = &arguments.json {
        let table = serde_json::to_vec_pretty(&rows)?;
        fs::write(file, table).with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    Ok(())
}
