#![allow(unsafe_code)]
//! Spaces: where selectors become capabilities (NOVA 2.1, 4.1, 6.1.3), and the kernel's own address space.
//!
//! Unsafe: reads and writes tables in pool frames, switches page tables.
//!
//! Object spaces are read without locks; every space has one lock for writers. Lock order: a space, then an account's
//! slabs, then the pool. No two spaces are locked at once.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::Status;
use abi::capability::{Cacheability, Permissions, SELECTOR_COUNT};
use kernel_core::paging::{Ept, Format, Host, Leaf, MapError, Npt, Space};
use kernel_core::shootdown::{Generation, Use};
use kernel_core::slots::{Entry, Kind};
use spin::{Mutex, Once};

use crate::cpu::{BLOCK, Cpu, CpuBlock};
use crate::descriptors::{WINDOW_GROUP, WINDOW_GROUPS, WINDOW_TSS_PAGES};
use crate::memory::{Changes, Frame, KERNEL, KERNEL_ACCOUNT, StaticFrame, Tables, read_entry, release, write_entry};
use crate::object::{Object, Ref, resolve};
use crate::pd::Pd;
use crate::vcpu::Processor;

/// Address of the device window: the LAPIC's page, then one page for each I/O APIC.
pub const DEVICES: u64 = 0xffff_ffff_c000_0000;

/// Where the blocks of all CPUs but the first are mapped.
pub const CPUS: u64 = DEVICES + (1 << 21);

/// Object capabilities of a protection domain: two levels of 512 entries.
#[repr(C, align(64))]
pub struct ObjectSpace {
    root: Frame,
    lock: Mutex<()>,
    pd: &'static Pd,
}

impl Object for ObjectSpace {
    const KIND: Kind = Kind::ObjectSpace;
}

impl ObjectSpace {
    /// An empty object space of `pd`.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        Ok(Self { root: pd.account().draft(0)?.keep(), lock: Mutex::new(()), pd })
    }

    fn slot(&self, selector: u64) -> Option<&'static AtomicU64> {
        if selector >= SELECTOR_COUNT {
            return None;
        }
        // SAFETY: the root is a frame of 512 atomic words; each is 0 or the address of a leaf frame, never changed back.
        unsafe {
            let root = &*self.root.pointer().cast::<[AtomicU64; 512]>();
            let leaf = root[(selector >> 9) as usize & 511].load(Ordering::Acquire);
            (leaf != 0).then(|| &(*(leaf as *const [AtomicU64; 512]))[selector as usize & 511])
        }
    }

    /// The capability at `selector`; null if there is none.
    #[inline(always)]
    pub fn lookup(&self, selector: u64) -> Entry {
        self.slot(selector).map_or(Entry::NULL, |slot| Entry::from_raw(slot.load(Ordering::Relaxed)))
    }

    /// The object at `selector` if it is a `T` and the capability carries `permissions`.
    #[inline(always)]
    pub fn get<T: Object>(&self, selector: u64, permissions: Permissions) -> Result<(&'static T, Ref<T>), Status> {
        resolve(self.lookup(selector), permissions)
    }

    /// Destruction: frees one more of its frames; `done` counts. True when all are free.
    pub fn clear(&self, done: &mut u64) -> bool {
        let index = *done as usize;
        *done += 1;
        // SAFETY: as in `slot`; nobody else looks any more.
        let root = unsafe { &*self.root.pointer().cast::<[AtomicU64; 512]>() };
        let Some(leaf) = root.get(index) else {
            release(self.root);
            return true;
        };
        if let Some(frame) = Frame::from_pointer(leaf.load(Ordering::Relaxed)) {
            release(frame);
        }
        false
    }

    /// Puts `entry` at `selector`, whatever was there.
    pub fn set(&self, selector: u64, entry: Entry) -> Result<(), Status> {
        let _guard = self.lock.lock();
        if entry != Entry::NULL {
            self.provide(selector)?;
        }
        if let Some(slot) = self.slot(selector) {
            slot.store(entry.to_raw(), Ordering::Release);
        }
        Ok(())
    }

    /// Makes room for a new object's capability at `selector`, which must hold a null capability.
    pub fn reserve(&self, selector: u64) -> Result<(), Status> {
        if selector >= SELECTOR_COUNT || crate::object::kind(self.lookup(selector)) != Kind::Null {
            return Err(Status::BadCap);
        }
        let _guard = self.lock.lock();
        self.provide(selector)
    }

    /// Makes sure that the leaf of `selector`, which exists, is there. The lock is held.
    fn provide(&self, selector: u64) -> Result<(), Status> {
        if self.slot(selector).is_none() {
            let leaf = self.pd.account().frames(0).ok_or(Status::MemCap)?;
            // SAFETY: as in `slot`; the new leaf is zeroed.
            let root = unsafe { &*self.root.pointer().cast::<[AtomicU64; 512]>() };
            root[(selector >> 9) as usize & 511].store(leaf.pointer() as u64, Ordering::Release);
        }
        Ok(())
    }
}

