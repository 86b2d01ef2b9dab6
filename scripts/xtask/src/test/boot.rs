//! Boots a system for a test and keeps everything that it said.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Lab;
use crate::emulator::{Boot, Emulator, Machine};
use crate::exec::{Frame, Frames};
use crate::session::{Ending, Event, Next, Session};
use crate::system::{Origin, Size};
use crate::{bundle, workspace};

/// What belongs to a line of the console may still be on its way over the other serial line.
const OTHER_LINE: Duration = Duration::from_secs(2);

/// A machine that a test describes.
pub struct Trial<'a> {
    lab: &'a Lab<'a>,
    system: &'a str,
    exec: Option<&'a str>,
    cpu_model: Option<&'a str>,
    instructions: Option<u32>,
    further: Vec<String>,
    without: Option<&'a str>,
    memory: Option<u32>,
    timeout: u64,
    size: Size,
    until: Option<&'a str>,
    lines: Vec<(&'a str, String)>,
    replaced: Option<(&'a str, Vec<u8>)>,
    alter: Option<&'a dyn Fn(Vec<u8>) -> Vec<u8>>,
    loader: Option<&'a Loader<'a>>,
}

/// Makes of the kernel's file and a bundle one file that starts alone.
type Loader<'a> = dyn Fn(&[u8], Vec<u8>) -> Result<Vec<u8>> + 'a;

/// What came of it.
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Whole lines of the console.
    pub lines: Vec<String>,
    /// Standard output of the command.
    pub output: Vec<u8>,
    /// Standard error of the command.
    pub error: Vec<u8>,
    /// Exit status of the command, or a micro guest's verdict.
    pub status: Option<i32>,
    log: PathBuf,
    tail: String,
}

impl Lab<'_> {
    /// A machine with a system of `tests/systems`, or `none` for the kernel alone.
    pub fn boot<'a>(&'a self, system: &'a str) -> Trial<'a> {
        let timeout = if self.emulator == Emulator::Bochs { 240 } else { 60 };
        Trial {
            lab: self,
            system,
            exec: None,
            cpu_model: None,
            instructions: None,
            further: Vec::new(),
            without: None,
            memory: None,
            timeout,
            size: Size::default(),
            until: None,
            lines: Vec::new(),
            replaced: None,
            alter: None,
            loader: None,
        }
    }
}

impl<'a> Trial<'a> {
    /// With a command for its Linux.
    pub fn exec(mut self, command: &'a str) -> Self {
        self.exec = Some(command);
        self
    }

    /// With another command line for a virtual machine.
    pub fn command_line(mut self, machine: &'a str, line: &str) -> Self {
        self.lines.push((machine, line.into()));
        self
    }

    /// With another CPU.
    pub fn cpu_model(mut self, model: &'a str) -> Self {
        self.cpu_model = Some(model);
        self
    }

    /// With virtual time that is a function of the executed instructions, one each 2^`shift` ns, as it always is in
    /// Bochs. Without, QEMU's is the host's, and a host with other work takes time away from everything in the machine.
    pub fn time_by_instructions(mut self, shift: u32) -> Self {
        self.instructions = Some(shift);
        self
    }

    /// With further arguments of QEMU.
    pub fn further(mut self, arguments: Vec<String>) -> Self {
        self.further = arguments;
        self
    }

    /// Without a device of the machine that the system has.
    pub fn without(mut self, device: &'a str) -> Self {
        self.without = Some(device);
        self
    }

