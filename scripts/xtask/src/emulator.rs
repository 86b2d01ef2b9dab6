//! The machines that a system can run on: one module per emulator, each a description of a command line.

pub mod bochs;
mod kvm;
mod multiboot;
pub mod qemu;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::system::devices::Device;

/// Which emulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Emulator {
    /// QEMU, instructions emulated: SVM with nested paging
    Qemu,
    /// Bochs, instructions emulated: VT-x with EPT
    Bochs,
    /// QEMU on this machine's own VT-x or SVM, nested
    Kvm,
}

/// What a boot loader is to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boot {
    /// The kernel: ours, or Linux.
    pub kernel: PathBuf,
    /// What the kernel is given beside it: the bundle, or Linux's initrd.
    pub module: Option<PathBuf>,
    /// Linux's command line; None for our kernel, which has none.
    pub linux: Option<String>,
}

/// What the emulated machine is made of.
pub struct Machine {
    /// What it starts.
    pub boot: Boot,
    /// RAM in MiB.
    pub memory: u32,
    /// Number of CPUs.
    pub cpus: u32,
    /// Whether they take turns on one processor of the host, where the emulator has a thread for each: the way round a
    /// fault of QEMU's, see docs/emulators.md.
    pub take_turns: bool,
    /// Another CPU model than the emulator's usual one.
    pub cpu_model: Option<String>,
    /// Devices beside those that it always has; Bochs has none.
    pub devices: Vec<Device>,
    /// Further arguments for QEMU, or lines for Bochs' configuration.
    pub further: Vec<String>,
    /// A folder of this run's own, for the emulator's files.
    pub folder: PathBuf,
    /// File for what is executed between marks, if that is wanted; see [`crate::bench`].
    pub trace: Option<PathBuf>,
}

/// TCP ports on the loopback interface that COM1 and COM2 are to connect to.
pub type SerialPorts = [u16; 2];

impl Emulator {
    /// The word a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
            Self::Kvm => "kvm",
        }
    }

    /// Says what this host lacks for it.
    pub fn check_host(self) -> Result<()> {
        match self {
            Self::Qemu | Self::Bochs => Ok(()),
            Self::Kvm => kvm::check_host(),
        }
    }

    /// The command that starts a machine whose serial ports connect to `ports`.
    pub fn command(self, machine: &Machine, ports: SerialPorts) -> Result<Command> {
        let mut command = killed_with_its_parent();
        if machine.take_turns && self.runs_side_by_side(machine.cpus) {
            command.args(["taskset", "--cpu-list", &processor()?.to_string()]);
        }
        match self {
            Self::Qemu => command.args(qemu::arguments(machine, ports, &qemu::EMULATED)?),
            Self::Kvm => command.args(qemu::arguments(machine, ports, &kvm::NESTED)?),
            Self::Bochs if !machine.devices.is_empty() => {
                bail!(
                    "Bochs has no devices that a system file could name ([machine.disk.*], [machine.nic.*]): use QEMU"
                )
            }
            Self::Bochs => bochs::prepare(machine, ports)?.add_to(&mut command),
        };
        command.current_dir(&machine.folder);
        Ok(command)
    }

    /// Whether so many CPUs are threads that run side by side, at which this emulator may fail (docs/emulators.md).
    pub fn runs_side_by_side(self, cpus: u32) -> bool {
        self == Self::Qemu && cpus > 1
    }

    /// Looks after an emulator that has started; `messages` is the file with what it says.
    pub fn attend(self, messages: &Path) {
        if self == Self::Bochs {
            bochs::take_screen(messages.into());
        }
    }

    /// Seconds within which a kernel that works has printed its first line.
    pub fn first_line(self) -> u64 {
        match self {
            Self::Qemu | Self::Kvm => 30,
            Self::Bochs => 90,
        }
    }
}

/// Runs the program named by the following arguments so that it dies with us, however we die.
fn killed_with_its_parent() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    command
}

/// A processor of the host that we may use, another one each time.
fn processor() -> Result<usize> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let usable = sched_getaffinity(None)?;
    // Of several of us, each begins elsewhere.
    let turn = std::process::id() as usize + NEXT.fetch_add(1, Ordering::Relaxed);
    let nth = turn % (usable.count() as usize).max(1);
    (0..CpuSet::MAX_CPU).filter(|&processor| usable.is_set(processor)).nth(nth).context("there is no processor")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
