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
const STEP: u64 = 64;
/// Largest leaf that any format has: 1 GiB.
const LEAF_LEVEL_MAX: u8 = 2;
/// Frames of physical memory that entries can name.
const FRAMES: u64 = 1 << 40;
const ENTRIES: usize = 512;
/// In a place: of a table's last entry.
const LAST: u64 = 8 * (ENTRIES as u64 - 1);
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
    /// Bits of a leaf, beside its address, by its permissions: rotated to the left, so that bit 63 is at the bottom.
    rights: [u16; 16],
    /// The memory type in a small and in a large leaf, with [`LARGE`], by cacheability in its numeric order: WB, WT, WC, UC,
    /// WP. The bits that stand for it come last.
    memory_types: [[u16; 6]; 2],
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
    rights: rights(host::PRESENT | host::USER | host::ACCESSED | host::DIRTY, host::WRITE, 0, host::NO_EXECUTE),
    memory_types: [types(host::memory_types(host::PAT_SMALL), 0), types(host::memory_types(host::PAT_LARGE), LARGE)],
};

/// Bits of [`HOST`] entries.
mod host {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u16 = 1 << 3;
    pub const CACHE_DISABLE: u16 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const PAT_SMALL: u16 = 1 << 7;
    pub const PAT_LARGE: u16 = 1 << 12;
    pub const NO_EXECUTE: u64 = 1 << 63;

    pub const fn memory_types(pat: u16) -> [u16; 5] {
        [0, WRITE_THROUGH, pat, CACHE_DISABLE | WRITE_THROUGH, pat | WRITE_THROUGH]
    }
}

/// Extended page tables (Intel SDM vol. 3C, 29.3). What is mapped is readable (writable alone would be a
/// misconfiguration); executable permissions are combined. The guest's PAT is ignored.
pub static EPT: Format = Format {
    root_level: 3,
    pages: pages(4),
    table: ept::READ | ept::WRITE | ept::EXECUTE,
    rights: rights(ept::READ | ept::IGNORE_PAT, ept::WRITE, ept::EXECUTE, 0),
    memory_types: [types(ept::MEMORY_TYPES, 0), types(ept::MEMORY_TYPES, LARGE)],
};

/// Bits of [`EPT`] entries.
mod ept {
    pub const READ: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const EXECUTE: u64 = 1 << 2;
    pub const IGNORE_PAT: u64 = 1 << 6;
    /// Encoded as in the MTRRs (Intel SDM vol. 3A, 12.11).
    pub const MEMORY_TYPES: [u16; 5] = [6 << 3, 4 << 3, 1 << 3, 0, 5 << 3];
}

/// Second-level tables of VT-d (VT-d specification 9.8) with three and with four levels. What is mapped is readable.
pub static DMA: [Format; 2] = [Format::dma(2), Format::dma(3)];

/// Where tables live. Tables are named by their physical addresses; only addresses that [`Tables::alloc`] returned,
/// and the root, are passed back.
pub trait Tables {
    /// A zeroed frame, charged to whom the space belongs.
    fn alloc(&mut self) -> Option<u64>;
    /// Gives back a frame that no entry refers to any more. It may not be reused before the next shootdown.
    fn free(&mut self, table: u64);
    /// The entry at `place`: the address of its table, and 8 times its index.
    fn read(&self, place: u64) -> u64;
    /// Replaces the entry at `place` by one 64-bit store.
    fn write(&mut self, place: u64, entry: u64);
    /// Entries from place `first` up to `end` were written; if `taken`, processors may have cached one that was there.
    fn changed(&mut self, first: u64, end: u64, taken: bool);
    /// Sets all entries of a table that nothing refers to yet: `first`, and each `step` more than the one before.
    fn fill(&mut self, table: u64, first: u64, step: u64);
    /// Adds `delta` to the number of entries in use of the table with `place` and returns the result.
    fn live(&mut self, place: u64, delta: i32) -> u32;
}

