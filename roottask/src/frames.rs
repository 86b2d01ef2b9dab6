//! Physical memory that nobody has yet: a sorted list of page-aligned ranges, without a heap.
//!
//! Root allocates a few times per child and gives everything back when the child is gone, so first fit over a short
//! list is all that is needed.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Most ranges; a machine has about ten, each allocation can add one. Memory in further ranges is not used.
const RANGES: usize = 128;

/// Physical addresses from `start` to before `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysRange {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
}

impl PhysRange {
    /// From `start` to before `end`; empty if that is not above `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end > start { end } else { start } }
    }

    /// Length in bytes.
    pub const fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Whether `address` is inside.
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// The smallest range of whole pages around this one.
    pub const fn pages_around(&self) -> Self {
        Self::new(self.start & !(PAGE - 1), self.end.saturating_add(PAGE - 1) & !(PAGE - 1))
    }
}

/// The free memory.
pub struct FreeMemory {
    ranges: [PhysRange; RANGES],
    count: usize,
}

impl FreeMemory {
    /// No memory.
    pub const fn new() -> Self {
        Self { ranges: [PhysRange { start: 0, end: 0 }; RANGES], count: 0 }
    }

    /// The ranges in rising order.
    pub fn ranges(&self) -> &[PhysRange] {
        &self.ranges[..self.count]
    }

    /// Number of free bytes.
    pub fn total(&self) -> u64 {
        self.ranges().iter().map(PhysRange::length).sum()
    }

    /// Bytes of the longest piece that starts at a multiple of `align`, a power of two.
    pub fn largest(&self, align: u64) -> u64 {
        let piece = |r: &PhysRange| r.end.saturating_sub(r.start.next_multiple_of(align));
        self.ranges().iter().map(piece).max().unwrap_or(0)
    }

    /// Adds the whole pages of `range`, as far as they are not free already. Entries of firmware maps may overlap;
    /// a page that any entry calls usable counts, until [`Self::remove`] takes it.
    pub fn add(&mut self, range: PhysRange) {
        let start = range.start.saturating_add(PAGE - 1) & !(PAGE - 1);
        let mut merged = PhysRange::new(start, range.end & !(PAGE - 1));
        if merged.length() == 0 || start < range.start {
            return;
        }
        let mut kept = Self::new();
        for &old in self.ranges() {
            if old.end < merged.start || merged.end < old.start {
                kept.push(old);
            } else {
                merged = PhysRange::new(old.start.min(merged.start), old.end.max(merged.end));
            }
        }
        kept.push(merged);
        kept.ranges[..kept.count].sort_unstable_by_key(|r| r.start);
        *self = kept;
    }

    /// Takes out every page that `range` touches.
    pub fn remove(&mut self, range: PhysRange) {
        let hole = range.pages_around();
        if hole.length() == 0 {
            return;
        }
        let mut kept = Self::new();
        for &old in self.ranges() {
            kept.push(PhysRange::new(old.start, old.end.min(hole.start)));
            kept.push(PhysRange::new(old.start.max(hole.end), old.end));
        }
        *self = kept;
    }

    /// Takes `length` bytes, rounded up to pages, at a multiple of `align`, a power of two. Small pieces come from the
    /// upper end of memory, so that large aligned ones stay possible below.
    pub fn allocate(&mut self, length: u64, align: u64) -> Option<PhysRange> {
        let length = length.checked_next_multiple_of(PAGE)?;
        let align = align.max(PAGE);
        if length == 0 {
            return None;
        }
        let large = align > PAGE;
        let fit = |r: &PhysRange| {
            let start = if large { r.start.checked_next_multiple_of(align)? } else { r.end.checked_sub(length)? };
            let end = start.checked_add(length)?;
            (start >= r.start && end <= r.end).then_some(PhysRange { start, end })
        };
        let found = if large { self.ranges().iter().find_map(fit) } else { self.ranges().iter().rev().find_map(fit) }?;
        self.remove(found);
        Some(found)
    }

    fn push(&mut self, range: PhysRange) {
        if range.length() != 0 && self.count < RANGES {
            self.ranges[self.count] = range;
            self.count += 1;
        }
    }
}

impl Default for FreeMemory {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn partial_pages_are_not_used() {
        let mut free = FreeMemory::new();
        free.add(PhysRange::new(0x1001, 0x4fff));
        assert_eq!(free.ranges(), [PhysRange::new(0x2000, 0x4000)]);
        free.remove(PhysRange::new(0x2fff, 0x3000));
        assert_eq!(free.ranges(), [PhysRange::new(0x3000, 0x4000)]);
        free.add(PhysRange::new(u64::MAX - 10, u64::MAX));
        assert_eq!(free.total(), 0x1000);
    }

    #[test]
    fn small_from_above_large_from_below() {
        let mut free = FreeMemory::new();
        free.add(PhysRange::new(0x10_0000, 0x100_0000));
        assert_eq!(free.allocate(1, 1), Some(PhysRange::new(0xff_f000, 0x100_0000)));
        assert_eq!(free.allocate(4 << 20, 2 << 20), Some(PhysRange::new(0x20_0000, 0x60_0000)));
        assert_eq!(free.largest(2 << 20), 0xff_f000 - 0x60_0000);
        assert_eq!(free.allocate(64 << 20, 2 << 20), None);
        assert_eq!(free.allocate(0, 4096), None);
        assert_eq!(free.allocate(u64::MAX, 4096), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_pages(steps in prop::collection::vec((0u8..3, 0u64..60, 0u64..12), 1..40)) {
            let mut free = FreeMemory::new();
            let mut model = BTreeSet::new();
            for (what, at, length) in steps {
                let range = PhysRange::new(at * PAGE, (at + length) * PAGE);
                match what {
                    0 => { free.add(range); model.extend(at..at + length); }
                    1 => { free.remove(range); model.retain(|p| !(at..at + length).contains(p)); }
                    _ => if let Some(got) = free.allocate(length * PAGE, PAGE << (at % 4)) {
                        prop_assert_eq!(got.length(), length * PAGE);
                        prop_assert_eq!(got.start % (PAGE << (at % 4)), 0);
                        for page in got.start / PAGE..got.end / PAGE {
                            prop_assert!(model.remove(&page), "allocated a page that was not free");
                        }
                    }
                }
                prop_assert_eq!(free.total(), model.len() as u64 * PAGE);
            }
        }
    }
}
