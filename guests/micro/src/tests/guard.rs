//! Memory that nobody else may touch.
#![allow(unsafe_code)] // Memory outside the image.

use super::Outcome;
use crate::interrupts::count;
use crate::words::Words;
use crate::{clock, cpu, ensure, lapic, say};

/// In the upper half of each word; the lower half is its address.
const MARK: u64 = 0x6a6d_0000;
/// Where it begins: behind everything of the image.
const START: u64 = 4 << 20;
const TIMER: u8 = 0x40;

fn words(mebibytes: u64) -> impl Iterator<Item = *mut u64> {
    (START..START + (mebibytes << 20)).step_by(8).map(|address| address as *mut u64)
}

fn content(word: *mut u64) -> u64 {
    MARK << 32 | word as u64
}

/// Fills `size` MiB, and looks at them, with pauses, until `milliseconds` have passed.
pub fn check(arguments: Words, milliseconds: u64) -> Outcome {
    let size = arguments.number("size").unwrap_or(32);
    // SAFETY: the machine has that memory, as the command line says, and nothing else uses it.
    words(size).for_each(|word| unsafe { word.write_volatile(content(word)) });
    say!("guards {size} MiB for {milliseconds} ms");
    let (start, time) = (cpu::tsc(), clock::ticks(milliseconds));
    let mut rounds = 0;
    while cpu::tsc() - start < time {
        pause();
        // SAFETY: as above.
        let wrong = words(size).find(|word| unsafe { word.read_volatile() } != content(*word));
        if let Some(word) = wrong {
            // SAFETY: as above.
            let value = unsafe { word.read_volatile() };
            say!("guarded memory at {:#x} holds {value:#x}", word as u64);
            ensure!(false, "somebody wrote to guarded memory");
        }
        rounds += 1;
    }
    say!("looked {rounds} times");
    Ok(())
}

/// Lets others run.
fn pause() {
    lapic::enable();
    let before = count(TIMER);
    lapic::one_shot(TIMER, 20_000_000);
    while count(TIMER) == before {
        cpu::halt();
    }
}
