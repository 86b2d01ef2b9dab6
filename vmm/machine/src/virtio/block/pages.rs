//! Which pages of the data window are in use.

use alloc::vec;
use alloc::vec::Vec;

const PAGE: u64 = 4096;

/// The pages: a bit for each, set while it is in use.
#[derive(Clone, Debug)]
pub struct Pages {
    used: Vec<bool>,
    free: usize,
    /// Where the search begins: behind what was taken last.
    next: usize,
}

impl Pages {
    /// Of a window of this many bytes.
    pub fn new(bytes: u64) -> Self {
        let pages = (bytes / PAGE) as usize;
        Self { used: vec![false; pages], free: pages, next: 0 }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.used.len() as u64 * PAGE
    }

    /// Takes pages for `length` bytes, one behind the other; the place of the first.
    pub fn take(&mut self, length: u64) -> Option<u64> {
        let count = length.div_ceil(PAGE) as usize;
        if count > self.free {
            return None;
        }
        let first = self.find(self.next, count).or_else(|| self.find(0, count))?;
        self.used[first..first + count].fill(true);
        self.free -= count;
        self.next = first + count;
        Some(first as u64 * PAGE)
    }

    fn find(&self, from: usize, count: usize) -> Option<usize> {
        let mut first = from;
        while first + count <= self.used.len() {
            match self.used[first..first + count].iter().rposition(|&used| used) {
                None => return Some(first),
                Some(last) => first += last + 1,
            }
        }
        None
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, place: u64, length: u64) {
        let (first, count) = ((place / PAGE) as usize, length.div_ceil(PAGE) as usize);
        self.used[first..first + count].fill(false);
        self.free += count;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_page_is_taken_twice(operations in prop::collection::vec((1u64..20_000, any::<usize>()), 0..200)) {
            let mut pages = Pages::new(64 * PAGE);
            let mut held: Vec<(u64, u64)> = vec![];
            for (length, choice) in operations {
                match pages.take(length) {
                    Some(at) => {
                        let end = at + length.next_multiple_of(PAGE);
                        prop_assert!(end <= pages.bytes());
                        prop_assert!(held.iter().all(|&(from, length)| end <= from || from + length <= at));
                        held.push((at, length));
                    }
                    None => prop_assert!(!held.is_empty(), "an empty window has room"),
                }
                if choice % 3 == 0 && !held.is_empty() {
                    let (at, length) = held.swap_remove(choice % held.len());
                    pages.give_back(at, length);
                }
            }
            held.drain(..).for_each(|(at, length)| pages.give_back(at, length));
            prop_assert_eq!(pages.take(64 * PAGE), Some(0));
        }
    }
}
