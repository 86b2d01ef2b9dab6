//! Tests, what comes of them, and the report in the Test Anything Protocol.
#![allow(unsafe_code)] // The heap of these programs only ever grows.

use alloc::string::String;
use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Debug;
use core::panic::Location;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::spec::{SUCCESS, Status};
use crate::{entry, println};

/// Why a test did not pass.
#[derive(Debug)]
pub enum Stop {
    /// Something is not as the specification says.
    Failed(&'static Location<'static>, String),
    /// It makes no sense on this machine.
    Skipped(&'static str),
}

/// What a test function gives.
pub type Outcome = Result<(), Stop>;

/// A test of one or a few clauses.
pub struct Test {
    /// `topic::what it finds out`.
    pub name: &'static str,
    /// Its body.
    pub body: fn() -> Outcome,
}

/// Defines the table of a topic's tests.
#[macro_export]
macro_rules! tests {
    ($($name:literal => $body:path,)*) => {
        /// The tests of this topic.
        pub const TESTS: &[$crate::report::Test] = &[$($crate::report::Test { name: $name, body: $body }),*];
    };
}

/// Ends a test as failed unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr) => {
        $crate::check!($condition, "{}", stringify!($condition))
    };
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::report::failed(alloc::format!($($text)+)));
        }
    };
}

/// Ends a test as failed unless what is found equals what is expected.
#[macro_export]
macro_rules! equal {
    ($found:expr, $expected:expr) => {
        $crate::report::equal(stringify!($found), &$found, &$expected)?
    };
}

/// A failure at the caller's place.
#[track_caller]
pub fn failed(text: String) -> Stop {
    Stop::Failed(Location::caller(), text)
}

/// The work behind [`crate::equal!`].
#[track_caller]
pub fn equal<T: PartialEq<U> + Debug + ?Sized, U: Debug + ?Sized>(what: &str, found: &T, expected: &U) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(failed(alloc::format!("{what} is {found:x?}, not {expected:x?}")))
}

/// A call that a test needs, and that is not what it is about, must succeed.
#[track_caller]
pub fn must(status: Status) -> Outcome {
    if status == SUCCESS { Ok(()) } else { Err(failed(alloc::format!("preparing the test: {status:?}"))) }
}

/// Runs the tests whose name contains `filter` and reports; the number of those that failed.
pub fn run<'a>(topics: impl Iterator<Item = &'a [Test]> + Clone, filter: &str) -> usize {
    let wanted = |test: &&Test| test.name.contains(filter);
    let tests = topics.flatten().filter(wanted);
    println!("TAP version 13");
    println!("1..{}", tests.clone().count());
    let mut failures = 0;
    for (number, test) in tests.enumerate() {
        let (number, name) = (number + 1, test.name);
        // Should it never end, this tells which.
        println!("# {name}");
        entry::now_testing(name);
        match (test.body)() {
            Ok(()) => println!("ok {number} - {name}"),
            Err(Stop::Skipped(why)) => println!("ok {number} - {name} # SKIP {why}"),
            Err(Stop::Failed(place, text)) => {
                failures += 1;
                println!("not ok {number} - {name}");
                println!("# {}:{}: {text}", place.file(), place.line());
            }
        }
    }
    println!("# {} KiB of {} used", HEAP.used() >> 10, HEAP_BYTES >> 10);
    failures
}

/// Bytes of the heap, which is part of the image.
const HEAP_BYTES: usize = 20 << 20;

#[repr(C, align(4096))]
struct Heap {
    memory: core::cell::UnsafeCell<[u8; HEAP_BYTES]>,
    next: AtomicUsize,
}

// SAFETY: what has been handed out belongs to whoever got it.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap { memory: core::cell::UnsafeCell::new([0; HEAP_BYTES]), next: AtomicUsize::new(0) };

impl Heap {
    fn used(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }
}

// SAFETY: every piece is handed out once and lies inside the memory.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.memory.get() as usize;
        let place = |next: usize| (base + next).next_multiple_of(layout.align()) - base;
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            Some(place(next) + layout.size()).filter(|end| *end <= HEAP_BYTES)
        });
        // SAFETY: inside the memory, by the check.
        taken.map_or(core::ptr::null_mut(), |next| unsafe { self.memory.get().cast::<u8>().add(place(next)) })
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