/// Memory of host ECs.
#[repr(C, align(64))]
pub struct HostSpace {
    space: Space<Host>,
    lock: Mutex<()>,
    pd: &'static Pd,
    ports: AtomicBool,
    generation: Generation,
}

impl Object for HostSpace {
    const KIND: Kind = Kind::HostSpace;
}

/// The page-table root that holds the kernel's half; its entries are in every host space.
static MASTER: StaticFrame = StaticFrame::zeroed();
static MASTER_PDPT: StaticFrame = StaticFrame::zeroed();
static IMAGE_PD: StaticFrame = StaticFrame::zeroed();
static IMAGE_PT: StaticFrame = StaticFrame::zeroed();
static DEVICE_PD: StaticFrame = StaticFrame::zeroed();
static DEVICE_PT: StaticFrame = StaticFrame::zeroed();
static WINDOW_PDPT: StaticFrame = StaticFrame::zeroed();
static WINDOW_PD: StaticFrame = StaticFrame::zeroed();
static WINDOW_PT: StaticFrame = StaticFrame::zeroed();
/// A page of ones: the I/O bitmap of spaces without ports, and the terminator of all.
static ONES: StaticFrame = StaticFrame::zeroed();

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const UNCACHEABLE: u64 = 1 << 4 | 1 << 3;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

fn put(table: &StaticFrame, index: usize, value: u64) {
    write_entry(table.physical(), index, value);
}

/// Builds the kernel's half of the address space (W^X, no user memory) and returns its root.
pub fn build_kernel() -> u64 {
    unsafe extern "C" {
        static text_start: u8;
        static rodata_start: u8;
        static data_start: u8;
        static metadata_start: u8;
        static kernel_end: u8;
    }
    let symbols = [
        &raw const text_start,
        &raw const rodata_start,
        &raw const data_start,
        &raw const metadata_start,
        &raw const kernel_end,
    ];
    let [text, rodata, data, metadata, end] = symbols.map(|symbol| symbol as u64);
    // SAFETY: the frame is ours.
    unsafe { core::ptr::write_bytes(ONES.pointer(), 0xff, 4096) };
    let table = PRESENT | WRITE;
    put(&MASTER, 511, MASTER_PDPT.physical() | table);
    put(&MASTER, 510, WINDOW_PDPT.physical() | table);
    put(&MASTER_PDPT, 510, IMAGE_PD.physical() | table);
    put(&MASTER_PDPT, 511, DEVICE_PD.physical() | table);
    put(&DEVICE_PD, 0, DEVICE_PT.physical() | table);

    let index = |address: u64| ((address - KERNEL) >> 21) as usize;
    put(&IMAGE_PD, index(text), IMAGE_PT.physical() | table);
    let mut page = text;
    while page < metadata && index(page) == index(text) {
        let flags = if page < rodata {
            PRESENT
        } else if page < data {
            PRESENT | NO_EXECUTE
        } else {
            PRESENT | WRITE | NO_EXECUTE
        };
        let offset = page.wrapping_sub(&raw const crate::cpu::BOOT_CPU as u64) as usize;
        if offset >= BLOCK || !CpuBlock::is_guard(offset) {
            put(&IMAGE_PT, (page >> 12) as usize & 511, (page - KERNEL) | flags | GLOBAL);
        }
        page += 4096;
    }
    let mut large = metadata;
    while large < end {
        put(&IMAGE_PD, index(large), (large - KERNEL) | PRESENT | WRITE | NO_EXECUTE | LARGE | GLOBAL);
        large += 1 << 21;
    }

    put(&WINDOW_PDPT, 0, WINDOW_PD.physical() | table);
    put(&WINDOW_PD, 0, WINDOW_PT.physical() | table);
    fill_window(WINDOW_PT.physical(), [ONES.physical(); 2]);
    MASTER.physical()
}

