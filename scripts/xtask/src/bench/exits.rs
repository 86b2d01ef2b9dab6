//! What it costs to leave a virtual machine: the micro guest's `exits`, in a virtual machine of ours and in one of KVM on
//! the same emulator.
//!
//! The guest measures by the TSC, which counts every instruction that the machine executes: the guest's, the kernel's, the
//! monitor's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use plan::observation::Wanted;

use super::figures::Measured;
use super::peer;
use super::runs::Runs;
use crate::bundle;
use crate::emulator::{Boot, Emulator, Machine};
use crate::session::{Event, Next, Session};
use crate::system::Size;
use crate::{setup, workspace};

/// The system file, whose guest has the same memory and virtual CPUs under KVM.
const SYSTEM: &str = "exits";
/// The line that ends the measurement.
const DONE: &str = "micro: ok exits";

/// TSC ticks of each operation.
pub type Costs = BTreeMap<String, f64>;

/// A machine that costs are measured on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// This system.
    Ours,
    /// Linux with KVM.
    Kvm,
}

/// Whole instructions of one operation, and those of KVM.
pub fn operation(runs: &mut Runs, on: Emulator, name: &str) -> Result<Measured> {
    let ours = cost(runs, Host::Ours, on, name)?;
    Ok(match cost(runs, Host::Kvm, on, name) {
        Ok(peer) => Measured::beside(ours, peer, peer::NAME),
        Err(error) => {
            eprintln!("no figure of {}: {error:#}", peer::NAME);
            Measured::alone(ours)
        }
    })
}

/// How many times as much an exit to user space costs under KVM: a port of a serial port is written, of which both
/// have the same model.
pub fn times(runs: &mut Runs, on: Emulator) -> Result<Measured> {
    const NAME: &str = "out";
    Ok(Measured::alone(cost(runs, Host::Kvm, on, NAME)? / cost(runs, Host::Ours, on, NAME)?))
}

fn cost(runs: &mut Runs, host: Host, on: Emulator, name: &str) -> Result<f64> {
    let costs = runs.exits(host, on)?;
    costs.get(name).copied().ok_or_else(|| anyhow!("the guest did not measure {name:?} there"))
}

/// Runs the guest.
pub fn measure(host: Host, on: Emulator) -> Result<Costs> {
    setup::for_machine(on)?;
    let built = bundle::build(SYSTEM, Size::default(), None, None, Wanted::default())?;
    let (name, boot, memory) = match host {
        Host::Ours => (SYSTEM, built.boot, built.memory),
        Host::Kvm => ("exits-kvm", peer::boot(SYSTEM)?, peer::MEMORY),
    };
    let last = |line: &str| line == DONE || line.starts_with(peer::FAILED);
    let lines = run(&format!("{name}-{}", on.name()), boot, memory, on, last)?;
    let mut costs = Costs::new();
    for line in &lines {
        if let Some((name, ticks)) = parse(line) {
            costs.insert(name.into(), ticks);
        }
    }
    if !lines.iter().any(|line| line == DONE) {
        bail!("the guest did not come to its end");
    }
    if host == Host::Kvm {
        lines.iter().filter(|line| line.starts_with(peer::PREFIX)).for_each(|line| eprintln!("{line}"));
    }
    Ok(costs)
}

/// `micro: exits NAME: N TSC ticks each, M on average`.
pub fn parse(line: &str) -> Option<(&str, f64)> {
    let (name, costs) = line.strip_prefix("micro: exits ")?.split_once(": ")?;
    let (least, _) = costs.split_once(" TSC ticks each")?;
    Some((name, least.parse().ok()?))
}

/// Boots the machine; returns the lines of its console, up to the last one.
pub fn run(name: &str, boot: Boot, memory: u32, on: Emulator, last: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let further: &[&str] = match on {
        Emulator::Bochs => &[],
        _ => &["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"],
    };
    let machine = Machine {
        boot,
        memory,
        cpus: 1,
        take_turns: false,
        cpu_model: peer::cpu(on).map(String::from),
        devices: Vec::new(),
        further: further.iter().copied().map(String::from).collect(),
        folder: workspace::folder(&format!("run/{name}"))?,
        trace: None,
    };
    let log = workspace::folder("run")?.join(format!("{name}.log"));
    let mut session = Session::start(on, &machine, &log)?;
    let mut lines = Vec::new();
    let ending = session.watch(Some(Duration::from_secs(1800)), |event| {
        let Event::Line(line) = event else { return Ok(Next::Continue) };
        lines.push(line.to_string());
        Ok(if last(line) { Next::Finish(Duration::ZERO) } else { Next::Continue })
    })?;
    if let Some(failure) = lines.iter().find(|line| line.starts_with(peer::FAILED)) {
        bail!("{failure}");
    }
    if let Some(failure) = ending.failure() {
        bail!("{failure}\n{}", session.tail());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_are_understood() {
        assert_eq!(parse("micro: exits mmio.read: 5612 TSC ticks each, 5617 on average"), Some(("mmio.read", 5612.0)));
        assert_eq!(parse("micro: exits cr4: this machine has it not"), None);
        assert_eq!(parse("micro: ok exits"), None);
    }
}
