#![allow(unsafe_code)]
//! Spaces of memory: page tables with what belongs to them, for host ECs and for guests.
//!
//! Unsafe: loads page tables anew.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::Status;
use abi::capability::Permissions;
use kernel_core::paging::{EPT, Format, HOST, Leaf, Piece, Space};
use kernel_core::shootdown::Generation;
use spin::Mutex;

use super::kernel::{PRESENT, WRITE, fill_window, master};
use crate::cpu::Cpu;
use crate::memory::{Frame, Retired, Tables, read_entry, release, write_entry};

use crate::pd::Pd;
use crate::vcpu::Processor;

/// Page tables, who pays for them, and what CPUs have seen of their changes.
pub struct Memory {
    tree: Space,
    lock: Mutex<Retired>,
    /// Pays.
    pub pd: &'static Pd,
    /// Number of selectors, a power of two.
    pub selectors: u64,
    /// Of a DMA space: the number by which IOMMUs know it; else 0.
    pub domain: u16,
    /// Counts changes that took rights away: vCPUs flush when theirs differs.
    pub generation: Generation,
}

impl Memory {
    /// Empty page tables of `pd`, for `pages` selectors, with leaves up to level `leaf`, of DMA space `domain` or 0.
    pub fn new(pd: &'static Pd, format: &'static Format, leaf: u8, pages: u64, domain: u16) -> Result<Self, Status> {
        let root = pd.account().draft(0)?.keep().physical();
        let leaf = leaf.min(crate::platform::PLATFORM.get().map_or(1, |platform| platform.largest_page));
        let (tree, lock) = (Space::new(format, root, leaf), Mutex::default());
        Ok(Self { tree, lock, pd, selectors: pages, domain, generation: Generation::first() })
    }

    /// Physical address of the root table.
    #[inline(always)]
    pub fn root(&self) -> u64 {
        self.tree.root()
    }

    /// Maps or unmaps as much of `piece` as takes bounded time; if it was taken `from` a space, only if that still has
    /// this generation when nobody else changes this one. Returns the number of pages done, 0 if it must be tried again.
    pub fn step(&self, piece: &Piece, from: Option<(&Generation, u64)>) -> Result<u64, Status> {
        let mut retired = self.lock.lock();
        if from.is_some_and(|(generation, seen)| generation.current() != seen) {
            return Ok(0);
        }
        self.tree.map_step(&mut Tables { space: self, retired: &mut retired }, piece)
    }

    /// Frees one of the tables that no processor can reach any more; false if there is none.
    pub fn free_table(&self) -> bool {
        self.lock.lock().free_one(self.generation.completed())
    }

    /// The capability for page `page` and for how many pages, of `most`, it goes on, or how many pages are not mapped.
    #[inline(always)]
    pub fn lookup(&self, page: u64, most: u64) -> (Leaf, u64) {
        // Else a table on the way could be freed.
        let mut retired = self.lock.lock();
        self.tree.lookup_run(&Tables { space: self, retired: &mut retired }, page, most)
    }

    /// Whether `cpu` may have cached what the space held.
    pub fn cached_by(&self, cpu: &Cpu) -> bool {
        cpu.space.root() == self.root() || cpu.nested.root() == self.root()
    }

    /// Destruction: frees some more of its tables; `done` counts pages. True when all are gone.
    pub fn clear(&self, done: &mut u64) -> bool {
        // No processor uses it any more.
        self.generation.complete(u64::MAX);
        if self.free_table() {
            return false;
        }
        let left = self.selectors.saturating_sub(*done);
        if left == 0 {
            Frame::from_physical(self.root()).into_iter().for_each(release);
            return true;
        }
        let step = self.step(&Piece::unmap(*done << 12, left), None).unwrap_or(1);
        *done = done.saturating_add(step);
        false
    }
}

/// Memory of host ECs.
#[repr(C, align(64))]
pub struct HostSpace {
    /// Its capabilities.
    pub memory: Memory,
    ports: AtomicBool,
}

impl HostSpace {
    /// An empty host space of `pd`, with the kernel's half.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let memory = Memory::new(pd, &HOST, u8::MAX, abi::USER_END >> 12, 0)?;
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
    pub fn map_kernel_page(&self, va: u64, pa: u64, permissions: Permissions) -> Result<(), Status> {
        let piece = Piece { pa, permissions, kept: true, ..Piece::unmap(va, 1) };
        // Again if a large page had to be split.
        while self.memory.step(&piece, None).map_err(|_| Status::MemObj)? == 0 {}
        Ok(())
    }

    /// Unmaps the kernel's page `physical` at `address`, if it is still there.
    pub fn unmap_kernel_page(&self, address: u64, physical: u64) {
        // Unmapping a small page needs no memory.
        let _ = self.memory.step(&Piece { pa: physical, kept: true, ..Piece::unmap(address, 1) }, None);
    }

    /// Destruction: frees some more of its tables. True when all are gone.
    pub fn clear(&self, done: &mut u64) -> bool {
        if self.ports.swap(false, Ordering::Relaxed) {
            let address = |entry: u64| entry & 0xf_ffff_ffff_f000;
            let pdpt = address(read_entry(self.root(), 510));
            let pd = address(read_entry(pdpt, 0));
            [address(read_entry(pd, 0)), pd, pdpt].into_iter().filter_map(Frame::from_physical).for_each(release);
        }
        self.memory.clear(done)
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
pub struct GuestSpace(pub Memory);

impl GuestSpace {
    /// An empty guest space of `pd` in the format of the processor.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        let processor = crate::cpu::BOOT_CPU.cpu.processor.get().ok_or(Status::BadFtr)?;
        let format = match processor {
            Processor::Svm(_) => &HOST,
            Processor::Vmx(_) => &EPT,
        };
        Memory::new(pd, format, processor.max_leaf_level(), 1 << (48 - 12), 0).map(Self)
    }
}
