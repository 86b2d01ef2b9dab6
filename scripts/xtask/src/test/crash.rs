//! A monitor that crashes takes down its own virtual machine and nothing else.
//!
//! The monitor of each `broken` machine is a program that goes wrong as its command line says. That of `healthy` is the
//! real one: its guest is at work while the others crash, and has to finish.

use anyhow::{Result, ensure};

use super::boot::Outcome;
use super::{Lab, Test};

pub const TESTS: &[Test] = &[
    Test::new("crash::monitors that fault", faults),
    Test::new("crash::a monitor that panics", panic),
    Test::new("crash::a monitor that loops for ever", endless_loop),
    Test::new("crash::a monitor that loops for ever in a portal", endless_loop_in_a_portal).long(),
];

/// What a monitor does, how the line of the report begins, and the crate of the function that it names.
type Fault = (&'static str, &'static str, &'static str);

/// The addresses are those of `runtime/examples/faulty.rs`.
const FAULTS: [Fault; 4] = [
    ("wild store", "died: #PF page fault, write at 0xdead0000 where nothing is mapped at RIP 0x", "faulty"),
    ("undefined instruction", "died: #UD undefined instruction at RIP 0x", "faulty"),
    ("kernel address", "died: #PF page fault, read at 0xffffffffffffffff ", "faulty"),
    ("stack overflow", "died: #PF page fault, write at 0x", "faulty"),
];

fn faults(lab: &Lab) -> Result<()> {
    let outcome = crash(lab, &FAULTS, "count=1000 hello")?;
    let line = outcome.says("vmm broken3 died")?;
    ensure!(line.contains(" below the stack: it overflowed at RIP 0x"), "another fault was reported: {line}");
    Ok(())
}

/// The message stands before the report, which is that of the instruction by which the panic handler ends.
fn panic(lab: &Lab) -> Result<()> {
    let outcome = crash(lab, &[("panic", "died: #UD undefined instruction at RIP 0x", "__rustc")], "count=1000 hello")?;
    outcome.says("[broken0] panicked at ")?;
    outcome.says_before("[broken0] a panic was asked for", "vmm broken0 died").map(|_| ())
}

/// The program has a higher priority than the healthy guest, so nothing runs until the watchdog has found it.
fn endless_loop(lab: &Lab) -> Result<()> {
    crash(lab, &[("endless loop", "died: endless loop at RIP 0x", "faulty")], "count=1000 hello").map(|_| ())
}

fn endless_loop_in_a_portal(lab: &Lab) -> Result<()> {
    crash(lab, &[("endless loop in a portal", "died: endless loop at RIP 0x", "faulty")], "count=1000 hello")
        .map(|_| ())
}

/// Crashes monitors beside a healthy one, whose guest does `work`.
fn crash(lab: &Lab, faults: &[Fault], work: &str) -> Result<Outcome> {
    let mut system = format!(
        "[vm.healthy]\nmemory  = \"16M\"\nkernel  = \"micro\"\ncmdline = \"{work}\"\nexec    = true\nconsole = true\n"
    );
    for (number, (fault, ..)) in faults.iter().enumerate() {
        system += &format!(
            "\n[vm.broken{number}]\nmemory  = \"16M\"\nkernel  = \"micro\"\ncmdline = \"{fault}\"\nmonitor = \"faulty\"\n"
        );
    }
    let outcome = lab.boot(&lab.write_system(&system)?).run()?;
    outcome.status(0)?;
    for (number, (_, report, place)) in faults.iter().enumerate() {
        let line = outcome.says(&format!("vmm broken{number} {report}"))?;
        // The instruction's function stands in parentheses behind its address.
        ensure!(line.contains(&format!(" ({place}::")), outcome.failure(&format!("the function is not named: {line}")));
        outcome.says_before(&format!("vm broken{number}: crashed: its program died"), "vm healthy: powered off")?;
    }
    outcome.says("micro: passed")?;
    Ok(outcome)
}
