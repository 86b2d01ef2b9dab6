//! A pair of queues: commands one way, completions the other (4.1, 4.2, 4.6).

use crate::spec::{Capabilities, Completion, Entry, register};
use block::{Hardware, Memory};

const ENTRY: u64 = 64;
const COMPLETION: u64 = 16;

/// Submission and completion queue of the same number and length.
pub struct Pair {
    submissions: u64,
    completions: u64,
    entries: u16,
    /// Where the next command goes.
    tail: u16,
    /// Where the next completion comes, and the phase that tells it from an old one.
    head: u16,
    phase: bool,
    tail_doorbell: u64,
    head_doorbell: u64,
    /// Completions have been taken since the controller was told.
    taken: bool,
}

impl Pair {
    /// The pair `number` in zeroed memory at these offsets of the DMA memory.
    pub fn new(number: u64, submissions: u64, completions: u64, entries: u16, capabilities: Capabilities) -> Self {
        let doorbell = register::DOORBELLS + 2 * number * capabilities.doorbell_stride();
        Self {
            submissions,
            completions,
            entries,
            tail: 0,
            head: 0,
            phase: true,
            tail_doorbell: doorbell,
            head_doorbell: doorbell + capabilities.doorbell_stride(),
            taken: false,
        }
    }

    /// Puts a command into the queue. At most `entries` - 1 run at once, so there is room.
    pub fn push(&mut self, hardware: &mut impl Hardware, entry: &Entry) {
        let place = self.submissions + u64::from(self.tail) * ENTRY;
        for (i, word) in entry.encode().into_iter().enumerate() {
            hardware.memory().store(place + i as u64 * 8, word);
        }
        self.tail = (self.tail + 1) % self.entries;
    }

    /// Tells the controller about new commands.
    pub fn start(&mut self, hardware: &mut impl Hardware) {
        hardware.write(self.tail_doorbell, self.tail.into());
    }

    /// The next completion. When there are no more the controller learns which have been taken.
    pub fn pop(&mut self, hardware: &mut impl Hardware) -> Option<Completion> {
        let completion = Completion(hardware.memory().load(self.completions + u64::from(self.head) * COMPLETION + 8));
        if completion.phase() != self.phase {
            if core::mem::take(&mut self.taken) {
                hardware.write(self.head_doorbell, self.head.into());
            }
            return None;
        }
        self.taken = true;
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        Some(completion)
    }
}
