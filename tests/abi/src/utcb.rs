//! User thread control blocks (4.3, 8.7.3).
#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::entry::hip_address;
use crate::spec::Field;

/// The UTCB of an execution context, for that context's own code.
#[derive(Clone, Copy, Debug)]
pub struct Utcb(u64);

/// What a UTCB held.
#[derive(Clone)]
pub struct Snapshot(Box<[u64; 512]>);

impl Utcb {
    /// The UTCB at this address, where create_ec has put one.
    pub(crate) fn at(address: u64) -> Self {
        Self(address)
    }

    /// That of the root execution context (6.2.3.2).
    pub fn root() -> Self {
        Self(hip_address() - 4096)
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        self.0
    }

    /// Message word `index`.
    pub fn word(&self, index: usize) -> u64 {
        assert!(index < 512, "a UTCB has 512 words");
        // SAFETY: inside the page, which exists as long as the program.
        unsafe { (self.0 as *const u64).add(index).read_volatile() }
    }

    /// Sets message word `index`.
    pub fn set_word(&self, index: usize, value: u64) {
        assert!(index < 512, "a UTCB has 512 words");
        // SAFETY: as above.
        unsafe { (self.0 as *mut u64).add(index).write_volatile(value) }
    }

    /// Fills all words with a pattern that depends on `seed`.
    pub fn fill(&self, seed: u64) {
        (0..512).for_each(|index| self.set_word(index, pattern(seed, index)));
    }

    /// All words.
    pub fn words(&self) -> Vec<u64> {
        (0..512).map(|index| self.word(index)).collect()
    }

    /// A field of the architectural layout.
    pub fn get(&self, field: Field) -> u64 {
        from_word(self.word(field.offset / 8), field)
    }

    /// Sets a field of the architectural layout.
    pub fn set(&self, field: Field, value: u64) {
        let (shift, mask) = place(field);
        let index = field.offset / 8;
        self.set_word(index, self.word(index) & !(mask << shift) | (value & mask) << shift);
    }

    /// Its content now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(Box::new(core::array::from_fn(|index| self.word(index))))
    }
}

/// Word `index` of the pattern for `seed`.
pub fn pattern(seed: u64, index: usize) -> u64 {
    (seed << 16 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn place(field: Field) -> (usize, u64) {
    (field.offset % 8 * 8, u64::MAX >> (64 - 8 * field.size))
}

fn from_word(word: u64, field: Field) -> u64 {
    let (shift, mask) = place(field);
    word >> shift & mask
}

impl Snapshot {
    /// A field of the architectural layout.
    pub fn get(&self, field: Field) -> u64 {
        from_word(self.0[field.offset / 8], field)
    }

    /// Message word `index`.
    pub fn word(&self, index: usize) -> u64 {
        self.0[index]
    }
}
