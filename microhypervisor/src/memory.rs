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
    *FRAMES.lock() = Some(Frames::new(meta, 0));
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

    /// The frame at physical address `physical`, which must be one that the pool gave out.
    fn from_physical(physical: u64) -> Option<Self> {
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

fn allocate(order: u8) -> Option<Frame> {
    FRAMES.lock().as_mut()?.alloc(order).map(|n| Frame(n.0))
}

fn release(frame: Frame, order: u8) {
    // SAFETY: the frames were allocated with this order and nobody refers to them any more.
    unsafe { ptr::write_bytes(frame.pointer(), 0, FRAME << order) };
    if let Some(frames) = FRAMES.lock().as_mut() {
        let freed = frames.free(FrameNumber(frame.0));
        debug_assert!(freed == Ok(order));
    }
}

/// Size classes of small objects in bytes; larger ones take whole frames.
const CLASSES: [usize; 5] = [64, 128, 256, 512, 1024];
const NONE: u32 = u32::MAX;

/// A slab frame: its free slots (bit set = free), and its links in the list of its account and class.
#[derive(Clone, Copy)]
struct Slab {
    free: u64,
    next: u32,
    prev: u32,
}

/// The entry of a frame is touched only under the lock of the account that owns the frame.
#[unsafe(link_section = ".metadata")]
static SLABS: Shared<[Slab; POOL_FRAMES]> = Shared::new([Slab { free: 0, next: 0, prev: 0 }; POOL_FRAMES]);

#[allow(clippy::mut_from_ref)]
fn slab(frame: u32) -> &'static mut Slab {
    // SAFETY: frame numbers are in bounds; exclusive under the owning account's lock, see `SLABS`.
    unsafe { &mut (*SLABS.get())[frame as usize] }
}

/// Puts `frame` at the head of a list.
fn link(head: &mut u32, frame: u32) {
    if *head != NONE {
        slab(*head).prev = frame;
    }
    (slab(frame).next, slab(frame).prev) = (*head, NONE);
    *head = frame;
}

/// Takes `frame` out of a list.
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
    balance: Balance,
    /// Per class the head of a list of frames with free slots, linked through their frame metadata.
    slabs: Mutex<[u32; CLASSES.len()]>,
}

impl Account {
    /// An account with `frames` frames to spend.
    pub const fn new(frames: u32) -> Self {
        Self { balance: Balance::new(frames), slabs: Mutex::new([NONE; CLASSES.len()]) }
    }

    /// Frames that are left.
    pub fn balance(&self) -> u32 {
        self.balance.balance()
    }

    /// Moves `frames` frames of allowance to `other`; false if there is not so much left.
    pub fn transfer(&self, other: &Account, frames: u32) -> bool {
        self.balance.transfer(&other.balance, frames)
    }

    /// 2^`order` contiguous zeroed frames.
    pub fn frames(&self, order: u8) -> Option<Frame> {
        if !self.balance.charge(1 << order) {
            return None;
        }
        let frame = allocate(order);
        if frame.is_none() {
            self.balance.credit(1 << order);
        }
        frame
    }

    /// Gives back frames from [`Account::frames`]; they are zeroed here.
    pub fn release(&self, frame: Frame, order: u8) {
        release(frame, order);
        self.balance.credit(1 << order);
    }

