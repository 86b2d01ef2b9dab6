//! Loops that take or measure time.

use super::Outcome;
use crate::words::Words;
use crate::{clock, cpu, say};

/// A gap between two readings of the TSC that means that something else ran, in microseconds.
pub const GAP: u64 = 30;

/// Loops with interrupts off, for ever or for a time in milliseconds.
pub fn spin(_: Words, milliseconds: u64) -> Outcome {
    if milliseconds == 0 {
        say!("spins for ever with interrupts off");
        loop {
            core::hint::spin_loop();
        }
    }
    say!("spins for {milliseconds} ms with interrupts off");
    let (start, time) = (cpu::tsc(), clock::ticks(milliseconds));
    while cpu::tsc() - start < time {}
    Ok(())
}

/// Counts what it gets done in a time, and how long it did not run.
pub fn count(words: Words, milliseconds: u64) -> Outcome {
    let gap = clock::ticks(words.number("gap").unwrap_or(GAP)) / 1000;
    let time = clock::ticks(milliseconds);
    let start = cpu::tsc();
    let (mut last, mut iterations, mut away, mut gaps) = (start, 0u64, 0, 0u64);
    while last - start < time {
        let now = cpu::tsc();
        if now - last > gap {
            away += now - last;
            gaps += 1;
        }
        last = now;
        iterations += 1;
    }
    let all = last - start;
    say!("count {iterations} iterations in {} us", clock::microseconds(all));
    let share = (all - away) * 100 / all.max(1);
    say!("count ran {share} % of the time, away {gaps} times for {} us", clock::microseconds(away));
    Ok(())
}
