//! `cargo xtask devices`: the devices of a system's machine, as the root task finds them.

use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::emulator::{Emulator, Machine};
use crate::session::{Ending, Event, Next, Session};
use crate::{bundle, setup, workspace};

/// What the lines of the listing begin with.
const LISTED: &str = "root: devices: ";
/// The line behind them.
const END: &str = "root: the devices are listed";
/// Lines of the kernel and the root task that say what is missing, and why.
const REASONS: [&str; 4] =
    ["kilonova: the IOMMU at ", "kilonova: ACPI: ", "kilonova: DMA is remapped", "root: no PCI function can be used"];

/// What `devices` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// System file, or the name of one in tests/systems, whose machine and plan it is about
    #[arg(default_value = "disk-net")]
    system: String,
    /// Where it runs
    #[arg(long, value_enum, default_value = "qemu")]
    on: Emulator,
    /// Seconds after which the run has failed
    #[arg(long, value_name = "S", default_value = "120")]
    timeout: u64,
}

/// Boots the machine with a root task that lists its devices, and shows the list.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.on.check_host()?;
    setup::for_machine(arguments.on)?;
    let built = bundle::build_listing(&arguments.system)?;
    let name = format!("{}-{}", built.name, arguments.on.name());
    let machine = Machine {
        boot: built.boot,
        memory: built.memory,
        cpus: built.cpus,
        take_turns: false,
        cpu_model: None,
        devices: built.devices,
        further: Vec::new(),
        folder: workspace::folder(&format!("run/{name}"))?,
        trace: None,
    };
    let log = workspace::folder("run")?.join(format!("{name}.log"));
    let mut session = Session::start(arguments.on, &machine, &log)?;
    let mut over = false;
    let ending = session.watch(Some(Duration::from_secs(arguments.timeout)), |event| {
        if let Event::Line(line) = event {
            if let Some(row) = line.strip_prefix(LISTED) {
                println!("{}", row.trim_end());
            } else if REASONS.iter().any(|reason| line.starts_with(reason)) {
                eprintln!("{line}");
            }
            over |= line == END;
        }
        Ok(if over { Next::Finish(Duration::ZERO) } else { Next::Continue })
    });
    let failure = match ending {
        Ok(_) if over => return Ok(()),
        Ok(Ending::Finished | Ending::PoweredOff) => "the machine ended before the list did".into(),
        Ok(ending) => ending.failure().unwrap_or_default(),
        Err(error) => return Err(error),
    };
    Err(anyhow!("{failure}\nthe console's last lines (all of it: {}):\n{}", workspace::shown(&log), session.tail()))
}
