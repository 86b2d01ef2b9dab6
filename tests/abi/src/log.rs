//! A list that several execution contexts write, for tests of order.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::shared;

const LENGTH: usize = 256;

/// The list.
pub struct Log {
    next: AtomicUsize,
    entries: [AtomicU64; LENGTH],
}

impl Log {
    /// An empty one, for ever.
    pub fn new() -> &'static Self {
        shared(Self { next: AtomicUsize::new(0), entries: [const { AtomicU64::new(0) }; LENGTH] })
    }

    /// Adds an entry.
    pub fn push(&self, entry: u64) {
        if let Some(slot) = self.entries.get(self.next.fetch_add(1, Relaxed)) {
            slot.store(entry, Relaxed);
        }
    }

    /// All entries.
    pub fn all(&self) -> Vec<u64> {
        let count = self.next.load(Relaxed).min(LENGTH);
        self.entries[..count].iter().map(|entry| entry.load(Relaxed)).collect()
    }
}
