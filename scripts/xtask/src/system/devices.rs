//! The devices of a system file: those of the emulated machine, drivers, switches, disks and network devices of virtual
//! machines. Whatever one names that another should have is looked up here, so that the error stands at the name.

use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Result, bail};
use plan::{
    DeviceChoice, DiskConfig, DiskSource, DriverPlan, FunctionConfig, Mac, NicConfig, PciAddress, SECTOR, Service,
    SwitchPlan,
};
use serde::Deserialize;
use toml::Spanned;

use super::{InOrder, Origin, mebibytes, origin_of};
use crate::guest::RecipeKind;
use crate::source::Source;

/// Programs that can be drivers, and what they serve.
const DRIVERS: [(&str, Service); 5] = [
    ("nvme", Service::Disk),
    ("ahci", Service::Disk),
    ("virtio-blk", Service::Disk),
    ("virtio-net", Service::Network),
    ("e1000e", Service::Network),
];

/// One for tests, which attacks by its device.
const HOSTILE: (&str, Service) = ("hostile", Service::Network);

/// The device numbers of the emulated machine that its chipset takes: host bridge and LPC bridge.
const CHIPSET: [u8; 2] = [0, 31];

/// `[machine.disk.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDisk {
    interface: Option<DiskInterface>,
    size: Option<Spanned<String>>,
    image: Option<Spanned<String>>,
    pci: Spanned<String>,
}

/// `[machine.nic.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineNic {
    interface: Option<NicInterface>,
    pci: Spanned<String>,
}

/// `[driver.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverTable {
    program: Spanned<String>,
    pci: Option<Spanned<String>>,
    id: Option<Spanned<String>>,
    dma: Option<Spanned<String>>,
    kill_every: Option<u32>,
}

/// `[switch.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchTable {
    uplink: Option<Spanned<String>>,
    kill_every: Option<u32>,
}

/// `[vm.VM.disk.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTable {
    driver: Spanned<String>,
    first: Option<Spanned<String>>,
    size: Option<Spanned<String>>,
    #[serde(default)]
    read_only: bool,
}

/// `[vm.VM.nic.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicTable {
    switch: Spanned<String>,
    mac: Option<Spanned<String>>,
}

/// `[vm.VM.pci.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionTable {
    pci: Option<Spanned<String>>,
    id: Option<Spanned<String>>,
}

/// The word `iommu`.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum IommuWord {
    /// See [`plan::Iommu`].
    Required,
    /// See [`plan::Iommu`].
    #[default]
    Preferred,
    /// See [`plan::Iommu`].
    Off,
}

impl From<IommuWord> for plan::Iommu {
    fn from(word: IommuWord) -> Self {
        match word {
            IommuWord::Required => Self::Required,
            IommuWord::Preferred => Self::Preferred,
            IommuWord::Off => Self::Off,
        }
    }
}

/// How an emulated disk is attached.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum DiskInterface {
    /// An NVMe controller with one namespace.
    Nvme,
    /// An AHCI controller with one disk.
    Ahci,
    /// A virtio block device.
    Virtio,
}

/// What an emulated network device is.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum NicInterface {
    /// A virtio network device.
    Virtio,
    /// Intel's 82574L.
    E1000e,
}

/// What a disk holds when the machine starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskContent {
    /// So many bytes of zeros.
    Empty(u64),
    /// A copy of this file, and zeros behind it up to so many bytes.
    Image(PathBuf, u64),
    /// The same with what this recipe makes.
    Recipe(String, u64),
    /// So many bytes that are zeros whatever is written, at once: for measurements, which no disk of the host shall delay.
    Nothing(u64),
}

/// A device of the emulated machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its name in the system file.
    pub name: String,
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub kind: DeviceKind,
}

/// See [`Device`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A disk.
    Disk(DiskInterface, DiskContent),
    /// A network device.
    Nic(NicInterface),
    /// The IOMMU, which is the chipset's; the others are behind it.
    Iommu,
}

