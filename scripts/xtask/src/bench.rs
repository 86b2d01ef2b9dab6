//! `cargo xtask bench`: what things cost beside what they cost elsewhere.
//!
//! Programs on the machine put marks around what is measured; the emulators write down everything that is executed
//! between two marks, and here it is counted. Virtual time is a function of the instructions, so that two runs give the
//! same numbers. They are no cycles: emulators have neither caches nor the cost of a world switch, which is why what
//! costs more than an instruction is counted by itself.

mod boot;
mod count;
mod exits;
mod figures;
mod io;
mod linux;
mod listing;
mod peer;
mod recorded;
mod runs;
mod scale;
mod window;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::emulator::Emulator;
use crate::workspace;
use count::Counts;
use figures::{FIGURES, Figure, Measured};
use runs::Runs;

pub use boot::check as check_boot;

/// What `bench` was asked to do.
#[derive(Args)]
pub struct Arguments {
    /// Only these figures, or all whose name begins with this and a dot
    names: Vec<String>,
    /// Prints the table as an array of objects
    #[arg(long)]
    json: bool,
    /// Only figures of this emulator; kernel operations are then counted there
    #[arg(long, value_enum)]
    on: Option<Emulator>,
    /// Prints the kernel's instructions of one figure instead
    #[arg(long)]
    listing: bool,
    /// Writes the counts into tests/bench/recorded.toml
    #[arg(long, conflicts_with = "listing")]
    record: bool,
    /// Another kernel with the same interface
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    kernel: Option<PathBuf>,
}

/// A line of the table, as `--json` prints it.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    ours: Option<f64>,
    peer: Option<f64>,
    peer_name: Option<&'static str>,
    unit: &'static str,
    method: &'static str,
    /// What the figure may be at most.
    most: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The QEMU plugin, where cargo has put it.
pub fn plugin() -> PathBuf {
    workspace::target().join("debug/libwindow_trace.so")
}

/// The figures that were asked for.
fn chosen(names: &[String], on: Option<Emulator>) -> Result<Vec<&'static Figure>> {
    let begins = |figure: &Figure, name: &str| {
        figure.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if let Some(unknown) = names.iter().find(|name| !FIGURES.iter().any(|figure| begins(figure, name))) {
        let all: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
        bail!("there is no figure {unknown:?}; there are {}", all.join(", "));
    }
    let wanted = |figure: &&Figure| {
        (names.is_empty() || names.iter().any(|name| begins(figure, name)))
            && on.is_none_or(|on| figure.on.is_none_or(|its| its == on))
    };
    let chosen: Vec<_> = FIGURES.iter().filter(wanted).collect();
    ensure!(!chosen.is_empty(), "none of these figures is counted on {}", on.map_or("any emulator", Emulator::name));
    Ok(chosen)
}

/// Measures and prints; fails where something could not be measured.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.on != Some(Emulator::Kvm),
        "on real hardware nothing counts instructions yet; take qemu or bochs"
    );
    let chosen = chosen(&arguments.names, arguments.on)?;
    let mut runs = Runs::new(arguments.kernel.clone());
    if arguments.listing {
        let exact = |figure: &&&Figure| arguments.names.iter().any(|name| name == figure.name);
        let [figure] = chosen.iter().filter(exact).collect::<Vec<_>>()[..] else {
            bail!("--listing takes one figure's name");
        };
        return listing::print(figure, &mut runs).map(|()| ExitCode::SUCCESS);
    }
    let rows: Vec<Row> = chosen.iter().map(|figure| row(figure, &mut runs, !arguments.json)).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    let failed: Vec<&str> = rows.iter().filter(|row| row.error.is_some()).map(|row| row.name).collect();
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    if arguments.record {
        recorded::record(rows.iter().filter_map(|row| Some((row.name, row.counts.as_ref()?))))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails where an operation of the kernel costs more on this emulator than is recorded.
pub fn check(on: Emulator) -> Result<()> {
    let mut runs = Runs::new(None);
    let mut measured = Vec::new();
    for figure in FIGURES.iter().filter(|figure| figure.window().is_some() && figure.on == Some(on)) {
        let counts = figure.measure(&mut runs)?.counts;
        measured.extend(counts.map(|counts| (figure.name, counts)));
    }
    let worse = recorded::worse(measured.iter().map(|(name, counts)| (*name, counts)))?;
    ensure!(worse.is_empty(), "{}", worse.join("\n"));
    println!("{} figures on {} are as recorded, or better", measured.len(), on.name());
    Ok(())
}

/// Measures a figure, and prints its line if that is wanted.
fn row(figure: &Figure, runs: &mut Runs, print: bool) -> Row {
    let measured = figure.measure(runs).map_err(|error| format!("{error:#}"));
    if print {
        match &measured {
            Ok(measured) => print_line(figure, measured),
            Err(error) => println!("{:<22} not measured: {error}", figure.name),
        }
    }
    let Measured { peer, peer_name, counts, .. } = measured.clone().unwrap_or_default();
    Row {
        name: figure.name,
        ours: measured.as_ref().ok().map(|measured| measured.ours),
        peer,
        peer_name,
        unit: figure.unit,
        method: figure.method,
        most: figure.most,
        counts,
        error: measured.err(),
    }
}

fn print_line(figure: &Figure, measured: &Measured) {
    let number = |number: f64| format!("{number:.precision$}", precision = if number.fract() == 0.0 { 0 } else { 3 });
    let over = figure.most.is_some_and(|most| measured.ours > most);
    let most = figure.most.map_or_else(|| "-".into(), number);
    let peer = measured.peer.map_or_else(|| "-".into(), number);
    let ratio = measured.ratio().map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
    println!(
        "{:<22} {:>10}{} {most:>8} {peer:>10} {ratio:>6}  {}; {}",
        figure.name,
        number(measured.ours),
        if over { '!' } else { ' ' },
        figure.unit,
        figure.method,
    );
    if let Some(note) = &measured.note {
        println!("{:<22} {note}", "");
    }
    if let Some(counts) = &measured.counts {
        let over = figure.over(counts);
        let over = if over.is_empty() { String::new() } else { format!("; too many: {}", over.join(", ")) };
        println!("{:<22} {}{over}", "", listing::summary(counts));
    }
}
