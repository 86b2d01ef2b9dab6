//! A virtual machine that is started anew after its end: nothing of it is left over, and others do not notice.

use anyhow::{Result, ensure};

use super::boot::Outcome;
use super::{Lab, Test};
use crate::emulator::Emulator;

pub const TESTS: &[Test] = &[
    Test::new("restart::a guest that crashes again and again", |lab| repeatedly(lab, 1, few(lab))),
    Test::new("restart::a guest that crashes again and again on 4 CPUs", |lab| repeatedly(lab, 4, few(lab))),
    Test::new("restart::a guest that crashes 200 times", |lab| repeatedly(lab, 1, 200)).only(QEMU).long(),
    Test::new("restart::a guest that crashes 200 times on 4 CPUs", |lab| repeatedly(lab, 4, 200)).only(QEMU).long(),
    Test::new("restart::monitors that die", monitors),
    Test::new("restart::always or never", always),
];

const QEMU: &[Emulator] = &[Emulator::Qemu];

/// Restarts in a test that everybody runs.
fn few(lab: &Lab) -> u32 {
    if lab.emulator == Emulator::Bochs { 4 } else { 10 }
}

/// Percent of the CPU that the other guest, which always wants it, must get at least. Two machines of one priority share
/// it; the console comes before both.
const LEAST_SHARE: u32 = 40;

/// A guest, with its vCPU and its spaces, comes to its end and is started anew so many times, beside one at work.
fn repeatedly(lab: &Lab, cpus: u32, times: u32) -> Result<()> {
    // With several CPUs QEMU's time is the host's, which may have other work.
    let exact = lab.emulator == Emulator::Bochs || cpus == 1;
    // Most of a restart is the report on the serial line, at its own speed in Bochs.
    let (work, then) = if exact { (times * 600, "basic") } else { (times * 1000, "mmio hello") };
    let system = lab.write_system(&format!(
        "[vm.healthy]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"count={work} {then}\"
exec    = true
console = true

[vm.broken]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"hello triple\"
restart = \"on-crash\"
restart_limit = {times}
restart_delay = 0

[machine]
cpus = {cpus}
"
    ))?;
    let mut trial = lab.boot(&system).timeout(240 + 4 * u64::from(times));
    if cpus == 1 {
        trial = trial.time_by_instructions(3);
    }
    let outcome = trial.run()?;
    outcome.status(0)?;
    outcome.says("micro: passed")?;
    outcome.never_says("micro: failed")?;
    let text = outcome.text()?;
    let share = text.split_once("count ran ").and_then(|(_, rest)| rest.split_once(" %")?.0.parse::<u32>().ok());
    let enough = share.is_some_and(|share| share >= LEAST_SHARE || !exact);
    ensure!(enough, outcome.failure(&format!("the other's part of the CPU was too small: {text}")));
    outcome.says(&format!("root: vm broken is not started again: that has been done {times} times"))?;
    let ends = outcome.lines.iter().filter(|line| line.starts_with("vm broken: crashed: triple fault")).count();
    ensure!(ends as u32 == times + 1, outcome.failure(&format!("it crashed {ends} times")));
    // The other machine's work must have been going on during most of this.
    let half = format!("root: started vm broken again ({} of {times})", times / 2);
    outcome.says_before(&half, "vm healthy: powered off")?;
    same_after_each(&outcome, "broken", times)
}

/// Monitors that go wrong in different ways; each is started again once, and comes to the same end.
fn monitors(lab: &Lab) -> Result<()> {
    let faults = ["wild store", "stack overflow", "panic", "exit"];
    let mut system = String::from(
        "[vm.healthy]\nmemory  = \"16M\"\nkernel  = \"micro\"\ncmdline = \"count=2000 hello\"\nexec    = true\n",
    );
    for (number, fault) in faults.iter().enumerate() {
        system += &format!(
            "[vm.broken{number}]\nmemory  = \"16M\"\nkernel  = \"micro\"\ncmdline = \"{fault}\"\nmonitor = \"faulty\"
restart = \"on-crash\"\nrestart_limit = 1\nrestart_delay = 20\n"
        );
    }
    let outcome = lab.boot(&lab.write_system(&system)?).run()?;
    outcome.status(0)?;
    for (number, fault) in faults.iter().enumerate() {
        outcome.says(&format!("root: vm broken{number} is started again in 20 ms"))?;
        outcome.says(&format!("root: started vm broken{number} again (1 of 1)"))?;
        outcome.says(&format!("root: vm broken{number} is not started again: that has been done 1 times"))?;
        // What it says in its log, it says twice: the second one has the console's ring, too.
        let said = outcome.lines.iter().filter(|line| **line == format!("[broken{number}] {fault}")).count();
        ensure!(said == 2, outcome.failure(&format!("broken{number} said {said} times what it does")));
    }
    outcome.says("micro: passed").map(|_| ())
}