impl Device {
    /// The recipe that makes its content.
    pub fn recipe(&self) -> Option<&str> {
        match &self.kind {
            DeviceKind::Disk(_, DiskContent::Recipe(name, _)) => Some(name),
            _ => None,
        }
    }

    /// That has been done.
    pub fn made(&mut self, file: PathBuf) {
        if let DeviceKind::Disk(_, content) = &mut self.kind
            && let DiskContent::Recipe(_, size) = *content
        {
            *content = DiskContent::Image(file, size);
        }
    }
}

/// What a device is whose table does not say: what the driver in its place is a driver of.
fn driven<T: Copy, const N: usize>(
    source: &Source,
    name: &Spanned<String>,
    pci: &Spanned<String>,
    drivers: &InOrder<DriverTable>,
    kinds: [(&str, T); N],
) -> Result<T> {
    let here = |table: &&DriverTable| table.pci.as_ref().is_some_and(|other| other.get_ref() == pci.get_ref());
    let program = drivers.0.iter().map(|(_, table)| table).find(here).map(|table| table.program.get_ref());
    let kind = kinds.iter().find(|(driver, _)| program.is_some_and(|program| program == driver));
    kind.map(|(_, kind)| *kind).ok_or_else(|| {
        source.error(
            name.span(),
            format!("{} has no interface, and no driver at {} tells it", name.get_ref(), pci.get_ref()),
        )
    })
}

/// The devices of the emulated machine.
pub fn machine(
    source: &Source,
    disks: InOrder<MachineDisk>,
    nics: InOrder<MachineNic>,
    drivers: &InOrder<DriverTable>,
) -> Result<Vec<Device>> {
    let mut devices: Vec<Device> = Vec::new();
    let mut add = |name: &Spanned<String>, pci: &Spanned<String>, kind| {
        let address = address(source, pci)?;
        let text = pci.get_ref();
        let refused = if address.bus() != 0 {
            Some(format!("{text}: the emulated machine has its devices on bus 00"))
        } else if CHIPSET.contains(&address.device()) {
            Some(format!("{text} is the chipset's"))
        } else {
            let other = devices.iter().find(|other| other.address == address);
            other.map(|other| format!("{text} is taken by {}", other.name))
        };
        if let Some(refused) = refused {
            return Err(source.error(pci.span(), refused));
        }
        if devices.iter().any(|other| other.name == *name.get_ref()) {
            return Err(source.error(name.span(), format!("two devices of the machine are named {}", name.get_ref())));
        }
        check_name(source, name)?;
        devices.push(Device { name: name.get_ref().clone(), address, kind });
        Ok(())
    };
    for (name, disk) in disks.0 {
        let content = content(source, &name, &disk)?;
        let kinds =
            [("nvme", DiskInterface::Nvme), ("ahci", DiskInterface::Ahci), ("virtio-blk", DiskInterface::Virtio)];
        let driven = || driven(source, &name, &disk.pci, drivers, kinds);
        let interface = disk.interface.map_or_else(driven, Ok)?;
        add(&name, &disk.pci, DeviceKind::Disk(interface, content))?;
    }
    for (name, nic) in nics.0 {
        let kinds = [("virtio-net", NicInterface::Virtio), ("e1000e", NicInterface::E1000e)];
        let driven = || driven(source, &name, &nic.pci, drivers, kinds);
        let interface = nic.interface.map_or_else(driven, Ok)?;
        add(&name, &nic.pci, DeviceKind::Nic(interface))?;
    }
    Ok(devices)
}

fn content(source: &Source, name: &Spanned<String>, disk: &MachineDisk) -> Result<DiskContent> {
    let size = match &disk.size {
        Some(size) => u64::from(mebibytes(source, size)?) << 20,
        None => 0,
    };
    match &disk.image {
        Some(image) => Ok(match origin_of(source, image, RecipeKind::Disk)? {
            Origin::Recipe(recipe) => DiskContent::Recipe(recipe, size),
            Origin::File(path) => DiskContent::Image(path, size),
            Origin::Bytes(_) => bail!("nothing of a system file is bytes"),
        }),
        None if size != 0 => Ok(DiskContent::Empty(size)),
        None => Err(source.error(name.span(), "a disk has a size or an image")),
    }
}

