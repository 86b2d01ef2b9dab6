//! The atomics of what several CPUs touch: the processor's, or under `cfg(loom)` those of the model checker `loom`,
//! which tries all interleavings and all values that the orderings allow. The code above is the same.

pub use core::sync::atomic::Ordering;
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, fence};

#[cfg(loom)]
pub use crate::modelled::{AtomicI64, AtomicU32, AtomicU64, fence};
