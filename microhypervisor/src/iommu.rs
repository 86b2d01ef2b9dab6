#![allow(unsafe_code)]
//! Remapping of DMA and interrupts (NOVA 2.1.4, 5.5.3), by [`::iommu`]: all units share one root table, in which no
//! device has an entry until it is assigned, and one table of interrupts, in which each interrupt has the entry of its
//! number.
//!
//! Unsafe: memory-mapped registers, and lines of caches that units do not see.
//!
//! The lock is innermost, but for the pool's.

use core::sync::atomic::{AtomicBool, Ordering, fence};

use ::iommu::dmar::{Dmar, Reserved, UNITS_MAX};
use ::iommu::entry::{self, Entry, FORGET_CONTEXTS, FORGET_INTERRUPTS, FORGET_TRANSLATIONS, Interrupt};
use ::iommu::{Abilities, Hardware, Unit};
use abi::Status;
use abi::capability::Permissions;
use abi::utcb::gpr;
use kernel_core::boot::{PhysicalMemory, Window};
use kernel_core::paging::{DMA, Piece};
use kernel_core::reason::Words;
use spin::{Mutex, Once};
use x86_64::instructions::port::Port;

use crate::cpu::Cpu;
use crate::ec::Ec;
use crate::hypercall::Call;
use crate::memory::{Account, Frame, KERNEL, KERNEL_ACCOUNT, kernel_range, read_entry, write_entry};
use crate::object;
use crate::pd::Pd;
use crate::platform::PLATFORM;
use crate::space::{DEVICES, Memory, map_device};
use crate::{lapic, log, smp};

/// Pages of registers of a unit, in the device window from this slot on.
const PAGES: usize = 5;
const FIRST_SLOT: usize = 32;
/// Milliseconds that a unit has for a command.
const PATIENCE: u64 = 50;
/// Most DMA spaces.
const DOMAINS: usize = 1024;

/// Registers of a unit, at this address.
struct Registers(u64);

impl Hardware for Registers {
    fn read(&self, offset: u32) -> u32 {
        // SAFETY: `start` has mapped the registers.
        unsafe { ((self.0 + offset as u64) as *const u32).read_volatile() }
    }

    fn write(&self, offset: u32, value: u32) {
        // SAFETY: see `read`; values are those that the specification asks for.
        unsafe { ((self.0 + offset as u64) as *mut u32).write_volatile(value) }
    }

    fn word(&self, table: u64, index: usize) -> u64 {
        read_entry(table, index)
    }

    fn set_word(&self, table: u64, index: usize, value: u64) {
        write_entry(table, index, value);
    }

    fn wait(&self, done: &dyn Fn() -> bool) -> bool {
        smp::wait_until(PATIENCE, done)
    }
}

/// What the units share.
struct State {
    units: [Option<Unit<Registers>>; UNITS_MAX],
    /// Root table.
    root: u64,
    /// Table of interrupts; 0 if they are not remapped.
    interrupts: u64,
    /// A domain is in use, by number. 0 belongs to the hardware.
    domains: [bool; DOMAINS],
}

static STATE: Mutex<State> =
    Mutex::new(State { units: [const { None }; UNITS_MAX], root: 0, interrupts: 0, domains: [false; DOMAINS] });
/// What all units can do.
static ABILITIES: Once<Abilities> = Once::new();
static ON: AtomicBool = AtomicBool::new(false);

/// Whether DMA is remapped.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn table() -> Option<&'static Dmar> {
    PLATFORM.get()?.dmar.as_ref()
}

/// Source id of the I/O APIC with number `id`.
pub fn ioapic(id: Option<u8>) -> Option<u16> {
    table()?.ioapic(id?)
}

/// Has what stands in a table from physical address `first` up to `end` leave the caches, if units do not look there.
pub fn flush(first: u64, end: u64) {
    if ABILITIES.get().is_some_and(|abilities| abilities.coherent()) {
        return;
    }
    for line in (first & !63..end).step_by(64) {
        // SAFETY: writes back a line of a table in the pool; every processor with long mode can.
        unsafe { core::arch::x86_64::_mm_clflush((KERNEL + line) as *const u8) };
    }
    fence(Ordering::SeqCst);
}

/// Reads the firmware's table, at boot.
pub fn read(memory: &impl PhysicalMemory, (start, length): (u64, u64)) -> Option<Dmar> {
    let table = Window::new(memory, start, length)?;
    let bridge = |source: u16| {
        // SAFETY: reads the secondary bus number of a bridge (PCI Local Bus 3.0, 3.2.2.3.2); nobody else does this yet.
        unsafe {
            Port::<u32>::new(0xcf8).write(1 << 31 | (source as u32) << 8 | 0x18);
            Port::<u8>::new(0xcfd).read()
        }
    };
    let found = Dmar::read(&table, &bridge);
    found.inspect_err(|problem| log!("ACPI: table DMAR {}: no IOMMU is used", Words(problem))).ok()
}

