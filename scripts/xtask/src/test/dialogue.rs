//! Someone at the console of a machine, who waits for what it says and answers.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Lab;
use crate::emulator::{Boot, Emulator, Machine};
use crate::session::{Ending, Event, Next, Session};
use crate::{bundle, workspace};

/// The shell's prompt.
pub const PROMPT: &str = "~ # ";

/// What to wait for, wherever in a line, and what to type then.
pub type Step<'a> = (&'a str, &'a str);

impl Lab<'_> {
    /// Starts a machine with this system of the project's, under the test's name.
    pub fn session(&self, system: &str) -> Result<Session> {
        let mut system = bundle::load(system, None)?;
        system.plan.name.clone_from(&self.name);
        let boot = Boot {
            kernel: self.programs.file("microhypervisor"),
            module: Some(bundle::write(&mut system, self.programs, "")?),
            linux: None,
        };
        self.start(boot, system.memory, Vec::new())
    }

    /// Starts a machine with one CPU; `further` is for the emulator.
    pub fn start(&self, boot: Boot, memory: u32, further: Vec<String>) -> Result<Session> {
        self.start_with(boot, memory, 1, further)
    }

    /// As [`Lab::start`], with several CPUs.
    pub fn start_with(&self, boot: Boot, memory: u32, cpus: u32, further: Vec<String>) -> Result<Session> {
        let folder = workspace::folder(&format!("run/{}", self.name))?;
        let log = workspace::folder("run")?.join(format!("{}.log", self.name));
        let machine = Machine {
            boot,
            memory,
            cpus,
            take_turns: true,
            cpu_model: None,
            devices: Vec::new(),
            further,
            folder,
            trace: None,
        };
        Session::start(self.emulator, &machine, &log)
    }

    /// How long a boot of Linux and little else may take, with another emulator beside this one.
    pub fn boot_time(&self) -> Duration {
        Duration::from_secs(if self.emulator == Emulator::Bochs { 1200 } else { 600 })
    }
}

/// Takes every step in turn and watches until the machine has ended or, where the last step has nothing to type, until
/// it is reached. Gives the ending and all lines.
pub fn hold(session: &mut Session, time: Duration, steps: &[Step]) -> Result<(Ending, Vec<String>)> {
    let mut console = session.console()?;
    let mut lines = Vec::new();
    let mut shown = String::new();
    let mut left = steps.iter();
    let mut step = left.next();
    let ending = session.watch(Some(time), |event| {
        match event {
            Event::Line(line) => lines.push(line.to_string()),
            Event::Console(bytes) => shown.push_str(&String::from_utf8_lossy(bytes)),
            Event::Channel(_) => {}
        }
        while let Some((text, keys)) = step
            && let Some(at) = shown.find(text)
        {
            shown.drain(..at + text.len());
            step = left.next();
            if keys.is_empty() && step.is_none() {
                return Ok(Next::Finish(Duration::ZERO));
            }
            console.write_all(keys.as_bytes())?;
        }
        Ok(Next::Continue)
    })?;
    if let Some((text, _)) = step {
        let why = ending.failure().unwrap_or_else(|| "the machine ended".into());
        bail!("{why}; {text:?} was not shown\n{}", session.tail());
    }
    ensure!(ending.failure().is_none(), "{}\n{}", ending.failure().unwrap_or_default(), session.tail());
    Ok((ending, lines))
}
