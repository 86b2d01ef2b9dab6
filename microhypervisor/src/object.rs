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

use abi::Status;
use abi::capability::Permissions;
use kernel_core::slots::{Entry, Header, HeaderTable, Kind, Named, Reference};

use crate::ec::Ec;
use crate::iommu::DmaSpace;
use crate::memory::{Account, FRAME, KERNEL, LARGEST, POOL_FRAMES, SMALLEST, release_small};
use crate::pd::Pd;
use crate::portal::Pt;
use crate::sched::Sc;
use crate::semaphore::Sm;
use crate::space::{GuestSpace, HostSpace, MsrSpace, ObjectSpace, PioSpace};

/// Number of object headers: as many as the pool has room for objects, so that nobody can take another's.
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
}

macro_rules! objects {
    ($($name:ident),*) => { $(impl Object for $name { const KIND: Kind = Kind::$name; })* };
}
objects!(Pd, ObjectSpace, HostSpace, GuestSpace, DmaSpace, PioSpace, MsrSpace, Ec, Sc, Pt, Sm);

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
    pub fn retain(self) -> Result<(), Status> {
        if TABLE.retain(self.0) { Ok(()) } else { Err(Status::BadCap) }
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
    // References to other headers do not exist.
    HEADER_MEMORY[reference.index as usize % HEADERS].named(reference.generation)
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

/// Creates an object paid from `account`, which `owner` owns if there is one. The caller has a use of it, to drop.
///
/// `build` gets the reference that the object will have; what it allocates last, it need not free on failure.
pub fn create<T: Object>(
    owner: Option<&Pd>,
    account: &Account,
    build: impl FnOnce(Ref<T>) -> Result<T, Status>,
) -> Found<T> {
    const { assert!(size_of::<T>() <= LARGEST) };
    let (memory, reference) = allocate(account, T::KIND, size_of::<T>())?;
    match build(Ref(reference, PhantomData)) {
        Ok(object) => {
            let pointer = memory.cast::<T>();
            // SAFETY: fresh memory, large enough and aligned to its size class, which is at least T's alignment of 64;
            // it lives until the object is destroyed, when its generation changes.
            let object = unsafe {
                pointer.write(object);
                &*pointer
            };
            attach(owner, reference.index)?;
            Ok((object, Ref(reference, PhantomData)))
        }
        Err(status) => {
            give_back(memory, reference.index, size_of::<T>());
            Err(status)
        }
    }
}

/// Undoes [`allocate`].
#[cold]
#[inline(never)]
fn give_back(memory: *mut u8, index: u32, size: usize) {
    TABLE.end(index, false);
    TABLE.release(index);
    release_small(memory, size);
}

/// Memory of `size` bytes and a header for an object. (Beside [`create`], as it is the same for all objects.)
#[inline(never)]
fn allocate(account: &Account, kind: Kind, size: usize) -> Result<(*mut u8, Reference), Status> {
    let memory = account.small(size).ok_or(Status::MemObj)?;
    let reference = TABLE.alloc(kind, ((memory as u64 - KERNEL) >> 6) as u32);
    if reference.is_none() {
        release_small(memory, size);
    }
    Ok((memory, reference.ok_or(Status::MemObj)?))
}

/// Makes `owner` the owner of the new object `index`.
#[inline(never)]
fn attach(owner: Option<&Pd>, index: u32) -> Result<(), Status> {
    let Some(owner) = owner else { return Ok(()) };
    let dying = owner.dying.lock();
    TABLE.attach(owner.reference.index(), index);
    if *dying {
        // Whoever destroys the owner frees it, too, but may have passed by already.
        TABLE.end(index, false);
        return Err(Status::BadCap);
    }
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
    TABLE.release(index);
    release_small(memory, size);
}

/// What header `index` names, whatever its generation. For who destroys it.
#[inline(always)]
pub fn header(index: u32) -> Named {
    HEADER_MEMORY[index as usize % HEADERS].content()
}

/// The same, if it is a `T`.
#[inline(always)]
pub fn content<T: Object>(index: u32) -> Option<&'static T> {
    cast(header(index)).ok()
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
