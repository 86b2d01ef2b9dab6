//! PCI functions that the guest has to itself.
//!
//! Unsafe: a device's registers are read and written, and mapped into the guest's space.
#![allow(unsafe_code)]

use alloc::format;
use alloc::string::String;
use core::ops::Range;
use core::ptr::{read_volatile, write_volatile};

use abi::capability::Permissions;
use abi::scd::Scd;
use abi::{Selector, Status};
use machine::bus::Width;
use machine::pci::passthrough::Hardware;
use plan::{FUNCTION_INTERRUPTS, FunctionConfig};
use runtime::manifest::{self, RegionEntry};
use runtime::parent::{self, FunctionWish};
use runtime::sync::Semaphore;
use runtime::{log, syscall, thread};

use crate::vm::Machine;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Base address registers.
const BARS: usize = 6;

/// One function, by what the root task gave.
pub struct Real {
    /// Its number in the machine's configuration.
    number: usize,
    config: RegionEntry,
    bars: [Option<RegionEntry>; BARS],
    interrupts: u16,
    guest: Selector,
}

impl Real {
    /// Function `number` of the configuration, for the guest space `guest`.
    pub fn open(number: usize, config: &FunctionConfig, guest: Selector) -> Result<Self, String> {
        let (given, name) = (runtime::manifest(), &config.name);
        let space = given.region(&format!("pci.{name}.config"));
        Ok(Self {
            number,
            config: *space.ok_or_else(|| format!("PCI function {name} has no configuration space"))?,
            bars: core::array::from_fn(|bar| given.region(&format!("pci.{name}.bar{bar}")).copied()),
            interrupts: interrupts(config).count() as u16,
            guest,
        })
    }

    fn bar(&self, bar: usize) -> Option<manifest::Range> {
        self.bars.get(bar)?.as_ref().map(|region| region.memory)
    }

    fn register(&self, bar: usize, offset: u64, width: Width) -> Option<*mut u8> {
        let memory = self.bar(bar)?;
        let inside = offset.checked_add(width.bytes() as u64).is_some_and(|end| end <= memory.length);
        let aligned = (memory.address + offset).is_multiple_of(width.bytes() as u64);
        (inside && aligned).then_some((memory.address + offset) as *mut u8)
    }
}

impl Hardware for Real {
    fn config(&self, offset: u16) -> u32 {
        let inside = u64::from(offset & !3) % self.config.memory.length.max(4);
        // SAFETY: inside of the region, which is mapped for ever; reading configuration space has no effects.
        unsafe { read_volatile((self.config.memory.address + inside) as *const u32) }
    }

    fn length(&self, bar: usize) -> u64 {
        self.bar(bar).map_or(0, |memory| memory.length)
    }

    fn interrupts(&self) -> u16 {
        self.interrupts
    }

    fn read(&self, bar: usize, offset: u64, width: Width) -> u64 {
        let Some(register) = self.register(bar, offset, width) else { return width.ones() };
        // SAFETY: an aligned register inside of the region, which is mapped for ever.
        unsafe {
            match width {
                Width::Byte => read_volatile(register).into(),
                Width::Word => read_volatile(register.cast::<u16>()).into(),
                Width::Dword => read_volatile(register.cast::<u32>()).into(),
                Width::Qword => read_volatile(register.cast::<u64>()),
            }
        }
    }

    fn write(&self, bar: usize, offset: u64, width: Width, value: u64) {
        let Some(register) = self.register(bar, offset, width) else { return };
        // SAFETY: as above. What the device does then is within what the root task lets it do.
        unsafe {
            match width {
                Width::Byte => write_volatile(register, value as u8),
                Width::Word => write_volatile(register.cast::<u16>(), value as u16),
                Width::Dword => write_volatile(register.cast::<u32>(), value as u32),
                Width::Qword => write_volatile(register.cast::<u64>(), value),
            }
        }
    }

    fn map(&mut self, bar: usize, pages: Range<u64>, gpa: u64) {
        let Some(memory) = self.bar(bar).filter(|memory| memory.address.is_multiple_of(PAGE)) else { return };
        let rights = Permissions::READ | Permissions::WRITE;
        let source = (manifest::selector::HOST_SPACE, (memory.address + pages.start) / PAGE);
        let count = (pages.end - pages.start) / PAGE;
        // SAFETY: only the device's registers are shared with the guest.
        let mapped = unsafe { syscall::delegate_range(source, (self.guest, gpa / PAGE), count, rights, 0) };
        if let Err(status) = mapped {
            log!("the kernel refuses to map registers at {gpa:#x}: {status:?}");
        }
    }

    fn unmap(&mut self, pages: Range<u64>, gpa: u64) {
        let nowhere = (manifest::selector::HOST_SPACE, gpa / PAGE);
        let count = (pages.end - pages.start) / PAGE;
        // SAFETY: the guest loses pages, this program none.
        let _ = unsafe { syscall::delegate_range(nowhere, (self.guest, gpa / PAGE), count, Permissions::empty(), 0) };
    }

    fn allow(&mut self, requests: bool) {
        parent::function(self.number, if requests { FunctionWish::Send } else { FunctionWish::Hold });
    }

    fn reset(&mut self) {
        parent::function(self.number, FunctionWish::Reset);
    }
}

/// The semaphores of a function's interrupts.
fn interrupts(config: &FunctionConfig) -> impl Iterator<Item = Semaphore> {
    let given = |index: u16| runtime::manifest().interrupt(&format!("pci.{}.msi{index}", config.name));
    (0..FUNCTION_INTERRUPTS).map_while(given).map(|entry| Semaphore::from_selector(entry.selector))
}

/// Starts the threads that bring a function's interrupts to the guest; `slot` is its place on the bus.
pub fn listen(machine: &'static Machine, slot: usize, config: &FunctionConfig, scd: Scd) -> Result<(), Status> {
    for (number, semaphore) in (0..).zip(interrupts(config)) {
        thread::spawn(scd, move || {
            // Messages that came together are as good as one, as they are in a LAPIC.
            while semaphore.wait(0).is_ok() {
                machine.look(machine.bus.interrupt(slot, number));
            }
        })?;
    }
    Ok(())
}
