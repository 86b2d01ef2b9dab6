//! QEMU's `edu` device (its documentation, "EDU device"): a DMA engine with a buffer, and interrupts on demand; and what
//! the kernel tells of devices.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab::console::{allow, input_long};
use lab::entry::hip;
use lab::hypercall::{assign_dev, assign_int, create, create_pd};
use lab::memory::{PAGE, map_physical, page_address, peek, physical, poke};
use lab::report::{Outcome, Stop, must};
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, Selector, cache, feature, hip as page, perm};
use lab::{acpi, check, root, selector, time};

use crate::operations;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Vendor and device.
const IDENTITY: u32 = 0x11e8_1234;

/// Writes four bytes to a port.
fn output_long(port: u16, value: u32) {
    // SAFETY: PCI's configuration ports.
    unsafe {
        core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
    };
}

/// The device.
pub struct Edu {
    /// Its source id.
    pub source: u64,
    registers: u64,
    message: u8,
}

impl Edu {
    /// Finds it, and lets it do what it wants.
    pub fn new() -> Result<Self, Stop> {
        allow(ADDRESS, 2)?;
        allow(DATA, 2)?;
        let mut edu = Self { source: 0, registers: page_address(), message: 0 };
        let here = |source: &u64| Self { source: *source, registers: 0, message: 0 }.config(0) == IDENTITY;
        edu.source = (0..256).find(here).ok_or(Stop::Skipped("there is no edu device"))?;
        edu.message = edu.config(0x34) as u8;
        while edu.config(edu.message) & 0xff != 5 {
            edu.message = (edu.config(edu.message) >> 8) as u8;
            check!(edu.message != 0, "the device has no message-signalled interrupts");
        }
        if iommu() {
            faults()?;
        }
        // Memory accesses, bus master.
        edu.set_config(4, edu.config(4) | 6);
        let base = u64::from(edu.config(0x10)) & !0xf;
        map_physical(base, edu.registers, 0, perm::R | perm::W, cache::UC)?;
        Ok(edu)
    }

    fn config(&self, register: u8) -> u32 {
        output_long(ADDRESS, 1 << 31 | (self.source as u32) << 8 | u32::from(register));
        input_long(DATA)
    }

    fn set_config(&self, register: u8, value: u32) {
        self.config(register);
        output_long(DATA, value);
    }

    fn write(&self, register: u64, value: u64) {
        poke(self.registers + register, value);
    }

    fn transfer(&self, from: u64, to: u64, bytes: u64, command: u64) -> Outcome {
        for (register, value) in [(0x80, from), (0x88, to), (0x90, bytes), (0x98, 1 | command)] {
            self.write(register, value);
        }
        for _ in 0..1000 {
            if peek(self.registers + 0x98) & 1 == 0 {
                return Ok(());
            }
            time::pause(1)?;
        }
        Err(lab::report::failed("the device's transfer does not end".into()))
    }

    /// It reads memory at `address` into its buffer.
    pub fn read(&self, address: u64, bytes: u64) -> Outcome {
        self.transfer(address, BUFFER, bytes, 0)
    }

    /// It writes its buffer to memory at `address`.
    pub fn write_to(&self, address: u64, bytes: u64) -> Outcome {
        self.transfer(BUFFER, address, bytes, 2)
    }

    /// Raises its interrupt. Bit 0 of the register alone would do.
    pub fn interrupt(&self) {
        // SAFETY: its registers below 0x80 take four bytes.
        unsafe {
            ((self.registers + 0x60) as *mut u32).write_volatile(1);
            ((self.registers + 0x64) as *mut u32).write_volatile(1);
        }
    }

    /// Has it send this message.
    pub fn set_message(&self, address: u64, data: u64) {
        let at = |offset| self.message + offset;
        self.set_config(at(4), address as u32);
        self.set_config(at(8), (address >> 32) as u32);
        self.set_config(at(12), data as u32);
        self.set_config(at(0), self.config(self.message) | 1 << 16);
    }
}

/// Address of its buffer, as it sees it: a page.
const BUFFER: u64 = 0x4_0000;

/// Whether DMA is remapped.
pub fn iommu() -> bool {
    hip(page::PLATFORM_FEATURES) & feature::IOMMU != 0
}

/// Physical address of the first unit (VT-d specification 8.3).
pub fn unit() -> u64 {
    static FOUND: AtomicU64 = AtomicU64::new(0);
    if FOUND.load(Relaxed) == 0 {
        let table = acpi::find(b"DMAR").unwrap_or_default();
        let address = table.get(56..64).and_then(|bytes| bytes.try_into().ok());
        FOUND.store(address.map_or(0, u64::from_le_bytes), Relaxed);
    }
    FOUND.load(Relaxed)
}

/// A new DMA space, to which `edu` is assigned.
pub fn assigned(edu: &Edu) -> Result<Selector, Stop> {
    let space = selector();
    must(create_pd(space, root::pd(), create::DMA))?;
    must(assign_dev(space, unit(), edu.source))?;
    Ok(space)
}

/// What a device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub source: u64,
    pub reason: u64,
    pub read: bool,
    pub address: u64,
}

/// The next fault that is recorded.
pub fn next_fault() -> Option<Fault> {
    let operations::Results(status, told, address) = operations::call(4, 0, 0);
    let reason = told >> 16 & 0xff;
    let fault = Fault { source: told & 0xffff, reason, read: told >> 24 & 1 != 0, address };
    (status == SUCCESS && reason != 0).then_some(fault)
}

/// All faults up to now, the last one first looked for.
pub fn forget_faults() {
    while next_fault().is_some() {}
}

/// The semaphore of faults.
pub fn faults() -> Result<Semaphore, Stop> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    if TAKEN.load(Relaxed) == 0 {
        let sm = selector();
        must(root::from_nova(root::selector_count() - 9, sm, perm::ALL))?;
        must(assign_int(sm, 0, root::cpu(), 0).0)?;
        TAKEN.store(sm, Relaxed);
    }
    Ok(Semaphore(TAKEN.load(Relaxed)))
}

/// A page of the image, filled with a number; its address and physical address.
pub fn filled(number: u64) -> (u64, u64) {
    let page = lab::memory::pages(1);
    fill(page, number);
    (page, physical(page))
}

/// Fills a page.
pub fn fill(page: u64, number: u64) {
    (0..PAGE).step_by(8).for_each(|at| poke(page + at, number));
}

/// Whether a page holds nothing but this number.
pub fn holds(page: u64, number: u64) -> bool {
    (0..PAGE).step_by(8).all(|at| peek(page + at) == number)
}
