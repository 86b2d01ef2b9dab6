//! The page-table walker: one for all spaces of memory capabilities, with the entry format as a parameter.
//!
//! Every format has four levels of tables with 512 entries each, or three: level 0 holds 4 KiB pages, level 1 tables or
//! 2 MiB pages, level 2 tables or 1 GiB pages, level 3 is the root. A space spans 2^48 bytes, or 2^39. Entries of absent pages are 0;
//! leaves keep the exact permissions of the capability in bits 55:52, which all formats leave to software, because no
//! format can express them all.
//!
//! The kernel holds the space's lock for writing around each step. Hardware may walk the tables meanwhile: a table is
//! complete before an entry points to it and freed only after that entry is gone, but processors may still cache the
//! old entry, so [`Tables::free`] must not reuse a frame before the next shootdown.

use abi::Status;
use abi::capability::{Cacheability, Permissions};

/// Most entries that one call looks at, or changes.
const STEP: usize = 64;
/// Largest leaf that any format has: 1 GiB.
const LEAF_LEVEL_MAX: u8 = 2;
/// Frames of physical memory that entries can name.
const FRAMES: u64 = 1 << 40;
const ENTRIES: usize = 512;
/// Physical address in an entry: bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// In tables of level 1 and 2: the entry maps a large page. The same bit in all formats.
const LARGE: u64 = 1 << 7;
const PERMISSIONS_SHIFT: u32 = 52;
/// In a leaf: its permissions can be taken. The hardware's bits tell what can be done.
const KEPT: u64 = (PERMISSIONS.bits() as u64) << PERMISSIONS_SHIFT;
const PERMISSIONS: Permissions = abi::capability::MEMORY_ALL;

/// What differs between the formats: the hardware's view of an entry. Bits 55:52 are the walker's.
pub struct Format {
    /// Level of the root table, and the number of pages that it spans.
    root_level: u8,
    pages: u64,
    /// Bits that refer to a table, beside its address.
    table: u64,
    /// Bits of any leaf, beside its address: it is readable.
    leaf: u64,
    /// Bits of a leaf that is writable, too.
    write: u64,
    /// Bits of a leaf that is executable, too.
    execute: u64,
    /// Bits of a leaf that is not executable.
    no_execute: u64,
    /// The memory type in a small and in a large leaf, by cacheability in its numeric order: WB, WT, WC, UC, WP.
    memory_types: [[u64; 5]; 2],
}

/// Four-level paging for user pages (Intel SDM vol. 3A, 4.5; AMD APM vol. 2, 5.3), and nested paging, where every access
/// counts as a user access (AMD APM vol. 2, 15.25). What is mapped is readable; executable permissions are combined.
/// Accessed and dirty bits are set in advance: nobody looks at them.
///
/// The PAT must hold WB, WT, UC-, UC, WC, WP in entries 0 to 5 (Intel SDM vol. 3A, 12.12).
pub static HOST: Format = Format {
    root_level: 3,
    pages: pages(4),
    table: host::PRESENT | host::WRITE | host::USER | host::ACCESSED,
    leaf: host::PRESENT | host::USER | host::ACCESSED | host::DIRTY,
    write: host::WRITE,
    execute: 0,
    no_execute: host::NO_EXECUTE,
    memory_types: [host::memory_types(host::PAT_SMALL), host::memory_types(host::PAT_LARGE)],
};

/// Bits of [`HOST`] entries.
mod host {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const PAT_SMALL: u64 = 1 << 7;
    pub const PAT_LARGE: u64 = 1 << 12;
    pub const NO_EXECUTE: u64 = 1 << 63;

    pub const fn memory_types(pat: u64) -> [u64; 5] {
        [0, WRITE_THROUGH, pat, CACHE_DISABLE | WRITE_THROUGH, pat | WRITE_THROUGH]
    }
}

/// Extended page tables (Intel SDM vol. 3C, 29.3). What is mapped is readable (writable alone would be a
/// misconfiguration); executable permissions are combined. The guest's PAT is ignored.
pub static EPT: Format = Format {
    root_level: 3,
    pages: pages(4),
    table: ept::READ | ept::WRITE | ept::EXECUTE,
    leaf: ept::READ | ept::IGNORE_PAT,
    write: ept::WRITE,
    execute: ept::EXECUTE,
    no_execute: 0,
    memory_types: [ept::MEMORY_TYPES; 2],
};