/// Maps the task state segments and an I/O bitmap in the window's page table `table`.
fn fill_window(table: u64, bitmap: [u64; 2]) {
    let flags = PRESENT | NO_EXECUTE;
    for (place, frame) in crate::descriptors::tss_pages() {
        write_entry(table, place, frame | flags | WRITE | GLOBAL);
    }
    for group in 0..WINDOW_GROUPS {
        for (page, frame) in [bitmap[0], bitmap[1], ONES.physical()].into_iter().enumerate() {
            write_entry(table, group * WINDOW_GROUP + WINDOW_TSS_PAGES + page, frame | flags);
        }
    }
}

/// Allocates and maps the block of CPU `number`; false if there is no memory for it.
pub fn map_cpu(number: u16) -> bool {
    let frame = || KERNEL_ACCOUNT.frames(0).map(Frame::physical);
    if !crate::descriptors::provide_tss(number as usize, frame) {
        return false;
    }
    fill_window(WINDOW_PT.physical(), [ONES.physical(); 2]);
    let page = (number as usize * BLOCK) >> 12;
    let directory = 1 + (page >> 9);
    if read_entry(DEVICE_PD.physical(), directory) == 0 {
        let Some(table) = frame() else { return false };
        put(&DEVICE_PD, directory, table | PRESENT | WRITE);
    }
    let table = read_entry(DEVICE_PD.physical(), directory) & !0xfff;
    for offset in (0..BLOCK).step_by(4096).filter(|offset| !CpuBlock::is_guard(*offset)) {
        let index = (page + (offset >> 12)) & 511;
        // What a CPU that did not answer left is there already.
        if read_entry(table, index) == 0 {
            let Some(frame) = frame() else { return false };
            write_entry(table, index, frame | PRESENT | WRITE | NO_EXECUTE | GLOBAL);
        }
    }
    true
}

/// Physical address of the page-table root without user memory.
pub fn master() -> u64 {
    MASTER.physical()
}

/// Maps the device page at `physical` into slot `slot` of the device window and returns where it is.
pub fn map_device(slot: usize, physical: u64) -> *mut u8 {
    put(&DEVICE_PT, slot, physical | PRESENT | WRITE | UNCACHEABLE | NO_EXECUTE | GLOBAL);
    (DEVICES + slot as u64 * 4096) as *mut u8
}

/// Empties a slot of the device window, on this CPU.
pub fn unmap_device(slot: usize) {
    put(&DEVICE_PT, slot, 0);
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(DEVICES + slot as u64 * 4096));
}

