#![allow(unsafe_code)]
//! The kernel's memory: the pool fixed at boot, who pays for each frame, and the tables for the page-table walker.
//!
//! Unsafe: turns pool offsets into pointers.
//!
//! The pool is the only memory that the kernel touches besides its own image; it is mapped once, at boot. Whoever
//! causes an allocation pays for it from an account of frames. Small objects come from slabs; a slab frame belongs to
//! one account, so that no account can strand memory of another.
//!
//! Lock order: an account's slabs, then the pool.

use core::cell::UnsafeCell;
use core::ptr;

use abi::Status;
use kernel_core::account::Account as Balance;
use kernel_core::frames::{FrameMeta, FrameNumber, Frames};
use spin::Mutex;

use crate::space::Memory;

/// Size of a frame in bytes.
pub const FRAME: usize = 4096;
/// Number of frames in the pool.
pub const POOL_FRAMES: usize = 8192;
/// Difference between virtual and physical addresses of image and pool.
pub const KERNEL: u64 = 0xffff_ffff_8000_0000;

/// Memory whose users keep out of each other's way by rules of their own, said where it is used.
#[repr(C, align(4096))]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: access needs `get` and an unsafe block, which says why nobody else is there.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where the value is.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}

/// A frame inside the kernel image.
pub type StaticFrame = Shared<[u8; FRAME]>;

impl StaticFrame {
    /// A zeroed frame.
    pub const fn zeroed() -> Self {
        Self::new([0; FRAME])
    }

    /// Its physical address.
    pub fn physical(&self) -> u64 {
        self.pointer() as u64 - KERNEL
    }

    /// Its address.
    pub fn pointer(&self) -> *mut u8 {
        self.get().cast()
    }
}

/// Frames are handed out exclusively by the allocator.
#[unsafe(link_section = ".pool")]
static POOL: Shared<[u8; POOL_FRAMES * FRAME]> = Shared::new([0; POOL_FRAMES * FRAME]);

/// Taken once, by `init`, into the allocator behind its lock.
#[unsafe(link_section = ".metadata")]
static METADATA: Shared<[FrameMeta; POOL_FRAMES]> = Shared::new([FrameMeta::RESERVED; POOL_FRAMES]);

static FRAMES: Mutex<Option<Frames<'static>>> = Mutex::new(None);

/// Hands all pool frames to the allocator. Once, at boot.
pub fn init() {
    // SAFETY: called once; nothing else refers to the metadata.
    let meta = unsafe { &mut *METADATA.get() };
    // Nothing begins in the first frame, see `root::create`.
    *FRAMES.lock() = Some(Frames::new(meta, 1));
}

/// One or more contiguous frames of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame(u32);

impl Frame {
    /// Physical address.
    #[inline(always)]
    pub fn physical(self) -> u64 {
        self.pointer() as u64 - KERNEL
    }

    /// Address in the kernel's map of the pool.
    #[inline(always)]
    pub fn pointer(self) -> *mut u8 {
        // SAFETY: frame numbers come from the allocator and are inside the pool.
        unsafe { POOL.get().cast::<u8>().add(self.0 as usize * FRAME) }
    }

    /// The frame at physical address `physical`, if the pool holds it.
    pub fn from_physical(physical: u64) -> Option<Self> {
        let offset = physical.checked_sub(POOL.get() as u64 - KERNEL)? as usize / FRAME;
        (offset < POOL_FRAMES).then_some(Self(offset as u32))
    }
}

/// Physical range of the whole kernel: image, metadata and pool.
pub fn kernel_range() -> (u64, u64) {
    unsafe extern "C" {
        static kernel_start: u8;
        static kernel_end: u8;
    }
    // `kernel_start` is physical, `kernel_end` virtual.
    (&raw const kernel_start as u64, &raw const kernel_end as u64 - KERNEL)
}

/// Frames that nobody has.
pub fn free_frames() -> u32 {
    FRAMES.lock().as_ref().map_or(0, |frames| frames.available())
}