/// Bits of [`EPT`] entries.
mod ept {
    pub const READ: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const EXECUTE: u64 = 1 << 2;
    pub const IGNORE_PAT: u64 = 1 << 6;
    /// Encoded as in the MTRRs (Intel SDM vol. 3A, 12.11).
    pub const MEMORY_TYPES: [u64; 5] = [6 << 3, 4 << 3, 1 << 3, 0, 5 << 3];
}

/// Second-level tables of VT-d (VT-d specification 9.8) with three and with four levels. What is mapped is readable.
pub static DMA: [Format; 2] = [Format::dma(2), Format::dma(3)];

const EXECUTE: Permissions = Permissions::EXECUTE_USER.union(Permissions::EXECUTE_SUPERVISOR);

/// Where tables live. Tables are named by their physical addresses; only addresses that [`Tables::alloc`] returned,
/// and the root, are passed back.
pub trait Tables {
    /// A zeroed frame, charged to whom the space belongs.
    fn alloc(&mut self) -> Option<u64>;
    /// Gives back a frame that no entry refers to any more. It may not be reused before the next shootdown.
    fn free(&mut self, table: u64);
    /// Entry `index`, below 512, of a table.
    fn read(&self, table: u64, index: usize) -> u64;
    /// Replaces entry `index`, below 512, of a table, by one 64-bit store.
    fn write(&mut self, table: u64, index: usize, entry: u64);
    /// An entry that processors may have cached was replaced by another one.
    fn taken(&mut self);
    /// Entries from `first` up to `end` of a table were written.
    fn changed(&mut self, _table: u64, _first: usize, _end: usize) {}
    /// Sets all entries of a table that nothing refers to yet: `first`, and each `step` more than the one before.
    fn fill(&mut self, table: u64, first: u64, step: u64);
    /// Adds `delta` to a table's number of entries in use and returns the result.
    fn live(&mut self, table: u64, delta: i32) -> u32;
}

/// What a page is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Physical address of the 4 KiB page, not of the leaf that maps it.
    pub address: u64,
    /// Level of the leaf.
    pub level: u8,
    /// Permissions of the memory capability.
    pub permissions: Permissions,
    /// Cacheability of the memory capability.
    pub cacheability: Cacheability,
}

/// A mapping to make: `count` pages from `va` on show those from `pa` on. Low 12 bits of addresses are ignored.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Virtual address, in the space.
    pub va: u64,
    /// Physical address; without permissions it is ignored.
    pub pa: u64,
    /// Number of pages.
    pub count: u64,
    /// Without any, what is there is unmapped.
    pub permissions: Permissions,
    /// Cacheability.
    pub cacheability: Cacheability,
    /// The pages are the kernel's own: nobody can take them from here.
    pub kept: bool,
}

impl Piece {
    /// Unmaps `count` pages from `va` on.
    pub const fn unmap(va: u64, count: u64) -> Self {
        Self { va, pa: 0, count, permissions: Permissions::empty(), cacheability: Cacheability::WriteBack, kept: false }
    }
}

/// A tree of tables.
pub struct Space {
    root: u64,
    leaf_level: u8,
    format: &'static Format,
}

impl Space {
    /// The space with root table `root`, a zeroed frame or one used before. Leaves are made up to level `leaf_level`:
    /// 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB pages.
    pub const fn new(format: &'static Format, root: u64, leaf_level: u8) -> Self {
        let leaf_level = if leaf_level > LEAF_LEVEL_MAX { LEAF_LEVEL_MAX } else { leaf_level };
        Self { root, leaf_level, format }
    }

    /// Physical address of the root table.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Down to the entry for `page` in a table of level `target`, or above if there is no table: table, level, entry.
    fn descend(&self, tables: &impl Tables, page: u64, target: u8) -> (u64, u8, u64) {
        let (mut table, mut level) = (self.root, self.format.root_level);
        let mut entry = tables.read(table, index(page, level));
        while level > target && entry & LARGE == 0 && entry != 0 {
            (table, level) = (entry & ADDRESS, level - 1);
            entry = tables.read(table, index(page, level));
        }
        (table, level, entry)
    }

