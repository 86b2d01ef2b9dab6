//! Linux in a virtual machine beside the same Linux on the machine itself: what its own measurements say there and here, and
//! why it left the virtual machine on its way to the shell.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plan::observation::Wanted;

use super::boot::GUEST_CPU;
use super::figures::Measured;
use super::runs::Runs;
use crate::bundle::{self, Built};
use crate::emulator::{Emulator, Machine};
use crate::session::{Event, Next, Session};
use crate::system::Size;
use crate::{setup, workspace};

/// The system file.
const SYSTEM: &str = "measure";
const BARE: &str = "the machine itself";
/// What Linux' init says, and the last of it.
const MEASURED: &str = "measure ";
const LAST: &str = "measure loop: ";

/// What one Linux told.
#[derive(Clone, Default, Debug)]
pub struct Linux {
    /// TSC ticks, by what they were spent on.
    ticks: BTreeMap<String, f64>,
    /// Exits on the way to init, beside those for timer and serial port.
    exits: Option<f64>,
}

/// How many times as much starting 100 programs takes.
pub fn fork(runs: &mut Runs) -> Result<Measured> {
    ratio(runs, "fork")
}

/// How many times as much a loop takes that needs nothing but the processor.
pub fn busy(runs: &mut Runs) -> Result<Measured> {
    ratio(runs, "loop")
}

/// How often Linux leaves the virtual machine until init runs, beside timer and console.
pub fn exits(runs: &mut Runs) -> Result<Measured> {
    runs.linux(false)?.exits.map(Measured::alone).context("the monitor told of no exits")
}

fn ratio(runs: &mut Runs, what: &str) -> Result<Measured> {
    let mut ticks =
        |bare| runs.linux(bare)?.ticks.get(what).copied().with_context(|| format!("no {what} was measured"));
    let (ours, bare): (f64, f64) = (ticks(false)?, ticks(true)?);
    Ok(Measured::beside(ours / bare, 1.0, BARE))
}

/// Boots it, on the machine itself if `bare`.
pub fn measure(bare: bool) -> Result<Linux> {
    setup::for_machine(Emulator::Qemu)?;
    let built = match bare {
        true => bundle::build_bare(SYSTEM, Size::default())?,
        false => bundle::build(SYSTEM, Size::default(), None, None, Wanted::default())?,
    };
    let lines = run(built, bare, &[], 1800, |line| line.starts_with(LAST))?;
    let mut linux = Linux::default();
    for line in &lines {
        if let Some((what, ticks)) = line.strip_prefix(MEASURED).and_then(|rest| rest.split_once(": ")) {
            linux.ticks.insert(what.into(), ticks.trim().parse().with_context(|| format!("{line:?}"))?);
        }
    }
    // The monitor's account when init says that it runs.
    let account = lines.iter().skip_while(|line| !line.contains("] at mark 1")).skip(1);
    for line in account.take_while(|line| !line.contains("busiest")) {
        eprintln!("{line}");
        linux.exits = linux.exits.or_else(|| other(line));
    }
    Ok(linux)
}

/// `... exits: N = serial port A + timer B + other C; ...`.
fn other(line: &str) -> Option<f64> {
    line.split_once(" + other ")?.1.split_once(';')?.0.parse().ok()
}

/// Runs a machine, whose time passes by instructions, until `last` knows a line, for at most so many seconds; all lines.
pub fn run(built: Built, bare: bool, further: &[String], most: u64, last: fn(&str) -> bool) -> Result<Vec<String>> {
    let name = format!("{}-count", built.name);
    let time = ["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"];
    let machine = Machine {
        boot: built.boot,
        memory: built.memory,
        cpus: 1,
        take_turns: false,
        cpu_model: bare.then(|| GUEST_CPU.into()),
        devices: built.devices,
        further: time.map(String::from).iter().chain(further).cloned().collect(),
        folder: workspace::folder(&format!("run/{name}"))?,
        trace: None,
    };
    let log = workspace::folder("run")?.join(format!("{name}.log"));
    let mut session = Session::start(Emulator::Qemu, &machine, &log)?;
    let mut lines = Vec::new();
    let mut done = false;
    let ending = session.watch(Some(Duration::from_secs(most)), |event| {
        let Event::Line(line) = event else { return Ok(Next::Continue) };
        lines.push(line.to_string());
        done |= last(line);
        Ok(if done { Next::Finish(Duration::ZERO) } else { Next::Continue })
    })?;
    if !done {
        bail!("{}\n{}", ending.failure().unwrap_or_default(), session.tail());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitors_account_is_understood() {
        let line = "[measure] exits: 54 = serial port 4 + timer 3 + other 47; interrupts injected: 5";
        assert_eq!(other(line), Some(47.0));
        assert_eq!(other("[measure] exits by CPUID: 12"), None);
    }
}