/// What a page is mapped to; without permissions if to nothing that can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Physical address of the 4 KiB page, not of the leaf that maps it.
    pub address: u64,
    /// Permissions of the memory capability.
    pub permissions: Permissions,
    /// Cacheability of the memory capability.
    pub cacheability: Cacheability,
}

impl Leaf {
    /// Nothing.
    pub const NONE: Self =
        Self { address: 0, permissions: Permissions::empty(), cacheability: Cacheability::WriteBack };
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
    /// The pages are the kernel's own: nobody can take them from here, and nothing else is unmapped.
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
    pub fn new(format: &'static Format, root: u64, leaf_level: u8) -> Self {
        Self { root, leaf_level: leaf_level.min(LEAF_LEVEL_MAX), format }
    }

    /// Physical address of the root table.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Down to the entry for `page` in a table of level 1 if `to_tables`, else 0, or above if there is no table: its
    /// place and level. No loop, as all that is done with a page begins here.
    #[inline(never)]
    fn descend(&self, tables: &impl Tables, page: u64, to_tables: bool) -> (u64, u8) {
        let root = |level| place(self.root, page, level);
        let way = || {
            let top = if self.format.root_level == 3 { below(tables, root(3), page, 3)? } else { root(2) };
            let middle = below(tables, top, page, 2)?;
            if to_tables { Err(ends(middle, 1)) } else { below(tables, middle, page, 1) }
        };
        way().map_or_else(|end| end, |last| (last, 0))
    }

    /// What page `page` is mapped to, and the number of pages from it on, at least one, for which the same leaf
    /// answers, or those behind it that map what follows with the same rights; or absent entries. Counts up to about
    /// `most` pages, in bounded time.
    #[inline(always)]
    pub fn lookup_run(&self, tables: &impl Tables, page: u64, most: u64) -> (Leaf, u64) {
        if page >= self.format.pages {
            return (Leaf::NONE, 1);
        }
        let (at, level) = self.descend(tables, page, false);
        let entry = tables.read(at);
        let (small, run) = if level == 0 && most == 1 { (entry, 1) } else { self.run(tables, at, level, page, most) };
        let cacheability = cacheability(&self.format.memory_types[0], small);
        let permissions = Permissions::from_bits_truncate((small >> PERMISSIONS_SHIFT) as u8 & PERMISSIONS.bits());
        (Leaf { address: small & ADDRESS, permissions, cacheability }, run)
    }

