//! The machine's PCI functions: found, listed, given to drivers, reset.
//!
//! Unsafe: configuration space and tables of message-signalled interrupts are registers in memory.
#![allow(unsafe_code)]

use crate::authority::{self, selector};
use crate::window;
use abi::hip::Hip;
use abi::{Selector, Status, capability::nova};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use plan::{DeviceChoice, PciAddress};
use roottask::acpi;
use roottask::dmar::Dmar;
use roottask::frames::{PAGE, PhysRange};
use roottask::pci::{self, Config, Ecam, Function, MsiX, Reset, Situation, Use, command};
use runtime::sync::sleep_until;
use runtime::{log, syscall, time};

/// Why there are no functions.
const NO_SPACE: &str = "the firmware does not tell where configuration space is (no ACPI table MCFG for segment 0)";
/// Bytes of a bus in configuration space.
const BUS: u64 = 1 << 20;

/// Configuration space, mapped bus by bus as it is looked at.
struct Space {
    ecam: Ecam,
    /// Virtual addresses of the buses; null: not mapped yet.
    buses: [*mut u8; 256],
}

// SAFETY: the mappings are the root task's for ever, and only who has the space uses them.
unsafe impl Send for Space {}

impl Space {
    fn register(&mut self, at: PciAddress, offset: u16) -> Option<*mut u32> {
        let page = self.ecam.page(at)?;
        let bus = self.buses.get_mut(usize::from(at.bus()))?;
        if bus.is_null() {
            let start = page & !(BUS - 1);
            *bus = window::registers(PhysRange::new(start, start + BUS)).ok()?;
        }
        let inside = (page & (BUS - 1)) as usize + usize::from(offset & 0xffc);
        // SAFETY: inside of the bus' mebibyte, which is mapped.
        Some(unsafe { bus.add(inside) }.cast())
    }
}

impl Config for Space {
    fn read(&mut self, at: PciAddress, offset: u16) -> u32 {
        // SAFETY: a register of configuration space; reading it has no effect on memory.
        self.register(at, offset).map_or(u32::MAX, |register| unsafe { register.read_volatile() })
    }

    fn write(&mut self, at: PciAddress, offset: u16, value: u32) {
        if let Some(register) = self.register(at, offset) {
            // SAFETY: a register of configuration space. Only the functions of drivers are made to do DMA, see `start`.
            unsafe { register.write_volatile(value) };
        }
    }
}

/// The kernel's semaphores for message-signalled interrupts.
struct Messages {
    /// Selector of the first in the NOVA object space.
    first: Selector,
    next: u64,
    count: u64,
    /// Those of each function: the first, and how many.
    given: Vec<(u64, u64)>,
}

impl Messages {
    /// Numbers for function `number`, which are its for ever: at most `wanted` at first.
    fn of(&mut self, number: usize, wanted: u64) -> core::ops::Range<u64> {
        let Some((first, count)) = self.given.get_mut(number) else { return 0..0 };
        if *count == 0 {
            (*first, *count) = (self.next, wanted.min(self.count - self.next));
            self.next += *count;
        }
        *first..*first + *count
    }
}

/// The functions, and who has them.
pub struct Platform {
    space: Option<Space>,
    functions: Vec<Function>,
    groups: Vec<usize>,
    /// Who has each function, as `driver disk0`.
    owners: Vec<Option<String>>,
    messages: Messages,
    /// The IOMMUs that the kernel uses; `None`: DMA is not remapped.
    dmar: Option<Dmar>,
}

impl Platform {
    /// With nothing found yet.
    pub fn new(hip: &Hip) -> Self {
        let messages = Messages {
            first: nova::INTERRUPT_BASE + u64::from(hip.int_pin),
            next: 0,
            count: hip.int_msi.into(),
            given: Vec::new(),
        };
        Self { space: None, functions: Vec::new(), groups: Vec::new(), owners: Vec::new(), messages, dmar: None }
    }

