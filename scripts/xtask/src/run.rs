//! `cargo xtask run`: one system in one emulator, on the terminal or for one command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use std::io::{Write, stdout};

use crate::emulator::{Emulator, Machine};
use crate::session::{Event, Next, Session};
use crate::{bundle, workspace};

/// What `run` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// System file, or the name of one in tests/systems
    #[arg(default_value = "linux")]
    system: String,
    /// Where it runs
    #[arg(long, value_enum, default_value = "qemu")]
    on: Emulator,
    /// CPUs of the machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Run CMD in the guest's shell, print its output, exit with its status
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Seconds after which the run has failed
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Another kernel with the same interface
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
}

/// Builds and boots.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    arguments.on.check_host()?;
    let built = bundle::build(&arguments.system, arguments.kernel.as_deref(), arguments.exec.as_deref())?;
    let name = format!("{}-{}", built.name, arguments.on.name());
    let machine = Machine {
        kernel: built.kernel,
        bundle: built.bundle,
        memory: built.memory,
        cpus: arguments.cpus.unwrap_or(built.cpus),
        cpu_model: None,
        folder: workspace::folder(&format!("run/{name}"))?,
    };
    let log = workspace::folder("run")?.join(format!("{name}.log"));
    let mut session = Session::start(arguments.on, &machine, &log)?;
    let ending = session.watch(arguments.timeout.map(Duration::from_secs), |event| {
        if let Event::Console(bytes) = event {
            stdout().write_all(bytes)?;
            stdout().flush()?;
        }
        Ok(Next::Continue)
    })?;
    if let Some(reason) = ending.failure() {
        bail!("{reason}\n(whole log: {})\n{}", workspace::shown(&log), session.tail());
    }
    Ok(ExitCode::SUCCESS)
}
