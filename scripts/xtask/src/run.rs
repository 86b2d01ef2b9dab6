//! `cargo xtask run`: one system in one emulator, on the terminal or for one command.

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use plan::observation::Wanted;

use crate::emulator::{Emulator, Machine};
use crate::exec::{Frame, Frames};
use crate::session::{BadEnds, Ending, Event, Next, Session};
use crate::system::Size;
use crate::{bundle, observe, setup, terminal, workspace};

/// How long a machine may take to switch itself off after its command has ended.
const POWER_OFF: Duration = Duration::from_secs(10);

/// The same if it has to tell before what the kernel counted and recorded.
const OBSERVED: Duration = Duration::from_secs(150);

/// What else may be the cause when a run with several CPUs ended badly.
const SIDE_BY_SIDE: &str =
    "\nseveral CPUs ran side by side, at which QEMU may fail: see --take-turns in docs/emulators.md";

/// What `run` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// System file, or the name of one in tests/systems; `none` starts the kernel alone
    #[arg(default_value = "linux")]
    system: String,
    /// Where it runs
    #[arg(long, value_enum, default_value = "qemu")]
    on: Emulator,
    /// CPUs of the machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Run QEMU's CPUs in turn on one processor of this host: slower, but side by side QEMU may lose its first CPU
    #[arg(long)]
    take_turns: bool,
    /// Virtual CPUs of the first virtual machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(plan::VCPUS_MAX)))]
    vcpus: Option<u32>,
    /// Run CMD in the guest's shell, print its output, exit with its status
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Seconds after which the run has failed [default with --exec: 300, on Bochs 1200]
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Another kernel with the same interface
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Boot the system's Linux directly on the emulated machine, for comparison
    #[arg(long, conflicts_with_all = ["kernel", "exec", "stats", "trace"])]
    bare: bool,
    /// Print at the end what the kernel counted, to standard error
    #[arg(long)]
    stats: bool,
    /// Write a trace of what each CPU did, for Perfetto
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Builds and boots.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    arguments.on.check_host()?;
    setup::for_machine(arguments.on)?;
    let size = Size { cpus: arguments.cpus, vcpus: arguments.vcpus };
    let wanted = Wanted { counters: arguments.stats, trace: arguments.trace.is_some() };
    let built = if arguments.bare {
        bundle::build_bare(&arguments.system, size)?
    } else {
        bundle::build(&arguments.system, size, arguments.kernel.as_deref(), arguments.exec.as_deref(), wanted)?
    };
    let line = observe::Line::open(wanted)?;
    let name = format!("{}-{}", built.name, arguments.on.name());
    let machine = Machine {
        boot: built.boot,
        memory: built.memory,
        cpus: arguments.cpus.unwrap_or(built.cpus),
        take_turns: arguments.take_turns,
        cpu_model: None,
        devices: built.devices,
        further: line.as_ref().map(|line| line.arguments(arguments.on)).unwrap_or_default(),
        folder: workspace::folder(&format!("run/{name}"))?,
        trace: None,
    };
    let log = workspace::folder("run")?.join(format!("{name}.log"));
    let mut session = Session::start(arguments.on, &machine, &log)?;
    let outcome = match arguments.exec {
        Some(_) => execute(&mut session, arguments),
        None => converse(&mut session, arguments),
    };
    let side_by_side = arguments.on.runs_side_by_side(machine.cpus) && !machine.take_turns;
    let hint = if side_by_side { SIDE_BY_SIDE } else { "" };
    let outcome = outcome.map_err(|error| {
        anyhow!(
            "{error:#}{hint}\nthe console's last lines (all of it: {}):\n{}",
            workspace::shown(&log),
            session.tail()
        )
    });
    drop(session);
    let observed =
        line.map_or(Ok(()), |line| observe::tell(line.finish()?, arguments.stats, arguments.trace.as_deref()));
    // The run's own end says more.
    outcome.and_then(|code| observed.map(|()| code))
}

/// Shows nothing but the output of the command.
fn execute(session: &mut Session, arguments: &Arguments) -> Result<ExitCode> {
    let default = if arguments.on == Emulator::Bochs { 1200 } else { 300 };
    let timeout = Duration::from_secs(arguments.timeout.unwrap_or(default));
    let grace = if arguments.stats || arguments.trace.is_some() { OBSERVED } else { POWER_OFF };
    let mut frames = Frames::default();
    let mut status = None;
    let ending = session.watch(Some(timeout), |event| {
        if let Event::Channel(bytes) = event {
            for frame in frames.append(bytes)? {
                match frame {
                    Frame::Ready => {}
                    Frame::Output(bytes) => show(&mut stdout(), &bytes)?,
                    Frame::Error(bytes) => show(&mut stderr(), &bytes)?,
                    Frame::Status(code) => status = Some(code),
                }
            }
        }
        Ok(if status.is_some() { Next::Finish(grace) } else { Next::Continue })
    })?;
    match (status, ending) {
        (Some(status), _) => Ok(exit_code(status)),
        (None, Ending::PoweredOff) => bail!("the system ended before the command had"),
        (None, ending) => bail!("{}", ending.failure().unwrap_or_default()),
    }
}

/// Puts the console on the terminal.
fn converse(session: &mut Session, arguments: &Arguments) -> Result<ExitCode> {
    let raw = terminal::Raw::enter()?;
    if raw.is_some() {
        eprintln!("[ {} runs on {}; the key Ctrl-] leaves ]", arguments.system, arguments.on.name());
    }
    terminal::forward(session.console()?, session.leave());
    let mut frames = Frames::default();
    let mut status = 0;
    let mut bad_ends = BadEnds::default();
    let ending = session.watch(arguments.timeout.map(Duration::from_secs), |event| {
        match event {
            Event::Console(bytes) => show(&mut stdout(), bytes)?,
            Event::Line(line) => bad_ends.look(line),
            // Micro guests tell their verdict there.
            Event::Channel(bytes) => {
                for frame in frames.append(bytes)? {
                    if let Frame::Status(code) = frame {
                        status = code;
                    }
                }
            }
        }
        Ok(Next::Continue)
    })?;
    drop(raw);
    match ending {
        Ending::Finished => Ok(ExitCode::SUCCESS),
        Ending::PoweredOff => match bad_ends.first() {
            None => Ok(exit_code(status)),
            Some(line) => bail!("{line}"),
        },
        // A Linux on the bare machine has no root task that would announce the end.
        Ending::Stopped(_) if arguments.bare => Ok(ExitCode::SUCCESS),
        ending => bail!("{}", ending.failure().unwrap_or_default()),
    }
}

fn show(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)?;
    to.flush()?;
    Ok(())
}

/// A process has eight bits of status.
fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(status as u8)
}
