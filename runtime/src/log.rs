//! The program's log: whole lines, to its ring `log`, or through the parent portal while it has none.
//!
//! A line is formatted on the stack and written in one piece. If the ring stays full for [`PATIENCE_MS`], the line is
//! dropped: the log must never stop the program.
#![allow(unsafe_code)] // A function in an atomic variable.

use crate::channel::Sender;
use crate::manifest::selector;
use crate::sync::Mutex;
use crate::text::Line;
use crate::{parent, time};
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Longest line in bytes.
pub const LINE_MAX: usize = 240;
/// How long a writer waits for space in the ring.
pub const PATIENCE_MS: u64 = 1000;

static RING: Mutex<Option<Sender>> = Mutex::new(None, selector::LOG_LOCK);
static SINK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static DROPPED: AtomicUsize = AtomicUsize::new(0);

/// Sends further lines to `ring`.
pub fn use_ring(ring: Sender) {
    *RING.lock() = Some(ring);
}

/// Sends further lines to `sink` instead of anywhere else: for the root task, which has no parent.
pub fn use_sink(sink: fn(&str)) {
    SINK.store(sink as *mut (), Ordering::Release);
}

/// Writes one line; use [`crate::log!`].
pub fn write(arguments: fmt::Arguments<'_>) {
    let line = Line::<LINE_MAX>::format(arguments);
    let sink = SINK.load(Ordering::Acquire);
    if !sink.is_null() {
        // SAFETY: set from a function of this type by `use_sink`.
        return unsafe { core::mem::transmute::<*mut (), fn(&str)>(sink) }(line.as_str());
    }
    let mut ring = RING.lock();
    let Some(ring) = ring.as_mut() else { return parent::log(line.as_str()) };
    let deadline = time::now() + time::ticks_from_ms(PATIENCE_MS);
    let text = Line::<{ LINE_MAX + 1 }>::format(format_args!("{}\n", line.as_str()));
    if ring.send_all(text.as_str().as_bytes(), deadline) != Ok(true) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Number of lines that were dropped.
pub fn dropped() -> usize {
    DROPPED.load(Ordering::Relaxed)
}

/// Writes a line to the program's log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::log::write(format_args!($($argument)*)) };
}