    /// What the entry of small page `page` is, or would be if that at `place`, in a table of level `level`, were split, and
    /// the number of pages.
    #[inline(never)]
    fn run(&self, tables: &impl Tables, place: u64, level: u8, page: u64, most: u64) -> (u64, u64) {
        let entry = tables.read(place);
        let (span, offset) = (pages(level), page & (pages(level) - 1));
        let size = if entry == 0 { 0 } else { 1 << abi::PAGE_BITS };
        let (mut at, mut next, mut run) = (place, entry, span - offset);
        // To the table's end, but not too many.
        while run < most && at < (place | LAST).min(place + 8 * (STEP - 1)) {
            (at, next) = (at + 8, next.wrapping_add(span * size));
            if tables.read(at) != next {
                break;
            }
            run += span;
        }
        (self.format.first_of(entry, level, 0) + offset * size, run)
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
    #[inline(always)]
    pub fn map_step(&self, tables: &mut impl Tables, piece: &Piece) -> Result<u64, Status> {
        let Piece { va, pa, count, permissions, cacheability, kept } = *piece;
        let (page, frame) = (va >> abi::PAGE_BITS, pa >> abi::PAGE_BITS);
        let mapping = permissions.intersects(PERMISSIONS);
        let last = count.wrapping_sub(1);
        // `frame` is of 52 bits.
        let fits = page.checked_add(last).is_some_and(|end| end < self.format.pages);
        if !fits || (mapping && frame + last >= FRAMES) {
            return if count == 0 { Ok(0) } else { Err(Status::BadPar) };
        }
        // One small page in a table that exists needs nothing of the rest.
        let one = last | u64::from(kept) == 0;
        if one && let (place, 0) = self.descend(tables, page, false) {
            let new = if mapping { self.format.leaf(pa, 0, permissions, cacheability) } else { 0 };
            let (added, taken) = replace(tables, place, tables.read(place), new);
            tables.changed(place, place + 8, taken);
            if tables.live(place, added) == 0 {
                self.prune(tables, page);
            }
            return Ok(1);
        }
        // Unmapping clears whole tables even where no leaf is that large.
        let (alignment, limit) = if mapping { (va | pa, self.leaf_level) } else { (va, LEAF_LEVEL_MAX) };
        let fits = |level| count >= pages(level) && (alignment >> abi::PAGE_BITS) & (pages(level) - 1) == 0;
        let target = limit.min(if fits(2) { 2 } else { u8::from(fits(1)) });
        let (place, level) = loop {
            // Of a table only those are replaced that hold leaves: one after the other.
            let (place, level) = self.descend(tables, page, target != 0);
            if level <= target {
                break (place, level);
            }
            if let Some(result) = self.insert(tables, piece, place, level) {
                return result;
            }
        };
        let entry = tables.read(place);
        if kept & !mapping & ((entry ^ pa) & ADDRESS != 0) {
            return Ok(count);
        }
        let (mut new, mut step) = (0, 0);
        if mapping {
            new = self.format.leaf(pa, level, permissions, cacheability) & if kept { !KEPT } else { u64::MAX };
            step = pages(level) << abi::PAGE_BITS;
        }
        let below = is_table(entry, level);
        let most = if below { 1 } else { STEP.min(count >> (9 * level)) };
        let end = (place + 8 * most).min((place | LAST) + 8);
        let (mut at, mut old, mut added, mut taken) = (place, entry, 0, false);
        loop {
            let (more, gone) = replace(tables, at, old, new);
            (at, added, taken) = (at + 8, added + more, taken | gone);
            if at == end {
                break;
            }
            (old, new) = (tables.read(at), new.wrapping_add(step));
            if is_table(old, level) {
                break;
            }
        }
        tables.changed(place, at, taken);
        if below {
            tables.free(entry & ADDRESS);
        }
        if tables.live(place, added) == 0 {
            self.prune(tables, page);
        }
        Ok(((at - place) / 8) << (9 * level))
    }

    /// Makes the entry at `place`, in a table of level `level`, which is absent or a leaf, refer to a table that maps the
    /// same. Returns the result of a step that ends with this.
    #[inline(never)]
    fn insert(&self, tables: &mut impl Tables, piece: &Piece, place: u64, level: u8) -> Option<Result<u64, Status>> {
        let (entry, page) = (tables.read(place), piece.va >> abi::PAGE_BITS);
        if !piece.permissions.intersects(PERMISSIONS) && (entry == 0 || piece.kept) {
            return Some(Ok(piece.count.min(pages(level) - (page & (pages(level) - 1)))));
        }
        let Some(below) = tables.alloc() else {
            self.prune(tables, page);
            return Some(Err(Status::MemCap));
        };
        if entry != 0 {
            tables.fill(below, self.format.first_of(entry, level, level - 1), pages(level - 1) << abi::PAGE_BITS);
        }
        tables.write(place, below | self.format.table);
        tables.changed(place, place + 8, entry != 0);
        let (counted, more) = if entry == 0 { (place, 1) } else { (below, ENTRIES as i32) };
        tables.live(counted, more);
        (entry != 0).then_some(Ok(0))
    }

    /// Frees the tables on the way to `page` that are empty.
    fn prune(&self, tables: &mut impl Tables, page: u64) {
        loop {
            // The entry for `page` in the last table on the way, and the entry that refers to that.
            let mut level = self.format.root_level;
            let (mut at, mut above) = (place(self.root, page, level), None);
            while let Ok(next) = below(tables, at, page, level) {
                (at, above, level) = (next, Some(at), level - 1);
            }
            let Some(above) = above.filter(|_| tables.live(at, 0) == 0) else { return };
            tables.write(above, 0);
            tables.changed(above, above + 8, true);
            tables.live(above, -1);
            tables.free(at & ADDRESS);
        }
    }
}

/// Pages that an entry of a table of level `level` spans.
const fn pages(level: u8) -> u64 {
    1 << (9 * level as u32)
}

/// Place of the entry for `page` in `table`, of level `level`.
const fn place(table: u64, page: u64, level: u8) -> u64 {
    table | ((page >> (9 * level as u32)) % ENTRIES as u64 * 8)
}

/// Replaces entry `old` at `place`; by how many the entries in use are more, and whether processors may have cached it.
#[inline(always)]
fn replace(tables: &mut impl Tables, place: u64, old: u64, new: u64) -> (i32, bool) {
    tables.write(place, new);
    (i32::from(new != 0) - i32::from(old != 0), old != 0 && old != new)
}

/// The way down ends above: out of line, as most ways do not.
#[cold]
#[inline(never)]
fn ends(place: u64, level: u8) -> (u64, u8) {
    (place, level)
}

/// If the entry at place `at`, in a table of level `level`, refers to a table: the place there of the entry for `page`.
#[inline(always)]
fn below(tables: &impl Tables, at: u64, page: u64, level: u8) -> Result<u64, (u64, u8)> {
    let entry = tables.read(at);
    if is_table(entry, level) { Ok(place(entry & ADDRESS, page, level - 1)) } else { Err(ends(at, level)) }
}

/// Whether an entry in a table of level `level` refers to a table: then its low byte is positive, as [`LARGE`], its sign,
/// is clear, and a bit that allows something is set.
const fn is_table(entry: u64, level: u8) -> bool {
    level != 0 && entry as i8 > 0
}

impl Format {
    const fn dma(root_level: u8) -> Self {
        let (read, write) = (1 << 0, 1 << 1);
        let memory_types = [types([0; 5], 0), types([0; 5], LARGE)];
        let (pages, rights) = (pages(root_level + 1), rights(read, write, 0, 0));
        Self { root_level, pages, table: read | write, rights, memory_types }
    }

