//! Episodes: a cage is made, its program does its worst for a while, and then everything must be as it was before.

use alloc::vec::Vec;

use lab::report::{Outcome, Stop, failed};
use lab::{capability, check, entry, println, root, tests};

use crate::cage::{Cage, End};
use crate::calls::{Caller, KNOWN, is_breach, may_block, tame};
use crate::foreign::Foreign;
use crate::hostile::{Outcome as Answer, Record, SCRIPT_CALLS};
use crate::operations::balance;
use crate::recipes;

tests! {
    "fuzz::a hostile program gains nothing" => fuzz,
}

/// Calls of one thread between two looks of whoever watches.
const CALLS: u64 = 48;
/// Batches of an episode.
const BATCHES: u64 = 96;
/// Hypercalls between two lines that tell that all is well.
const NEWS: u64 = 100_000;

fn number(key: &str, otherwise: u64) -> u64 {
    entry::argument(key).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What it was about.
#[derive(Default)]
struct Tally {
    calls: u64,
    succeeded: u64,
    replaced: u64,
    /// Hash of everything that the threads with records saw (FNV-1a).
    digest: u64,
}

impl Tally {
    fn add(&mut self, record: &Record, outcome: Answer) {
        let words = match outcome {
            Answer::None => return,
            Answer::Fault => [u64::MAX, 0, 0],
            Answer::Done(words) => words,
        };
        self.calls += u64::from(record.kind == crate::hostile::Kind::Call);
        self.succeeded += u64::from(words[0] == 0);
        for word in words {
            self.digest = (self.digest ^ word).wrapping_mul(0x100_0000_01b3);
        }
    }
}

struct Fuzzer {
    cage: Cage,
    foreign: Foreign,
    found: u64,
    guests: bool,
    trace: bool,
    tally: Tally,
    /// What each thread is given to execute; the heap only ever grows, so these are filled anew each time.
    records: Vec<Vec<Record>>,
}

fn fuzz() -> Outcome {
    let (seed, calls) = (number("seed", 1), number("calls", 20_000));
    let order = KNOWN.trailing_zeros();
    let (cage, foreign, found) = (Cage::new()?, Foreign::new(), lab::aligned_selectors(order));
    let trace = number("trace", 0) != 0;
    let records = (0..cage.threads()).map(|_| Vec::with_capacity(2 * CALLS as usize)).collect();
    let (guests, tally) = (capability::guests(), Tally::default());
    let mut fuzzer = Fuzzer { cage, foreign, found, guests, trace, tally, records };
    // All tables that whoever watches needs are there after an episode without any batch.
    fuzzer.episode(0, 0)?;
    let (mut episode, mut told) = (0, 0);
    while fuzzer.tally.calls < calls {
        let before = balance(root::pd());
        fuzzer.episode(seed + episode, BATCHES).map_err(|stop| with_seed(stop, seed + episode))?;
        let after = balance(root::pd());
        check!(after == before, "seed {}: {before:?} frames were free before, {after:?} after", seed + episode);
        episode += 1;
        if fuzzer.tally.calls / NEWS != told {
            told = fuzzer.tally.calls / NEWS;
            println!("# {} calls, the last seed was {}", fuzzer.tally.calls, seed + episode - 1);
        }
    }
    let Tally { calls, succeeded, replaced, digest } = fuzzer.tally;
    println!("# {episode} episodes, {calls} calls, {succeeded} of watched threads succeeded");
    println!("# {replaced} threads replaced, digest {digest:016x}");
    Ok(())
}

fn with_seed(stop: Stop, seed: u64) -> Stop {
    match stop {
        Stop::Failed(place, text) => Stop::Failed(place, alloc::format!("seed {seed}: {text}")),
        stop => stop,
    }
}

impl Fuzzer {
    fn episode(&mut self, seed: u64, batches: u64) -> Outcome {
        let mut caller = Caller::new(seed, root::cpus());
        self.script(&mut caller, SCRIPT_CALLS);
        recipes::replies(&mut caller, self.cage.replies);
        self.cage.create(&self.foreign, self.guests)?;
        for _ in 0..batches {
            if !self.batch(&mut caller)? {
                break;
            }
        }
        self.tally.calls += self.cage.others();
        self.cage.destroy(self.found, u64::from(KNOWN.trailing_zeros()))?;
        self.foreign.check(self.found, KNOWN)
    }

    /// Writes `count` calls of the script anew.
    fn script(&self, caller: &mut Caller, count: u64) {
        for index in 0..count {
            let at = if count == SCRIPT_CALLS { index } else { caller.random.below(SCRIPT_CALLS) };
            caller.next().store(self.cage.script + 64 * at);
        }
    }

    /// Chooses what `thread` is to execute.
    fn choose(&mut self, caller: &mut Caller, thread: usize) {
        let records = &mut self.records[thread];
        records.clear();
        if caller.random.chance(15) {
            recipes::any(caller, self.guests, records);
        }
        while records.len() < CALLS as usize {
            records.push(caller.next());
        }
        let batch = self.cage.batch(thread);
        (0..).zip(records).for_each(|(index, record)| {
            tame(record);
            record.store(batch.record(index));
        });
    }

    /// One batch on each CPU. False if the cage has not enough memory left to go on.
    fn batch(&mut self, caller: &mut Caller) -> Result<bool, Stop> {
        let threads = self.cage.threads();
        (0..threads).for_each(|thread| self.choose(caller, thread));
        self.script(caller, 8);
        self.cage.go(CALLS);
        for thread in 0..threads {
            let end = self.cage.wait(thread, CALLS);
            self.judge(caller, thread)?;
            if end == End::Stuck {
                self.explain(thread)?;
                self.tally.replaced += 1;
                if self.cage.replace(thread).is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn judge(&mut self, caller: &mut Caller, thread: usize) -> Outcome {
        let batch = self.cage.batch(thread);
        for (index, record) in (0..).zip(&self.records[thread]) {
            let outcome = batch.outcome(index);
            if self.trace {
                println!("# {thread}: {record:x?} {outcome:x?}");
            }
            check!(!is_breach(record, outcome), "a right was gained: {record:x?} gave {outcome:x?}");
            self.tally.add(record, outcome);
            caller.learn(record, outcome);
        }
        Ok(())
    }

    /// A thread got no further: there must be a reason.
    fn explain(&self, thread: usize) -> Outcome {
        let position = self.cage.batch(thread).position();
        let Some(record) = self.records[thread].get(position as usize) else { return Ok(()) };
        if self.trace {
            println!("# {thread}: stuck at {record:x?}, died of {:x?}", self.cage.died(thread));
        }
        if may_block(record) || self.cage.died(thread).is_some() || !self.cage.has_events(thread, self.found)? {
            return Ok(());
        }
        match self.cage.wait_long(thread, position) {
            true => Ok(()),
            false => Err(failed(alloc::format!("a call does not end: {record:x?}"))),
        }
    }
}
