//! Devices in a plan: drivers, their clients, and the switches between network devices and virtual machines.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

use crate::{DecodeError, PlanError, SystemPlan, decode, encode, is_name};

/// Most drivers in one system, and most switches.
pub const DRIVERS_MAX: usize = 16;
/// Most disks of a virtual machine, and most network devices.
pub const DEVICES_MAX: usize = 8;
/// Most PCI functions that a virtual machine has to itself.
pub const FUNCTIONS_MAX: usize = 4;
/// Most interrupts of each of them that the machine gets.
pub const FUNCTION_INTERRUPTS: u16 = 8;
/// End of a virtual machine's memory below 4 GiB at most: the hole for devices follows.
pub const LOW_MEMORY_MAX: u64 = 0xc000_0000;
/// Guest-physical address where the rest of its memory is.
pub const HIGH_MEMORY_BASE: u64 = 1 << 32;
/// Most clients of one driver.
pub const CLIENTS_MAX: usize = 16;
/// Most ports of a switch.
pub const PORTS_MAX: usize = 32;
/// Longest name of a driver, a switch, a disk or a network device.
pub const DEVICE_NAME_MAX: usize = 12;
/// Bytes of a sector, in which places on disks are counted.
pub const SECTOR: u64 = 512;
/// Memory that a driver shares with its device, unless the plan says otherwise, in bytes.
pub const DMA_DEFAULT: u64 = 1 << 20;
/// Bytes of the window that a client of a disk and its driver share.
pub const WINDOW: u64 = 4 << 20;
/// Program of a switch; see [`crate::program_path`].
pub const SWITCH: &str = "switch";

const DRIVER_MAGIC: u32 = u32::from_le_bytes(*b"KNDR");
const SWITCH_MAGIC: u32 = u32::from_le_bytes(*b"KNSW");

/// A MAC address.
pub type Mac = [u8; 6];

/// Whether the machine has to have an IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Iommu {
    /// Without one no driver is started.
    Required,
    /// Without one drivers are started, and could reach all memory by their devices: the log warns.
    #[default]
    Preferred,
    /// One that there is is not used for drivers.
    Off,
}

/// Where a PCI function is: what the PCI Local Bus Specification calls bus, device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PciAddress(u16);

impl PciAddress {
    /// The function with these numbers; `device` below 32, `function` below 8.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 31) << 3 | function as u16 & 7)
    }

    /// The 16 bits that a request of the function carries: bus, device, function.
    pub const fn requester(self) -> u16 {
        self.0
    }

    /// Of the 16 bits.
    pub const fn from_requester(requester: u16) -> Self {
        Self(requester)
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device number on the bus, below 32.
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 31) as u8
    }

    /// Function number of the device, below 8.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Reads `bus:device.function`, in hexadecimal, as `00:04.0`; a leading `0000:` is allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("0000:").unwrap_or(text);
        let (bus, rest) = text.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let number = |text: &str, digits: usize, below: u16| {
            let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
            let number = u16::from_str_radix(text, 16).ok()?;
            (fits && number < below).then_some(number as u8)
        };
        Some(Self::new(number(bus, 2, 256)?, number(device, 2, 32)?, number(function, 1, 8)?))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// Which PCI function a driver gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// The one at this address.
    At(PciAddress),
    /// The first one with this vendor and device number that no driver has yet.
    Id {
        /// Vendor number.
        vendor: u16,
        /// Device number.
        device: u16,
    },
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => write!(f, "{address}"),
            Self::Id { vendor, device } => write!(f, "{vendor:04x}:{device:04x}"),
        }
    }
}

/// What a driver serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// Disks, by the protocol `runtime::block`.
    Disk,
    /// A network, by the protocol `runtime::net`.
    Network,
}

/// One driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverPlan {
    /// Name, unique among drivers and switches.
    pub name: String,
    /// Its program; see [`crate::program_path`].
    pub program: String,
    /// What it serves.
    pub service: Service,
    /// Its device.
    pub device: DeviceChoice,
    /// Bytes of memory that it shares with the device, whole pages.
    pub dma: u64,
    /// For tests: how often it is killed, in milliseconds.
    pub kill_every: Option<u32>,
}

/// One switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchPlan {
    /// Name, unique among drivers and switches.
    pub name: String,
    /// The driver of the network device that joins it to the world.
    pub uplink: Option<String>,
    /// For tests: how often it is killed, in milliseconds.
    pub kill_every: Option<u32>,
}

/// What serves a disk of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSource {
    /// Name of the driver.
    pub driver: String,
    /// First sector on the driver's disk.
    pub first: u64,
    /// Number of sectors; 0: all to the end.
    pub sectors: u64,
}

