#![allow(unsafe_code)]
//! Spaces of memory: page tables with what belongs to them, for host ECs and for guests.
//!
//! Unsafe: loads page tables anew.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::Status;
use abi::capability::{Cacheability, Permissions};
use kernel_core::paging::{EPT, Format, HOST, Leaf, MapError, Piece, Space};
use kernel_core::shootdown::Generation;
use kernel_core::slots::Kind;
use spin::{Mutex, Once};

use super::kernel::{PRESENT, WRITE, fill_window, master};
use crate::cpu::Cpu;
use crate::memory::{Changes, Frame, Tables, read_entry, release, write_entry};
use crate::object::Object;
use crate::pd::Pd;
use crate::vcpu::Processor;

/// Largest page size of host and nested tables as a level: 0 = 4 KiB, 1 = 2 MiB, 2 = 1 GiB.
static LARGEST: Once<u8> = Once::new();

/// Sets the largest page size that the processor has.
pub fn set_largest_page(level: u8) {
    LARGEST.call_once(|| level);
}

/// Page tables, who pays for them, and what CPUs have seen of their changes.
pub struct Memory {
    tree: Space,
    lock: Mutex<()>,
    pd: &'static Pd,
    /// Counts changes that took rights away: vCPUs flush when theirs differs.
    pub generation: Generation,
}

impl Memory {
    fn new(pd: &'static Pd, format: &'static Format, largest: u8) -> Result<Self, Status> {
        let root = pd.account().draft(0)?.keep().physical();
        let tree = Space::new(format, root, largest.min(LARGEST.get().copied().unwrap_or(1)));
        Ok(Self { tree, lock: Mutex::new(()), pd, generation: Generation::first() })
    }

    /// Physical address of the root table.
    #[inline(always)]
    pub fn root(&self) -> u64 {
        self.tree.root()
    }

    /// Maps or unmaps as much of `piece` as one entry covers. Returns the number of pages done; what it took away is
    /// added to `changes`.
    pub fn step(&self, changes: &Changes, piece: Piece) -> Result<u64, Status> {
        let _guard = self.lock.lock();
        let done = self.tree.map_step(&mut Tables(self.pd.account(), changes), piece);
        if changes.any() {
            self.generation.bump();
        }
        done.map_err(|error| match error {
            MapError::OutOfTables => Status::MemCap,
            MapError::OutOfRange => Status::BadPar,
        })
    }

    /// The capability at `address` and how many pages of the same piece follow, or how many pages are not mapped.
    pub fn lookup(&self, address: u64) -> (Option<Leaf>, u64) {
        // Else a table on the way could be freed.
        let _guard = self.lock.lock();
        self.tree.lookup_run(&Tables(self.pd.account(), &Changes::none()), address)
    }
}

fn release_table(physical: u64) {
    if let Some(frame) = Frame::from_physical(physical) {
        release(frame);
    }
}

/// A space that holds memory capabilities: the destination of a delegation from a host space.
pub trait MemorySpace {
    /// Its tables.
    fn memory(&self) -> &Memory;
    /// Number of selectors, a power of two.
    fn selectors(&self) -> u64;
    /// Whether `cpu` may have cached what the space held.
    fn cached_by(&self, cpu: &Cpu) -> bool;
    /// This CPU drops what it has cached. Before it enters a guest it does so anyway.
    fn flush(&self, _: &Cpu) {}
    /// Destruction: frees the tables that the space has beside those for its capabilities.
    fn clear_rest(&self) {}

    /// Destruction: clears some more of its tables, which go to `changes`; `done` counts pages. True when all are.
    fn clear(&self, changes: &Changes, done: &mut u64) -> bool {
        let (memory, left) = (self.memory(), self.selectors().saturating_sub(*done));
        if left == 0 {
            self.clear_rest();
            release_table(memory.root());
            return true;
        }
        let step = memory.step(changes, Piece::unmap(*done << 12, left)).unwrap_or(1).max(1);
        *done = done.saturating_add(step);
        false
    }
}

/// Memory of host ECs.
#[repr(C, align(64))]
pub struct HostSpace {
    memory: Memory,
    ports: AtomicBool,
}

