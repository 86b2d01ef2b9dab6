//! Further CPUs: how they are started, and what they do when they are told.
//!
//! Intel SDM vol. 3A, 9.4.4 (INIT and start-up IPIs), 11.6.1 (interrupt command register).
#![allow(unsafe_code)] // Code that is copied to where a CPU starts.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::interrupts::{self, count};
use crate::{clock, cpu, lapic};

global_asm!(include_str!("further.S"), options(att_syntax));

unsafe extern "C" {
    static further_begin: u8;
    static further_end: u8;
}

/// Most CPUs; the start code has as many stacks.
pub const MOST: usize = 16;
/// Where further CPUs start: a page below 1 MiB that nobody uses.
const START: usize = 0x8_0000;

/// Vector of the answer to [`ping`].
pub const PONG: u8 = 0x70;
/// Vector that any CPU takes.
pub const ALL: u8 = 0x71;

/// Vector that asks a further CPU for an answer; each has its own, so that none answers for another.
pub const fn ping(id: usize) -> u8 {
    0x60 + id as u8
}

/// What a further CPU does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Job {
    /// Halts; answers each [`ping`] by a [`PONG`].
    Answer = 0,
    /// Counts with interrupts off.
    Spin = 1,
}

/// How often each has started.
static STARTS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
/// What each is to do.
static JOBS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
/// How far each has counted.
static SPINS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// Identifier in the LAPIC of each.
static IDS: [AtomicU32; MOST] = [const { AtomicU32::new(u32::MAX) }; MOST];
/// The greatest TSC value that any CPU has seen, and how often a CPU saw a smaller one later.
static LATEST: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU32 = AtomicU32::new(0);

/// How many CPUs there are (leaf 1: logical processors in the package).
pub fn cpus() -> usize {
    match cpu::cpuid(1, 0) {
        leaf if leaf.edx & 1 << 28 != 0 => (leaf.ebx >> 16 & 0xff) as usize,
        _ => 1,
    }
}

/// How often a CPU has started.
pub fn starts(id: usize) -> u32 {
    STARTS[id].load(Ordering::SeqCst)
}

/// Its identifier, as it read it from its LAPIC.
pub fn identifier(id: usize) -> u32 {
    IDS[id].load(Ordering::SeqCst)
}

/// How far it has counted.
pub fn spins(id: usize) -> u64 {
    SPINS[id].load(Ordering::SeqCst)
}

/// Tells a CPU what to do; a halted one looks when an interrupt comes.
pub fn tell(id: usize, job: Job) {
    JOBS[id].store(job as u32, Ordering::SeqCst);
}

/// How often the TSC was seen going backwards between CPUs.
pub fn backwards() -> u32 {
    BACKWARDS.load(Ordering::SeqCst)
}

/// Notes the TSC: no CPU may see less than another has seen before.
pub fn note_time() {
    let before = LATEST.load(Ordering::SeqCst);
    let now = cpu::tsc();
    if now < before {
        BACKWARDS.fetch_add(1, Ordering::SeqCst);
    }
    LATEST.fetch_max(now, Ordering::SeqCst);
}

/// Sends INIT to a CPU.
pub fn init(id: usize) {
    lapic::send(id as u32, 0x4500);
}

/// Sends a start-up IPI to a CPU.
pub fn start_up(id: usize) {
    // SAFETY: nobody uses the page, and the code is position-independent.
    unsafe {
        let (begin, end) = (&raw const further_begin, &raw const further_end);
        core::ptr::copy_nonoverlapping(begin, START as *mut u8, end as usize - begin as usize);
    }
    lapic::send(id as u32, 0x4600 | (START >> 12) as u32);
}

/// Waits until a condition holds; false if that takes more than ten seconds.
pub fn wait(mut condition: impl FnMut() -> bool) -> bool {
    let (start, limit) = (cpu::tsc(), clock::ticks(10_000));
    while !condition() {
        if cpu::tsc() - start > limit {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Waits a few milliseconds, for what should not come.
pub fn wait_a_while() {
    let (start, time) = (cpu::tsc(), clock::ticks(3));
    while cpu::tsc() - start < time {
        cpu::take_interrupts();
    }
}

#[unsafe(no_mangle)]
extern "C" fn further_enter(id: u32) -> ! {
    let id = id as usize % MOST;
    interrupts::load_table();
    if lapic::is_x2() {
        lapic::enter_x2();
    } else {
        lapic::enable();
        lapic::set_logical(1 << (id % 8));
    }
    IDS[id].store(lapic::id(), Ordering::SeqCst);
    let mut answered = count(ping(id));
    STARTS[id].fetch_add(1, Ordering::SeqCst);
    loop {
        note_time();
        if JOBS[id].load(Ordering::SeqCst) == Job::Spin as u32 {
            SPINS[id].fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let asked = count(ping(id));
        if answered != asked {
            answered = asked;
            lapic::send(0, u32::from(PONG) | 1 << 14);
            continue;
        }
        cpu::halt();
    }
}
