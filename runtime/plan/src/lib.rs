//! The system plan: what the root task carries out, in its compact binary form.
//!
//! The host tool parses the user's TOML and packs a [`SystemPlan`] into the boot archive under [`ARCHIVE_PATH`]; the
//! root task unpacks it and gives every virtual-machine monitor its [`VmConfig`]. No text parser runs in the target.
//! The encoding is eight bytes of header (magic, version; little-endian) and a postcard body.
#![no_std]

extern crate alloc;

mod devices;
pub mod observation;
#[cfg(test)]
mod tests;

pub use devices::*;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Path of the encoded plan in the boot archive.
pub const ARCHIVE_PATH: &str = "plan";
/// Version of every type in this crate; a decoder accepts only its own.
pub const VERSION: u32 = 7;
/// Most virtual machines in one system.
pub const VMS_MAX: usize = 64;
/// Longest name of a virtual machine.
pub const VM_NAME_MAX: usize = 24;
/// Most virtual CPUs of a virtual machine.
pub const VCPUS_MAX: u32 = 16;
/// Most CPUs that virtual machines run on, the one that the machine started on among them.
pub const CPUS_MAX: u32 = 17;
/// Smallest memory of a virtual machine in bytes.
pub const MEMORY_MIN: u64 = 4 << 20;
/// Granularity of a virtual machine's memory in bytes.
pub const MEMORY_GRANULE: u64 = 2 << 20;

/// Archive path of the program `name`.
pub fn program_path(name: &str) -> String {
    format!("programs/{name}")
}

/// The program that monitors a virtual machine, unless the plan names another.
pub const MONITOR: &str = "vmm";
/// How long a virtual machine runs before another of the same priority, unless the plan says otherwise, in
/// milliseconds.
pub const SLICE_MS: u16 = 10;

/// How long a virtual machine that ended is left alone before it is started anew, unless the plan says otherwise, in
/// milliseconds.
pub const RESTART_DELAY_MS: u32 = 100;

const PLAN_MAGIC: u32 = u32::from_le_bytes(*b"KNPL");
const CONFIG_MAGIC: u32 = u32::from_le_bytes(*b"KNVM");
const HEADER: usize = 8;

/// What a whole system consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemPlan {
    /// Name for the boot log.
    pub name: String,
    /// Virtual machines in starting order; the first with a console has the keyboard.
    pub vms: Vec<VmPlan>,
    /// Drivers, which are started before the virtual machines.
    pub drivers: Vec<DriverPlan>,
    /// Switches, which are started with them.
    pub switches: Vec<SwitchPlan>,
    /// Whether drivers need an IOMMU.
    pub iommu: Iommu,
    /// What is told over the third serial line.
    pub observe: observation::Wanted,
    /// Nothing is started: the devices are listed, with their owners to be, and the machine is switched off.
    pub list_devices: bool,
}

/// One virtual machine: its configuration and where its files are in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPlan {
    /// What its monitor is told.
    pub config: VmConfig,
    /// Name of the program that is its monitor; see [`program_path`].
    pub monitor: String,
    /// Archive path of the kernel image.
    pub kernel: String,
    /// Archive paths of the initial RAM disks, loaded one behind the other.
    pub initrd: Vec<String>,
    /// What follows its end.
    pub restart: Restart,
    /// What serves each of its disks, in the order of [`VmConfig::disks`].
    pub disks: Vec<DiskSource>,
    /// Name of the switch of each of its network devices, in the order of [`VmConfig::nics`].
    pub switches: Vec<String>,
    /// The PCI functions that it has to itself, in the order of [`VmConfig::functions`].
    pub functions: Vec<DeviceChoice>,
}

/// Whether and how often a virtual machine that has ended is started anew, with a new monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// After which ends.
    pub after: RestartAfter,
    /// How many times at most.
    pub limit: Option<u32>,
    /// Milliseconds until the first restart. They double with each further one of a machine that soon ends again.
    pub delay: u32,
}

impl Restart {
    /// A machine that has ended stays so.
    pub const NEVER: Self = Self { after: RestartAfter::Never, limit: None, delay: RESTART_DELAY_MS };
}

/// After which ends a virtual machine is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartAfter {
    /// None.
    Never,
    /// When its monitor died, or the guest did what no machine survives.
    Crash,
    /// Every end.
    Any,
}

