//! A token that goes round among processes on different CPUs, each asleep until it comes: what is lost stops it.
//!
//! futex(2), sched_setaffinity(2).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Failure;
use crate::linux::{self, Process};

/// Most processes.
pub const MOST: usize = 16;

/// What the processes share. The token is with the one whose number is the turn's, modulo their number.
#[repr(C)]
struct Shared {
    turn: AtomicU32,
    stop: AtomicU32,
    counts: [AtomicU64; MOST],
}

/// Runs the ring for a time; gives how often the token went on, if every step was made exactly once.
pub fn run(seconds: u64, processes: usize) -> Result<Option<u64>, Failure> {
    let shared: &Shared = linux::shared_page().map_err(|errno| Failure::Linux("share memory", errno))?;
    let end = linux::seconds() + seconds;
    let mut children = [0 as Process; MOST];
    for (number, child) in children.iter_mut().enumerate().take(processes) {
        match linux::fork().map_err(|errno| Failure::Linux("fork", errno))? {
            Some(process) => *child = process,
            None => linux::exit(member(shared, number, processes, end)),
        }
    }
    let mut good = true;
    for &child in &children[..processes] {
        good &= linux::wait(child) == Ok(0);
    }
    let steps: u64 = shared.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    let turns = u64::from(shared.turn.load(Ordering::Relaxed));
    Ok((good && steps as u32 == turns as u32).then_some(steps))
}

/// One process of the ring; its exit status.
fn member(shared: &Shared, number: usize, processes: usize, end: u64) -> u8 {
    if linux::run_on(number).is_err() {
        return 1;
    }
    loop {
        let turn = shared.turn.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) != 0 {
            return 0;
        }
        if turn as usize % processes != number {
            linux::futex_wait(&shared.turn, turn);
            continue;
        }
        if number == 0 && linux::seconds() >= end {
            shared.stop.store(1, Ordering::SeqCst);
        }
        shared.counts[number].fetch_add(1, Ordering::Relaxed);
        shared.turn.store(turn.wrapping_add(1), Ordering::SeqCst);
        linux::futex_wake(&shared.turn);
    }
}