fn frame(account: &Account) -> Result<u64, Status> {
    let table = account.frames(0).map(Frame::physical).ok_or(Status::MemObj)?;
    flush(table, table | 0xfff);
    Ok(table)
}

/// Replaces an entry; no unit ever sees half of it.
fn put(table: u64, index: usize, [low, high]: Entry) {
    let index = index.wrapping_mul(2);
    for (word, value) in [(0, 0), (1, high), (0, low)] {
        write_entry(table, index | word, value);
    }
    flush(table | (index as u64 * 8), table | ((index | 1) as u64 * 8));
}

/// Turns remapping on, for nobody but those with reserved memory. Once, at boot.
#[inline(never)]
pub fn start(pd: &'static Pd) -> Result<(), Status> {
    let Some(dmar) = table() else { return Ok(()) };
    let (mut common, account) = (Abilities::ALL, &KERNEL_ACCOUNT);
    let complain = |at, problem| log!("the IOMMU at {at:#x} is left out: {}", Words(problem));
    for (number, (at, slot)) in dmar.units.as_slice().iter().zip(&mut STATE.lock().units).enumerate() {
        let first = FIRST_SLOT + number * PAGES;
        for page in 0..PAGES {
            map_device(first + page, at.address + page as u64 * 4096);
        }
        match Unit::find(Registers(DEVICES + first as u64 * 4096), *at, PAGES as u32 * 4096) {
            Ok(unit) => common = common.common(slot.insert(unit).abilities),
            Err(problem) => complain(at.address, problem),
        }
    }
    ABILITIES.call_once(|| common);
    let (root, empty, interrupts) = (frame(account)?, frame(account)?, frame(account)?);
    STATE.lock().root = root;
    keep_reserved(pd, dmar.reserved.as_slice());
    let wide = lapic::reaches(u32::MAX);
    let remaps = dmar.interrupts && common.interrupts(wide);
    let mut state = STATE.lock();
    for slot in &mut state.units {
        let Some(unit) = slot else { continue };
        let table = if unit.at.segment == 0 { root } else { empty };
        if let Err(problem) = unit.start(table, frame(account)?, remaps.then_some((interrupts, wide))) {
            complain(unit.at.address, problem);
            *slot = None;
        }
    }
    if state.units.iter().any(Option::is_some) {
        ON.store(true, Ordering::Relaxed);
        state.interrupts = if remaps { interrupts } else { 0 };
        log!("DMA is remapped{}", Words(if remaps { ", and interrupts" } else { "; interrupts cannot be" }));
    }
    Ok(())
}

/// Gives each device its reserved memory, where that is not the kernel's.
fn keep_reserved(pd: &'static Pd, all: &[Reserved]) {
    for (index, first) in all.iter().enumerate() {
        let (source, same) = (first.source, |range: &&Reserved| range.source == first.source);
        if !all.iter().take(index).any(|before| same(&before)) {
            let kept = object::create_own(|_| DmaSpace::new(pd)).and_then(|(space, _)| {
                all.iter().filter(same).try_for_each(|range| keep(space, range))?;
                STATE.lock().attach(source, &space.memory, &KERNEL_ACCOUNT)
            });
            let outcome = Words(if kept.is_ok() { "keeps" } else { "does not keep" });
            log!("device {:#x} {outcome} its memory at {:#x}", source as u64, first.start);
        }
    }
}

fn keep(space: &DmaSpace, range: &Reserved) -> Result<(), Status> {
    let ((start, end), mut done) = (kernel_range(), 0);
    if range.start < end && start < range.start + range.pages * 4096 {
        return Err(Status::BadPar);
    }
    while done < range.pages {
        let (pa, permissions) = (range.start + done * 4096, Permissions::READ | Permissions::WRITE);
        done += space.memory.step(&Piece { pa, permissions, ..Piece::unmap(pa, range.pages - done) }, None)?;
    }
    Ok(())
}

impl State {
    /// Has all units carry out descriptors; false if one did not in time.
    fn forget(&mut self, what: &[Entry]) -> bool {
        self.units.iter_mut().flatten().filter_map(|unit| unit.forget(what).err()).count() == 0
    }

    /// From now on device `source` uses `space`.
    fn attach(&mut self, source: u16, space: &Memory, account: &Account) -> Result<(), Status> {
        let (bus, function) = ((source >> 8) as usize, (source & 0xff) as usize);
        if read_entry(self.root, bus.wrapping_mul(2)) == 0 {
            put(self.root, bus, entry::root(frame(account)?));
        }
        let table = read_entry(self.root, bus.wrapping_mul(2)) & !0xfff;
        let depth = ABILITIES.get().map_or(0, |abilities| abilities.depth());
        put(table, function, entry::context(space.root(), depth, space.domain));
        if self.forget(&[FORGET_CONTEXTS, FORGET_TRANSLATIONS]) {
            return Ok(());
        }
        put(table, function, [0; 2]);
        Err(Status::BadDev)
    }

