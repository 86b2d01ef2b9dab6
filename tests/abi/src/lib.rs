//! A laboratory: the specification in numbers, the way into the kernel, and what a test needs around what it tests, each
//! in a line: threads, event handlers, protection domains, guests.
//!
//! Nothing here comes from another crate of this repository: root tasks for any kernel with this interface. Nothing is
//! ever taken down: selectors, addresses and stacks are handed out once. A test leaves its execution contexts blocked or
//! dead, so that none of them runs during the next test.
#![cfg(target_os = "none")]
#![no_std]

extern crate alloc;

pub mod acpi;
pub mod capability;
pub mod console;
pub mod domain;
pub mod entry;
pub mod event;
pub mod guest;
pub mod guest_code;
pub mod hypercall;
pub mod interrupt;
pub mod log;
pub mod machine;
pub mod memory;
pub mod portal;
pub mod probe;
pub mod provoke;
pub mod registers;
pub mod report;
pub mod root;
pub mod semaphore;
pub mod spec;
pub mod thread;
pub mod time;
pub mod transfer_guest;
pub mod utcb;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::spec::Selector;

/// First selector that is handed out.
const FREE: u64 = 0x1000;

static NEXT_SELECTOR: AtomicU64 = AtomicU64::new(FREE);

/// A selector of the root object space that holds a null capability.
pub fn selector() -> Selector {
    selectors(1)
}

/// As many, in a row.
pub fn selectors(count: u64) -> Selector {
    NEXT_SELECTOR.fetch_add(count, Relaxed)
}

/// As many as 2 to the power of `order`, aligned to that.
pub fn aligned_selectors(order: u32) -> Selector {
    let count = 1 << order;
    let first = NEXT_SELECTOR.fetch_add(2 * count - 1, Relaxed);
    first.next_multiple_of(count)
}

/// A value that lives for ever, for handlers and threads.
pub fn shared<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A number that handlers and threads change.
pub fn number(value: u64) -> &'static AtomicU64 {
    shared(AtomicU64::new(value))
}