/// Gives back frames; they are zeroed here, and credited to who paid for them.
pub fn release(frame: Frame) {
    let number = FrameNumber(frame.0);
    let Some(order) = FRAMES.lock().as_mut().and_then(|frames| frames.order(number)) else { return };
    // SAFETY: the frames were allocated with this order and nobody refers to them any more.
    unsafe { ptr::write_bytes(frame.pointer(), 0, FRAME << order) };
    if let Some(frames) = FRAMES.lock().as_mut() {
        let Some(owner) = frames.meta_mut(number).map(|meta| meta.owner) else { return };
        let _ = frames.free(number);
        Account::by_id(owner).allowance.credit(1 << order);
    }
}

/// Smallest size class of small objects in bytes; each of the others is twice as large as the one before.
pub const SMALLEST: usize = 128;
const CLASSES: usize = 4;
/// Largest size class.
pub const LARGEST: usize = SMALLEST << (CLASSES - 1);
/// Slots of the smallest size in a frame.
const SLOTS: usize = FRAME / SMALLEST;
const NONE: u32 = u32::MAX;

/// A slab frame: its free slots (bit n set = one begins after n of the smallest size), and its links in the list of its
/// account and class. Of a page table: the number of entries in use, instead of slots.
#[derive(Clone, Copy)]
struct Slab {
    free: u64,
    next: u32,
    prev: u32,
}

/// The entry of a frame is touched only under the lock of the account that owns the frame, or of the page table's space.
#[unsafe(link_section = ".metadata")]
static SLABS: Shared<[Slab; POOL_FRAMES]> = Shared::new([Slab { free: 0, next: 0, prev: 0 }; POOL_FRAMES]);

#[allow(clippy::mut_from_ref)]
fn slab(frame: u32) -> &'static mut Slab {
    // SAFETY: frame numbers are in bounds; exclusive under the owner's lock, see `SLABS`.
    unsafe { &mut (*SLABS.get())[frame as usize % POOL_FRAMES] }
}

/// The class of objects of `size` bytes.
pub const fn class(size: usize) -> usize {
    (size > SMALLEST) as usize + (size > 2 * SMALLEST) as usize + (size > 4 * SMALLEST) as usize
}

/// For each class the free slots of a slab frame whose slots are all free.
const ALL_FREE: [u64; CLASSES] = [0xffff_ffff, 0x5555_5555, 0x1111_1111, 0x0101_0101];

/// Puts `frame` at the head of a list.
fn link(head: &mut u32, frame: u32) {
    if *head != NONE {
        slab(*head).prev = frame;
    }
    (slab(frame).next, slab(frame).prev) = (*head, NONE);
    *head = frame;
}

/// Takes `frame` out of a list.
#[inline(never)]
fn unlink(head: &mut u32, frame: u32) {
    let Slab { next, prev, .. } = *slab(frame);
    if prev == NONE {
        *head = next;
    } else {
        slab(prev).next = next;
    }
    if next != NONE {
        slab(next).prev = prev;
    }
}

/// An allowance of kernel memory, in frames, and the slabs paid from it.
pub struct Account {
    /// What is left of it.
    pub allowance: Balance,
    /// Per class the head of a list of frames with free slots, linked through their frame metadata.
    slabs: Mutex<[u32; CLASSES]>,
}

impl Account {
    /// An account with `frames` frames to spend.
    pub const fn new(frames: u32) -> Self {
        Self { allowance: Balance::new(frames), slabs: Mutex::new([NONE; CLASSES]) }
    }

    /// The number that names it in frames' metadata. Accounts lie in the image or in the pool.
    pub fn id(&self) -> u32 {
        (ptr::from_ref(self) as u64 - KERNEL) as u32
    }