impl HostSpace {
    /// An empty host space of `pd`, with the kernel's half.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let root = pd.account().draft(0)?.keep().physical();
        for index in [510, 511] {
            write_entry(root, index, read_entry(MASTER.physical(), index));
        }
        let (space, lock, ports) = (Space::new(root, largest_page()), Mutex::new(()), AtomicBool::new(false));
        Ok(Self { space, lock, pd, ports, generation: Generation::first() })
    }

    /// Physical address of its page-table root: the value for CR3.
    #[inline(always)]
    pub fn root(&self) -> u64 {
        self.space.root()
    }

    /// Whether its programs have I/O ports.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        self.ports.load(Ordering::Relaxed)
    }

    /// Maps one frame of the kernel's pool or image, as UTCBs and the information page are.
    pub fn map_kernel_page(
        &self,
        changes: &Changes,
        address: u64,
        physical: u64,
        permissions: Permissions,
    ) -> Result<(), Status> {
        let _guard = self.lock.lock();
        self.space
            .map_step(
                &mut Tables(self.pd.account(), changes),
                address,
                physical,
                1,
                permissions,
                Cacheability::WriteBack,
            )
            .map(drop)
            .map_err(|_| Status::MemObj)
    }

    /// Unmaps the kernel's page `physical` at `address`, if it is still there.
    pub fn unmap_kernel_page(&self, changes: &Changes, address: u64, physical: u64) {
        let _guard = self.lock.lock();
        let mut tables = Tables(self.pd.account(), changes);
        if self.space.lookup_run(&tables, address).0.is_some_and(|leaf| leaf.address == physical) {
            // Unmapping needs no memory but where a large page is split; this is a small one.
            let _ = self.space.map_step(&mut tables, address, 0, 1, Permissions::empty(), Cacheability::WriteBack);
        }
    }

    /// Destruction: clears some more of its tables, which go to `changes`; `done` counts pages. True when all are.
    pub fn clear(&self, changes: &Changes, done: &mut u64) -> bool {
        if !clear(&self.space, &mut Tables(self.pd.account(), changes), self.selectors(), done) {
            return false;
        }
        let address = |entry: u64| entry & 0xf_ffff_ffff_f000;
        if self.has_ports() {
            let pdpt = address(read_entry(self.root(), 510));
            let pd = address(read_entry(pdpt, 0));
            for table in [address(read_entry(pd, 0)), pd, pdpt] {
                release_table(table);
            }
        }
        release_table(self.root());
        true
    }

    /// Gives the space a window with the I/O bitmap `bitmap` of its own.
    fn open_window(&self, bitmap: [u64; 2]) -> Result<(), Status> {
        let _guard = self.lock.lock();
        if self.has_ports() {
            return Ok(());
        }
        let account = self.pd.account();
        let full = |_| Status::MemCap;
        let frames =
            [account.draft(0).map_err(full)?, account.draft(0).map_err(full)?, account.draft(0).map_err(full)?];
        let [pdpt, pd, pt] = frames.map(|draft| draft.keep().physical());
        fill_window(pt, bitmap);
        write_entry(pd, 0, pt | PRESENT | WRITE);
        write_entry(pdpt, 0, pd | PRESENT | WRITE);
        write_entry(self.root(), 510, pdpt | PRESENT | WRITE);
        self.ports.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Largest page size of host and nested tables as a level: 0 = 4 KiB, 1 = 2 MiB, 2 = 1 GiB.
static LARGEST: Once<u8> = Once::new();

/// Sets the largest page size that the processor has.
pub fn set_largest_page(level: u8) {
    LARGEST.call_once(|| level);
}

fn largest_page() -> u8 {
    LARGEST.get().copied().unwrap_or(1)
}

enum Nested {
    Ept(Space<Ept>),
    Npt(Space<Npt>),
}

/// Guest-physical memory of vCPUs.
#[repr(C, align(64))]
pub struct GuestSpace {
    nested: Nested,
    lock: Mutex<()>,
    pd: &'static Pd,
    /// Counts changes that took rights away: vCPUs flush when theirs differs.
    pub generation: Generation,
}

impl Object for GuestSpace {
    const KIND: Kind = Kind::GuestSpace;
}

impl GuestSpace {
    /// An empty guest space of `pd` in the format of the processor.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let processor = crate::cpu::BOOT_CPU.cpu.processor.get().ok_or(Status::BadFtr)?;
        let root = pd.account().draft(0)?.keep().physical();
        let largest = processor.max_leaf_level().min(largest_page());
        let nested = match processor {
            Processor::Svm(_) => Nested::Npt(Space::new(root, largest)),
            Processor::Vmx(_) => Nested::Ept(Space::new(root, largest)),
        };
        Ok(Self { nested, lock: Mutex::new(()), pd, generation: Generation::first() })
    }

    /// Destruction: clears some more of its tables, which go to `changes`; `done` counts pages. True when all are.
    pub fn clear(&self, changes: &Changes, done: &mut u64) -> bool {
        let mut tables = Tables(self.pd.account(), changes);
        let all = match &self.nested {
            Nested::Ept(space) => clear(space, &mut tables, self.selectors(), done),
            Nested::Npt(space) => clear(space, &mut tables, self.selectors(), done),
        };
        if all {
            release_table(self.root());
        }
        all
    }

    /// Physical address of its root.
    pub fn root(&self) -> u64 {
        match &self.nested {
            Nested::Ept(space) => space.root(),
            Nested::Npt(space) => space.root(),
        }
    }
}

fn release_table(physical: u64) {
    if let Some(frame) = Frame::from_physical(physical) {
        release(frame);
    }
}

/// Unmaps the next piece of a space of `pages` pages, whose first `done` are unmapped. True if they all are.
fn clear<F: Format>(space: &Space<F>, tables: &mut Tables, pages: u64, done: &mut u64) -> bool {
    if *done >= pages {
        return true;
    }
    let (address, left) = (*done << 12, pages - *done);
    let step = space.map_step(tables, address, 0, left, Permissions::empty(), Cacheability::WriteBack);
    *done += step.unwrap_or(1).max(1);
    false
}