/// A disk as a virtual machine's monitor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Name, unique in the machine. Its rings are `disk.NAME.requests` (producer) and `disk.NAME.completions` (consumer),
    /// its window is the region `disk.NAME.data`.
    pub name: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A network device as a virtual machine's monitor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// Name, unique in the machine. Its rings are `nic.NAME.out` (producer) and `nic.NAME.in` (consumer).
    pub name: String,
    /// Its address.
    pub mac: Mac,
}

/// A PCI function that a virtual machine has to itself, as its monitor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionConfig {
    /// Name, unique in the machine. Its registers are the regions `pci.NAME.bar0` to `pci.NAME.bar5`, its configuration space
    /// is the region `pci.NAME.config`, its interrupts are `pci.NAME.msi0` and so on.
    pub name: String,
}

/// What a driver is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverConfig {
    /// Whom it serves. A driver of a network has none: its rings are `uplink.out` and `uplink.in`.
    pub clients: Vec<ClientConfig>,
}

/// A client of a driver of disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientConfig {
    /// Its name, as `linux.root`. Its rings are `NAME.requests` (consumer) and `NAME.completions` (producer), its window
    /// is the region `NAME.data`.
    pub name: String,
    /// First sector on the disk.
    pub first: u64,
    /// Number of sectors; 0: all to the end.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a switch is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchConfig {
    /// Its ports.
    pub ports: Vec<PortConfig>,
}

/// A port of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    /// Its name, as `linux.eth0`. Its rings are `NAME.out` (consumer) and `NAME.in` (producer).
    pub name: String,
    /// The only address that may send here; none: any.
    pub mac: Option<Mac>,
    /// Whether the world is behind it.
    pub uplink: bool,
}

impl DriverConfig {
    /// The encoded form, as it stands in the driver's configuration region.
    pub fn encode(&self) -> Vec<u8> {
        encode(DRIVER_MAGIC, self)
    }

    /// Reads the encoded form; the whole of `bytes` must be it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(DRIVER_MAGIC, bytes)
    }
}

impl SwitchConfig {
    /// The encoded form, as it stands in the switch's configuration region.
    pub fn encode(&self) -> Vec<u8> {
        encode(SWITCH_MAGIC, self)
    }

    /// Reads the encoded form; the whole of `bytes` must be it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(SWITCH_MAGIC, bytes)
    }
}

/// Name of the uplink's port in a [`SwitchConfig`].
pub const UPLINK: &str = "uplink";

impl SystemPlan {
    /// What the driver `name` is told.
    pub fn driver_config(&self, name: &str) -> DriverConfig {
        let client = |vm: &crate::VmPlan, disk: &DiskConfig, source: &DiskSource| ClientConfig {
            name: client_name(&vm.config.name, &disk.name),
            first: source.first,
            sectors: source.sectors,
            read_only: disk.read_only,
        };
        let disks = |vm| disks(vm).filter(|(_, source)| source.driver == name).map(move |(d, s)| client(vm, d, s));
        DriverConfig { clients: self.vms.iter().flat_map(disks).collect() }
    }

    /// What the switch `name` is told.
    pub fn switch_config(&self, name: &str) -> SwitchConfig {
        let uplink = self.switches.iter().any(|switch| switch.name == name && switch.uplink.is_some());
        let mut ports = Vec::new();
        if uplink {
            ports.push(PortConfig { name: UPLINK.into(), mac: None, uplink });
        }
        for vm in &self.vms {
            let joined = vm.config.nics.iter().zip(&vm.switches).filter(|(_, switch)| *switch == name);
            ports.extend(joined.map(|(nic, _)| PortConfig {
                name: client_name(&vm.config.name, &nic.name),
                mac: Some(nic.mac),
                uplink: false,
            }));
        }
        SwitchConfig { ports }
    }

    /// Checks drivers, switches and what virtual machines want of them.
    pub(crate) fn validate_devices(&self) -> Result<(), PlanError> {
        if self.drivers.len().max(self.switches.len()) > DRIVERS_MAX {
            return Err(PlanError::TooManyDrivers);
        }
        let names = self.drivers.iter().map(|d| &d.name).chain(self.switches.iter().map(|s| &s.name));
        for (i, name) in names.clone().enumerate() {
            check_name(name)?;
            if names.clone().take(i).any(|other| other == name) {
                return Err(PlanError::SameDevice(name.clone()));
            }
        }
        for (i, driver) in self.drivers.iter().enumerate() {
            if driver.dma == 0 || !driver.dma.is_multiple_of(4096) {
                return Err(PlanError::BadDma(driver.name.clone(), driver.dma));
            }
            if let DeviceChoice::At(_) = driver.device
                && self.drivers[..i].iter().any(|other| other.device == driver.device)
            {
                return Err(PlanError::SameFunction(driver.name.clone(), driver.device));
            }
        }
        for (i, switch) in self.switches.iter().enumerate() {
            let Some(uplink) = &switch.uplink else { continue };
            self.serves(uplink, Service::Network)?;
            if self.switches[..i].iter().any(|other| other.uplink.as_ref() == Some(uplink)) {
                return Err(PlanError::SecondUplink(uplink.clone()));
            }
        }
        self.vms.iter().try_for_each(|vm| self.validate_vm_devices(vm))?;
        self.validate_functions()?;
        self.validate_load()
    }