/// The IOMMU of a machine whose devices have drivers.
pub fn iommu() -> Device {
    Device { name: "iommu".into(), address: PciAddress::new(0, 0, 0), kind: DeviceKind::Iommu }
}

/// The drivers.
pub fn drivers(source: &Source, tables: &InOrder<DriverTable>) -> Result<Vec<DriverPlan>> {
    let mut drivers: Vec<DriverPlan> = Vec::new();
    for (name, table) in &tables.0 {
        check_name(source, name)?;
        let program = table.program.get_ref().clone();
        let Some((_, service)) = DRIVERS.iter().chain([&HOSTILE]).find(|(known, _)| *known == program) else {
            let message = format!("no driver is named {program:?}, these are: {}", list(DRIVERS.map(|(name, _)| name)));
            return Err(source.error(table.program.span(), message));
        };
        let (device, span) = choice(source, name, &table.pci, &table.id, "a driver")?;
        if matches!(device, DeviceChoice::At(_)) && drivers.iter().any(|other| other.device == device) {
            return Err(source.error(span, format!("another driver has {device} already")));
        }
        let dma = match &table.dma {
            Some(size) => u64::from(mebibytes(source, size)?) << 20,
            None => plan::DMA_DEFAULT,
        };
        drivers.push(DriverPlan {
            name: name.get_ref().clone(),
            program,
            service: *service,
            device,
            dma,
            kill_every: table.kill_every,
        });
    }
    Ok(drivers)
}

/// The switches between `drivers` and virtual machines.
pub fn switches(source: &Source, tables: &InOrder<SwitchTable>, drivers: &[DriverPlan]) -> Result<Vec<SwitchPlan>> {
    let mut switches: Vec<SwitchPlan> = Vec::new();
    for (name, table) in &tables.0 {
        check_name(source, name)?;
        if drivers.iter().any(|driver| driver.name == *name.get_ref()) {
            return Err(source.error(name.span(), format!("a driver is named {} already", name.get_ref())));
        }
        if let Some(uplink) = &table.uplink {
            serves(source, uplink, drivers, Service::Network)?;
            if switches.iter().any(|other| other.uplink.as_ref() == Some(uplink.get_ref())) {
                let message = format!("the driver {} is the uplink of another switch already", uplink.get_ref());
                return Err(source.error(uplink.span(), message));
            }
        }
        let uplink = table.uplink.as_ref().map(|uplink| uplink.get_ref().clone());
        switches.push(SwitchPlan { name: name.get_ref().clone(), uplink, kill_every: table.kill_every });
    }
    Ok(switches)
}

/// The disks of a virtual machine, and what serves them.
pub fn disks(
    source: &Source,
    tables: &InOrder<DiskTable>,
    drivers: &[DriverPlan],
) -> Result<(Vec<DiskConfig>, Vec<DiskSource>)> {
    let sectors = |size: &Option<Spanned<String>>| match size {
        Some(size) => mebibytes(source, size).map(|size| (u64::from(size) << 20) / SECTOR),
        None => Ok(0),
    };
    let mut disks = (Vec::new(), Vec::new());
    for (name, table) in &tables.0 {
        check_name(source, name)?;
        serves(source, &table.driver, drivers, Service::Disk)?;
        disks.0.push(DiskConfig { name: name.get_ref().clone(), read_only: table.read_only });
        let driver = table.driver.get_ref().clone();
        disks.1.push(DiskSource { driver, first: sectors(&table.first)?, sectors: sectors(&table.size)? });
    }
    Ok(disks)
}

