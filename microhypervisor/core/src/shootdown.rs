//! Shootdown: a page that was taken away from a space is out of every CPU's reach before the call returns.
//!
//! Whoever takes rights away edits the entries under the space's lock and, still under it, bumps the space's
//! [`Generation`]. When all edits are done the call looks whether a generation is [`Generation::due`], its own or
//! another's, and then interrupts the CPUs that [`Use`] the space, all in one [`Round`]. Each of them flushes and then
//! acknowledges; the last acknowledgement ends the round, after which the call returns and removed tables can be freed.
//! The initiator does not wait for answers with interrupts off: its EC is parked meanwhile.
//!
//! A CPU that does not use the space is not interrupted. It says that it uses a space before it can cache an entry, and
//! an initiator looks after its edit; each with a full barrier between the two steps. Hence either the initiator sees
//! the CPU, or the CPU sees the edit. Translations that outlive their use (those of guests are tagged) are flushed when
//! the space is used again and the generation is another one.
//!
//! A round to all CPUs is also the grace period of everything that is looked up without locks: a CPU acknowledges
//! where it holds no reference to an object.

use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::{AtomicU32, AtomicU64, fence};

/// How often rights were taken from a space, and how many of these removals all CPUs are known to have seen.
pub struct Generation {
    current: AtomicU64,
    completed: AtomicU64,
}

impl Generation {
    /// Of a space that no CPU has used yet. No generation is 0, so that 0 can stand for "never seen".
    pub const fn first() -> Self {
        Self { current: AtomicU64::new(1), completed: AtomicU64::new(1) }
    }

    /// Rights were taken away: after the entry was written, under the space's lock.
    pub fn bump(&self) {
        self.current.store(self.current.load(Relaxed) + 1, Release);
    }

    /// The generation that the space has now. Who compares it with what it saw last does so after it began to use the
    /// space.
    pub fn current(&self) -> u64 {
        self.current.load(Acquire)
    }

    /// The generation that a round is needed for: somebody, maybe another CPU whose round is still under way, took
    /// rights away. Then it was a full barrier: what CPUs use can be looked at now.
    pub fn due(&self) -> Option<u64> {
        let current = self.current.load(Acquire);
        (self.completed() < current).then(|| {
            fence(SeqCst);
            current
        })
    }

    /// The last generation that every CPU is known to have seen.
    pub fn completed(&self) -> u64 {
        self.completed.load(Acquire)
    }

    /// A round for `generation`, as [`Generation::due`] gave it, has ended.
    pub fn complete(&self, generation: u64) {
        self.completed.fetch_max(generation, Release);
    }
}

/// The root of the tables that a CPU uses: those in CR3, or the nested ones of the guest that it entered last. Written
/// by that CPU only.
pub struct Use(AtomicU64);

impl Use {
    /// No tables.
    pub const NONE: u64 = 0;

    /// Uses nothing.
    pub const fn none() -> Self {
        Self(AtomicU64::new(Self::NONE))
    }

    /// Tells that the CPU is going to use `root`. A serializing instruction must follow before it does: a write of CR3.
    pub fn announce(&self, root: u64) {
        self.0.store(root, Release);
    }

    /// As [`Use::announce`], with the barrier, and for nothing if the root is the same: before the space's generation is
    /// looked at and the guest entered.
    pub fn enter(&self, root: u64) {
        if self.root() != root {
            self.announce(root);
            fence(SeqCst);
        }
    }

    /// The root that is used.
    pub fn root(&self) -> u64 {
        self.0.load(Acquire)
    }
}

/// Which CPUs wait for an acknowledgement from the one that this belongs to: a bit for each of 64 times `WORDS`.
pub struct Requests<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> Requests<WORDS> {
    /// Nobody waits.
    pub const fn none() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// CPU `from` asks. True if the owner must be interrupted; else it was for another request and has not looked yet.
    fn ask(&self, from: u16) -> bool {
        let word = self.0.get(usize::from(from) / 64);
        word.is_some_and(|word| word.fetch_or(1 << (from % 64), AcqRel) == 0)
    }

    /// Whether one of the first `cpus` CPUs asks.
    pub fn any(&self, cpus: u16) -> bool {
        let asks = |word: &AtomicU64| word.load(Relaxed) != 0;
        self.0.first().is_some_and(asks) || cpus > 64 && self.0.iter().any(asks)
    }

    /// All requests of the first `cpus` CPUs, by the owner when it was interrupted; it flushes, and then acknowledges
    /// each.
    #[must_use = "each CPU in it waits"]
    pub fn take(&self, cpus: u16) -> Taken<WORDS> {
        let mut taken = Taken { words: [0; WORDS], used: usize::from(cpus).div_ceil(64) };
        for (to, word) in taken.words.iter_mut().zip(&self.0).take(taken.used) {
            *to = if word.load(Relaxed) == 0 { 0 } else { word.swap(0, AcqRel) };
        }
        taken
    }
}

/// The CPUs that wait for an acknowledgement.
pub struct Taken<const WORDS: usize> {
    words: [u64; WORDS],
    used: usize,
}

impl<const WORDS: usize> Iterator for Taken<WORDS> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        let (index, word) = self.words.iter_mut().take(self.used).enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= *word - 1;
        Some((index as u32 * 64 + bit) as u16)
    }
}

/// The one round of interrupts and acknowledgements that a CPU has under way.
pub struct Round {
    /// Acknowledgements that are missing; while requests are being sent, one more.
    missing: AtomicU32,
}

impl Round {
    /// None under way.
    pub const fn ended() -> Self {
        Self { missing: AtomicU32::new(0) }
    }

    /// Starts the round of CPU `own`, whose last one has ended: asks each of `targets` and calls `interrupt` for those
    /// that must be interrupted. True if the round has ended already; else who acknowledges last tells the CPU.
    pub fn start<'a, T, const WORDS: usize>(
        &self,
        own: u16,
        targets: impl Iterator<Item = (T, &'a Requests<WORDS>)>,
        mut interrupt: impl FnMut(T),
    ) -> bool {
        // Not the end while targets are still to be asked, however quick the first ones are.
        self.missing.store(1, Relaxed);
        for (target, requests) in targets {
            self.missing.fetch_add(1, Relaxed);
            if requests.ask(own) {
                interrupt(target);
            }
        }
        self.acknowledge()
    }

    /// The calling CPU has flushed. True if this ended the round: its CPU must be interrupted.
    #[must_use = "the round's CPU must learn of its end"]
    pub fn acknowledge(&self) -> bool {
        self.missing.fetch_sub(1, AcqRel) == 1
    }

    /// Whether the round has ended.
    pub fn has_ended(&self) -> bool {
        self.missing.load(Acquire) == 0
    }
}

#[cfg(test)]
mod tests;
