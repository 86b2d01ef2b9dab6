//! Signs of life: what lets the root task tell a program that loops for ever from one that works or waits.
//!
//! Every EC of a program has a counter in a page that it shares with the root task (region [`REGION`]). The counter is
//! odd while the EC runs the program's code, even while it waits; each change of that adds one. An odd counter that
//! stays the same for long is an endless loop. A program can lie about it, to its own harm only.

use core::sync::atomic::{AtomicU64, Ordering};

/// Name of the region.
pub const REGION: &str = "pulse";
/// Number of ECs that a page has counters for.
pub const SLOTS: usize = 64;

/// The counter of one EC.
#[repr(C, align(64))]
pub struct Pulse {
    /// The EC's capability in the program's object space; 0: none yet.
    pub ec: AtomicU64,
    count: AtomicU64,
}

const _: () = assert!(size_of::<Pulse>() * SLOTS == abi::PAGE_SIZE);

impl Pulse {
    /// The counter of an EC that does not run.
    pub const fn new() -> Self {
        Self { ec: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    /// The page's next program has not begun: for the root task.
    pub fn reset(&self) {
        self.ec.store(0, Ordering::Relaxed);
        self.count.store(0, Ordering::Relaxed);
    }

    /// The EC begins to run, or to wait. Only the EC itself calls this, so no atomic addition is needed.
    pub fn beat(&self) {
        self.count.store(self.count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The counter if the EC runs, for the observer.
    pub fn running(&self) -> Option<u64> {
        Some(self.count.load(Ordering::Relaxed)).filter(|count| count & 1 != 0)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_running_counts_as_stuck() {
        let pulse = Pulse::new();
        assert_eq!(pulse.running(), None);
        pulse.beat();
        assert_eq!((pulse.running(), pulse.running()), (Some(1), Some(1)));
        pulse.beat();
        assert_eq!(pulse.running(), None);
        pulse.beat();
        assert_eq!(pulse.running(), Some(3), "it has waited since");
        pulse.reset();
        assert_eq!(pulse.running(), None);
    }
}
