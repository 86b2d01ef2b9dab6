//! Capabilities and what they refer to: 64-bit entries of object spaces, and type-stable object headers.
//!
//! A reference is (header index, generation). Destroying an object ends its header's generation, after which every
//! reference to it reads as null, wherever it is stored: destruction needs no search and leaves nothing dangling.
//! The header's memory never becomes anything else. Which header is an object's its memory decides, so that both are
//! found together. They may be used again only when no CPU can still hold what it resolved before; the two steps are
//! therefore [`HeaderTable::end`] and, after the grace period, [`HeaderTable::release`].

use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, AtomicU64};
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

/// A reference from one kernel object to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
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
pub struct Entry(pub u64);

impl Entry {
    /// The null capability.
    pub const NULL: Self = Self(0);

    /// A capability for what `reference` names; null if that is no possible reference or `permissions` are empty.
    #[inline(never)]
    pub const fn new(reference: Reference, permissions: Permissions) -> Self {
        let permissions = permissions.bits() & 0x1f;
        if reference.index >= HEADERS_MAX || reference.generation == 0 || permissions == 0 {
            return Self::NULL;
        }
        Self::of(reference, Permissions::from_bits_truncate(permissions))
    }

    /// The same for a reference that exists and some permissions.
    pub const fn of(reference: Reference, permissions: Permissions) -> Self {
        Self((reference.generation as u64) << 32 | (reference.index as u64) << 5 | permissions.bits() as u64)
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
        let left = self.0 & !(0x1f & !permissions.bits() as u64);
        if left & 0x1f == 0 { Self::NULL } else { Self(left) }
    }
}

/// Type-stable header of a kernel object. Zeroed memory is a header that was never used.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Header {
    /// Bits 63:32 generation, odd while it names an object; 31:0 number of uses: capabilities, and what else keeps the
    /// object.
    life: AtomicU64,
    /// Bits 31:6 object, 5:2 kind, 1:0 state.
    content: AtomicU32,
    /// The next one with the same owner, plus one.
    link: AtomicU32,
    /// The one before it with the same owner, plus one.
    before: AtomicU32,
    /// Header of the protection domain that owns the object, plus one.
    owner: AtomicU32,
    /// Of a protection domain: the first header that it owns, plus one.
    first: AtomicU32,
    /// 0 unless the header is among the abandoned ones; then the next one of them, plus one, or [`NIL`].
    abandoned: AtomicU32,
}

/// State of [`Header::content`]: names nothing.
const FREE: u32 = 0;
/// Names an object.
const LIVE: u32 = 1;
/// Named an object that some CPU may still use.
const ENDED: u32 = 2;
const STATE: u32 = 3;
const KIND: u32 = 0xf << 2;
/// Objects have numbers below.
pub const OBJECTS_MAX: u32 = 1 << 26;

impl Header {
    /// A header that was never used.
    pub const fn new() -> Self {
        Self {
            life: AtomicU64::new(0),
            content: AtomicU32::new(0),
            link: AtomicU32::new(0),
            before: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            first: AtomicU32::new(0),
            abandoned: AtomicU32::new(0),
        }
    }

    /// Offset of the generation (u32).
    pub const GENERATION: usize = core::mem::offset_of!(Self, life) + 4;
    /// Offset of what [`Self::live_content`] tells (u32).
    pub const CONTENT: usize = core::mem::offset_of!(Self, content);

    /// Content of a header in use: `object` in bits 31:6, the rest the same for all of a kind.
    pub const fn live_content(kind: Kind, object: u32) -> u32 {
        object << 6 | (kind as u32) << 2 | LIVE
    }

    fn generation(&self, order: crate::sync::Ordering) -> u32 {
        (self.life.load(order) >> 32) as u32
    }

    /// The generation in which a free header will name an object.
    pub fn coming(&self) -> u32 {
        self.generation(Relaxed) | 1
    }

    /// Has a free header, which is the caller's alone, name an object in the `coming` generation, with one use: the
    /// creator's.
    pub fn begin(&self, live_content: u32, coming: u32) {
        self.content.store(live_content, Relaxed);
        self.life.store((coming as u64) << 32 | 1, Release);
    }

    /// Counts another use of a reference with `generation`; false if it is stale.
    #[must_use]
    #[inline(always)]
    pub fn retain(&self, generation: u32) -> bool {
        let mut life = self.life.load(Relaxed);
        while generation != 0 && (life >> 32) as u32 == generation {
            match self.life.compare_exchange_weak(life, life + 1, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(now) => life = now,
            }
        }
        false
    }

    /// What a reference with `generation` names; nothing if it is stale.
    #[inline(always)]
    pub fn named(&self, generation: u32) -> Named {
        Named(if self.generation(Acquire) == generation { self.content.load(Relaxed) } else { 0 })
    }

    /// What it is the header of, whatever its generation: for who destroys that.
    #[inline(always)]
    pub fn content(&self) -> Named {
        let content = self.content.load(Relaxed);
        Named(if content & STATE == FREE { 0 } else { content & !STATE | LIVE })
    }
}

