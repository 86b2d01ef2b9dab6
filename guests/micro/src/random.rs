//! Random numbers from a seed: SplitMix64 (Steele, Lea and Flood, 2014), the same everywhere.

/// A generator.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below a limit that is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of a list that is not empty.
    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// A number whose size is random, too: small ones and single bits come as often as large ones.
    pub fn any(&mut self) -> u64 {
        let value = self.next();
        match self.below(4) {
            0 => value & 0xff,
            1 => 1 << (value & 63),
            2 => value & 0xffff_ffff,
            _ => value,
        }
    }
}