/// Ports: one bit each, set = no access, in the format of task state, VMX and SVM alike.
#[repr(C, align(64))]
pub struct PioSpace {
    bitmap: Frame,
    pd: &'static Pd,
    /// The bitmap governs the host ECs of its protection domain.
    first: bool,
}

impl Object for PioSpace {
    const KIND: Kind = Kind::PioSpace;
}

impl PioSpace {
    /// A space without ports; `first` if host ECs of `pd` use it.
    pub fn new(pd: &'static Pd, first: bool) -> Result<Self, Status> {
        let bitmap = pd.account().draft(2)?.keep();
        // SAFETY: four fresh frames.
        unsafe { core::ptr::write_bytes(bitmap.pointer(), 0xff, 4 * 4096) };
        Ok(Self { bitmap, pd, first })
    }

    /// Physical address of the bitmap.
    pub fn bitmap(&self) -> u64 {
        self.bitmap.physical()
    }

    /// Its frames, to be freed.
    pub fn frames(&self) -> Frame {
        self.bitmap
    }

    /// Whether it governs the host ECs of its protection domain.
    pub fn is_first(&self) -> bool {
        self.first
    }

    fn word(&self, port: u64) -> &AtomicU64 {
        // SAFETY: the bitmap has 1024 words, and ports are below 2^16.
        unsafe { &(*self.bitmap.pointer().cast::<[AtomicU64; 1024]>())[(port >> 6) as usize & 1023] }
    }

    /// Whether `port` is accessible.
    pub fn allows(&self, port: u64) -> bool {
        self.word(port).load(Ordering::Relaxed) & 1 << (port & 63) == 0
    }

    /// Sets access to `port`.
    pub fn set(&self, port: u64, access: bool) -> Result<(), Status> {
        if access
            && self.first
            && let Some(host) = self.pd.host.get()
        {
            host.open_window([self.bitmap(), self.bitmap() + 4096])?;
        }
        let bit = 1 << (port & 63);
        if access {
            self.word(port).fetch_and(!bit, Ordering::Relaxed);
        } else {
            self.word(port).fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Rights were changed: this CPU drops its translation of the window without bitmap, if it had one.
    pub fn flush(&self, cpu: &Cpu) {
        if self.first {
            self.pd.host.get().inspect(|host| host.flush(cpu));
        }
    }

    /// Whether `cpu` may have cached the window without bitmap, or runs a guest that may still use a port.
    pub fn cached_by(&self, cpu: &Cpu) -> bool {
        let host = self.first && self.pd.host.get().is_some_and(|host| host.cached_by(cpu));
        host || cpu.nested.root() != Use::NONE
    }
}

/// Model-specific registers that a guest accesses without exit: a bitmap in the vendor's format in the first two
/// frames, and in the third what was granted, two bits for each register.
#[repr(C, align(64))]
pub struct MsrSpace {
    bitmap: Frame,
    lock: Mutex<()>,
}

impl Object for MsrSpace {
    const KIND: Kind = Kind::MsrSpace;
}

impl MsrSpace {
    /// A space without registers.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let bitmap = pd.account().draft(2)?.keep();
        // SAFETY: the first two of four fresh frames.
        unsafe { core::ptr::write_bytes(bitmap.pointer(), 0xff, 2 * 4096) };
        Ok(Self { bitmap, lock: Mutex::new(()) })
    }

    /// Physical address of the bitmap.
    pub fn bitmap(&self) -> u64 {
        self.bitmap.physical()
    }

    /// Its frames, to be freed.
    pub fn frames(&self) -> Frame {
        self.bitmap
    }

    /// Where what was granted for `msr` is noted: byte and shift. `None` for registers that no bitmap covers.
    fn granted(&self, msr: u32) -> Option<(*mut u8, u32)> {
        let index = match msr {
            0..0x2000 => msr,
            0xc000_0000..0xc000_2000 => msr - 0xc000_0000 + 0x2000,
            _ => return None,
        };
        // SAFETY: the index is below 2^14, two bits each: inside the third frame.
        Some((unsafe { self.bitmap.pointer().add(2 * 4096 + index as usize / 4) }, index % 4 * 2))
    }

    /// Sets what may be done with `msr`.
    pub fn set(&self, msr: u32, permissions: Permissions) {
        let _guard = self.lock.lock();
        let Some((byte, shift)) = self.granted(msr) else { return };
        // SAFETY: inside the space's frames, and the lock makes this the only writer.
        let bitmap = unsafe {
            byte.write(byte.read() & !(3 << shift) | (permissions.bits() & 3) << shift);
            core::slice::from_raw_parts_mut(self.bitmap.pointer(), 2 * 4096)
        };
        if let Some(processor) = crate::cpu::BOOT_CPU.cpu.processor.get() {
            let (read, write) = (permissions.contains(Permissions::READ), permissions.contains(Permissions::WRITE));
            processor.set_msr(bitmap, msr, read, write);
        }
    }

    /// What may be done with `msr`.
    pub fn get(&self, msr: u32) -> Permissions {
        let _guard = self.lock.lock();
        let Some((byte, shift)) = self.granted(msr) else { return Permissions::empty() };
        // SAFETY: as for `set`.
        Permissions::from_bits_retain(unsafe { byte.read() } >> shift & 3)
    }
}

/// Status of a mapping that failed.
fn refused(error: MapError) -> Status {
    match error {
        MapError::OutOfTables => Status::MemCap,
        MapError::OutOfRange => Status::BadPar,
    }
}

/// A space that holds memory capabilities: the destination of a delegation from a host space.
pub trait MemorySpace {
    /// Maps or, with empty permissions, unmaps the largest piece at `address` that one entry covers, of at most
    /// `pages` pages. Returns the number of pages done; what it took away is added to `changes`.
    fn step(
        &self,
        changes: &Changes,
        address: u64,
        physical: u64,
        pages: u64,
        permissions: Permissions,
        cache: Cacheability,
    ) -> Result<u64, Status>;
    /// Number of selectors, a power of two.
    fn selectors(&self) -> u64;
    /// This CPU drops what it has cached; before it enters a guest it does so anyway.
    fn flush(&self, cpu: &Cpu);
    /// Counts what was taken away, and whether all CPUs have seen it.
    fn generation(&self) -> &Generation;
    /// Whether `cpu` may have cached what the space held.
    fn cached_by(&self, cpu: &Cpu) -> bool;
}

impl MemorySpace for HostSpace {
    fn step(
        &self,
        changes: &Changes,
        address: u64,
        physical: u64,
        pages: u64,
        permissions: Permissions,
        cache: Cacheability,
    ) -> Result<u64, Status> {
        let _guard = self.lock.lock();
        let mut tables = Tables(self.pd.account(), changes);
        let done = self.space.map_step(&mut tables, address, physical, pages, permissions, cache);
        if changes.any() {
            self.generation.bump();
        }
        done.map_err(refused)
    }

