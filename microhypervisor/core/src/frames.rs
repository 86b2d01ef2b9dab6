//! Buddy allocator for the kernel's pool of 4 KiB frames.
//!
//! One metadata record per frame; free blocks of each order form a doubly linked list through the records of their
//! first frames. The pool's physical base must be aligned to the largest block for blocks to be aligned physically.
//! Contents are the caller's business: the kernel zeroes frames before it frees them.

/// Number of block sizes: orders 0 to 10, 4 KiB to 4 MiB.
pub const ORDERS: usize = 11;

const NIL: u32 = u32::MAX;
/// In [`FrameMeta::state`]: the frame begins a free block; bits 3:0 are the block's order.
const FREE: u8 = 0x80;
/// In [`FrameMeta::state`]: the frame begins an allocated block; bits 3:0 are the block's order.
const ALLOCATED: u8 = 0x40;
/// [`FrameMeta::state`] of a frame that begins no block: inside one, or reserved.
const INNER: u8 = 0;

/// Index of a frame inside the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FrameNumber(pub u32);

/// What is known of a frame; 16 bytes. Its owner is up to whoever allocated the block that the frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FrameMeta {
    next: u32,
    prev: u32,
    state: u8,
    /// Who paid for it.
    pub owner: u32,
}

impl FrameMeta {
    /// A frame that nobody may allocate yet: all bits zero.
    pub const RESERVED: Self = Self { next: 0, prev: 0, state: INNER, owner: 0 };
}

/// The allocator. Allocation and freeing take at most [`ORDERS`] steps.
pub struct Frames<'a> {
    meta: &'a mut [FrameMeta],
    heads: [u32; ORDERS],
    available: u32,
}

impl<'a> Frames<'a> {
    /// An allocator for the frames `first_free..meta.len()`; the frames before stay reserved.
    /// Frames beyond 2^31 are left out.
    pub fn new(meta: &'a mut [FrameMeta], first_free: u32) -> Self {
        meta.fill(FrameMeta::RESERVED);
        let end = meta.len().min(1 << 31) as u32;
        let mut frames = Self { meta, heads: [NIL; ORDERS], available: end.saturating_sub(first_free) };
        let mut frame = first_free;
        while frame < end {
            let order = frame.trailing_zeros().min((end - frame).ilog2()).min(ORDERS as u32 - 1) as u8;
            frames.push(frame, order);
            frame += 1 << order;
        }
        frames
    }

    /// Allocates a block of 2^`order` frames, aligned to its size.
    pub fn alloc(&mut self, order: u8) -> Option<FrameNumber> {
        let (frame, mut found) = (order..ORDERS as u8).find_map(|o| Some((self.pop(o)?, o)))?;
        while found > order {
            found -= 1;
            self.push(frame + (1 << found), found);
        }
        self.available -= 1 << order;
        *self.meta.get_mut(frame as usize)? = FrameMeta { state: ALLOCATED | order, ..FrameMeta::RESERVED };
        Some(FrameNumber(frame))
    }

    /// Frees the block that begins with `frame` and returns its order; `None` if `frame` does not begin an allocated block
    /// (freed twice, or never allocated).
    pub fn free(&mut self, frame: FrameNumber) -> Option<u8> {
        let order = self.order(frame)?;
        let (mut block, mut merged) = (frame.0, order);
        while let Some(meta) = self.meta.get_mut(block as usize) {
            meta.state = INNER;
            let buddy = block ^ 1 << merged;
            if usize::from(merged) + 1 == ORDERS || self.state(buddy) != FREE | merged {
                break;
            }
            self.unlink(buddy, merged);
            block &= buddy;
            merged += 1;
        }
        self.push(block, merged);
        self.available += 1 << order;
        Some(order)
    }

    /// Number of free frames.
    pub fn available(&self) -> u32 {
        self.available
    }

    /// Order of the allocated block that begins with `frame`.
    pub fn order(&self, frame: FrameNumber) -> Option<u8> {
        let state = self.state(frame.0);
        (state & ALLOCATED != 0).then_some(state & 0xf)
    }

    /// Metadata of the allocated block that begins with `frame`, to change.
    pub fn meta_mut(&mut self, frame: FrameNumber) -> Option<&mut FrameMeta> {
        self.meta.get_mut(frame.0 as usize).filter(|meta| meta.state & ALLOCATED != 0)
    }

    fn state(&self, frame: u32) -> u8 {
        self.meta.get(frame as usize).map_or(INNER, |meta| meta.state)
    }

    fn push(&mut self, frame: u32, order: u8) {
        let Some(head) = self.heads.get_mut(usize::from(order)) else { return };
        let next = core::mem::replace(head, frame);
        if let Some(meta) = self.meta.get_mut(next as usize) {
            meta.prev = frame;
        }
        if let Some(meta) = self.meta.get_mut(frame as usize) {
            *meta = FrameMeta { next, prev: NIL, state: FREE | order, ..FrameMeta::RESERVED };
        }
    }

    fn pop(&mut self, order: u8) -> Option<u32> {
        let frame = *self.heads.get(usize::from(order))?;
        self.unlink(frame, order).then_some(frame)
    }

    /// Takes a free block out of its list and makes it part of no block; false if there is no such frame.
    fn unlink(&mut self, frame: u32, order: u8) -> bool {
        let Some(meta) = self.meta.get_mut(frame as usize) else { return false };
        let FrameMeta { next, prev, .. } = core::mem::replace(meta, FrameMeta::RESERVED);
        if let Some(meta) = self.meta.get_mut(next as usize) {
            meta.prev = prev;
        }
        if let Some(meta) = self.meta.get_mut(prev as usize) {
            meta.next = next;
        } else if let Some(head) = self.heads.get_mut(usize::from(order)) {
            *head = next;
        }
        true
    }
}

#[cfg(test)]
mod tests;