    fn leaf(&self, address: u64, level: u8, permissions: Permissions, cacheability: Cacheability) -> u64 {
        let (address, permissions) = (address & ADDRESS, permissions & PERMISSIONS);
        let rights = u64::from(self.rights[permissions.bits() as usize]).rotate_right(1);
        let memory_type = u64::from(self.memory_types[usize::from(level != 0)][cacheability as usize]);
        address | rights | memory_type | u64::from(permissions.bits()) << PERMISSIONS_SHIFT
    }

    /// The first of the leaves of level `to` that together do what leaf `entry` of level `level` does.
    fn first_of(&self, entry: u64, level: u8, to: u8) -> u64 {
        let [small, large] = &self.memory_types;
        let memory_type = small[cacheability(large, entry) as usize];
        if entry == 0 || level == 0 || to != 0 {
            entry
        } else {
            (entry & !u64::from(large[5])) | u64::from(memory_type)
        }
    }
}

/// See [`Format::rights`]: of the bits of any leaf, and of those that say what can be done with it.
const fn rights(any: u64, write: u64, execute: u64, no_execute: u64) -> [u16; 16] {
    let (r, x, w) = ((any | no_execute).rotate_left(1) as u16, (any | execute) as u16 * 2, write as u16 * 2);
    [r, r, r | w, r | w, x, x, x | w, x | w, x, x, x | w, x | w, x, x, x | w, x | w]
}

/// See [`Format::memory_types`].
const fn types([wb, wt, wc, uc, wp]: [u16; 5], large: u64) -> [u16; 6] {
    let large = large as u16;
    [wb | large, wt | large, wc | large, uc | large, wp | large, wb | wt | wc | uc | wp | large]
}

/// The cacheability of a leaf with one of these `types`.
#[inline(always)]
fn cacheability(types: &[u16; 6], leaf: u64) -> Cacheability {
    let bits = leaf as u16 & types[5];
    let other = || types.iter().position(|known| *known == bits).and_then(|n| Cacheability::from_bits(n as u32));
    if bits == types[0] { Cacheability::WriteBack } else { other().unwrap_or(Cacheability::Uncacheable) }
}

#[cfg(test)]
mod tests;
