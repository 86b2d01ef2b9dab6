//! Capabilities and what they refer to: 64-bit entries of object spaces, and type-stable object headers.
//!
//! A reference is (header index, generation). Destroying an object ends its header's generation, after which every
//! reference to it reads as null, wherever it is stored: destruction needs no search and leaves nothing dangling.
//! The header's memory never becomes anything else. An object's memory and its header may be used again only when no
//! CPU can still hold what it resolved before; the two steps are therefore [`HeaderTable::invalidate`] and, after the
//! grace period, [`HeaderTable::release`].

use crate::sync::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use abi::capability::Permissions;

const INDEX_BITS: u32 = 24;
/// Most headers that entries can name.
pub const HEADERS_MAX: u32 = 1 << INDEX_BITS;
const NIL: u32 = u32::MAX;

/// What a capability refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing.
    Null = 0,
    /// Protection domain.
    Pd,
    /// Object space.
    ObjectSpace,
    /// Host space.
    HostSpace,
    /// Guest space.
    GuestSpace,
    /// DMA space.
    DmaSpace,
    /// Space of I/O ports.
    PioSpace,
    /// Space of model-specific registers.
    MsrSpace,
    /// Execution context.
    Ec,
    /// Scheduling context.
    Sc,
    /// Portal.
    Pt,
    /// Semaphore.
    Sm,
}

impl Kind {
    fn from_raw(raw: u8) -> Self {
        use Kind::*;
        const BY_NUMBER: [Kind; 12] =
            [Null, Pd, ObjectSpace, HostSpace, GuestSpace, DmaSpace, PioSpace, MsrSpace, Ec, Sc, Pt, Sm];
        BY_NUMBER.get(usize::from(raw)).copied().unwrap_or(Null)
    }
}

/// A reference from one kernel object to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Index of the header.
    pub index: u32,
    /// Generation of the header that is meant; 0 never exists.
    pub generation: u32,
}

impl Reference {
    /// Refers to nothing.
    pub const NULL: Self = Self { index: 0, generation: 0 };
}

/// An entry of an object space: bits 4:0 permissions, 28:5 header index, 63:32 generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// The null capability.
    pub const NULL: Self = Self(0);

    /// A capability for what `reference` names; null if that is no possible reference or `permissions` are empty.
    pub const fn new(reference: Reference, permissions: Permissions) -> Self {
        let permissions = permissions.bits() & 0x1f;
        if reference.index >= HEADERS_MAX || reference.generation == 0 || permissions == 0 {
            return Self::NULL;
        }
        Self((reference.generation as u64) << 32 | (reference.index as u64) << 5 | permissions as u64)
    }

    /// The entry with this representation.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The representation in memory.
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// What the capability refers to.
    pub const fn reference(self) -> Reference {
        Reference { index: (self.0 >> 5) as u32 & (HEADERS_MAX - 1), generation: (self.0 >> 32) as u32 }
    }

    /// What the holder may do with it.
    pub const fn permissions(self) -> Permissions {
        Permissions::from_bits_truncate(self.0 as u8 & 0x1f)
    }

    /// The capability reduced to `permissions`; null if none remain.
    pub const fn mask(self, permissions: Permissions) -> Self {
        Self::new(self.reference(), self.permissions().intersection(permissions))
    }
}

/// Type-stable header of a kernel object. Zeroed memory is a header that was never used.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Header {
    generation: AtomicU32,
    kind: AtomicU8,
    state: AtomicU8,
    object: AtomicU32,
    /// While the header is free: the next free one. Else the next one with the same owner, plus one.
    link: AtomicU32,
    /// The one before it with the same owner, plus one.
    before: AtomicU32,
    /// Header of the protection domain that owns the object, plus one.
    owner: AtomicU32,
    /// Of a protection domain: the first header that it owns, plus one.
    first: AtomicU32,
}

/// [`Header::state`]: can be allocated.
const FREE: u8 = 0;
/// [`Header::state`]: names an object.
const LIVE: u8 = 1;
/// [`Header::state`]: named an object that some CPU may still use.
const INVALID: u8 = 2;

impl Header {
    /// A header that was never used.
    pub const fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            kind: AtomicU8::new(0),
            state: AtomicU8::new(FREE),
            object: AtomicU32::new(0),
            link: AtomicU32::new(0),
            before: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            first: AtomicU32::new(0),
        }
    }
}

/// All headers, with a lock-free stack of the free ones.
#[derive(Debug)]
pub struct HeaderTable<'a> {
    headers: &'a [Header],
    /// Bits 31:0 first free header, 63:32 a count that tells apart two states with the same first header.
    free: AtomicU64,
    /// Headers from here on were never used.
    fresh: AtomicU32,
}

impl<'a> HeaderTable<'a> {
    /// A table of headers that were never used; those beyond [`HEADERS_MAX`] are left out.
    pub const fn new(headers: &'a [Header]) -> Self {
        Self { headers, free: AtomicU64::new(NIL as u64), fresh: AtomicU32::new(0) }
    }

