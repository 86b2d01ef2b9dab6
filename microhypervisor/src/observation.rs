#![allow(unsafe_code)]
//! Counters and the trace: what each CPU does, for user programs to read (see `abi::observation`).
//!
//! Unsafe: writes to frames of the pool that nothing else uses.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::observation::{COUNTERS, RECORDS_PER_PAGE, Traced, counter};

use crate::cpu::{self, Cpu, now};
use crate::memory::{FRAME, Frame, KERNEL_ACCOUNT};
use crate::space;

/// Where a CPU counts: a page that user programs can see. Only that CPU writes there.
#[repr(C, align(4096))]
pub struct Counters([AtomicU64; COUNTERS]);

/// Turns the trace on or off, for all CPUs.
pub fn set_tracing(on: bool) {
    Cpu::all().for_each(|cpu| cpu.unusual.tracing.store(on, Ordering::Relaxed));
}

/// Physical address of all CPUs' frames, in its low bits log2 of the number of each CPU's; 0 if there are none.
static FRAMES: AtomicU64 = AtomicU64::new(0);

impl Counters {
    /// All zero.
    pub const fn none() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }

    /// Counts one more of `counter`.
    #[inline(always)]
    pub fn count(&self, counter: usize) {
        let counter = &self.0[counter & (COUNTERS - 1)];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Provides frames for as many CPUs as may start, 4 MiB at most. The CPU that executes this counts there from now on.
pub fn init(cpus: usize) {
    let cpus = cpus.clamp(1, cpu::CPUS_MAX).next_power_of_two().trailing_zeros() as u8;
    let order = 6u8.saturating_sub(cpus.saturating_sub(4));
    let Some(first) = KERNEL_ACCOUNT.frames(cpus + order) else { return };
    FRAMES.store(first.physical() | order as u64, Ordering::Relaxed);
    space::map_counters(first.physical());
}

/// Physical address of the counters of CPU `number`.
pub fn counters_of(number: u16) -> Option<u64> {
    place().map(|(start, each)| start + number as u64 * each as u64 * FRAME as u64)
}

/// Physical address of the frames, and how many each CPU has.
pub fn place() -> Option<(u64, u32)> {
    let frames = FRAMES.load(Ordering::Relaxed);
    (frames != 0).then_some((frames & !0xfff, 1 << (frames & 31)))
}

/// Numbers of the physical pages that can be mapped, to read.
pub fn pages() -> Range<u64> {
    place().map_or(0..0, |(start, each)| start >> 12..(start >> 12) + cpu::count() as u64 * each as u64)
}

/// Writes a record if the trace is on.
#[inline(always)]
pub fn trace(cpu: &Cpu, what: Traced, detail: u16, first: u64, second: u64) {
    if cpu.unusual.tracing.load(Ordering::Relaxed) {
        record(cpu, what as u64 | (detail as u64) << 16, first, second);
    }
}

#[cold]
#[inline(never)]
fn record(cpu: &Cpu, what: u64, first: u64, second: u64) {
    let Some((_, each)) = place() else { return };
    let Some(frame) = counters_of(cpu.number).and_then(Frame::from_physical) else { return };
    let counter = &cpu.counters().0[counter::RECORDS];
    let number = counter.load(Ordering::Relaxed);
    let capacity = (each as u64).saturating_sub(1) * RECORDS_PER_PAGE;
    let Some(place) = number.checked_rem(capacity) else { return };
    // SAFETY: the records follow the counters, in frames that only this CPU writes.
    let slot = unsafe { &*frame.pointer().add(FRAME).cast::<[AtomicU64; 4]>().add(place as usize) };
    for (word, value) in slot.iter().zip([now(), what, first, second]) {
        word.store(value, Ordering::Relaxed);
    }
    counter.store(number + 1, Ordering::Release);
}