/// What a virtual-machine monitor is told about its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Name, unique in the system: lower-case letters, digits, `-`, `_`; at most 24 bytes.
    pub name: String,
    /// Guest memory in bytes, a multiple of [`MEMORY_GRANULE`].
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// CPUs that they run on. In a plan: any number, used in turn, or none for all that the machine has. In a monitor's
    /// configuration: one for each virtual CPU.
    pub cpus: Vec<u32>,
    /// How long it runs before another machine of the same CPU, in milliseconds; not 0.
    pub slice: u16,
    /// Kernel command line.
    pub cmdline: String,
    /// What the kernel image is.
    pub guest: GuestKind,
    /// By what the machine has the system's console.
    pub console: Console,
    /// Whether the machine has the exec channel; at most one in a system.
    pub exec: bool,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
    /// Whether the machine has an entropy device, which feeds the guest's random numbers.
    pub entropy: bool,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// Network devices, behind the disks.
    pub nics: Vec<NicConfig>,
    /// PCI functions of the machine that it has to itself, behind all others.
    pub functions: Vec<FunctionConfig>,
}

/// How a guest's image is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestKind {
    /// A Linux bzImage, by the 64-bit boot protocol.
    Linux,
    /// A multiboot 1 ELF image (the micro guests).
    Multiboot,
}

/// By what a machine has the system's console, which shows its output and gives it what is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Console {
    /// Not at all.
    None,
    /// By its first serial port.
    Serial,
    /// By a virtio console, and by its first serial port: output of both is shown, what is typed is the virtio console's
    /// while the guest has a driver for it.
    Virtio,
}

/// What happens when the guest resets its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnReset {
    /// The machine starts again.
    Restart,
    /// The machine ends.
    Stop,
}

/// Why bytes are no plan or configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Too short, or another magic.
    NotOne,
    /// Made by another version of this crate.
    Version(u32),
    /// The body does not parse, or bytes are left over.
    Malformed,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOne => write!(f, "does not begin as a plan"),
            Self::Version(found) => write!(f, "has version {found}, this program reads version {VERSION}"),
            Self::Malformed => write!(f, "is damaged"),
        }
    }
}

/// Why a plan that decodes cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// No virtual machine.
    Empty,
    /// More than [`VMS_MAX`].
    TooMany(usize),
    /// The name breaks the rules of [`VmConfig::name`].
    BadName(String),
    /// Two machines have this name.
    SameName(String),
    /// The memory of this machine is below [`MEMORY_MIN`] or not a multiple of [`MEMORY_GRANULE`].
    BadMemory(String, u64),
    /// The machine has no virtual CPU, or more than [`VCPUS_MAX`].
    BadVcpus(String, u32),
    /// The machine is to run on a CPU beyond [`CPUS_MAX`].
    BadCpu(String, u32),
    /// The time slice of this machine is 0.
    NoSlice(String),
    /// More than one machine has the exec channel.
    SecondExec(String),
    /// More than [`DRIVERS_MAX`] drivers or switches.
    TooManyDrivers,
    /// More than [`DEVICES_MAX`] disks or network devices of this machine, or more than [`FUNCTIONS_MAX`] PCI functions.
    TooManyDevices(String),
    /// More than [`CLIENTS_MAX`] or [`PORTS_MAX`] want something of this driver or switch.
    TooManyClients(String),
    /// The name of a driver, a switch, a disk or a network device breaks the rules.
    BadDeviceName(String),
    /// Two drivers or switches have this name.
    SameDevice(String),
    /// The memory that this driver shares with its device is not whole pages.
    BadDma(String, u64),
    /// Another driver has this driver's function.
    SameFunction(String, DeviceChoice),
    /// A driver or another virtual machine has this machine's function.
    TakenFunction(String, DeviceChoice),
    /// There is no driver of this name.
    NoDriver(String),
    /// The driver of this name serves something else.
    WrongService(String, Service),
    /// There is no switch of this name.
    NoSwitch(String),
    /// The driver is the uplink of two switches.
    SecondUplink(String),
    /// Two clients of a driver have sectors in common, and one may write.
    Overlap(String, String),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "no virtual machine"),
            Self::TooMany(count) => write!(f, "{count} virtual machines, at most {VMS_MAX} are possible"),
            Self::BadName(name) => write!(f, "bad name {name:?}: use a-z, 0-9, - and _, at most 24"),
            Self::SameName(name) => write!(f, "two virtual machines are named {name}"),
            Self::BadMemory(name, bytes) => write!(
                f,
                "vm {name}: impossible memory size {bytes} bytes: at least {} MiB and a multiple of {} MiB",
                MEMORY_MIN >> 20,
                MEMORY_GRANULE >> 20
            ),
            Self::BadVcpus(name, vcpus) => {
                write!(f, "vm {name}: {vcpus} virtual CPUs are not possible, 1 to {VCPUS_MAX} are")
            }
            Self::BadCpu(name, cpu) => {
                write!(f, "vm {name}: CPU {cpu} is not possible, virtual machines run on CPUs 0 to {}", CPUS_MAX - 1)
            }
            Self::NoSlice(name) => write!(f, "vm {name}: a time slice of 0 ms is none"),
            Self::SecondExec(name) => write!(f, "vm {name}: another machine has the exec channel already"),
            Self::TooManyDrivers => write!(f, "more than {DRIVERS_MAX} drivers or switches"),
            Self::TooManyDevices(vm) => write!(
                f,
                "vm {vm}: more than {DEVICES_MAX} disks or network devices, or more than {FUNCTIONS_MAX} PCI functions"
            ),
            Self::TooManyClients(name) => {
                write!(
                    f,
                    "{name} serves too many: a driver serves up to {CLIENTS_MAX}, a switch has up to {PORTS_MAX} ports"
                )
            }
            Self::BadDeviceName(name) => {
                write!(f, "bad name {name:?}: use a-z, 0-9, - and _, at most {DEVICE_NAME_MAX}")
            }
            Self::SameDevice(name) => write!(f, "two drivers or switches are named {name}"),
            Self::BadDma(name, bytes) => write!(f, "driver {name}: {bytes} bytes are no whole pages of memory"),
            Self::SameFunction(name, device) => write!(f, "driver {name}: another driver has {device} already"),
            Self::TakenFunction(vm, device) => {
                write!(f, "vm {vm}: a driver or another virtual machine has {device} already")
            }
            Self::NoDriver(name) => write!(f, "there is no driver {name}"),
            Self::WrongService(name, Service::Disk) => write!(f, "the driver {name} serves disks, not a network"),
            Self::WrongService(name, Service::Network) => write!(f, "the driver {name} serves a network, not disks"),
            Self::NoSwitch(name) => write!(f, "there is no switch {name}"),
            Self::SecondUplink(name) => write!(f, "the driver {name} is the uplink of another switch already"),
            Self::Overlap(a, b) => write!(f, "{a} and {b} share sectors, and not both only read them"),
        }
    }
}