    fn validate_vm_devices(&self, vm: &crate::VmPlan) -> Result<(), PlanError> {
        let config = &vm.config;
        if config.disks.len().max(config.nics.len()) > DEVICES_MAX
            || config.disks.len() != vm.disks.len()
            || config.nics.len() != vm.switches.len()
            || config.functions.len() > FUNCTIONS_MAX
            || config.functions.len() != vm.functions.len()
        {
            return Err(PlanError::TooManyDevices(config.name.clone()));
        }
        let names = config.disks.iter().map(|d| &d.name).chain(config.nics.iter().map(|n| &n.name));
        names.chain(config.functions.iter().map(|f| &f.name)).try_for_each(|n| check_name(n))?;
        vm.disks.iter().try_for_each(|disk| self.serves(&disk.driver, Service::Disk))?;
        let unknown = |name: &&String| !self.switches.iter().any(|switch| switch.name == **name);
        match vm.switches.iter().find(unknown) {
            Some(name) => Err(PlanError::NoSwitch(name.clone())),
            None => Ok(()),
        }
    }

    /// That nobody else has what a virtual machine has to itself, as far as the addresses tell.
    fn validate_functions(&self) -> Result<(), PlanError> {
        let mut taken: Vec<DeviceChoice> = self.drivers.iter().map(|driver| driver.device).collect();
        for vm in &self.vms {
            for device in &vm.functions {
                if matches!(device, DeviceChoice::At(_)) && taken.contains(device) {
                    return Err(PlanError::TakenFunction(vm.config.name.clone(), *device));
                }
                taken.push(*device);
            }
        }
        Ok(())
    }

    /// How many a driver and a switch can serve, and that two machines cannot write the same sectors.
    fn validate_load(&self) -> Result<(), PlanError> {
        let of_drivers = self.drivers.iter().map(|d| (&d.name, self.driver_config(&d.name).clients.len(), CLIENTS_MAX));
        let of_switches = self.switches.iter().map(|s| (&s.name, self.switch_config(&s.name).ports.len(), PORTS_MAX));
        if let Some((name, ..)) = of_drivers.chain(of_switches).find(|(_, clients, most)| clients > most) {
            return Err(PlanError::TooManyClients(name.clone()));
        }
        for driver in &self.drivers {
            let clients = self.driver_config(&driver.name).clients;
            for (i, client) in clients.iter().enumerate() {
                let clash = |other: &&ClientConfig| !(other.read_only && client.read_only) && overlap(other, client);
                if let Some(other) = clients[..i].iter().find(clash) {
                    return Err(PlanError::Overlap(client.name.clone(), other.name.clone()));
                }
            }
        }
        Ok(())
    }

    fn serves(&self, name: &str, service: Service) -> Result<(), PlanError> {
        match self.drivers.iter().find(|driver| driver.name == name) {
            None => Err(PlanError::NoDriver(name.into())),
            Some(driver) if driver.service != service => Err(PlanError::WrongService(name.into(), driver.service)),
            Some(_) => Ok(()),
        }
    }
}

/// Interrupts of each of them that a machine with so many virtual CPUs gets: drivers want one for each, and one more; some
/// want three at least.
pub fn function_interrupts(vcpus: u32) -> u16 {
    u16::try_from(vcpus + 1).unwrap_or(u16::MAX).clamp(4, FUNCTION_INTERRUPTS)
}

/// The name under which a driver or a switch knows a device of a virtual machine.
pub fn client_name(vm: &str, device: &str) -> String {
    alloc::format!("{vm}.{device}")
}

fn disks(vm: &crate::VmPlan) -> impl Iterator<Item = (&DiskConfig, &DiskSource)> {
    vm.config.disks.iter().zip(&vm.disks)
}

fn check_name(name: &str) -> Result<(), PlanError> {
    if is_name(name, DEVICE_NAME_MAX) { Ok(()) } else { Err(PlanError::BadDeviceName(name.into())) }
}

/// Whether two clients' sectors have one in common.
fn overlap(a: &ClientConfig, b: &ClientConfig) -> bool {
    let end = |client: &ClientConfig| match client.sectors {
        0 => u64::MAX,
        sectors => client.first.saturating_add(sectors),
    };
    a.first < end(b) && b.first < end(a)
}
