#![allow(unsafe_code)]
//! Kernel objects, the headers that name them, and references that can never dangle.
//!
//! Unsafe: turns a header's offset, or an object's number, into a reference to the object.
//!
//! Every object has a type-stable header with a generation. A capability and a reference between objects is (header
//! index, generation): once the object is destroyed the generations differ, and the reference reads as null everywhere.
//! Objects are shared and mutable inside: fields of an EC or SC belong to its CPU alone, the others are atomic or behind
//! a lock.

use core::marker::PhantomData;
use core::mem::size_of;
use core::sync::atomic::Ordering;

use abi::Status;
use abi::capability::Permissions;
use abi::utcb::gpr;
use kernel_core::slots::{self, Entry, Header, HeaderTable, Kind, Named, Reference};

use crate::ec::Ec;
use crate::iommu::DmaSpace;
use crate::memory::{FRAME, KERNEL, KERNEL_ACCOUNT, LARGEST, POOL_FRAMES, SMALLEST, at_slot, class, release_small};
use crate::pd::Pd;
use crate::portal::Pt;
use crate::sched::Sc;
use crate::semaphore::Sm;
use crate::space::{GuestSpace, HostSpace, MsrSpace, ObjectSpace, PioSpace};

/// Number of object headers: one for each place where an object can begin, so that nobody can take another's.
const HEADERS: usize = POOL_FRAMES * FRAME / SMALLEST;

/// All headers.
#[unsafe(link_section = ".metadata")]
pub static HEADER_MEMORY: [Header; HEADERS] = [const { Header::new() }; HEADERS];

/// Their table.
pub static TABLE: HeaderTable<'static> = HeaderTable::new(&HEADER_MEMORY);

/// A kind of object that capabilities can name.
pub trait Object: Sized + 'static {
    /// Its tag in the header.
    const KIND: Kind;
    /// What is needed and given when one is created.
    const SHAPE: Shape;
}

/// What creation must know of a kind of objects.
pub struct Shape {
    /// What the owner's capability permits.
    needed: Permissions,
    /// What the first one for the object permits; nothing: what the owner's does.
    given: Permissions,
    /// Of its header, but for the object's number.
    content: u8,
    class: u8,
}

macro_rules! objects {
    ($($name:ident: $needed:ident [$($given:ident)*])*) => { $(impl Object for $name {
        const KIND: Kind = Kind::$name;
        const SHAPE: Shape = {
            assert!(size_of::<Self>() <= LARGEST);
            let given = Permissions::empty()$(.union(Permissions::$given))*;
            let (content, class) = (Header::live_content(Self::KIND, 0) as u8, class(size_of::<Self>()) as u8);
            Shape { needed: Permissions::$needed, given, content, class }
        };
    })* };
}
objects! {
    Pd: PD [] ObjectSpace: PD [GRANT TAKE] HostSpace: PD [GRANT TAKE] GuestSpace: PD [GRANT ASSIGN]
    DmaSpace: PD [GRANT ASSIGN] PioSpace: PD [GRANT TAKE ASSIGN] MsrSpace: PD [GRANT TAKE ASSIGN]
    Ec: EC [CTRL BIND_PT BIND_SC] Sc: SC [CTRL] Pt: PT [CTRL CALL EVENT] Sm: SM [UP DOWN]
}

/// A reference to an object that may have been destroyed since.
#[repr(transparent)]
pub struct Ref<T>(Reference, PhantomData<fn() -> T>);

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ref<T> {}
impl<T> PartialEq for Ref<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: Object> Ref<T> {
    /// To nothing.
    pub const NULL: Self = Self(Reference::NULL, PhantomData);

    /// The object, unless it is gone.
    pub fn get(self) -> Option<&'static T> {
        self.find().ok()
    }

    /// The same, for short paths.
    #[inline(always)]
    pub fn find(self) -> Result<&'static T, Status> {
        cast(named(self.0))
    }

    /// Counts another use of the object by another object.
    #[inline(always)]
    pub fn retain(self) -> Result<(), Status> {
        if header(self.0.index).retain(self.0.generation) { Ok(()) } else { Err(Status::BadCap) }
    }

    /// One use less. Without any the object goes if it is inactive, see `destroy::collect`.
    pub fn drop_use(self) -> bool {
        TABLE.drop_use(self.0);
        true
    }

    /// The header's index, for reports.
    pub fn index(self) -> u32 {
        self.0.index
    }

    /// A capability for the object.
    pub fn capability(self, permissions: Permissions) -> Entry {
        Entry::new(self.0, permissions)
    }
}

