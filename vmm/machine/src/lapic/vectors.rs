//! A set of interrupt vectors: the layout of IRR, ISR and TMR.

/// 256 bits, one for each vector, in eight 32-bit registers as the guest reads them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// Adds or removes a vector.
    pub fn set(&mut self, vector: u8, value: bool) {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        *word = if value { *word | bit } else { *word & !bit };
    }

    /// Adds all vectors of registers as the guest reads them.
    pub fn add(&mut self, registers: &[u32; 8]) {
        for (word, &more) in self.0.iter_mut().zip(registers) {
            *word |= more;
        }
    }

    /// For all vectors in `which`: adds those in `values` and removes the others.
    pub fn replace(&mut self, which: &[u32; 8], values: &[u32; 8]) {
        for ((word, &which), &values) in self.0.iter_mut().zip(which).zip(values) {
            *word = *word & !which | values & which;
        }
    }

    /// Whether it holds a vector.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |all, word| all | word) == 0
    }

    /// The greatest vector, which has the highest priority.
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word * 32) as u8 + self.0[word].ilog2() as u8)
    }

    /// One of the eight registers.
    pub fn register(&self, index: usize) -> u32 {
        self.0[index & 7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_set(ops in prop::collection::vec(any::<(u8, bool)>(), 0..100)) {
            let mut vectors = Vectors::default();
            let mut model = [false; 256];
            for (vector, value) in ops {
                vectors.set(vector, value);
                model[usize::from(vector)] = value;
                prop_assert_eq!(vectors.highest(), model.iter().rposition(|&set| set).map(|index| index as u8));
                prop_assert_eq!(vectors.is_empty(), model == [false; 256]);
                for (index, &set) in model.iter().enumerate() {
                    prop_assert_eq!(vectors.contains(index as u8), set);
                    prop_assert_eq!(vectors.register(index / 32) >> (index % 32) & 1 != 0, set);
                }
            }
        }
    }
}