/// A machine that powers itself off is started again if the plan says so after every end, and otherwise not.
fn always(lab: &Lab) -> Result<()> {
    let guest = |name: &str, restart: &str| {
        format!("[vm.{name}]\nmemory  = \"16M\"\nkernel  = \"micro\"\ncmdline = \"hello\"\nrestart = \"{restart}\"\n")
    };
    let twice = guest("twice", "always") + "restart_limit = 1\nrestart_delay = 0\nconsole = true\n";
    let system = lab.write_system(&(twice + &guest("once", "on-crash")))?;
    let outcome = lab.boot(&system).run()?;
    outcome.ended()?;
    let count = |text: &str| outcome.lines.iter().filter(|line| line.contains(text)).count();
    ensure!(count("vm twice: powered off") == 2, outcome.failure("it did not live twice"));
    ensure!(count("vm once: powered off") == 1, outcome.failure("it did not live once"));
    // Each life of the first reaches the console.
    ensure!(count("micro: passed") == 2, outcome.failure("the console does not show both lives"));
    outcome.never_says("started vm once again")?;
    outcome.never_says("vm once is not started again").map(|_| ())
}

/// What is free after an end: frames of the kernel, and KiB of the root task. And how much of that the end brought.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Free {
    frames: u64,
    frames_back: u64,
    memory: u64,
    memory_back: u64,
}

/// The ends of all virtual machines, in order, with their names.
fn ends(outcome: &Outcome) -> Vec<(String, Free)> {
    let number =
        |line: &str, before: &str| -> Option<u64> { line.split_once(before)?.0.rsplit(' ').next()?.parse().ok() };
    let mut ends = Vec::new();
    let mut kernel: Vec<(u64, u64)> = Vec::new();
    let mut back = None;
    for line in &outcome.lines {
        if let Some(frames) = number(line, " frames of kernel memory came back") {
            back = Some(frames);
        } else if line.starts_with("root: kernel memory: ")
            && let Some(back) = back.take()
        {
            kernel.push((number(line, " of ").unwrap_or_default(), back));
        } else if let (Some(memory_back), Some(memory)) =
            (number(line, " KiB of memory came back"), number(line, " KiB are free"))
            && let Some((name, _)) = line.strip_prefix("root: vm ").and_then(|rest| rest.split_once(':'))
            && !kernel.is_empty()
        {
            let (frames, frames_back) = kernel.remove(0);
            ends.push((name.into(), Free { frames, frames_back, memory, memory_back }));
        }
    }
    ends
}

/// After each end of `vm` exactly as much is free as after the first, but for what other machines gave back since then.
fn same_after_each(outcome: &Outcome, vm: &str, times: u32) -> Result<()> {
    let (mut first, mut count) = (None, 0);
    for (name, end) in ends(outcome) {
        let Some(expected) = first.as_mut() else {
            ensure!(name == vm && end.frames_back > 30, outcome.failure(&format!("the first end left {end:?}")));
            (first, count) = (Some(end), 1);
            continue;
        };
        if name == vm {
            ensure!(end == *expected, outcome.failure(&format!("end {count} left {end:?} instead of {expected:?}")));
            count += 1;
        } else {
            expected.frames += end.frames_back;
            expected.memory += end.memory_back;
        }
    }
    // Whoever ends last may not have been followed to its end by the system's.
    ensure!(count >= times, outcome.failure(&format!("only {count} ends were followed")));
    Ok(())
}