    /// What the page at `va` is mapped to, and the number of pages from it on, at least one, for which the same leaf
    /// answers, or those behind it that map what follows with the same rights; or absent entries. Counts up to about
    /// `most` pages, in bounded time.
    pub fn lookup_run(&self, tables: &impl Tables, va: u64, most: u64) -> (Option<Leaf>, u64) {
        let page = va >> abi::PAGE_BITS;
        if page >= self.format.pages {
            return (None, 1);
        }
        let (table, level, entry) = self.descend(tables, page, 0);
        let first = index(page, level);
        let span = pages(level);
        let offset = page & (span - 1);
        let (mut next, mut run) = (entry, span - offset);
        for at in first + 1..ENTRIES.min(first + STEP) {
            if entry != 0 {
                next = next.wrapping_add(span << abi::PAGE_BITS);
            }
            if run >= most || tables.read(table, at) != next {
                break;
            }
            run += span;
        }
        let leaf = (entry != 0).then(|| Leaf {
            address: leaf_address(entry, level) + (offset << abi::PAGE_BITS),
            level,
            permissions: permissions(entry),
            cacheability: self.format.cacheability(entry, level),
        });
        (leaf, run)
    }

    /// Maps the first page of a piece, and as many behind it as a bounded number of leaves in one table can, replacing
    /// what was there; or unmaps them. Returns how many pages are done; the caller goes on behind them. That is 0 if a
    /// leaf was split first.
    ///
    /// Takes bounded time: at most one leaf is split or one table of leaves taken out. Tables that become empty are
    /// freed, except the root.
    ///
    /// # Errors
    /// MEM_CAP if there is no memory for a table, BAD_PAR if the range does not lie in the space or the physical address is
    /// too large. Then nothing was mapped.
    pub fn map_step(&self, tables: &mut impl Tables, piece: &Piece) -> Result<u64, Status> {
        let Piece { va, pa, count, permissions, cacheability, kept } = *piece;
        let (page, frame) = (va >> abi::PAGE_BITS, pa >> abi::PAGE_BITS);
        let permissions = permissions & PERMISSIONS;
        let mapping = !permissions.is_empty();
        if count > self.format.pages || page > self.format.pages - count || (mapping && frame > FRAMES - count) {
            return Err(Status::BadPar);
        }
        // Unmapping clears whole tables even where no leaf is that large.
        let (alignment, limit) = if mapping { (page | frame, self.leaf_level) } else { (page, LEAF_LEVEL_MAX) };
        let Some(order) = count.checked_ilog2() else { return Ok(0) };
        let order = alignment.trailing_zeros().min(order);
        let target = limit.min(u8::from(order >= 9) + u8::from(order >= 18));
        let (table, level, entry) = loop {
            // Of a table only those are replaced that hold leaves: one after the other.
            let (table, level, entry) = self.descend(tables, page, target.min(1));
            if level <= target {
                break (table, level, entry);
            }
            if entry == 0 && !mapping {
                return Ok(count.min(pages(level) - (page & (pages(level) - 1))));
            }
            if !self.insert_table(tables, table, index(page, level), entry, level) {
                self.prune(tables, page);
                return Err(Status::MemCap);
            }
            if entry != 0 {
                return Ok(0);
            }
        };
        let mut new =
            if mapping { self.format.leaf(frame << abi::PAGE_BITS, level, permissions, cacheability) } else { 0 };
        if kept {
            new &= !KEPT;
        }
        let below = is_table(entry, level);
        let first = index(page, level);
        let most = if below { 1 } else { STEP.min((count >> (9 * level)) as usize) };
        let (mut at, mut old, mut gone) = (first, entry, 0);
        loop {
            tables.write(table, at, new);
            if old != 0 {
                gone += 1;
                if old != new {
                    tables.taken();
                }
            }
            at += 1;
            if at == ENTRIES.min(first + most) {
                break;
            }
            old = tables.read(table, at);
            if is_table(old, level) {
                break;
            }
            if mapping {
                new = new.wrapping_add(pages(level) << abi::PAGE_BITS);
            }
        }
        tables.changed(table, first, at);
        if below {
            tables.free(entry & ADDRESS);
        }
        let done = at - first;
        if tables.live(table, if mapping { done as i32 - gone } else { -gone }) == 0 {
            self.prune(tables, page);
        }
        Ok((done as u64) << (9 * level))
    }