/// An object and its reference, if all went well.
pub type Found<T> = Result<(&'static T, Ref<T>), Status>;

/// The number that names `object` in queues: the low half of its address, whose other bits are ones. It ends in six zeros.
#[inline(always)]
pub fn id<T: Object>(object: &T) -> u32 {
    core::ptr::from_ref(object) as u32
}

/// The object with number `id`: for queues, whose members exist.
#[inline(always)]
pub fn by_id<T: Object>(id: u32) -> &'static T {
    // SAFETY: a member's `id`, so that the sign extends it to the address of an object in the kernel's highest 2 GiB.
    unsafe { &*(id as i32 as usize as *const T) }
}

#[inline(always)]
fn at<T>(offset: u32) -> &'static T {
    // SAFETY: headers in use point to an initialized object of their kind, aligned to at least 64 bytes.
    unsafe { &*((KERNEL + ((offset as u64) << 6)) as *const T) }
}

/// What `reference` names.
#[inline(always)]
pub fn named(reference: Reference) -> Named {
    header(reference.index).named(reference.generation)
}

/// What was found for a capability, if it is a `T`.
#[inline(always)]
pub fn cast<T: Object>(named: Named) -> Result<&'static T, Status> {
    if let Some(offset) = named.object(T::KIND) { Ok(at(offset)) } else { Err(Status::BadCap) }
}

/// The object of a capability that was found, if it is a `T` and the capability carries all of `permissions`.
#[inline(always)]
pub fn resolve<T: Object>((entry, named): (Entry, Named), permissions: Permissions) -> Found<T> {
    let found = (cast(named)?, Ref(entry.reference(), PhantomData));
    if entry.permissions().contains(permissions) { Ok(found) } else { Err(Status::BadCap) }
}

