#![allow(unsafe_code)]
//! Kernel objects, the headers that name them, and references that can never dangle.
//!
//! Unsafe: turns a header's offset into a reference to the object.
//!
//! Every object has a type-stable header with a generation. A capability and a reference between objects is (header
//! index, generation): once the object is destroyed the generations differ, and the reference reads as null everywhere.
//! Objects are shared and mutable inside: fields of an EC or SC belong to its CPU alone, the others are atomic or behind
//! a lock.

use core::marker::PhantomData;
use core::mem::size_of;

use abi::Status;
use abi::capability::Permissions;
use kernel_core::slots::{Entry, Header, HeaderTable, Kind, Reference};

use crate::memory::{Account, KERNEL, Shared};

/// Number of object headers.
const HEADERS: usize = 1 << 16;

#[unsafe(link_section = ".metadata")]
static HEADER_MEMORY: Shared<[Header; HEADERS]> = Shared::new([const { Header::new() }; HEADERS]);

static TABLE: spin::Once<HeaderTable<'static>> = spin::Once::new();

fn table() -> &'static HeaderTable<'static> {
    TABLE.call_once(|| {
        // SAFETY: headers are atomics; this is the only reference to the array.
        HeaderTable::new(unsafe { &*HEADER_MEMORY.get() })
    })
}

/// A kind of object that capabilities can name.
pub trait Object: Sized + 'static {
    /// Its tag in the header.
    const KIND: Kind;
}

/// A reference to an object that may have been destroyed since.
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
    /// The object, unless it is gone.
    #[inline(always)]
    pub fn get(self) -> Option<&'static T> {
        let (kind, offset) = table().resolve(self.0)?;
        (kind == T::KIND).then(|| at(offset))
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

/// The number that names `object` in queues: its place in the pool.
#[inline(always)]
pub fn id<T: Object>(object: &T) -> u32 {
    ((core::ptr::from_ref(object) as u64 - KERNEL) >> 6) as u32
}

/// The object with number `id`: for queues, whose members exist.
#[inline(always)]
pub fn by_id<T: Object>(id: u32) -> &'static T {
    at(id)
}

#[inline(always)]
fn at<T>(offset: u32) -> &'static T {
    // SAFETY: headers in use point to an initialized object of their kind, aligned to at least 64 bytes.
    unsafe { &*((KERNEL + ((offset as u64) << 6)) as *const T) }
}

/// The object that `entry` names if it is a `T` and carries all of `permissions`.
#[inline(always)]
pub fn resolve<T: Object>(entry: Entry, permissions: Permissions) -> Result<(&'static T, Ref<T>), Status> {
    if !entry.permissions().contains(permissions) {
        return Err(Status::BadCap);
    }
    let reference = Ref(entry.reference(), PhantomData);
    reference.get().map(|object| (object, reference)).ok_or(Status::BadCap)
}

/// The kind of object that `entry` names; Null if there is none (any more).
pub fn kind(entry: Entry) -> Kind {
    table().resolve(entry.reference()).map_or(Kind::Null, |(kind, _)| kind)
}

/// Creates an object paid from `account`.
///
/// `build` gets the reference that the object will have; what it allocates last, it need not free on failure.
pub fn create<T: Object>(
    account: &Account,
    build: impl FnOnce(Ref<T>) -> Result<T, Status>,
) -> Result<(&'static T, Ref<T>), Status> {
    let memory = account.small(size_of::<T>()).ok_or(Status::MemObj)?;
    let Some(reference) = table().alloc(T::KIND, ((memory as u64 - KERNEL) >> 6) as u32) else {
        crate::memory::release_small(memory, size_of::<T>());
        return Err(Status::MemObj);
    };
    match build(Ref(reference, PhantomData)) {
        Ok(object) => {
            let pointer = memory.cast::<T>();
            // SAFETY: fresh memory, large enough and aligned to its size class, which is at least T's alignment of 64;
            // it lives until the object is destroyed, when its generation changes.
            let object = unsafe {
                pointer.write(object);
                &*pointer
            };
            Ok((object, Ref(reference, PhantomData)))
        }
        Err(status) => {
            if table().invalidate(reference) {
                table().release(reference.index);
            }
            crate::memory::release_small(memory, size_of::<T>());
            Err(status)
        }
    }
}