/// Puts header `index`, which has no owner, first into the list of what `owner` owns; `header` finds headers. Under
/// the lock of that owner, as `detach` and what follows it.
#[inline(always)]
pub fn attach<'a>(header: impl Fn(u32) -> &'a Header, owner: u32, index: u32) {
    let (own, above) = (header(index), header(owner));
    let second = above.first.load(Relaxed);
    above.first.store(index + 1, Relaxed);
    if second != 0 {
        header(second - 1).before.store(index + 1, Relaxed);
    }
    own.link.store(second, Relaxed);
    own.owner.store(owner + 1, Relaxed);
}

/// What a reference names: the content of a header, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Named(u32);

impl Named {
    /// The object if it is one of `kind`.
    #[inline(always)]
    pub fn object(self, kind: Kind) -> Option<u32> {
        (self.0 & (KIND | STATE) == Header::live_content(kind, 0)).then_some(self.0 >> 6)
    }

    /// Whether it is nothing.
    pub fn is_nothing(self) -> bool {
        self.0 & STATE != LIVE
    }
}

/// All headers.
pub struct HeaderTable<'a> {
    headers: &'a [Header],
    /// The first header whose object lost its last use, plus one, or [`NIL`].
    abandoned: AtomicU32,
    /// Counts what may make an entry mean less than before: references that become stale, entries that are replaced.
    pub changes: Changes,
}

/// A count that is written seldom and read often, in a cache line of its own.
#[repr(align(64))]
pub struct Changes(pub AtomicU64);

impl<'a> HeaderTable<'a> {
    /// A table of headers that were never used; those beyond [`HEADERS_MAX`] are left out.
    pub const fn new(headers: &'a [Header]) -> Self {
        Self { headers, abandoned: AtomicU32::new(NIL), changes: Changes(AtomicU64::new(1)) }
    }

    /// The header with index `index`.
    fn header(&self, index: u32) -> Option<&'a Header> {
        self.headers.get(index as usize)
    }

    /// One use less, of a reference that may be stale. What has none left is abandoned.
    pub fn drop_use(&self, reference: Reference) {
        let Some(header) = self.header(reference.index) else { return };
        let used = |life: u64| life >> 32 == reference.generation as u64 && life as u32 != 0;
        let less = |life: u64| used(life).then(|| life - 1);
        if header.life.fetch_update(AcqRel, Relaxed, less).is_ok_and(|life| life as u32 == 1) {
            self.suspect(reference.index);
        }
    }

    /// Whether nothing uses header `index`.
    pub fn is_unused(&self, index: u32) -> bool {
        self.header(index).is_some_and(|header| header.life.load(Relaxed) as u32 == 0)
    }

    /// Puts header `index` among the abandoned ones, if nothing uses it and it is not there.
    pub fn suspect(&self, index: u32) {
        let Some(header) = self.header(index).filter(|_| self.is_unused(index)) else { return };
        if header.abandoned.compare_exchange(0, NIL, Relaxed, Relaxed).is_ok() {
            let push = |first| {
                header.abandoned.store(first, Relaxed);
                Some(index + 1)
            };
            let _ = self.abandoned.fetch_update(Release, Relaxed, push);
        }
    }

    /// Whether there are abandoned headers.
    pub fn any_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed) != NIL
    }

    /// Takes one of the abandoned headers; it may be in use again, for another object even. One caller at a time.
    pub fn take_abandoned(&self) -> Option<u32> {
        let next = |first: u32| Some(self.header(first.checked_sub(1)?)?.abandoned.load(Relaxed));
        let index = self.abandoned.fetch_update(Acquire, Acquire, next).ok()? - 1;
        let header = self.header(index)?;
        header.abandoned.store(0, Relaxed);
        // Whoever drops the last use now sees this and puts it back, or `end` sees that nothing uses it.
        header.life.fetch_add(0, AcqRel);
        Some(index)
    }

    /// Makes every copy of the reference to header `index` stale, if `unused` only when nothing uses it; false if they
    /// are stale or it is in use, so that exactly one caller destroys.
    pub fn end(&self, index: u32, unused: bool) -> bool {
        let Some(header) = self.header(index) else { return false };
        let content = header.content.load(Relaxed);
        let may = |life: u64| content & STATE == LIVE && !(unused && life as u32 != 0);
        // The last generation of all is followed by 0, which no reference has.
        let next = |life: u64| may(life).then(|| (life >> 32).wrapping_add(1) << 32);
        let ended = header.life.fetch_update(Release, Relaxed, next).is_ok();
        if ended {
            header.content.store(content & !STATE | ENDED, Release);
            self.changes.0.fetch_add(1, AcqRel);
        }
        ended
    }

    /// Makes an ended header available again; false if it is not one. A header that has used up all generations stays out
    /// of use, and with it the object's memory, so that no stale reference ever comes back to life.
    pub fn release(&self, index: u32) -> bool {
        let Some(header) = self.header(index) else { return false };
        let usable = header.generation(Relaxed) != 0;
        let freed = |content: u32| (usable && content & STATE == ENDED).then_some(content & !STATE | FREE);
        header.content.fetch_update(Acquire, Relaxed, freed).is_ok()
    }

    /// Takes a header out of its owner's list, see [`attach`].
    pub fn detach(&self, index: u32) {
        let Some(header) = self.header(index) else { return };
        let [next, before, owner] = [&header.link, &header.before, &header.owner].map(|member| {
            let old = member.load(Relaxed);
            member.store(0, Relaxed);
            old
        });
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
}

#[cfg(test)]
mod tests;
