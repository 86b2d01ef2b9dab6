//! Messages from any CPU to one: what a CPU must not do to another's objects, it asks the other to do.
//!
//! A message is a bit in the name of an object. An object has one [`MailCell`] and therefore one CPU that it belongs to:
//! all its messages go to that CPU's [`Mailbox`]. Bits that arrive while the object waits in the mailbox travel with it,
//! so that an object is queued once, sending needs no memory and cannot fail.
//!
//! Order: objects come out as they went in, whoever sent them. A bit that is added to a queued object comes out in the
//! object's place, hence never later than what its sender posted before. What the sender wrote before posting is
//! visible to the owner when it takes the bit.
//!
//! No wakeup is lost: [`Mailbox::post`] says whether the mailbox was empty, and then its sender must interrupt the owner.
//! An owner that stops before [`Inbox::take`] returns nothing must come back by itself: no interrupt will remind it.

use crate::sync::AtomicU32;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

const NIL: u32 = u32::MAX;

/// An object's messages that the owner has not taken, and its place in the mailbox.
pub struct MailCell {
    /// Not 0: the object is in the mailbox, or about to be put there by whoever set the first bit.
    pending: AtomicU32,
    next: AtomicU32,
}

impl MailCell {
    /// A cell without messages.
    pub const fn empty() -> Self {
        Self { pending: AtomicU32::new(0), next: AtomicU32::new(NIL) }
    }

    /// Whether a message waits: the cell's memory may not be used for anything else.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Acquire) != 0
    }
}

/// Finds the cell of an object; the same cell for the same id as long as a message waits.
pub trait MailCells {
    /// The cell of object `id`, which is below `u32::MAX`.
    fn cell(&self, id: u32) -> &MailCell;
}

/// The end where all CPUs post: a lock-free stack, newest object first.
pub struct Mailbox {
    newest: AtomicU32,
}

impl Mailbox {
    /// An empty mailbox.
    pub const fn empty() -> Self {
        Self { newest: AtomicU32::new(NIL) }
    }

    /// Sends `bits`, at least one, in the name of object `id`. True if the mailbox was empty: then the caller must
    /// interrupt the owner, after this returns.
    #[must_use = "an owner that is not interrupted may never look"]
    pub fn post(&self, cells: &impl MailCells, id: u32, bits: u32) -> bool {
        let cell = cells.cell(id);
        // Acquires what `take` released: from here on the cell's link is this CPU's.
        if bits == 0 || cell.pending.fetch_or(bits, AcqRel) != 0 {
            return false;
        }
        let mut newest = self.newest.load(Relaxed);
        loop {
            cell.next.store(newest, Relaxed);
            match self.newest.compare_exchange_weak(newest, id, Release, Relaxed) {
                Ok(_) => return newest == NIL,
                Err(current) => newest = current,
            }
        }
    }
}

/// The owner's end of its mailbox: what was taken from there and not yet looked at, oldest object first.
pub struct Inbox {
    oldest: u32,
}

impl Inbox {
    /// An inbox that has taken nothing.
    pub const fn empty() -> Self {
        Self { oldest: NIL }
    }

    /// Whether nothing waits, here or in `mailbox`.
    pub fn is_empty(&self, mailbox: &Mailbox) -> bool {
        self.oldest == NIL && mailbox.newest.load(Relaxed) == NIL
    }

    /// The object that waits longest and its messages, or nothing. Only the owner of `mailbox` may call this, always
    /// with the same inbox. The object may be posted anew from now on. Takes constant time for each object posted.
    pub fn take(&mut self, mailbox: &Mailbox, cells: &impl MailCells) -> Option<(u32, u32)> {
        if self.oldest == NIL {
            self.oldest = reverse(cells, mailbox.newest.swap(NIL, Acquire));
        }
        if self.oldest == NIL {
            return None;
        }
        let id = self.oldest;
        let cell = cells.cell(id);
        self.oldest = cell.next.load(Relaxed);
        // Gives the link away; acquires what all senders of these bits wrote before.
        Some((id, cell.pending.swap(0, AcqRel)))
    }
}

/// Turns a list around and returns its new head.
fn reverse(cells: &impl MailCells, mut rest: u32) -> u32 {
    let mut head = NIL;
    while rest != NIL {
        let cell = cells.cell(rest);
        let next = cell.next.load(Relaxed);
        cell.next.store(head, Relaxed);
        (head, rest) = (rest, next);
    }
    head
}

#[cfg(test)]
mod tests;
