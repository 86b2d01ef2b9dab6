//! Debian's kernel as the guest.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::boot::Outcome;
use super::dialogue::{self, PROMPT};
use super::{BOCHS, Lab, QEMU, Test, clock};
use crate::emulator::Emulator;
use crate::emulator::bochs::CPU_FOR_LINUX;
use crate::session::Ending;
use crate::system::Size;
use crate::{bench, bundle, workspace};

pub const TESTS: &[Test] = &[
    Test::new("linux::a command's output and status arrive exactly", command),
    Test::new("linux::four virtual CPUs on four CPUs", four_on_four).long_on(BOCHS),
    Test::new("linux::four virtual CPUs on one CPU", four_on_one).long_on(BOCHS),
    Test::new("linux::a fork storm and a ring of futexes for 60 s", storms).long(),
    Test::new("linux::power-off and reboot", endings).long_on(BOCHS),
    Test::new("linux::a reset starts the guest again", restart).long_on(BOCHS),
    Test::new("linux::the clock neither drifts nor jumps", clock::agrees).long_on(BOCHS),
    Test::new("linux::a boot takes at most 1.3 times the instructions of a bare one", instructions).only(QEMU),
    Test::new("linux::no warning that a bare boot has not", messages).long_on(BOCHS),
    Test::new("linux::no warning with four CPUs that a bare boot has not", messages_of_four).long_on(BOCHS),
];

const MEBIBYTE: usize = 1 << 20;

/// Most exits up to the shell beside those for the UART's ports and the timer, and most of those.
const EXITS: u64 = 30_000;
const EXITS_FOR_UART_AND_TIMER: u64 = 100_000;

/// 1 MiB of random bytes on standard output, their checksum on standard error, and a status. And a boot that needed no
/// more exits than it may.
fn command(lab: &Lab) -> Result<()> {
    let command = "head -c 1048576 /dev/urandom >/tmp/random; cat /tmp/random; sha256sum </tmp/random >&2; exit 7";
    let outcome = lab.boot("linux").exec(command).timeout(lab.boot_time().as_secs()).run()?;
    outcome.status(7)?;
    ensure!(outcome.output.len() == MEBIBYTE, outcome.failure(&format!("{} bytes arrived", outcome.output.len())));
    let found: String = Sha256::digest(&outcome.output).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = String::from_utf8_lossy(&outcome.error).into_owned();
    ensure!(expected.starts_with(&found), outcome.failure(&format!("checksum {found}, the guest says {expected}")));
    outcome.says("vm linux: powered off")?;
    // As a shell says that there is no such program.
    outcome.never_says("/init: ")?;
    few_exits(&outcome)
}

fn four_on_four(lab: &Lab) -> Result<()> {
    four(lab, 4)
}

fn four_on_one(lab: &Lab) -> Result<()> {
    four(lab, 1)
}

fn storms(lab: &Lab) -> Result<()> {
    [4, 1].into_iter().try_for_each(|cpus| storm(lab, cpus, 60))
}