    /// Finds all functions and lists them in the log.
    pub fn find(&mut self, rsdp: u64) {
        let known = rsdp != abi::hip::NOT_PRESENT;
        let mcfg = known.then(|| acpi::find(&mut window::Tables, rsdp, b"MCFG")).flatten();
        let Some(ecam) = mcfg.and_then(Ecam::find) else {
            log!("root: no PCI function can be used: {NO_SPACE}");
            return;
        };
        let mut space = Space { ecam, buses: [core::ptr::null_mut(); 256] };
        self.functions = pci::enumerate(&mut space, ecam.first);
        self.groups = pci::groups(&self.functions);
        self.owners = self.functions.iter().map(|_| None).collect();
        self.messages.given = self.functions.iter().map(|_| (0, 0)).collect();
        self.space = Some(space);
        for (function, group) in self.functions.iter().zip(&self.groups) {
            log!("root: pci {}", pci::describe(function, *group));
        }
    }

    /// Finds the IOMMUs, which the kernel has turned on.
    pub fn find_iommus(&mut self, rsdp: u64) {
        let mut dmar = acpi::find(&mut window::Tables, rsdp, b"DMAR").map(Dmar::read).unwrap_or_default();
        // Of one that the kernel has left out it knows nothing; of the others it goes on to look at the space, which is none.
        let no_space = runtime::manifest::selector::PROTECTION_DOMAIN;
        for unit in &mut dmar.units {
            unit.used = syscall::assign_dev(no_space, unit.registers, 0) != Err(Status::BadDev);
        }
        self.dmar = Some(dmar);
    }

    /// Whether devices reach only what they are given.
    pub fn is_remapped(&self) -> bool {
        self.dmar.is_some()
    }

    /// Puts a function into the DMA space `space`.
    pub fn assign(&self, number: usize, space: Selector) -> Result<(), Status> {
        let function = &self.functions[number];
        let unit = self.dmar.as_ref().and_then(|dmar| dmar.unit_of(&self.functions, function));
        syscall::assign_dev(space, unit.ok_or(Status::BadDev)?.registers, function.address.requester())
    }

    /// Gives a function to `who`, as `driver disk0`: its number.
    pub fn choose(&mut self, choice: DeviceChoice, who: &str, purpose: Use) -> Result<usize, String> {
        if self.space.is_none() {
            return Err(format!("the PCI function {choice} cannot be found: {NO_SPACE}"));
        }
        let fits = |function: &Function| match choice {
            DeviceChoice::At(address) => function.address == address,
            DeviceChoice::Id { vendor, device } => (function.vendor, function.device) == (vendor, device),
        };
        let fitting = || (0..self.functions.len()).filter(|number| fits(&self.functions[*number]));
        let free = fitting().find(|number| self.owners[*number].is_none());
        let Some(number) = free.or_else(|| fitting().next()) else {
            return Err(format!("this machine has no PCI function {choice}; those that it has are listed above"));
        };
        if let Some(obstacle) = self.situation().obstacle(purpose, number, who) {
            let address = self.functions[number].address;
            return Err(format!("the PCI function {address} cannot be given to it: {obstacle}"));
        }
        self.owners[number] = Some(who.into());
        Ok(number)
    }

    /// Lists all functions in the log, in columns.
    pub fn list(&self) {
        let situation = self.situation();
        let rows = (0..self.functions.len()).filter_map(|number| pci::row(&situation, number));
        for line in core::iter::once(pci::heading()).chain(rows) {
            log!("root: devices: {line}");
        }
    }