impl SystemPlan {
    /// The encoded form.
    pub fn encode(&self) -> Vec<u8> {
        encode(PLAN_MAGIC, self)
    }

    /// Reads the encoded form; the whole of `bytes` must be it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(PLAN_MAGIC, bytes)
    }

    /// Checks what the types cannot express.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.vms.is_empty() {
            return Err(PlanError::Empty);
        }
        if self.vms.len() > VMS_MAX {
            return Err(PlanError::TooMany(self.vms.len()));
        }
        let mut exec = false;
        for (i, vm) in self.vms.iter().enumerate() {
            let config = &vm.config;
            let name = || config.name.clone();
            if !is_name(&config.name, VM_NAME_MAX) {
                return Err(PlanError::BadName(name()));
            }
            if self.vms[..i].iter().any(|other| other.config.name == config.name) {
                return Err(PlanError::SameName(name()));
            }
            if config.memory < MEMORY_MIN || !config.memory.is_multiple_of(MEMORY_GRANULE) {
                return Err(PlanError::BadMemory(name(), config.memory));
            }
            if !(1..=VCPUS_MAX).contains(&config.vcpus) {
                return Err(PlanError::BadVcpus(name(), config.vcpus));
            }
            if let Some(&cpu) = config.cpus.iter().find(|&&cpu| cpu >= CPUS_MAX) {
                return Err(PlanError::BadCpu(name(), cpu));
            }
            if config.slice == 0 {
                return Err(PlanError::NoSlice(name()));
            }
            if config.exec && core::mem::replace(&mut exec, true) {
                return Err(PlanError::SecondExec(name()));
            }
        }
        self.validate_devices()
    }
}

/// Whether `name` is of lower-case letters, digits, `-` and `_`, at least one and at most `most`.
fn is_name(name: &str, most: usize) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
    (1..=most).contains(&name.len()) && name.bytes().all(allowed)
}

impl VmConfig {
    /// The encoded form, as it stands in the monitor's configuration region.
    pub fn encode(&self) -> Vec<u8> {
        encode(CONFIG_MAGIC, self)
    }

    /// Reads the encoded form; the whole of `bytes` must be it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(CONFIG_MAGIC, bytes)
    }
}

fn encode<T: Serialize>(magic: u32, value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&magic.to_le_bytes());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    // Postcard fails only for sequences of unknown length, which these types do not have.
    postcard::to_extend(value, bytes).unwrap_or_default()
}

fn decode<'a, T: Deserialize<'a>>(magic: u32, bytes: &'a [u8]) -> Result<T, DecodeError> {
    let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if word(0) != Some(magic) {
        return Err(DecodeError::NotOne);
    }
    let version = word(4).ok_or(DecodeError::NotOne)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    match postcard::take_from_bytes(&bytes[HEADER..]) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed),
    }
}