impl Object for HostSpace {
    const KIND: Kind = Kind::HostSpace;
}

impl MemorySpace for HostSpace {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn selectors(&self) -> u64 {
        abi::USER_END >> 12
    }

    fn cached_by(&self, cpu: &Cpu) -> bool {
        cpu.space.root() == self.root()
    }

    fn flush(&self, cpu: &Cpu) {
        if self.cached_by(cpu) {
            // SAFETY: the tables are loaded already; loading them again drops stale translations.
            unsafe { crate::registers::set_cr3(self.root()) };
        }
    }

    fn clear_rest(&self) {
        let address = |entry: u64| entry & 0xf_ffff_ffff_f000;
        if self.has_ports() {
            let pdpt = address(read_entry(self.root(), 510));
            let pd = address(read_entry(pdpt, 0));
            for table in [address(read_entry(pd, 0)), pd, pdpt] {
                release_table(table);
            }
        }
    }
}

impl HostSpace {
    /// An empty host space of `pd`, with the kernel's half.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let memory = Memory::new(pd, &HOST, u8::MAX)?;
        for index in [510, 511] {
            write_entry(memory.root(), index, read_entry(master(), index));
        }
        Ok(Self { memory, ports: AtomicBool::new(false) })
    }

    /// Physical address of its page-table root: the value for CR3.
    #[inline(always)]
    pub fn root(&self) -> u64 {
        self.memory.root()
    }

    /// Whether its programs have I/O ports.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        self.ports.load(Ordering::Relaxed)
    }

    /// Maps one frame of the kernel's pool or image, as UTCBs and the information page are.
    pub fn map_kernel_page(&self, changes: &Changes, va: u64, pa: u64, permissions: Permissions) -> Result<(), Status> {
        let piece = Piece { va, pa, count: 1, permissions, cacheability: Cacheability::WriteBack };
        self.memory.step(changes, piece).map(drop).map_err(|_| Status::MemObj)
    }

    /// Unmaps the kernel's page `physical` at `address`, if it is still there.
    pub fn unmap_kernel_page(&self, changes: &Changes, address: u64, physical: u64) {
        let Memory { tree, lock, pd, .. } = &self.memory;
        let _guard = lock.lock();
        let mut tables = Tables(pd.account(), changes);
        if tree.lookup_run(&tables, address).0.is_some_and(|leaf| leaf.address == physical) {
            // Unmapping needs no memory but where a large page is split; this is a small one.
            let _ = tree.map_step(&mut tables, Piece::unmap(address, 1));
        }
    }

    /// Gives the space a window with the I/O bitmap `bitmap` of its own.
    pub fn open_window(&self, bitmap: [u64; 2]) -> Result<(), Status> {
        let _guard = self.memory.lock.lock();
        if self.has_ports() {
            return Ok(());
        }
        let draft = || self.memory.pd.account().draft(0).map_err(|_| Status::MemCap);
        let [pdpt, pd, pt] = [draft()?, draft()?, draft()?].map(|draft| draft.keep().physical());
        fill_window(pt, bitmap);
        write_entry(pd, 0, pt | PRESENT | WRITE);
        write_entry(pdpt, 0, pd | PRESENT | WRITE);
        write_entry(self.root(), 510, pdpt | PRESENT | WRITE);
        self.ports.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Guest-physical memory of vCPUs.
#[repr(C, align(64))]
pub struct GuestSpace(Memory);

impl Object for GuestSpace {
    const KIND: Kind = Kind::GuestSpace;
}

impl MemorySpace for GuestSpace {
    fn memory(&self) -> &Memory {
        &self.0
    }

    fn selectors(&self) -> u64 {
        1 << (48 - 12)
    }

    fn cached_by(&self, cpu: &Cpu) -> bool {
        cpu.nested.root() == self.0.root()
    }
}

impl GuestSpace {
    /// An empty guest space of `pd` in the format of the processor.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let processor = crate::cpu::BOOT_CPU.cpu.processor.get().ok_or(Status::BadFtr)?;
        let format = match processor {
            Processor::Svm(_) => &HOST,
            Processor::Vmx(_) => &EPT,
        };
        Memory::new(pd, format, processor.max_leaf_level()).map(Self)
    }
}
