//! Two virtual machines share one CPU: neither can take more of it than its part, nor see the other's registers.

use anyhow::{Result, ensure};

use super::boot::Outcome;
use super::{Lab, Test};

pub const TESTS: &[Test] = &[
    Test::new("isolation::a guest that spins leaves the other its part of the CPU", share),
    Test::new("isolation::a storm of accesses leaves the other its part of the CPU", storm),
    Test::new("isolation::registers survive 10000 preemptions", registers),
];

/// Percent of the CPU that the other guest must get at least.
const LEAST_SHARE: u64 = 40;

/// Longer than any test. `spin` alone would be for ever, but has PAUSE in its loop, at which QEMU leaves its generated
/// code: with its time by instructions, that makes a slice take seconds.
const HOUR: u32 = 3_600_000;

/// One guest loops for ever with interrupts disabled.
fn share(lab: &Lab) -> Result<()> {
    let outcome = beside(lab, &format!("spin={HOUR}"))?;
    outcome.says("micro: spins for 3600000 ms with interrupts off").map(|_| ())
}

/// One guest does nothing but what makes it exit: its monitor works as long as it runs, and so does the kernel.
fn storm(lab: &Lab) -> Result<()> {
    let outcome = beside(lab, "hostile rounds=1000000000")?;
    outcome.says("[greedy] multiboot image").map(|_| ())
}

/// One guest wants all of the CPU, as `line` says; the other counts how much of 2 s it could run. Nobody can make the
/// first one stop, so the machine is ended when the second has finished.
fn beside(lab: &Lab, line: &str) -> Result<Outcome> {
    let system = lab.write_system(&format!(
        "[vm.greedy]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"{line}\"
console = true

[vm.counts]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"count=2000\"
exec    = true
"
    ))?;
    let outcome = lab.boot(&system).time_by_instructions(3).until("vm counts: powered off").run()?;
    outcome.status(0)?;
    // The time that the guest could not run is the sum of all gaps between two readings of the TSC.
    let text = outcome.text()?;
    let share = number_between(text, "count ran ", " %");
    ensure!(share.is_some_and(|share| share >= LEAST_SHARE), outcome.failure(&format!("too small a part: {text}")));
    // It was still at it.
    outcome.never_says("vm greedy: ")?;
    Ok(outcome)
}

/// Preemptions of both guests together.
const PREEMPTIONS: u32 = 10_000;

/// Both guests fill all x87, SSE and AVX registers with random values of their own and compare them after each time
/// that they were preempted.
///
/// Both are always busy and have the same priority, so each loses the CPU when its slice of 1 ms is over, and the other
/// then has it for 1 ms. A guest counts a preemption when two readings of the TSC are more than half of that apart; the
/// monitor's work for an exit takes far less, and the loop between the readings has no exits. The first guest spins when
/// it has seen its half, so that the other is not left alone.
fn registers(lab: &Lab) -> Result<()> {
    let half = PREEMPTIONS / 2;
    let guest = |name: &str, seed: u32, exec: bool, then: &str| {
        format!(
            "[vm.{name}]
memory  = \"16M\"
kernel  = \"micro\"
cmdline = \"fpu preemptions={half} gap=500 limit=100 seed={seed}{then}\"
slice   = 1
console = true
exec    = {exec}
"
        )
    };
    let system = lab.write_system(&(guest("first", 1, false, " spin") + &guest("second", 2, true, "")))?;
    let outcome = lab.boot(&system).time_by_instructions(5).until("vm second: powered off").run()?;
    outcome.status(0)?;
    for seed in [1, 2] {
        let line = outcome
            .lines
            .iter()
            .find(|line| line.contains("micro: fpu ") && line.ends_with(&format!("seed {seed}")))
            .ok_or_else(|| outcome.failure(&format!("no guest tells of its rounds with seed {seed}")))?;
        let away = number_between(line, "away in ", ",");
        ensure!(away.is_some_and(|away| away >= u64::from(half)), outcome.failure(line));
        ensure!(line.contains("x87, SSE, AVX"), outcome.failure(&format!("there is no AVX: {line}")));
    }
    outcome.never_says("micro: failed").map(|_| ())
}

fn number_between(text: &str, before: &str, after: &str) -> Option<u64> {
    text.split_once(before)?.1.split_once(after)?.0.parse().ok()
}