/// The network devices of virtual machine number `vm`, and their switches.
pub fn nics(
    source: &Source,
    vm: usize,
    tables: &InOrder<NicTable>,
    switches: &[SwitchPlan],
) -> Result<(Vec<NicConfig>, Vec<String>)> {
    let mut nics = (Vec::new(), Vec::new());
    for (number, (name, table)) in tables.0.iter().enumerate() {
        check_name(source, name)?;
        let switch = table.switch.get_ref();
        if !switches.iter().any(|known| known.name == *switch) {
            let known = list(switches.iter().map(|switch| switch.name.as_str()));
            return Err(source.error(table.switch.span(), format!("there is no switch {switch:?}, these are: {known}")));
        }
        let mac = match &table.mac {
            Some(mac) => mac_address(source, mac)?,
            // Locally administered, and another one for each.
            None => [0x02, b'K', b'N', 0, vm as u8, number as u8],
        };
        nics.0.push(NicConfig { name: name.get_ref().clone(), mac });
        nics.1.push(switch.clone());
    }
    Ok(nics)
}

/// The PCI functions that a virtual machine has to itself.
pub fn functions(source: &Source, tables: &InOrder<FunctionTable>) -> Result<(Vec<FunctionConfig>, Vec<DeviceChoice>)> {
    let mut functions = (Vec::new(), Vec::new());
    for (name, table) in &tables.0 {
        check_name(source, name)?;
        functions.0.push(FunctionConfig { name: name.get_ref().clone() });
        functions.1.push(choice(source, name, &table.pci, &table.id, "what is passed through")?.0);
    }
    Ok(functions)
}

/// Where a virtual machine's table says that it wants `device`.
pub fn place_of(tables: &InOrder<FunctionTable>, device: &DeviceChoice) -> Option<Range<usize>> {
    let at = |pci: &&Spanned<String>| PciAddress::parse(pci.get_ref()).map(DeviceChoice::At) == Some(*device);
    tables.0.iter().filter_map(|(_, table)| table.pci.as_ref()).find(at).map(Spanned::span)
}

/// What `pci` or `id` of `whose` table say, and where.
fn choice(
    source: &Source,
    name: &Spanned<String>,
    pci: &Option<Spanned<String>>,
    id: &Option<Spanned<String>>,
    whose: &str,
) -> Result<(DeviceChoice, Range<usize>)> {
    match (pci, id) {
        (Some(pci), None) => Ok((DeviceChoice::At(address(source, pci)?), pci.span())),
        (None, Some(id)) => Ok((identity(source, id)?, id.span())),
        _ => {
            let message = format!("{whose} has either pci or id, which say what its device is");
            Err(source.error(name.span(), message))
        }
    }
}

fn check_name(source: &Source, name: &Spanned<String>) -> Result<()> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
    let (text, most) = (name.get_ref(), plan::DEVICE_NAME_MAX);
    if (1..=most).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err(source.error(name.span(), format!("bad name {text:?}: use a-z, 0-9, - and _, at most {most}")))
}