/// Four shells that fork without end and check every child's exit status, and beside them a token that goes round among
/// processes that sleep on four CPUs.
fn storm(lab: &Lab, cpus: u32, seconds: u32) -> Result<()> {
    let command = format!(
        "end=$(($(date +%s) + {seconds}))
         storm() {{ n=0; while [ $(date +%s) -lt $end ]; do
           (exit $((n % 97))); [ $? = $((n % 97)) ] || return 1; n=$((n + 1)); done; echo storm $n; }}
         for i in 1 2 3 4; do storm & all=\"$all $!\"; done
         agent ring {seconds} 4 & all=\"$all $!\"
         for one in $all; do wait $one || exit 1; done
         ! dmesg | grep -E 'stall|lockup|BUG|Oops|hung'"
    );
    let outcome = lab.boot("linux").cpus(cpus, 4).exec(&command).timeout(4 * lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    let text = outcome.text()?;
    let count = |word: &str| -> Vec<u64> {
        text.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
    };
    let (storms, ring) = (count("storm"), count("ring"));
    // How far they get is the host's affair.
    let right = storms.len() == 4 && storms.iter().all(|&forks| forks > 5) && ring.len() == 1 && ring[0] > 20;
    ensure!(right, outcome.failure(&format!("on {cpus} CPUs the output is {text:?}")));
    Ok(())
}

/// All are there, and each runs what it is told to.
fn four(lab: &Lab, cpus: u32) -> Result<()> {
    let command = "grep -c ^processor /proc/cpuinfo; for cpu in 3 2 1 0; do \
                   taskset $((1 << cpu)) sh -c 'cut -d\" \" -f39 /proc/self/stat'; done";
    let outcome = lab.boot("linux").cpus(cpus, 4).exec(command).timeout(lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    ensure!(outcome.text()? == "4\n3\n2\n1\n0\n", outcome.failure(&format!("the output is {:?}", outcome.text()?)));
    outcome.says("vm linux: powered off")?;
    storm(lab, cpus, 3)
}

fn few_exits(outcome: &Outcome) -> Result<()> {
    let line = outcome.says("exits: ")?;
    let number = |word: &str| -> Option<u64> { line.split_once(word)?.1.split([' ', ';']).next()?.parse().ok() };
    let (Some(uart), Some(timer), Some(other)) = (number("serial port "), number("timer "), number("other ")) else {
        return Err(outcome.failure(&format!("not understood: {line}")));
    };
    ensure!(other <= EXITS, outcome.failure(&format!("{other} exits to the shell, beside UART and timer")));
    ensure!(uart + timer <= EXITS_FOR_UART_AND_TIMER, outcome.failure(&format!("{uart} + {timer} exits")));
    Ok(())
}

fn instructions(_: &Lab) -> Result<()> {
    bench::check_boot()
}

fn endings(lab: &Lab) -> Result<()> {
    for (command, end) in [("poweroff; sleep 60", "vm linux: powered off"), ("reboot -f", "vm linux: reset")] {
        let outcome = lab.boot("linux").exec(command).timeout(lab.boot_time().as_secs()).run()?;
        outcome.ended()?;
        outcome.says(end)?;
    }
    Ok(())
}

/// The plan's default for a guest that resets itself: its monitor starts it again, as often as it likes. Then it switches
/// itself off, which ends the machine.
fn restart(lab: &Lab) -> Result<()> {
    let mut session = lab.session("linux")?;
    let again = "the guest reset its machine: starting it again";
    let steps = [
        (PROMPT, "touch /tmp/written-once; reboot\n"),
        (again, ""),
        (PROMPT, "ls /tmp; reboot -f\n"),
        (again, ""),
        (PROMPT, "poweroff\n"),
    ];
    let (ending, lines) = dialogue::hold(&mut session, 3 * lab.boot_time(), &steps)?;
    ensure!(ending == Ending::PoweredOff, "the machine did not switch itself off");
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    ensure!(count("This is Linux inside Kilonova.") == 3, "it did not boot three times\n{}", session.tail());
    ensure!(count("[linux] at mark 1, ") == 3, "the monitor has not seen three boots\n{}", session.tail());
    // In the line that was typed.
    ensure!(count("written-once") == 1, "what the first boot wrote was still there\n{}", session.tail());
    ensure!(count("vm linux: powered off") == 1, "it did not switch itself off\n{}", session.tail());
    Ok(())
}

/// `dmesg`'s warnings and worse, as raw lines.
const WARNINGS: &str = "dmesg -r | grep '^<[0-4]>'";

fn messages(lab: &Lab) -> Result<()> {
    no_new_messages(lab, 1)
}

fn messages_of_four(lab: &Lab) -> Result<()> {
    no_new_messages(lab, 4)
}

fn no_new_messages(lab: &Lab, cpus: u32) -> Result<()> {
    let mut trial = lab.boot("linux").cpus(cpus, cpus).exec(WARNINGS);
    if lab.emulator == Emulator::Bochs {
        // The bare boot's.
        trial = trial.cpu_model(CPU_FOR_LINUX);
    }
    let outcome = trial.timeout(lab.boot_time().as_secs()).run()?;
    outcome.ended()?;
    let bare = bare_messages(lab, cpus)?;
    let allowed = allowed()?;
    let new: Vec<&str> = outcome
        .text()?
        .lines()
        .filter(|line| {
            let message = message(line);
            !bare.contains(&message) && !allowed.iter().any(|allowed| message.contains(allowed))
        })
        .collect();
    ensure!(new.is_empty(), "messages that a bare boot has not:\n{}", new.join("\n"));
    Ok(())
}

/// A message without its time, and with `#` for every number, which may differ from boot to boot.
fn message(line: &str) -> String {
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    let mut message = String::new();
    for character in text.chars() {
        let character = if character.is_ascii_digit() { '#' } else { character };
        if character != '#' || !message.ends_with('#') {
            message.push(character);
        }
    }
    message
}

/// What the machine's own kernel says, without us.
fn bare_messages(lab: &Lab, cpus: u32) -> Result<BTreeSet<String>> {
    let built = bundle::build_bare("linux", Size { vcpus: Some(cpus), ..Size::default() })?;
    let mut session = lab.start_with(built.boot, built.memory, built.cpus, Vec::new())?;
    let ask = format!("{WARNINGS}; echo the end''\n");
    let (_, lines) = dialogue::hold(&mut session, lab.boot_time(), &[(PROMPT, &ask), ("\nthe end\r", "")])?;
    Ok(lines.iter().filter(|line| line.starts_with('<')).map(|line| message(line.trim_end())).collect())
}

/// The exceptions that the book lists with their reasons.
fn allowed() -> Result<Vec<String>> {
    let book = String::from_utf8(workspace::read(&workspace::root().join("docs/guests.md"))?)?;
    let (_, table) = book.split_once("| message | reason |").context("docs/guests.md has no table of messages")?;
    Ok(table
        .lines()
        .skip(2)
        .map_while(|line| line.strip_prefix("| `")?.split_once("` |").map(|(text, _)| message(text)))
        .collect())
}