    /// The header with index `index`.
    fn header(&self, index: u32) -> Option<&'a Header> {
        self.headers.get(index as usize)
    }

    /// Gives an object a header; `None` if all are in use.
    pub fn alloc(&self, kind: Kind, object: u32) -> Option<Reference> {
        let index = self.pop().or_else(|| self.take_fresh())?;
        let header = self.header(index)?;
        let generation = header.generation.load(Relaxed).max(1);
        header.kind.store(kind as u8, Relaxed);
        header.object.store(object, Relaxed);
        for member in [&header.link, &header.before, &header.owner, &header.first] {
            member.store(0, Relaxed);
        }
        header.state.store(LIVE, Relaxed);
        header.generation.store(generation, Release);
        Some(Reference { index, generation })
    }

    /// Kind and object of a live reference; `None` for a stale one.
    pub fn resolve(&self, reference: Reference) -> Option<(Kind, u32)> {
        let header = self.header(reference.index)?;
        let live = header.generation.load(Acquire) == reference.generation && reference.generation != 0;
        live.then(|| (Kind::from_raw(header.kind.load(Relaxed)), header.object.load(Relaxed)))
    }

    /// The object of a live reference if it is of `kind`.
    #[inline(always)]
    pub fn resolve_as(&self, reference: Reference, kind: Kind) -> Option<u32> {
        let header = self.header(reference.index)?;
        let live = header.generation.load(Acquire) == reference.generation && reference.generation != 0;
        (live && header.kind.load(Relaxed) == kind as u8).then(|| header.object.load(Relaxed))
    }

    /// Makes every copy of a live reference stale; false if it already is, so that exactly one caller destroys.
    #[must_use]
    pub fn invalidate(&self, reference: Reference) -> bool {
        let Reference { index, generation } = reference;
        let Some(header) = self.header(index).filter(|_| generation != 0) else { return false };
        // The last generation of all is followed by 0, which no reference has.
        let next = generation.wrapping_add(1);
        let ended = header.generation.compare_exchange(generation, next, Release, Relaxed).is_ok();
        if ended {
            header.state.store(INVALID, Release);
        }
        ended
    }

    /// Makes an invalidated header available again; false if it is not one. A header that has used up all
    /// generations stays out of use, so that no stale reference ever comes back to life.
    pub fn release(&self, index: u32) -> bool {
        let Some(header) = self.header(index) else { return false };
        let usable = header.generation.load(Relaxed) != 0;
        let released = usable && header.state.compare_exchange(INVALID, FREE, Acquire, Relaxed).is_ok();
        if released {
            self.push(index, header);
        }
        released
    }

    /// Kind and object of a header in use, whatever its generation: for who destroys it.
    pub fn content(&self, index: u32) -> Option<(Kind, u32)> {
        let header = self.header(index).filter(|header| header.state.load(Relaxed) != FREE)?;
        Some((Kind::from_raw(header.kind.load(Relaxed)), header.object.load(Relaxed)))
    }

    /// Makes every copy of the reference to a header stale.
    pub fn end(&self, index: u32) {
        let generation = self.header(index).map_or(0, |header| header.generation.load(Relaxed));
        let _ = self.invalidate(Reference { index, generation });
    }

    /// Puts a header first into the list of what `owner` owns. Under the lock of that owner, as all that follows.
    pub fn attach(&self, owner: u32, index: u32) {
        let (Some(above), Some(header)) = (self.header(owner), self.header(index)) else { return };
        let first = above.first.swap(index + 1, Relaxed);
        if let Some(second) = first.checked_sub(1).and_then(|first| self.header(first)) {
            second.before.store(index + 1, Relaxed);
        }
        header.link.store(first, Relaxed);
        header.before.store(0, Relaxed);
        header.owner.store(owner + 1, Relaxed);
    }

    /// Takes a header out of its owner's list.
    pub fn detach(&self, index: u32) {
        let Some(header) = self.header(index) else { return };
        let (next, before) = (header.link.swap(0, Relaxed), header.before.swap(0, Relaxed));
        let owner = header.owner.swap(0, Relaxed);
        if let Some(next) = next.checked_sub(1).and_then(|next| self.header(next)) {
            next.before.store(before, Relaxed);
        }
        if let Some(before) = before.checked_sub(1).and_then(|before| self.header(before)) {
            before.link.store(next, Relaxed);
        } else if let Some(owner) = owner.checked_sub(1).and_then(|owner| self.header(owner)) {
            owner.first.store(next, Relaxed);
        }
    }

    /// The header that owns `index`.
    pub fn owner(&self, index: u32) -> Option<u32> {
        self.header(index)?.owner.load(Relaxed).checked_sub(1)
    }

    /// The first header that `index` owns.
    pub fn first(&self, index: u32) -> Option<u32> {
        self.header(index)?.first.load(Relaxed).checked_sub(1)
    }

    /// The header that follows `index` in its owner's list.
    pub fn next(&self, index: u32) -> Option<u32> {
        self.header(index)?.link.load(Relaxed).checked_sub(1)
    }

    fn take_fresh(&self) -> Option<u32> {
        let limit = self.headers.len().min(HEADERS_MAX as usize) as u32;
        self.fresh.fetch_update(Relaxed, Relaxed, |fresh| (fresh < limit).then_some(fresh + 1)).ok()
    }

    fn pop(&self) -> Option<u32> {
        let pop = |top: u64| Some(next_version(top) | u64::from(self.header(top as u32)?.link.load(Relaxed)));
        self.free.fetch_update(Acquire, Acquire, pop).ok().map(|top| top as u32)
    }

    fn push(&self, index: u32, header: &Header) {
        let mut top = self.free.load(Relaxed);
        loop {
            header.link.store(top as u32, Relaxed);
            match self.free.compare_exchange_weak(top, next_version(top) | u64::from(index), Release, Relaxed) {
                Ok(_) => return,
                Err(current) => top = current,
            }
        }
    }
}

/// Bits 63:32 of the value that replaces `top` in [`HeaderTable::free`].
const fn next_version(top: u64) -> u64 {
    ((top >> 32) + 1) << 32
}

#[cfg(test)]
mod tests;