    /// The account with a number from `id`, for who knows that it still exists.
    pub fn by_id(id: u32) -> &'static Account {
        // SAFETY: an account outlives what was paid from it, and the protection domain whose account it is.
        unsafe { &*((KERNEL + id as u64) as *const Account) }
    }

    /// 2^`order` contiguous zeroed frames, to be given back by [`release`].
    pub fn frames(&self, order: u8) -> Option<Frame> {
        if !self.allowance.charge(1 << order) {
            return None;
        }
        let frame = FRAMES.lock().as_mut().and_then(|frames| {
            let number = frames.alloc(order)?;
            frames.meta_mut(number)?.owner = self.id();
            Some(Frame(number.0))
        });
        if frame.is_none() {
            self.allowance.credit(1 << order);
        }
        frame
    }

    /// Frames that go back unless [`Draft::keep`] is called: for objects made of several parts.
    pub fn draft(&self, order: u8) -> Result<Draft, Status> {
        self.frames(order).map(|frame| Draft { frame }).ok_or(Status::MemObj)
    }

    /// Zeroed memory for a small object of `class`, aligned to its size: the number that [`at_slot`] takes.
    #[inline(always)]
    pub fn slot(&self, class: usize) -> Option<u32> {
        let mut slabs = self.slabs.lock();
        let head = slabs.get_mut(class)?;
        if *head == NONE {
            let Frame(frame) = self.frames(0)?;
            slab(frame).free = ALL_FREE[class % CLASSES];
            link(head, frame);
        }
        let frame = *head % POOL_FRAMES as u32;
        let free = slab(frame).free;
        slab(frame).free = free & (free - 1);
        if slab(frame).free == 0 {
            unlink(head, frame);
        }
        // One is free.
        let place = (free as u32 | 1 << (SLOTS - 1)).trailing_zeros();
        Some(frame * SLOTS as u32 + place)
    }

    /// Moves `value` into memory of its own, where it stays.
    pub fn place<T>(&self, value: T) -> Option<&'static T> {
        const { assert!(size_of::<T>() <= LARGEST && align_of::<T>() <= 64) };
        let memory = at_slot(self.slot(class(size_of::<T>()))?).cast::<T>();
        // SAFETY: fresh memory, large enough and aligned to its size class.
        unsafe {
            memory.write(value);
            Some(&*memory)
        }
    }
}

/// The memory of a slot.
pub fn at_slot(slot: u32) -> *mut u8 {
    // SAFETY: the numbers are those of `Account::slot`, inside the pool.
    unsafe { POOL.get().cast::<u8>().add(slot as usize * SMALLEST) }
}

/// Gives back memory from [`Account::slot`] for an object of `size` bytes.
pub fn release_small(object: *mut u8, size: usize) {
    let class = class(size);
    let Some(frame) = Frame::from_physical(object as u64 - KERNEL) else { return };
    let meta = |f: &mut Frames| Some(f.meta_mut(FrameNumber(frame.0))?.owner);
    let Some(owner) = FRAMES.lock().as_mut().and_then(meta) else { return };
    let slot = object as usize % FRAME / SMALLEST;
    // SAFETY: the slot was handed out by `slot` and nobody refers to it any more.
    unsafe { ptr::write_bytes(object, 0, SMALLEST << class) };
    {
        let mut slabs = Account::by_id(owner).slabs.lock();
        if slab(frame.0).free == 0 {
            link(&mut slabs[class % CLASSES], frame.0);
        }
        slab(frame.0).free |= 1 << slot;
        if slab(frame.0).free == ALL_FREE[class % CLASSES] {
            unlink(&mut slabs[class % CLASSES], frame.0);
            slab(frame.0).free = 0;
            release(frame);
        }
    }
}

/// See [`Account::draft`].
pub struct Draft {
    /// The first frame.
    pub frame: Frame,
}

impl Draft {
    /// The object is complete.
    pub fn keep(self) -> Frame {
        let frame = self.frame;
        core::mem::forget(self);
        frame
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        release(self.frame);
    }
}

/// The kernel's own allowance: everything that no protection domain pays for.
pub static KERNEL_ACCOUNT: Account = Account::new(POOL_FRAMES as u32 - 1);

/// Page tables that were taken out of a space, the oldest first: processors may still walk them. Behind the space's
/// lock.
#[derive(Default)]
pub struct Retired {
    first: Option<Frame>,
    last: Option<Frame>,
}

