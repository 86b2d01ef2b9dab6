//! Reads the kernel's counters and its trace (`abi::observation`) while it writes them.

use abi::observation::{COUNTERS, RECORDS_PER_PAGE, Traced, counter};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use plan::observation::{self as told, Message};

/// Records in a message.
pub const BATCH: usize = 128;

/// The frames of one CPU.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    /// The first frame.
    pub counters: &'a [AtomicU64; COUNTERS],
    /// The others: four words each record.
    pub records: &'a [[AtomicU64; 4]],
}

/// A record of the trace, see [`Traced`].
struct Record {
    time: u64,
    what: u64,
    first: u64,
    second: u64,
}

/// How far a CPU's trace has been read.
#[derive(Clone, Copy, Default)]
pub struct Reader {
    /// Number of the next record.
    next: u64,
    lost: u64,
}

impl Frames<'_> {
    /// Puts the counters that are not 0, but for the number of records, into `values`.
    pub fn values(&self, values: &mut Vec<(u16, u64)>) {
        values.clear();
        let all = self.counters[..counter::RECORDS].iter().enumerate();
        let all = all.map(|(number, value)| (number as u16, value.load(Ordering::Relaxed)));
        values.extend(all.filter(|value| value.1 != 0));
    }

    /// Number of the next record.
    fn end(&self) -> u64 {
        self.counters[counter::RECORDS].load(Ordering::Acquire)
    }

    /// The lowest number that the kernel, which writes record `end` next, leaves alone.
    fn start(&self, end: u64) -> u64 {
        (end + 1).saturating_sub(self.records.len() as u64)
    }

    /// Record `number`, unless it has been overwritten, or may be just now.
    fn record(&self, number: u64) -> Option<Record> {
        let place = number.checked_rem(self.records.len() as u64)?;
        let [time, what, first, second] = self.records[place as usize].each_ref().map(|w| w.load(Ordering::Relaxed));
        core::sync::atomic::fence(Ordering::Acquire);
        (number >= self.start(self.end())).then_some(Record { time, what, first, second })
    }

    /// The identity of the execution context that had the event `startup` last on this CPU, from the records; for the
    /// handler of that event.
    pub fn beginner(&self, startup: u16) -> Option<u64> {
        let end = self.end();
        let mut records = (self.start(end)..end).rev().map_while(|number| self.record(number));
        let event =
            |record: &Record| record.what & 0xff == Traced::Event as u64 && (record.what >> 16) as u16 == startup;
        records.find(event).map(|record| record.first)
    }
}

impl Reader {
    /// The next records of CPU `cpu`, at most [`BATCH`], in the memory of `records`; if there are none, that again.
    pub fn read(
        &mut self,
        cpu: u32,
        frames: &Frames,
        mut records: Vec<told::Record>,
    ) -> Result<Message, Vec<told::Record>> {
        let end = frames.end();
        records.clear();
        let (mut first, mut last) = (0, 0);
        while self.next < end && records.len() < BATCH {
            let Some(record) = frames.record(self.next) else {
                if !records.is_empty() {
                    break;
                }
                self.fall_behind(frames);
                continue;
            };
            self.next += 1;
            if records.is_empty() {
                (first, last) = (record.time, record.time);
            }
            records.push(told::Record {
                ticks: record.time.saturating_sub(last),
                kind: record.what as u8,
                detail: (record.what >> 16) as u16,
                first: record.first,
                second: record.second,
            });
            last = record.time;
        }
        if records.is_empty() {
            return Err(records);
        }
        Ok(Message::Records { cpu, lost: core::mem::take(&mut self.lost), time: first, records })
    }

    /// Leaves out what is gone, and so much more that the kernel does not overtake at once.
    fn fall_behind(&mut self, frames: &Frames) {
        let end = frames.end();
        let margin = frames.records.len() as u64 / 8;
        let next = (frames.start(end) + margin).min(end).max(self.next + 1);
        self.lost += next - self.next;
        self.next = next;
    }
}

/// Records that `pages` pages have room for.
pub const fn records_in(pages: u64) -> usize {
    (pages * RECORDS_PER_PAGE) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::boxed::Box;

    struct Kernel {
        counters: Box<[AtomicU64; COUNTERS]>,
        records: Vec<[AtomicU64; 4]>,
    }

    impl Kernel {
        fn new(capacity: usize) -> Self {
            Self {
                counters: Box::new([const { AtomicU64::new(0) }; COUNTERS]),
                records: (0..capacity).map(|_| [const { AtomicU64::new(0) }; 4]).collect(),
            }
        }

        fn frames(&self) -> Frames<'_> {
            Frames { counters: &self.counters, records: &self.records }
        }

        fn write(&self, what: u64, first: u64, second: u64) {
            let number = self.counters[counter::RECORDS].load(Ordering::Relaxed);
            let place = &self.records[number as usize % self.records.len()];
            for (word, value) in place.iter().zip([number * 10, what, first, second]) {
                word.store(value, Ordering::Relaxed);
            }
            self.counters[counter::RECORDS].store(number + 1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_counters_that_counted_are_told() {
        let kernel = Kernel::new(8);
        kernel.counters[3].store(7, Ordering::Relaxed);
        kernel.write(1, 0, 0);
        let mut values = std::vec![(9, 9)];
        kernel.frames().values(&mut values);
        assert_eq!(values, [(3, 7)]);
    }

    #[test]
    fn the_beginner_is_found() {
        let kernel = Kernel::new(64);
        assert_eq!(kernel.frames().beginner(0x20), None);
        let event = Traced::Event as u64 | 0x20 << 16;
        for (what, first) in [(event, 9), (event, 7), (event | 1 << 31, 6), (Traced::Switch as u64, 1)] {
            kernel.write(what, first, 0);
        }
        assert_eq!(kernel.frames().beginner(0x20), Some(7));
        assert_eq!(kernel.frames().beginner(0x21), None);
        // Two are behind it, and the kernel may be writing one.
        (0..60).for_each(|_| kernel.write(1, 0, 0));
        assert_eq!(kernel.frames().beginner(0x20), Some(7));
        (0..4).for_each(|_| kernel.write(1, 0, 0));
        assert_eq!(kernel.frames().beginner(0x20), None);
    }

    proptest! {
        #[test]
        fn every_record_is_told_or_counted_as_lost(steps in prop::collection::vec(0u64..90, 1..60)) {
            let kernel = Kernel::new(64);
            let mut reader = Reader::default();
            let (mut written, mut next) = (0u64, 0u64);
            for count in steps {
                for _ in 0..count {
                    kernel.write(3 | written << 16, written, 0);
                    written += 1;
                }
                while let Ok(message) = reader.read(2, &kernel.frames(), Vec::new()) {
                    let Message::Records { cpu: 2, lost, time, records } = message else { panic!() };
                    next += lost;
                    let mut now = time;
                    for record in records {
                        now += record.ticks;
                        prop_assert_eq!((record.first, now, record.kind), (next, next * 10, 3));
                        next += 1;
                    }
                }
                prop_assert_eq!(next, written);
            }
        }
    }
}
