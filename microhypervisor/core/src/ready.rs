//! Queues of objects that are linked through cells inside themselves: [`Fifo`] and the scheduler's [`ReadyQueue`].
//!
//! Objects are named by ids, `u32` values below [`NIL`] - 1, and found through [`Links`]. A cell is in at
//! most one queue at a time; who is in several queues has several cells. All operations take constant time.

use abi::scd::PRIORITY_MAX;
use core::cell::Cell;

/// No object.
pub const NIL: u32 = u32::MAX;
const PRIORITIES: usize = PRIORITY_MAX as usize + 1;

/// The links of one object in one queue.
pub struct LinkCell {
    next: Cell<u32>,
    /// Of no meaning while the cell is in no queue.
    prev: Cell<u32>,
}

impl LinkCell {
    const UNLINKED: u32 = NIL - 1;

    /// A cell that is in no queue.
    pub const fn unlinked() -> Self {
        Self { next: Cell::new(Self::UNLINKED), prev: Cell::new(NIL) }
    }

    /// Whether the cell is in a queue.
    pub fn is_linked(&self) -> bool {
        self.next.get() != Self::UNLINKED
    }
}

/// Finds the links of an object; the same cell for the same id as long as the object is queued.
pub trait Links {
    /// The cell of object `id`.
    fn links(&self, id: u32) -> &LinkCell;
}

/// A queue in order of arrival.
pub struct Fifo {
    head: u32,
    tail: u32,
}

impl Fifo {
    /// An empty queue.
    pub const fn empty() -> Self {
        Self { head: NIL, tail: NIL }
    }

    /// The object that waits longest.
    #[inline(always)]
    pub fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// Puts an object before all others, or behind; false, and nothing done, if its cell is in a queue already.
    #[inline(always)]
    pub fn push(&mut self, links: &impl Links, id: u32, before: bool) -> bool {
        let cell = links.links(id);
        if cell.is_linked() {
            return false;
        }
        let (prev, next) = if before { (NIL, self.head) } else { (self.tail, NIL) };
        cell.next.set(next);
        cell.prev.set(prev);
        self.follow(links, prev, id);
        self.precede(links, next, id);
        true
    }

    /// Takes out the object that waits longest.
    #[inline(always)]
    pub fn pop_front(&mut self, links: &impl Links) -> Option<u32> {
        let id = self.front()?;
        self.head = links.links(id).next.replace(LinkCell::UNLINKED);
        self.precede(links, self.head, NIL);
        Some(id)
    }

    /// Takes out an object wherever it stands; false if its cell is in no queue. It must not be in another queue.
    pub fn remove(&mut self, links: &impl Links, id: u32) -> bool {
        let cell = links.links(id);
        if !cell.is_linked() {
            return false;
        }
        let (next, prev) = (cell.next.replace(LinkCell::UNLINKED), cell.prev.get());
        self.follow(links, prev, next);
        self.precede(links, next, prev);
        true
    }

    /// Notes that `id` follows `prev`; in place of an object, `NIL` stands for the end of the queue.
    fn follow(&mut self, links: &impl Links, prev: u32, id: u32) {
        match prev {
            NIL => self.head = id,
            _ => links.links(prev).next.set(id),
        }
    }

    /// Notes that `id` precedes `next`; the same holds.
    fn precede(&mut self, links: &impl Links, next: u32, id: u32) {
        match next {
            NIL => self.tail = id,
            _ => links.links(next).prev.set(id),
        }
    }
}

/// A CPU's runnable scheduling contexts: one [`Fifo`] per priority, and a bitmap of those that are not empty.
pub struct ReadyQueue {
    occupied: [u64; 2],
    queues: [Fifo; PRIORITIES],
}

impl ReadyQueue {
    /// An empty queue.
    pub const fn empty() -> Self {
        Self { occupied: [0; 2], queues: [const { Fifo::empty() }; PRIORITIES] }
    }

    /// The highest priority that has an object.
    #[inline(always)]
    pub fn highest(&self) -> Option<u8> {
        let [low, high] = self.occupied;
        high.checked_ilog2().map(|bit| bit as u8 | 64).or_else(|| low.checked_ilog2().map(|bit| bit as u8))
    }

    /// Puts an object before all of its priority (at most [`PRIORITY_MAX`]), or behind; false if it is queued already.
    #[inline(always)]
    pub fn enqueue(&mut self, links: &impl Links, priority: u8, id: u32, before: bool) -> bool {
        let Some(queue) = self.queues.get_mut(usize::from(priority)) else { return false };
        let queued = queue.push(links, id, before);
        if queued {
            self.occupied[usize::from(priority >> 6) & 1] |= 1 << (priority & 63);
        }
        queued
    }

    /// Takes out an object that was enqueued with this priority; false if it is not queued.
    pub fn remove(&mut self, links: &impl Links, priority: u8, id: u32) -> bool {
        let removed = self.queues.get_mut(usize::from(priority)).is_some_and(|queue| queue.remove(links, id));
        self.settle(priority);
        removed
    }

    /// Takes out the first object of the highest priority.
    pub fn pop_highest(&mut self, links: &impl Links) -> Option<u32> {
        let priority = self.highest()?;
        let first = self.queues.get_mut(usize::from(priority))?.pop_front(links)?;
        self.settle(priority);
        Some(first)
    }

    /// There may be nothing of this priority any more.
    #[inline(always)]
    fn settle(&mut self, priority: u8) {
        if self.queues.get(usize::from(priority)).is_some_and(|queue| queue.front().is_none()) {
            self.occupied[usize::from(priority >> 6) & 1] &= !(1 << (priority & 63));
        }
    }
}

#[cfg(test)]
mod tests;