    /// With another amount of RAM, in MiB.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = Some(mebibytes);
        self
    }

    /// With other numbers of CPUs: of the machine, and of its first virtual machine.
    pub fn cpus(mut self, cpus: u32, vcpus: u32) -> Self {
        self.size = Size { cpus: Some(cpus), vcpus: Some(vcpus) };
        self
    }

    /// With this much time, in seconds.
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }

    /// Ends well soon after a line of the console contains this.
    pub fn until(mut self, text: &'a str) -> Self {
        self.until = Some(text);
        self
    }

    /// With another content of a guest's file, named by its path in the archive.
    pub fn replace(mut self, path: &'a str, content: Vec<u8>) -> Self {
        self.replaced = Some((path, content));
        self
    }

    /// With a bundle that was changed after it was made.
    pub fn alter(mut self, change: &'a dyn Fn(Vec<u8>) -> Vec<u8>) -> Self {
        self.alter = Some(change);
        self
    }

    /// With a boot loader of the test's own inside of the kernel's file.
    pub fn loader(mut self, make: &'a Loader<'a>) -> Self {
        self.loader = Some(make);
        self
    }

    /// Boots it.
    pub fn run(mut self) -> Result<Outcome> {
        let Lab { emulator, programs, name } = self.lab;
        let kernel = programs.file("microhypervisor");
        let folder = workspace::folder(&format!("run/{name}"))?;
        let (mut boot, memory, cpus, devices) = if self.system == "none" {
            (Boot { kernel, module: None, linux: None }, 256, self.size.cpus.unwrap_or(1), Vec::new())
        } else {
            let mut system = bundle::load(self.system, self.exec)?;
            // Tests run side by side, and two may use the same system.
            system.plan.name = name.clone();
            system.resize(self.size)?;
            system.devices.retain(|device| self.without != Some(&device.name));
            for (name, line) in &self.lines {
                let machine = system.plan.vms.iter_mut().find(|vm| vm.config.name == *name);
                machine.with_context(|| format!("{} has no {name}", self.system))?.config.cmdline.clone_from(line);
            }
            if let Some((path, content)) = self.replaced.take() {
                system.files.insert(path.into(), Origin::Bytes(content));
            }
            let file = bundle::write(&mut system, programs, "")?;
            if let Some(change) = self.alter {
                workspace::write(&file, &change(workspace::read(&file)?))?;
            }
            (Boot { kernel, module: Some(file), linux: None }, system.memory, system.cpus, system.devices)
        };
        let bundle = boot.module.clone();
        if let (Some(make), Some(bundle)) = (self.loader, boot.module.take_if(|_| self.loader.is_some())) {
            let whole = folder.join("whole");
            workspace::write(&whole, &make(&workspace::read(&boot.kernel)?, workspace::read(&bundle)?)?)?;
            boot.kernel = whole;
        }
        let machine = Machine {
            boot,
            memory: self.memory.unwrap_or(memory),
            cpus,
            // Time by instructions has one thread for all.
            take_turns: self.instructions.is_none(),
            cpu_model: self.cpu_model.map(String::from),
            devices,
            further: match (emulator, self.instructions) {
                (Emulator::Qemu, Some(shift)) => {
                    let counted = ["-icount".into(), format!("shift={shift},sleep=off")];
                    self.further.iter().cloned().chain(counted).collect()
                }
                _ => self.further.clone(),
            },
            folder,
            trace: None,
        };
        let log = workspace::folder("run")?.join(format!("{name}.log"));
        let mut session = Session::start(*emulator, &machine, &log)?;
        let outcome = self.watch(&mut session, &log);
        drop(session);
        // They are large, and every one is its own.
        for file in [bundle.as_deref(), Some(&machine.folder.join("boot.iso"))].into_iter().flatten() {
            let _ = std::fs::remove_file(file);
        }
        outcome
    }

    fn watch(&self, session: &mut Session, log: &Path) -> Result<Outcome> {
        let mut frames = Frames::default();
        let mut outcome = Outcome {
            ending: Ending::Finished,
            lines: Vec::new(),
            output: Vec::new(),
            error: Vec::new(),
            status: None,
            log: log.to_path_buf(),
            tail: String::new(),
        };
        let ending = session.watch(Some(Duration::from_secs(self.timeout)), |event| {
            match event {
                Event::Console(_) => {}
                Event::Line(line) => {
                    outcome.lines.push(line.to_string());
                    if self.until.is_some_and(|text| line.contains(text)) {
                        return Ok(Next::Finish(OTHER_LINE));
                    }
                }
                Event::Channel(bytes) => {
                    for frame in frames.append(bytes)? {
                        match frame {
                            Frame::Ready => {}
                            Frame::Output(bytes) => outcome.output.extend(bytes),
                            Frame::Error(bytes) => outcome.error.extend(bytes),
                            Frame::Status(status) => outcome.status = Some(status),
                        }
                    }
                }
            }
            Ok(Next::Continue)
        });
        outcome.tail = session.tail();
        match ending {
            Ok(ending) => outcome.ending = ending,
            Err(error) => return Err(outcome.failure(&format!("{error:#}"))),
        }
        Ok(outcome)
    }
}

impl Outcome {
    /// The machine ended in good order.
    pub fn ended(&self) -> Result<&Self> {
        match self.ending.failure() {
            None => Ok(self),
            Some(reason) => Err(self.failure(&reason)),
        }
    }

    /// The machine ended in good order, and the command or micro guest with this status.
    pub fn status(&self, expected: i32) -> Result<&Self> {
        self.ended()?;
        match self.status {
            Some(status) if status == expected => Ok(self),
            Some(status) => Err(self.failure(&format!("the status is {status}, not {expected}"))),
            None => Err(self.failure("no status came over the exec channel")),
        }
    }

    /// The kernel or the root task gave up, with a line that begins like this.
    pub fn fatal(&self, expected: &str) -> Result<()> {
        match &self.ending {
            Ending::Fatal(line) if line.starts_with(expected) => Ok(()),
            ending => {
                let found = ending.failure().unwrap_or_else(|| "an end in good order".into());
                Err(self.failure(&format!("expected {expected:?}, found {found:?}")))
            }
        }
    }

    /// A line of the console contains this; gives the first.
    pub fn says(&self, text: &str) -> Result<&str> {
        self.lines
            .iter()
            .find(|line| line.contains(text))
            .map(String::as_str)
            .ok_or_else(|| self.failure(&format!("no line of the console contains {text:?}")))
    }

    /// No line of the console contains this.
    pub fn never_says(&self, text: &str) -> Result<&Self> {
        match self.lines.iter().find(|line| line.contains(text)) {
            Some(line) => bail!(self.failure(&format!("a line of the console contains {text:?}: {line}"))),
            None => Ok(self),
        }
    }

    /// The command's standard output as text.
    pub fn text(&self) -> Result<&str> {
        let text = std::str::from_utf8(&self.output);
        ensure!(text.is_ok(), self.failure("the output is no text"));
        Ok(text?)
    }

    /// An error that shows the end of the console.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        anyhow!("{what}\nthe console's last lines (all of it: {}):\n{}", workspace::shown(&self.log), self.tail)
    }
}