    /// Frames that go back unless [`Draft::keep`] is called: for objects made of several parts.
    pub fn draft(&self, order: u8) -> Result<Draft<'_>, Status> {
        self.frames(order).map(|frame| Draft { account: self, frame, order }).ok_or(Status::MemObj)
    }

    /// Zeroed memory for a small object of `size` bytes (at most 1024), aligned to its size class.
    pub fn small(&self, size: usize) -> Option<*mut u8> {
        let class = CLASSES.iter().position(|c| size <= *c)?;
        let bytes = CLASSES[class];
        let mut slabs = self.slabs.lock();
        if slabs[class] == NONE {
            let frame = self.frames(0)?;
            let slots = FRAME / bytes;
            slab(frame.0).free = if slots == 64 { u64::MAX } else { (1 << slots) - 1 };
            link(&mut slabs[class], frame.0);
        }
        let frame = Frame(slabs[class]);
        let free = slab(frame.0).free;
        let slot = free.trailing_zeros() as usize;
        slab(frame.0).free = free & (free - 1);
        if slab(frame.0).free == 0 {
            unlink(&mut slabs[class], frame.0);
        }
        // SAFETY: slot < FRAME / bytes, so the object lies inside the frame.
        Some(unsafe { frame.pointer().add(slot * bytes) })
    }

    /// Moves `value` into memory of its own, where it stays.
    pub fn place<T>(&self, value: T) -> Option<&'static T> {
        const { assert!(size_of::<T>() <= 1024 && align_of::<T>() <= 64) };
        let memory = self.small(size_of::<T>())?.cast::<T>();
        // SAFETY: fresh memory, large enough and aligned to its size class.
        unsafe {
            memory.write(value);
            Some(&*memory)
        }
    }

    /// Gives back memory from [`Account::small`] of the same `size`.
    pub fn release_small(&self, object: *mut u8, size: usize) {
        let Some(class) = CLASSES.iter().position(|c| size <= *c) else { return };
        let bytes = CLASSES[class];
        let Some(frame) = Frame::from_physical(object as u64 - KERNEL) else { return };
        let slot = (object as usize % FRAME) / bytes;
        // SAFETY: the slot was handed out by `small` and nobody refers to it any more.
        unsafe { ptr::write_bytes(object, 0, bytes) };
        let mut slabs = self.slabs.lock();
        if slab(frame.0).free == 0 {
            link(&mut slabs[class], frame.0);
        }
        slab(frame.0).free |= 1 << slot;
        if slab(frame.0).free.count_ones() as usize == FRAME / bytes {
            unlink(&mut slabs[class], frame.0);
            slab(frame.0).free = 0;
            self.release(frame, 0);
        }
    }
}

/// See [`Account::draft`].
pub struct Draft<'a> {
    account: &'a Account,
    /// The first frame.
    pub frame: Frame,
    order: u8,
}

impl Draft<'_> {
    /// The object is complete.
    pub fn keep(self) -> Frame {
        let frame = self.frame;
        core::mem::forget(self);
        frame
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        self.account.release(self.frame, self.order);
    }
}

/// The kernel's own allowance: everything that no protection domain pays for.
pub static KERNEL_ACCOUNT: Account = Account::new(POOL_FRAMES as u32);

/// Memory for the page-table walker, paid from an account.
pub struct Tables<'a>(pub &'a Account);

impl Tables<'_> {
    fn entry(table: u64, index: usize) -> *mut u64 {
        // SAFETY: tables are pool frames or frames of the image, all mapped; the index is below 512.
        unsafe { ((table + KERNEL) as *mut u64).add(index & 511) }
    }
}

impl kernel_core::paging::Tables for Tables<'_> {
    fn alloc(&mut self) -> Option<u64> {
        self.0.frames(0).map(Frame::physical)
    }

    fn free(&mut self, table: u64) {
        if let Some(frame) = Frame::from_physical(table) {
            self.0.release(frame, 0);
        }
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        // SAFETY: see `entry`; entries may change under a lookup, hence volatile.
        unsafe { Self::entry(table, index).read_volatile() }
    }

    fn write(&mut self, table: u64, index: usize, value: u64) {
        // SAFETY: see `entry`; the space's lock makes this the only writer.
        unsafe { Self::entry(table, index).write_volatile(value) }
    }

    fn live(&mut self, table: u64, delta: i32) -> u32 {
        let Some(frame) = Frame::from_physical(table) else { return u32::MAX };
        let mut frames = FRAMES.lock();
        let Some(meta) = frames.as_mut().and_then(|f| f.meta_mut(FrameNumber(frame.0))) else { return u32::MAX };
        meta.live = meta.live.saturating_add_signed(delta as i16);
        meta.live as u32
    }
}

/// Copies the first `words` message words, at most 512, from one UTCB to another.
#[inline(always)]
pub fn copy_words(from: Frame, to: Frame, words: usize) {
    debug_assert!(words <= FRAME / 8);
    // SAFETY: UTCBs are whole frames; caller and callee are different ECs, so the frames do not overlap. User code may
    // write concurrently on another CPU only by breaking the rule that a UTCB belongs to its EC; words are plain data.
    unsafe { ptr::copy_nonoverlapping(from.pointer().cast::<u64>(), to.pointer().cast::<u64>(), words) }
}