/// Creates an object of the protection domain at the selector in RSI of `ec`, which pays for it, and the first capability
/// for it at `selector`.
///
/// `build` gets the owner and the reference that the object will have; what it allocates last, it need not free on
/// failure.
#[inline(always)]
pub fn create<T: Object>(
    ec: &'static Ec,
    selector: u64,
    mut build: impl FnMut(&'static Pd, Ref<T>) -> Result<T, Status>,
) -> Result<(), Status> {
    make(ec, selector, &T::SHAPE, &mut move |memory, owner, own| fill(memory, build(owner, Ref(own, PhantomData))))
}

/// Who creates: an EC, with the selector for the new capability, or at boot the kernel, for an owner.
pub type Caller = Result<(&'static Ec, u64), &'static Pd>;

/// The same, when the object is needed at once. At boot the kernel pays, the caller has the first use, to drop, and what
/// fails is not undone.
#[inline(always)]
pub fn create_found<T: Object>(
    caller: Caller,
    mut build: impl FnMut(&'static Pd, Ref<T>) -> Result<T, Status>,
) -> Found<T> {
    let mut found = Ref::NULL;
    let build: Fill = &mut |memory, owner, own| {
        found = Ref(own, PhantomData);
        fill(memory, build(owner, found))
    };
    match caller {
        Ok((ec, selector)) => make(ec, selector, &T::SHAPE, build)?,
        Err(owner) => {
            let own = make_own(&T::SHAPE)?;
            build(at_slot(own.index), owner, own)?;
            slots::attach(header, owner.reference.index(), own.index);
        }
    }
    Ok((at(number(at_slot(found.index()))), found))
}

/// Creates an object with the kernel's memory, which is nobody's: the caller has a use of it, to drop. At boot: what fails
/// is not undone.
pub fn create_own<T: Object>(build: impl FnOnce(Ref<T>) -> Result<T, Status>) -> Found<T> {
    let own = Ref(make_own(&T::SHAPE)?, PhantomData);
    let memory = at_slot(own.index());
    fill(memory, build(own))?;
    Ok((at(number(memory)), own))
}

/// [`create_own`], as far as it is the same for all kinds of objects.
#[inline(never)]
fn make_own(shape: &Shape) -> Result<Reference, Status> {
    let slot = KERNEL_ACCOUNT.slot(shape.class as usize).ok_or(Status::MemObj)?;
    let reference = coming(slot);
    header(slot).begin(number(at_slot(slot)) << 6 | shape.content as u32, reference.generation);
    Ok(reference)
}

/// Fills the memory of a new object of this owner, which will have this reference.
type Fill<'a> = &'a mut dyn FnMut(*mut u8, &'static Pd, Reference) -> Result<(), Status>;

/// [`create`], as far as it is the same for all kinds of objects.
#[inline(never)]
fn make(ec: &'static Ec, selector: u64, shape: &'static Shape, build: Fill) -> Result<(), Status> {
    let entry = Entry(ec.selectors.slot(ec.gpr(gpr::RSI)).ok_or(Status::BadCap)?.load(Ordering::Relaxed));
    let (owner, _) = resolve::<Pd>((entry, named(entry.reference())), shape.needed)?;
    let (place, _guard) = ec.objects.reserve(ec.selectors, selector)?;
    let dying = owner.dying.lock();
    if *dying {
        // Whoever destroys the owner may have passed by the list already.
        return Err(Status::BadCap);
    }
    let slot = owner.account().slot(shape.class as usize).ok_or(Status::MemObj)?;
    let (memory, reference) = (at_slot(slot), coming(slot));
    build(memory, owner, reference).inspect_err(|_| release_small(memory, SMALLEST << shape.class))?;
    header(slot).begin(number(memory) << 6 | shape.content as u32, reference.generation);
    slots::attach(header, owner.reference.index(), slot);
    let permissions = if shape.given.is_empty() { entry.permissions() } else { shape.given };
    place.store(Entry::of(reference, permissions).to_raw(), Ordering::Release);
    Ok(())
}

/// The reference to the object that will be in `slot`.
fn coming(slot: u32) -> Reference {
    Reference { index: slot % HEADERS as u32, generation: header(slot).coming() }
}

/// The number of the object in `memory`.
fn number(memory: *mut u8) -> u32 {
    ((memory as u64 - KERNEL) >> 6) as u32
}

/// Moves a new object into its memory.
fn fill<T: Object>(memory: *mut u8, object: Result<T, Status>) -> Result<(), Status> {
    // SAFETY: fresh memory, large enough and aligned to its size class, which is at least T's alignment of 64; it lives
    // until the object is destroyed, when its generation changes.
    unsafe { memory.cast::<T>().write(object?) };
    Ok(())
}

/// Takes a dead object out of its owner's list and frees its memory and header: nobody refers to it any more.
pub fn free<T: Object>(index: u32, object: &'static T) {
    free_memory(index, core::ptr::from_ref(object).cast_mut().cast(), size_of::<T>());
}

#[inline(never)]
fn free_memory(index: u32, memory: *mut u8, size: usize) {
    let above = TABLE.owner(index);
    match above.and_then(content::<Pd>) {
        Some(owner) => {
            let _dying = owner.dying.lock();
            TABLE.detach(index);
        }
        None => TABLE.detach(index),
    }
    // It may have been all that an abandoned protection domain had.
    above.inspect(|above| TABLE.suspect(*above));
    if TABLE.release(index) {
        release_small(memory, size);
    }
}

/// Header `index`: there are no references to others.
#[inline(always)]
pub fn header(index: u32) -> &'static Header {
    &HEADER_MEMORY[index as usize % HEADERS]
}

/// What header `index` names, whatever its generation, if it is a `T`. For who destroys it.
#[inline(always)]
pub fn content<T: Object>(index: u32) -> Option<&'static T> {
    cast(header(index).content()).ok()
}

/// The first object that protection domain `index` owns.
pub fn first(index: u32) -> Option<u32> {
    let _dying = content::<Pd>(index)?.dying.lock();
    TABLE.first(index)
}

/// The object that follows `index` among those with its owner.
pub fn next(index: u32) -> Option<u32> {
    let _dying = content::<Pd>(TABLE.owner(index)?)?.dying.lock();
    TABLE.next(index)
}