    /// No device uses `domain` any more; false if a unit may not have noticed.
    fn detach(&mut self, domain: u16) -> bool {
        for table in (0..256).map(|bus: usize| read_entry(self.root, bus.wrapping_mul(2)) & !0xfff) {
            for function in (0..256).filter(|_| table != 0) {
                let place = usize::wrapping_mul(function, 2);
                if entry::domain([read_entry(table, place), read_entry(table, place | 1)]) == domain {
                    put(table, function, [0; 2]);
                }
            }
        }
        self.forget(&[FORGET_CONTEXTS, FORGET_TRANSLATIONS])
    }
}

/// Memory of devices.
#[repr(C, align(64))]
pub struct DmaSpace {
    /// Its capabilities.
    pub memory: Memory,
    attached: AtomicBool,
}

impl DmaSpace {
    /// A space of `pd`. (Not inlined, for the kernel's size.)
    #[inline(never)]
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let abilities = *ABILITIES.get().ok_or(Status::BadFtr)?;
        let format = abilities.depth().checked_sub(3).and_then(|levels| DMA.get(levels as usize));
        let mut state = STATE.lock();
        let mut domains = (0..abilities.domains().min(DOMAINS as u32) as u16).zip(&mut state.domains).skip(1);
        let (domain, used) = domains.find(|(_, used)| !**used).ok_or(Status::MemObj)?;
        let selectors = 1 << (9 * u64::from(abilities.depth()));
        let memory = Memory::new(pd, format.ok_or(Status::BadFtr)?, abilities.leaf(), selectors, domain)?;
        flush(memory.root(), memory.root() | 0xfff);
        *used = true;
        Ok(Self { memory, attached: AtomicBool::new(true) })
    }

    /// Destruction: takes its devices out, then frees some more of its tables. True when all are gone.
    pub fn clear(&self, done: &mut u64) -> bool {
        if self.attached.swap(false, Ordering::Relaxed) {
            let (mut state, domain) = (STATE.lock(), self.memory.domain);
            // Without an answer the number is not used again.
            let used = !state.detach(domain);
            state.domains.get_mut(domain as usize).into_iter().for_each(|place| *place = used);
        }
        self.memory.clear(done)
    }
}

/// `space`, a DMA space, was changed: if that took rights away, as `due` says, or units must be told anyhow, devices notice
/// before this returns. If a unit does not answer, the devices that use the space are taken out.
pub fn settle(space: &Memory, due: bool) {
    let told = ABILITIES.get().is_some_and(|abilities| abilities.must_be_told());
    if !told && !due {
        return;
    }
    let mut state = STATE.lock();
    if !state.forget(&[entry::forget_domain(space.domain)]) {
        state.detach(space.domain);
        drop(state);
        log!("an IOMMU does not answer: the devices of domain {} are cut off", space.domain as u64);
    }
}

/// assign_dev.
pub fn assign_dev(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    if !ec.pd.root {
        return Err(Status::BadHyp);
    }
    let (address, mut state) = (ec.gpr(gpr::RSI) & !0xfff, STATE.lock());
    if !state.units.iter().flatten().any(|unit| unit.at.address == address) {
        return Err(Status::BadDev);
    }
    let (space, _) = ec.selectors.get::<DmaSpace>(call.selector, Permissions::ASSIGN)?;
    let source = u16::try_from(ec.gpr(gpr::RDX) as u32).map_err(|_| Status::BadPar)?;
    state.attach(source, &space.memory, ec.pd.account())
}

/// Interrupt `number` is what `wanted` says, or `masked`, for devices that send the message of entry `number`. False if
/// interrupts are not remapped.
pub fn remap(number: u32, wanted: &Interrupt, masked: bool) -> bool {
    let mut state = STATE.lock();
    let table = state.interrupts;
    if table != 0 {
        let entry = if masked { [0; 2] } else { wanted.entry(lapic::reaches(u32::MAX)) };
        put(table, number as usize & 255, entry);
        state.forget(&[FORGET_INTERRUPTS]);
    }
    table != 0
}

/// Has faults announced by the interrupt `wanted`.
pub fn announce_faults(wanted: &Interrupt) {
    let (address, data) = wanted.plain_message();
    let address = address as u64 | ((wanted.destination & !0xff) as u64) << 32;
    STATE.lock().units.iter().flatten().for_each(|unit| unit.announce_faults(address, data));
}

/// No unit announces a fault before the recorded ones were collected.
pub fn mask_faults() {
    STATE.lock().units.iter().flatten().for_each(Unit::mask_faults);
}

/// The extension's operation: what a device did that it may not do.
pub fn collect_fault(ec: &Ec) -> Result<(), Status> {
    if !ec.pd.root {
        return Err(Status::BadHyp);
    }
    let (told, address) = STATE.lock().units.iter().flatten().find_map(Unit::next_fault).unwrap_or((0, 0));
    ec.set_gpr(gpr::RSI, told);
    ec.set_gpr(gpr::RDX, address);
    Ok(())
}