    /// Makes an entry of a table of level `level` that is absent or a leaf refer to a table that maps the same; false if
    /// there is no memory for it.
    fn insert_table(&self, tables: &mut impl Tables, table: u64, index: usize, entry: u64, level: u8) -> bool {
        let Some(below) = tables.alloc() else { return false };
        if entry != 0 {
            let (permissions, cacheability) = (permissions(entry), self.format.cacheability(entry, level));
            let first = self.format.leaf(leaf_address(entry, level), level - 1, permissions, cacheability);
            tables.fill(below, first, pages(level - 1) << abi::PAGE_BITS);
            tables.live(below, ENTRIES as i32);
            tables.taken();
        } else {
            tables.live(table, 1);
        }
        tables.write(table, index, below | self.format.table);
        tables.changed(table, index, index + 1);
        true
    }

    /// Frees the tables on the way to `page` that are empty.
    fn prune(&self, tables: &mut impl Tables, page: u64) {
        loop {
            let (table, level, _) = self.descend(tables, page, 0);
            if level == self.format.root_level || tables.live(table, 0) != 0 {
                return;
            }
            let (above, level, _) = self.descend(tables, page, level + 1);
            tables.write(above, index(page, level), 0);
            tables.changed(above, index(page, level), index(page, level) + 1);
            tables.live(above, -1);
            tables.taken();
            tables.free(table);
        }
    }
}

/// Pages that an entry of a table of level `level` spans.
const fn pages(level: u8) -> u64 {
    1 << (9 * level as u32)
}

const fn index(page: u64, level: u8) -> usize {
    (page >> (9 * level as u32)) as usize % ENTRIES
}

const fn is_table(entry: u64, level: u8) -> bool {
    entry != 0 && level != 0 && entry & LARGE == 0
}

/// The address in a leaf; the bits below its alignment can have other meanings.
const fn leaf_address(entry: u64, level: u8) -> u64 {
    entry & ADDRESS & !((pages(level) << abi::PAGE_BITS) - 1)
}

const fn permissions(entry: u64) -> Permissions {
    Permissions::from_bits_truncate((entry >> PERMISSIONS_SHIFT) as u8).intersection(PERMISSIONS)
}

impl Format {
    const fn dma(root_level: u8) -> Self {
        let (read, write) = (1 << 0, 1 << 1);
        let memory_types = [[0; 5]; 2];
        let pages = pages(root_level + 1);
        Self { root_level, pages, table: read | write, leaf: read, write, execute: 0, no_execute: 0, memory_types }
    }

    fn leaf(&self, address: u64, level: u8, permissions: Permissions, cacheability: Cacheability) -> u64 {
        let large = if level == 0 { 0 } else { LARGE };
        let write = if permissions.contains(Permissions::WRITE) { self.write } else { 0 };
        let execute = if permissions.intersects(EXECUTE) { self.execute } else { self.no_execute };
        let memory_type = self.memory_types[usize::from(level != 0)][cacheability as usize];
        let software = u64::from(permissions.bits()) << PERMISSIONS_SHIFT;
        address | self.leaf | large | write | execute | memory_type | software
    }

    /// The cacheability of a leaf of level `level`.
    fn cacheability(&self, entry: u64, level: u8) -> Cacheability {
        let types = &self.memory_types[usize::from(level != 0)];
        let bits = entry & (types[0] | types[1] | types[2] | types[3] | types[4]);
        let found = types.iter().position(|known| *known == bits).and_then(|n| Cacheability::from_bits(n as u32));
        found.unwrap_or(Cacheability::Uncacheable)
    }
}

#[cfg(test)]
mod tests;
