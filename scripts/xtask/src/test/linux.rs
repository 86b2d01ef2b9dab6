//! Debian's kernel as the guest.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::boot::Outcome;
use super::{Lab, Test};
use crate::emulator::{Emulator, Machine};
use crate::exec::{Frame, Frames};
use crate::session::{Event, Next, Session};
use crate::{bench, bundle, workspace};

pub const TESTS: &[Test] = &[
    Test::new("linux::a command's output and status arrive exactly", command),
    Test::new("linux::power-off and reboot", endings).only(QEMU),
    Test::new("linux::the clock neither drifts nor jumps", clock).only(QEMU),
    Test::new("linux::a boot takes at most 1.3 times the instructions of a bare one", instructions).only(QEMU),
    Test::new("linux::no warning that a bare boot has not", messages).only(QEMU),
];

const QEMU: &[Emulator] = &[Emulator::Qemu];
const MEBIBYTE: usize = 1 << 20;
/// Seconds for a boot and a command; with two emulators side by side.
const TIME: u64 = 900;

/// Most exits up to the shell beside those for the UART's ports and the timer, and most of those.
const EXITS: u64 = 30_000;
const EXITS_FOR_UART_AND_TIMER: u64 = 100_000;

/// 1 MiB of random bytes on standard output, their checksum on standard error, and a status. And a boot that needed no
/// more exits than it may.
fn command(lab: &Lab) -> Result<()> {
    let command = "head -c 1048576 /dev/urandom >/tmp/random; cat /tmp/random; sha256sum </tmp/random >&2; exit 7";
    let outcome = lab.boot("linux").exec(command).timeout(TIME).run()?;
    outcome.status(7)?;
    ensure!(outcome.output.len() == MEBIBYTE, outcome.failure(&format!("{} bytes arrived", outcome.output.len())));
    let found: String = Sha256::digest(&outcome.output).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = String::from_utf8_lossy(&outcome.error).into_owned();
    ensure!(expected.starts_with(&found), outcome.failure(&format!("checksum {found}, the guest says {expected}")));
    outcome.says("vm linux: powered off")?;
    few_exits(&outcome)
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
    bench::check("linux::boot")
}

fn endings(lab: &Lab) -> Result<()> {
    for (command, end) in [("poweroff; sleep 60", "vm linux: powered off"), ("reboot -f", "vm linux: reset")] {
        let outcome = lab.boot("linux").exec(command).timeout(TIME).run()?;
        outcome.ended()?;
        outcome.says(end)?;
    }
    Ok(())
}

/// 30 s of the guest's clocks against the host's.
fn clock(lab: &Lab) -> Result<()> {
    let mut system = bundle::load(
        "linux",
        Some("for i in 1 2; do echo $(date +%s) $(cat /proc/uptime); [ $i = 2 ] || sleep 30; done; echo end"),
    )?;
    system.plan.name.clone_from(&lab.name);
    let module = Some(bundle::write(&system, lab.programs, "")?);
    let boot = crate::emulator::Boot { kernel: lab.programs.file("microhypervisor"), module, linux: None };
    let (mut session, _) = start(lab, boot, system.memory)?;
    let mut frames = Frames::default();
    let mut readings: Vec<(Instant, String)> = Vec::new();
    session.watch(Some(Duration::from_secs(TIME)), |event| {
        if let Event::Channel(bytes) = event {
            for frame in frames.append(bytes)? {
                match frame {
                    Frame::Output(bytes) => readings
                        .extend(String::from_utf8_lossy(&bytes).lines().map(|line| (Instant::now(), line.to_string()))),
                    Frame::Status(_) => return Ok(Next::Finish(Duration::ZERO)),
                    _ => {}
                }
            }
        }
        Ok(Next::Continue)
    })?;
    let [(start, first), (end, second), ..] = &readings[..] else {
        anyhow::bail!("the guest gave no readings\n{}", session.tail());
    };
    let host = (*end - *start).as_secs_f64();
    let numbers = |line: &str| -> Result<Vec<f64>> { Ok(line.split(' ').map(str::parse).collect::<Result<_, _>>()?) };
    let (first, second) = (numbers(first)?, numbers(second)?);
    let uptime = second[1] - first[1];
    // `date` has whole seconds.
    let date = second[0] - first[0];
    ensure!((uptime - host).abs() <= 0.01 * host, "{uptime} s of uptime in {host} s");
    ensure!((date - host).abs() <= 1.0 + 0.01 * host, "{date} s by `date` in {host} s");
    Ok(())
}

fn start(lab: &Lab, boot: crate::emulator::Boot, memory: u32) -> Result<(Session, std::path::PathBuf)> {
    let folder = workspace::folder(&format!("run/{}", lab.name))?;
    let log = workspace::folder("run")?.join(format!("{}.log", lab.name));
    let machine = Machine { boot, memory, cpus: 1, cpu_model: None, further: Vec::new(), folder };
    Ok((Session::start(lab.emulator, &machine, &log)?, log))
}

/// `dmesg`'s warnings and worse, as raw lines.
const WARNINGS: &str = "dmesg -r | grep '^<[0-4]>'";

fn messages(lab: &Lab) -> Result<()> {
    let outcome = lab.boot("linux").exec(WARNINGS).timeout(TIME).run()?;
    outcome.ended()?;
    let bare = bare_messages(lab)?;
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
fn bare_messages(lab: &Lab) -> Result<BTreeSet<String>> {
    let built = bundle::build_bare("linux")?;
    let (mut session, _) = start(lab, built.boot, built.memory)?;
    let mut console = session.console()?;
    let mut messages = BTreeSet::new();
    let (mut asked, mut answered) = (false, false);
    let ending = session.watch(Some(Duration::from_secs(TIME)), |event| {
        let Event::Line(line) = event else { return Ok(Next::Continue) };
        if line.contains("built-in shell") && !asked {
            asked = true;
            std::thread::sleep(Duration::from_secs(1));
            console.write_all(format!("{WARNINGS}; echo the end''\n").as_bytes())?;
        }
        if line.starts_with('<') {
            messages.insert(message(line.trim_end()));
        }
        answered |= line.trim_end() == "the end";
        Ok(if answered { Next::Finish(Duration::ZERO) } else { Next::Continue })
    })?;
    ensure!(answered, "the bare boot did not answer: {}", ending.failure().unwrap_or_default());
    Ok(messages)
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