impl Retired {
    /// Adds `table`, which no processor walks any more when all have seen `generation`. That and the next table's
    /// address stand in its first entries, which have their low bits clear: not present for who still walks it.
    fn add(&mut self, table: Frame, generation: u64) {
        write_entry(table.physical(), 0, 0);
        write_entry(table.physical(), 1, generation << 12);
        match self.last.replace(table) {
            Some(last) => write_entry(last.physical(), 0, table.physical()),
            None => self.first = Some(table),
        }
    }

    /// Frees one that no processor walks after all have seen generation `completed`; false if there is none.
    pub fn free_one(&mut self, completed: u64) -> bool {
        let Some(table) = self.first.filter(|table| read_entry(table.physical(), 1) >> 12 <= completed) else {
            return false;
        };
        self.first = Frame::from_physical(read_entry(table.physical(), 0));
        self.last = self.last.filter(|_| self.first.is_some());
        release(table);
        true
    }
}

/// Memory for the page-table walker.
pub struct Tables<'a> {
    /// Whose tables they are.
    pub space: &'a Memory,
    /// Gets what is taken out.
    pub retired: &'a mut Retired,
}

#[inline(always)]
fn entry(table: u64, index: usize) -> *mut u64 {
    // SAFETY: tables are pool frames or frames of the image, all mapped; the index is below 512.
    unsafe { ((table + KERNEL) as *mut u64).add(index & 511) }
}

/// Entry `index` of the page table at physical address `table`.
#[inline(always)]
pub fn read_entry(table: u64, index: usize) -> u64 {
    // SAFETY: see `entry`; entries may change under a lookup, hence volatile.
    unsafe { entry(table, index).read_volatile() }
}

/// Sets entry `index` of the page table at physical address `table`, whose only writer the caller is.
#[inline(always)]
pub fn write_entry(table: u64, index: usize, value: u64) {
    // SAFETY: see `entry`.
    unsafe { entry(table, index).write_volatile(value) }
}

impl kernel_core::paging::Tables for Tables<'_> {
    fn alloc(&mut self) -> Option<u64> {
        let frame = self.space.pd.account().frames(0)?;
        slab(frame.0).free = 0;
        self.changed(frame.physical(), frame.physical() + FRAME as u64, false);
        Some(frame.physical())
    }

    fn free(&mut self, table: u64) {
        let generation = self.space.generation.current();
        Frame::from_physical(table).into_iter().for_each(|frame| self.retired.add(frame, generation));
    }

    fn read(&self, place: u64) -> u64 {
        read_entry(place, 0)
    }

    fn write(&mut self, place: u64, value: u64) {
        write_entry(place, 0, value);
    }

    // Processors cache present entries only (Intel SDM vol. 3A, 4.10.2.3; vol. 3C, 29.4.2).
    #[inline(always)]
    fn changed(&mut self, first: u64, end: u64, taken: bool) {
        if self.space.domain != 0 {
            crate::iommu::flush(first, end);
        }
        if taken {
            self.space.generation.bump();
        }
    }

    fn fill(&mut self, table: u64, first: u64, step: u64) {
        for index in 0..512 {
            write_entry(table, index, first.wrapping_add(step.wrapping_mul(index as u64)));
        }
        self.changed(table, table + FRAME as u64, false);
    }

    fn live(&mut self, place: u64, delta: i32) -> u32 {
        // It lies in the pool.
        let live = &mut slab((place.wrapping_sub(POOL.get() as u64 - KERNEL) / FRAME as u64) as u32).free;
        *live = live.wrapping_add_signed(delta as i64);
        *live as u32
    }
}

/// Copies the first `words` message words, at most 512, from one UTCB to another.
#[inline(always)]
pub fn copy_words(from: Frame, to: Frame, words: usize) {
    // SAFETY: UTCBs are whole frames; caller and callee are different ECs, so the frames do not overlap. User code may
    // write concurrently on another CPU only by breaking the rule that a UTCB belongs to its EC; words are plain data.
    unsafe { ptr::copy_nonoverlapping(from.pointer().cast::<u64>(), to.pointer().cast::<u64>(), words) }
}
