//! From the kernel's hand-over (8.1.2) to the tests, and the machine's end.
#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::arch::naked_asm;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::report::Test;
use crate::root;
use crate::spec::{Field, SUCCESS, hip};
use crate::{acpi, console, hypercall, println, report};

const STACK: usize = 128 << 10;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; STACK]>);
// SAFETY: only the entry stub refers to it.
unsafe impl Sync for Stack {}
static ROOT_STACK: Stack = Stack(core::cell::UnsafeCell::new([0; STACK]));

/// Bytes of [`ARGUMENTS`].
const ARGUMENT_BYTES: usize = 512;
/// A root task has no command line. Whoever boots it may write lines `key=value` behind this marker, into the file.
const MARKER: &[u8] = b"conformance arguments:";
#[unsafe(link_section = ".data.arguments")]
static ARGUMENTS: [u8; ARGUMENT_BYTES] = {
    let mut bytes = [0; ARGUMENT_BYTES];
    let mut at = 0;
    while at < MARKER.len() {
        bytes[at] = MARKER[at];
        at += 1;
    }
    bytes
};

/// The value of an argument.
pub fn argument(key: &str) -> Option<&'static str> {
    // What the file holds need not be what the compiler saw.
    let bytes = &core::hint::black_box(&ARGUMENTS)[MARKER.len()..];
    let text = core::str::from_utf8(bytes).ok()?;
    text.trim_end_matches('\0').lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

static MAGIC: AtomicU64 = AtomicU64::new(0);
static INFORMATION: AtomicU64 = AtomicU64::new(0);
static HIP: AtomicU64 = AtomicU64::new(0);
static TESTING: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static TESTING_LENGTH: AtomicUsize = AtomicUsize::new(0);

/// RDI at the entry: the boot loader's EAX.
pub fn loader_magic() -> u64 {
    MAGIC.load(Relaxed)
}

/// RSI at the entry: the boot loader's EBX.
pub fn loader_information() -> u64 {
    INFORMATION.load(Relaxed)
}

/// RSP at the entry: where the information page is.
pub fn hip_address() -> u64 {
    HIP.load(Relaxed)
}

/// A field of the information page.
pub fn hip(field: Field) -> u64 {
    let address = hip_address() + field.offset as u64;
    // SAFETY: the kernel maps the whole page, which nobody writes.
    unsafe {
        match field.size {
            1 => u64::from((address as *const u8).read()),
            2 => u64::from((address as *const u16).read()),
            4 => u64::from((address as *const u32).read()),
            _ => (address as *const u64).read(),
        }
    }
}

/// The end of user-accessible addresses, which the information page's place tells (8.4.1).
pub fn user_end() -> u64 {
    hip_address() + 4096
}

/// Notes which test runs, for last words.
pub fn now_testing(name: &'static str) {
    TESTING.store(name.as_ptr().cast_mut(), Relaxed);
    TESTING_LENGTH.store(name.len(), Relaxed);
}

/// The test that runs.
pub fn testing() -> &'static str {
    let (start, length) = (TESTING.load(Relaxed), TESTING_LENGTH.load(Relaxed));
    if start.is_null() {
        return "start";
    }
    // SAFETY: both were taken from one string that lives for ever; no EC but the one that stores them is between.
    unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(start, length)) }
}

// SAFETY: no other item of these programs has this name.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "mov rdx, rsp",
        "lea rsp, [rip + {stack} + {size}]",
        "xor ebp, ebp",
        "call {start}",
        "ud2",
        stack = sym ROOT_STACK,
        size = const STACK,
        start = sym start,
    )
}

unsafe extern "Rust" {
    /// The program's topics; [`crate::suite!`] defines it.
    #[link_name = "conformance_topics"]
    static TOPICS: &'static [&'static [Test]];
}

/// Defines what this program tests.
#[macro_export]
macro_rules! suite {
    ($($topic:ident),* $(,)?) => {
        $(mod $topic;)*
        // SAFETY: no other item of the program has this name.
        #[allow(unsafe_code)]
        #[unsafe(export_name = "conformance_topics")]
        static TOPICS: &[&[$crate::report::Test]] = &[$($topic::TESTS),*];
    };
}

extern "C" fn start(magic: u64, information: u64, hip: u64) -> ! {
    MAGIC.store(magic, Relaxed);
    INFORMATION.store(information, Relaxed);
    HIP.store(hip, Relaxed);
    root::take();
    console::open();
    root::guard();
    // SAFETY: defined by `suite!` with this type.
    let topics: &[&[Test]] = unsafe { TOPICS };
    // Tests may leave no memory for tables, which reading this takes.
    let off = acpi::sleep_values(5);
    report::run(topics.iter().copied(), argument("only").unwrap_or_default());
    end(off)
}

/// Ends the machine: by a reset if that is asked for, else in sleep state S5, whose values are `off`.
fn end(off: Option<(u64, u64)>) -> ! {
    console::drain();
    let status = if argument("end") == Some("reset") {
        hypercall::ctrl_hw(0, 7)
    } else {
        match off {
            Some((a, b)) => hypercall::ctrl_hw(0, b << 6 | a << 3 | 5),
            None => SUCCESS,
        }
    };
    println!("Bail out! The machine could not be ended: {status:?}");
    stop()
}

/// Stops this execution context.
pub fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// The bytes of the information page that its length covers.
pub fn hip_bytes() -> Vec<u8> {
    let length = hip(hip::LENGTH) as usize;
    (0..length.min(4096)).map(|offset| hip(Field { offset, size: 1 }) as u8).collect()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("Bail out! {}: {info}", testing());
    console::drain();
    hypercall::ctrl_hw(0, 7);
    stop()
}