    fn situation(&self) -> Situation<'_> {
        let Self { functions, groups, owners, dmar, .. } = self;
        Situation { functions, groups, owners, dmar: dmar.as_ref() }
    }

    /// The function of this number.
    pub fn function(&self, number: usize) -> &Function {
        &self.functions[number]
    }

    /// Physical address of the function's page of configuration space.
    pub fn config_page(&self, number: usize) -> Option<PhysRange> {
        let page = self.space.as_ref()?.ecam.page(self.functions[number].address)?;
        Some(PhysRange::new(page, page + PAGE))
    }

    /// Keeps a function from sending anything: when this returns, what it had sent has arrived.
    pub fn quiet(&mut self, number: usize) {
        let wait = |ms| sleep_until(time::now() + time::ticks_from_ms(ms));
        if let (Some(space), Some(function)) = (&mut self.space, self.functions.get(number)) {
            pci::quiet(space, function, wait);
        }
    }

    /// Resets a function if it can be, so that nothing is left of what had it before; its registers can be used then.
    pub fn reset(&mut self, number: usize) -> Result<(), String> {
        let (Some(space), Some(function)) = (&mut self.space, self.functions.get(number)) else { return Ok(()) };
        let wait = |ms| sleep_until(time::now() + time::ticks_from_ms(ms));
        if pci::reset(space, function, wait).is_none() && Reset::of(function).is_some() {
            return Err(format!("{} does not come back from a reset", function.address));
        }
        pci::change_command(space, function.address, command::MEMORY, 0);
        Ok(())
    }

    /// The selectors, in the root object space, of a function's interrupts, at most `most`, routed to `cpu`: entry N of
    /// its table raises the Nth. None where the function or the kernel has no message-signalled interrupts.
    pub fn interrupts(&mut self, number: usize, most: u16, cpu: u32) -> Result<Vec<Selector>, Status> {
        let (Some(space), Some(function)) = (&mut self.space, self.functions.get(number)) else {
            return Ok(Vec::new());
        };
        let device = function.address.requester();
        let wanted = match (function.capabilities.msix, function.capabilities.msi) {
            (Some(msix), _) => msix.entries.min(most),
            (None, Some(_)) => 1,
            (None, None) => 0,
        };
        let mut semaphores = Vec::new();
        let mut messages = Vec::new();
        for message in self.messages.of(number, wanted.into()) {
            let copy = selector::MESSAGES + message;
            authority::take_from_kernel(self.messages.first + message, copy)?;
            messages.push(syscall::assign_int(copy, 0, cpu, device)?);
            semaphores.push(copy);
        }
        if messages.is_empty() {
            return Ok(semaphores);
        }
        if let Some(msix) = function.capabilities.msix {
            let Some(table) = table(function, &msix) else { return Ok(Vec::new()) };
            write_table(table, &msix, &messages)?;
            let control = space.read(function.address, msix.offset) & !MsiX::MASK;
            space.write(function.address, msix.offset, control | MsiX::ENABLE);
        } else if let (Some(msi), [(address, data), ..]) = (function.capabilities.msi, &messages[..]) {
            pci::write_msi(space, function.address, msi, *address, *data);
        }
        Ok(semaphores)
    }

    /// Lets a function send requests: DMA and interrupts.
    pub fn start(&mut self, number: usize) {
        self.command(number, command::MEMORY | command::MASTER | command::NO_PIN, 0);
    }

    /// Lets a function answer, but send nothing.
    pub fn hold(&mut self, number: usize) {
        self.command(number, command::MEMORY | command::NO_PIN, command::MASTER);
    }

    fn command(&mut self, number: usize, set: u32, clear: u32) {
        if let (Some(space), Some(function)) = (&mut self.space, self.functions.get(number)) {
            pci::change_command(space, function.address, set, clear);
        }
    }
}

/// Whether the firmware has a table of IOMMUs.
pub fn names_iommus(rsdp: u64) -> bool {
    rsdp != abi::hip::NOT_PRESENT && acpi::find(&mut window::Tables, rsdp, b"DMAR").is_some()
}

/// Physical addresses of a function's MSI-X table, if it lies in one of its BARs.
pub fn table(function: &Function, msix: &MsiX) -> Option<PhysRange> {
    let bar = function.bars.get(usize::from(msix.bar))?.as_ref()?.memory()?;
    let start = bar.start.checked_add(msix.table.into())?;
    let end = start.checked_add(msix.length())?;
    (end <= bar.end).then_some(PhysRange::new(start, end))
}

/// Writes `messages` into the first entries and masks the others.
fn write_table(table: PhysRange, msix: &MsiX, messages: &[(u32, u16)]) -> Result<(), Status> {
    const MASKED: u32 = 1;
    let start = window::registers(table)?.cast::<u32>();
    for entry in 0..usize::from(msix.entries) {
        let (words, masked) = match messages.get(entry) {
            Some((address, data)) => ([*address, 0, u32::from(*data)], 0),
            None => ([0; 3], MASKED),
        };
        for (word, value) in words.into_iter().chain([masked]).enumerate() {
            // SAFETY: inside of the table, which was mapped just now.
            unsafe { start.add(4 * entry + word).write_volatile(value) };
        }
    }
    Ok(())
}