fn serves(source: &Source, name: &Spanned<String>, drivers: &[DriverPlan], service: Service) -> Result<()> {
    let text = name.get_ref();
    let what = |service| match service {
        Service::Disk => "disks",
        Service::Network => "a network",
    };
    let Some(driver) = drivers.iter().find(|driver| driver.name == *text) else {
        let known = list(drivers.iter().map(|driver| driver.name.as_str()));
        return Err(source.error(name.span(), format!("there is no driver {text:?}, these are: {known}")));
    };
    if driver.service == service {
        return Ok(());
    }
    let message = format!("the driver {text} serves {}, not {}", what(driver.service), what(service));
    Err(source.error(name.span(), message))
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn address(source: &Source, pci: &Spanned<String>) -> Result<PciAddress> {
    let text = pci.get_ref();
    PciAddress::parse(text).ok_or_else(|| {
        let message = format!(
            "impossible PCI address {text:?}: write bus, device and function in hexadecimal like \"00:04.0\", device up to 1f, function up to 7"
        );
        source.error(pci.span(), message)
    })
}

fn identity(source: &Source, id: &Spanned<String>) -> Result<DeviceChoice> {
    let text = id.get_ref();
    let word = |text: &str| {
        let fits = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u16::from_str_radix(text, 16).ok().filter(|_| fits)
    };
    let both = text.split_once(':').and_then(|(vendor, device)| word(vendor).zip(word(device)));
    both.map(|(vendor, device)| DeviceChoice::Id { vendor, device }).ok_or_else(|| {
        let message = format!("impossible PCI id {text:?}: write vendor and device in hexadecimal like \"8086:5845\"");
        source.error(id.span(), message)
    })
}

fn mac_address(source: &Source, mac: &Spanned<String>) -> Result<Mac> {
    let text = mac.get_ref();
    let byte = |text: &str| u8::from_str_radix(text, 16).ok().filter(|_| text.len() == 2 && !text.starts_with('+'));
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    // Bit 0 of the first byte: not one station, but a group.
    let one: Option<Mac> = bytes.and_then(|bytes| bytes.try_into().ok()).filter(|mac: &Mac| mac[0] & 1 == 0);
    one.ok_or_else(|| {
        source.error(mac.span(), format!("impossible MAC address {text:?}: write six bytes like \"02:00:00:00:00:01\""))
    })
}

#[cfg(test)]
mod tests {
    use super::super::System;
    use super::*;

    const TEXT: &str = r#"
        iommu = "required"
        [machine.disk.d0]
        interface = "ahci"
        size      = "64M"
        pci       = "00:04.0"
        [machine.nic.n0]
        interface = "e1000e"
        pci       = "00:05.1"
        [driver.disk0]
        program = "nvme"
        id      = "8086:5845"
        dma     = "2M"
        [driver.nic0]
        program = "virtio-net"
        pci     = "00:05.1"
        [switch.lan]
        uplink = "nic0"
        [vm.linux]
        memory = "64M"
        kernel = "micro"
        [vm.linux.disk.root]
        driver    = "disk0"
        first     = "1M"
        size      = "8M"
        read_only = true
        [vm.linux.nic.eth0]
        switch = "lan"
        [vm.linux.nic.eth1]
        switch = "lan"
        mac    = "52:54:00:12:34:56"
    "#;

    #[test]
    fn devices_reach_the_plan_and_the_machine() {
        let system = System::parse(&Source::from_text(TEXT)).expect("is good");
        let [iommu, disk, nic] = &system.devices[..] else { panic!("{:?}", system.devices) };
        assert_eq!(iommu.kind, DeviceKind::Iommu);
        assert_eq!(disk.kind, DeviceKind::Disk(DiskInterface::Ahci, DiskContent::Empty(64 << 20)));
        assert_eq!((nic.kind.clone(), nic.address), (DeviceKind::Nic(NicInterface::E1000e), PciAddress::new(0, 5, 1)));
        let off = TEXT.replace("required", "off");
        assert_eq!(System::parse(&Source::from_text(&off)).expect("is good").devices.len(), 2);
        let plan = system.plan;
        assert_eq!(plan.iommu, plan::Iommu::Required);
        let [disk, nic] = &plan.drivers[..] else { panic!("{:?}", plan.drivers) };
        assert_eq!((disk.device, disk.dma), (DeviceChoice::Id { vendor: 0x8086, device: 0x5845 }, 2 << 20));
        assert_eq!((nic.service, nic.device), (Service::Network, DeviceChoice::At(PciAddress::new(0, 5, 1))));
        let vm = &plan.vms[0];
        assert_eq!(vm.config.disks, [DiskConfig { name: "root".into(), read_only: true }]);
        assert_eq!(vm.disks, [DiskSource { driver: "disk0".into(), first: 2048, sectors: 16384 }]);
        let macs: Vec<Mac> = vm.config.nics.iter().map(|nic| nic.mac).collect();
        assert_eq!(macs, [[2, b'K', b'N', 0, 0, 0], [0x52, 0x54, 0, 0x12, 0x34, 0x56]]);
        assert_eq!(vm.switches, ["lan", "lan"]);
    }
}
