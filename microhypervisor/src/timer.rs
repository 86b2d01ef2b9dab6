//! One timer per CPU: the earlier of the current budget's end and the first timeout.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{Cpu, now};
use crate::ec::EcTimeouts;
use crate::guest::NOBODY;
use crate::lapic;

/// System-time ticks per second.
pub static FREQUENCY: AtomicU64 = AtomicU64::new(1_000_000_000);

/// Frequency of the system time in Hz.
pub fn frequency() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Programs the timer if what it must wait for has come nearer.
///
/// A later deadline is left to the interrupt of the earlier one, which programs again: fewer writes to the hardware.
#[inline]
pub fn program(cpu: &Cpu) {
    let timeout = cpu.timeouts.get().first(&EcTimeouts).map_or(u64::MAX, |(deadline, _)| deadline);
    // A budget that is used up already has nothing more to say: asking again would only interrupt, for ever.
    let deadline = if cpu.reschedule.get() { timeout } else { timeout.min(cpu.slice_end.get()) };
    if deadline < cpu.deadline.get() {
        cpu.deadline.set(deadline);
        cpu.poised.set(NOBODY);
        lapic::set_timer(now(), deadline);
    }
}
