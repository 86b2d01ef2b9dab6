//! The page-table walker: one for all spaces of memory capabilities, with the entry format as a parameter.
//!
//! Every format has four levels of tables with 512 entries each: level 0 holds 4 KiB pages, level 1 tables or 2 MiB
//! pages, level 2 tables or 1 GiB pages, level 3 is the root. A space spans 2^48 bytes. Entries of absent pages are 0;
//! leaves keep the exact permissions of the capability in bits 55:52, which all formats leave to software, because no
//! format can express them all.
//!
//! The kernel holds the space's lock for writing around each step. Hardware may walk the tables meanwhile: a table is
//! complete before an entry points to it and freed only after that entry is gone, but processors may still cache the
//! old entry, so [`Tables::free`] must not reuse a frame before the next shootdown.

use abi::capability::{Cacheability, Permissions};

/// Level of the root table.
const ROOT_LEVEL: u8 = 3;
/// Largest leaf that any format has: 1 GiB.
const LEAF_LEVEL_MAX: u8 = 2;
/// Pages in a space.
const SPACE_PAGES: u64 = 1 << 36;
/// Frames of physical memory that entries can name.
const FRAMES: u64 = 1 << 40;
const ENTRIES: usize = 512;
/// Physical address in an entry: bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// In tables of level 1 and 2: the entry maps a large page. The same bit in all formats.
const LARGE: u64 = 1 << 7;
const PERMISSIONS_SHIFT: u32 = 52;
const PERMISSIONS: Permissions = abi::capability::MEMORY_ALL;

/// What differs between the formats: the hardware's view of an entry. Bits 55:52 are the walker's.
#[derive(Debug)]
pub struct Format {
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
}

impl Piece {
    /// Unmaps `count` pages from `va` on.
    pub const fn unmap(va: u64, count: u64) -> Self {
        Self { va, pa: 0, count, permissions: Permissions::empty(), cacheability: Cacheability::WriteBack }
    }
}

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// [`Tables::alloc`] returned nothing.
    OutOfTables,
    /// The range does not lie in the space or the physical address is too large.
    OutOfRange,
}

/// A tree of tables.
#[derive(Debug)]
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

    /// What the page at `va` is mapped to, and the number of pages from it on, at least one, for which the same leaf,
    /// or the same absent entry, answers.
    pub fn lookup_run(&self, tables: &impl Tables, va: u64) -> (Option<Leaf>, u64) {
        let page = va >> abi::PAGE_BITS;
        if page >= SPACE_PAGES {
            return (None, 1);
        }
        let (mut table, mut level) = (self.root, ROOT_LEVEL);
        loop {
            let entry = tables.read(table, index(page, level));
            if is_table(entry, level) {
                (table, level) = (entry & ADDRESS, level - 1);
                continue;
            }
            let offset = page & (pages(level) - 1);
            let leaf = (entry != 0).then(|| Leaf {
                address: leaf_address(entry, level) + (offset << abi::PAGE_BITS),
                level,
                permissions: permissions(entry),
                cacheability: self.format.cacheability(entry, level),
            });
            return (leaf, pages(level) - offset);
        }
    }

    /// Maps the first page of a piece, and as many behind it as one leaf can, replacing what was there; or unmaps them.
    /// Returns how many pages are done; the caller goes on behind them. That is 0 if a leaf was split first.
    ///
    /// Takes bounded time: at most one leaf is split or one table of leaves taken out. Tables that become empty are
    /// freed, except the root.
    pub fn map_step(&self, tables: &mut impl Tables, piece: Piece) -> Result<u64, MapError> {
        let Piece { va, pa, count, permissions, cacheability } = piece;
        let (page, frame) = (va >> abi::PAGE_BITS, pa >> abi::PAGE_BITS);
        let permissions = permissions & PERMISSIONS;
        let mapping = !permissions.is_empty();
        let inside = |first: u64, limit: u64| first.checked_add(count).is_some_and(|end| end <= limit);
        if !inside(page, SPACE_PAGES) || (mapping && !inside(frame, FRAMES)) {
            return Err(MapError::OutOfRange);
        }
        // Unmapping clears whole tables even where no leaf is that large.
        let (alignment, limit) = if mapping { (page | frame, self.leaf_level) } else { (page, LEAF_LEVEL_MAX) };
        let fits = |level: &u8| alignment & (pages(*level) - 1) == 0 && pages(*level) <= count;
        let Some(target) = (0..=limit).rev().find(fits) else { return Ok(0) };

        let mut path = [self.root; ROOT_LEVEL as usize + 1];
        let (mut table, mut level) = (self.root, ROOT_LEVEL);
        let mut entry = tables.read(table, index(page, level));
        // Of a table only those are replaced that hold leaves: one after the other.
        while level > target || (level > 1 && is_table(entry, level)) {
            if entry == 0 && !mapping {
                return Ok(count.min(pages(level) - (page & (pages(level) - 1))));
            }
            let mut below = entry & ADDRESS;
            if !is_table(entry, level) {
                let Some(new) = self.insert_table(tables, table, index(page, level), entry, level) else {
                    self.prune(tables, &path, page, level);
                    return Err(MapError::OutOfTables);
                };
                if entry != 0 {
                    return Ok(0);
                }
                below = new;
            }
            (table, level) = (below, level - 1);
            path[usize::from(level) % path.len()] = table;
            entry = tables.read(table, index(page, level));
        }
        let new = if mapping { self.format.leaf(frame << abi::PAGE_BITS, level, permissions, cacheability) } else { 0 };
        replace(tables, table, index(page, level), new);
        if is_table(entry, level) {
            tables.free(entry & ADDRESS);
        }
        if !mapping {
            self.prune(tables, &path, page, level);
        }
        Ok(pages(level))
    }

    /// Makes an entry of a table of level `level` that is absent or a leaf refer to a table that maps the same.
    fn insert_table(&self, tables: &mut impl Tables, table: u64, index: usize, entry: u64, level: u8) -> Option<u64> {
        let below = tables.alloc()?;
        if entry != 0 {
            let (permissions, cacheability) = (permissions(entry), self.format.cacheability(entry, level));
            let first = self.format.leaf(leaf_address(entry, level), level - 1, permissions, cacheability);
            tables.fill(below, first, pages(level - 1) << abi::PAGE_BITS);
            tables.live(below, ENTRIES as i32);
        }
        replace(tables, table, index, below | self.format.table);
        Some(below)
    }

    /// Frees the tables of the path from `level` upwards that are empty.
    fn prune(&self, tables: &mut impl Tables, path: &[u64; ROOT_LEVEL as usize + 1], page: u64, level: u8) {
        for (above, pair) in (1..).zip(path.windows(2)).skip(usize::from(level)) {
            let &[table, parent] = pair else { return };
            if tables.live(table, 0) != 0 {
                return;
            }
            replace(tables, parent, index(page, above), 0);
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
        let mask = types.iter().fold(0, |mask, bits| mask | bits);
        let found = types.iter().position(|&bits| bits == entry & mask).and_then(|n| Cacheability::from_bits(n as u32));
        found.unwrap_or(Cacheability::Uncacheable)
    }
}

/// Writes an entry and keeps the table's count of entries in use.
fn replace(tables: &mut impl Tables, table: u64, index: usize, entry: u64) {
    let old = tables.read(table, index);
    tables.write(table, index, entry);
    let delta = i32::from(entry != 0) - i32::from(old != 0);
    if delta != 0 {
        tables.live(table, delta);
    }
}

#[cfg(test)]
mod tests;