    fn selectors(&self) -> u64 {
        abi::USER_END >> 12
    }

    fn flush(&self, cpu: &Cpu) {
        if self.cached_by(cpu) {
            // SAFETY: the tables are loaded already; loading them again drops stale translations.
            unsafe { crate::registers::set_cr3(self.root()) };
        }
    }

    fn generation(&self) -> &Generation {
        &self.generation
    }

    fn cached_by(&self, cpu: &Cpu) -> bool {
        cpu.space.root() == self.root()
    }
}

impl MemorySpace for GuestSpace {
    fn step(
        &self,
        changes: &Changes,
        address: u64,
        physical: u64,
        pages: u64,
        permissions: Permissions,
        cache: Cacheability,
    ) -> Result<u64, Status> {
        let _guard = self.lock.lock();
        let mut tables = Tables(self.pd.account(), changes);
        let done = match &self.nested {
            Nested::Ept(space) => space.map_step(&mut tables, address, physical, pages, permissions, cache),
            Nested::Npt(space) => space.map_step(&mut tables, address, physical, pages, permissions, cache),
        };
        if changes.any() {
            self.generation.bump();
        }
        done.map_err(refused)
    }

    fn selectors(&self) -> u64 {
        1 << (48 - 12)
    }

    fn flush(&self, _: &Cpu) {}

    fn generation(&self) -> &Generation {
        &self.generation
    }

    fn cached_by(&self, cpu: &Cpu) -> bool {
        cpu.nested.root() == self.root()
    }
}

impl HostSpace {
    /// The memory capability at `address` and how many pages of the same piece follow, or how many pages are not mapped.
    pub fn lookup(&self, address: u64) -> (Option<Leaf>, u64) {
        self.space.lookup_run(&Tables(self.pd.account(), &Changes::none()), address)
    }
}
