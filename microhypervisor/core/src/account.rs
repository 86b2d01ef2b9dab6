//! Accounts: the allowance of kernel memory that a protection domain may still use up.
//!
//! Frames move between accounts but never appear or vanish: what was charged is credited when it is freed.

use crate::sync::{AtomicI64, Ordering::Relaxed};

/// A balance in 4 KiB frames. Shared between CPUs; conveys no ordering of other memory.
///
/// The balance is signed so that a charge is one atomic subtraction: it dips below zero only for the moment that a
/// refused charge takes to be put back, in which a competing charge to the same, exhausted account may be refused too.
#[derive(Debug, Default)]
pub struct Account(AtomicI64);

impl Account {
    /// An account with an allowance of `frames`.
    pub const fn new(frames: u32) -> Self {
        Self(AtomicI64::new(frames as i64))
    }

    /// Takes `frames` out of the account; false, and nothing taken, if it holds fewer.
    #[must_use = "frames that were refused must not be used"]
    pub fn charge(&self, frames: u32) -> bool {
        let frames = i64::from(frames);
        let covered = self.0.fetch_sub(frames, Relaxed) >= frames;
        if !covered {
            self.0.fetch_add(frames, Relaxed);
        }
        covered
    }

    /// Frames that are left.
    pub fn balance(&self) -> u32 {
        u32::try_from(self.0.load(Relaxed)).unwrap_or(0)
    }

    /// Puts `frames` that were charged, or taken out of another account, into the account.
    pub fn credit(&self, frames: u32) {
        self.0.fetch_add(i64::from(frames), Relaxed);
    }

    /// Moves `frames` to the account `to`; false, and nothing moved, if this one holds fewer.
    #[must_use]
    pub fn transfer(&self, to: &Self, frames: u32) -> bool {
        let covered = self.charge(frames);
        if covered {
            to.credit(frames);
        }
        covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn balance(account: &Account) -> u32 {
        account.0.load(Relaxed).try_into().unwrap()
    }

    proptest! {
        #[test]
        fn conserves(start in any::<[u16; 4]>(), moves in prop::collection::vec((0..4usize, 0..4usize, any::<u16>()), 0..100)) {
            let accounts = start.map(|frames| Account::new(frames.into()));
            let mut model = start.map(u32::from);
            for (from, to, frames) in moves {
                let frames = u32::from(frames);
                let covered = model[from] >= frames;
                prop_assert_eq!(accounts[from].transfer(&accounts[to], frames), covered);
                if covered {
                    model[from] -= frames;
                    model[to] += frames;
                }
                prop_assert_eq!(accounts.each_ref().map(balance), model);
            }
        }
    }

    #[test]
    fn competing_charges_never_overdraw() {
        let account = Account::new(1000);
        let taken: u32 = std::thread::scope(|scope| {
            let threads = [7u32, 11, 13, 1].map(|n| {
                let account = &account;
                scope.spawn(move || (0..1000).filter(|_| account.charge(n)).count() as u32 * n)
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken + balance(&account), 1000);
    }
}
