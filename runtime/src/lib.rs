//! Library of the user programs: entry, hypercalls, heap, portals, threads, rings.
//!
//! A whole program:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! runtime::main!(main);
//! fn main() { runtime::log!("hello from {}", runtime::manifest().name); }
//! ```
//!
//! with a `build.rs` that passes the linker script: `println!("cargo:rustc-link-arg-bins=-T{dir}/program.ld")`,
//! where `dir` is the absolute path of the `runtime` folder.
//!
//! What a program finds, before `main` runs:
//! - [`manifest()`]: its name, the time counter's frequency, rings, memory regions, interrupts, ports, configuration.
//! - Fixed selectors, [`manifest::selector`]: its own PD, spaces, main EC; [`thread::selectors`] hands out others.
//! - A heap (`alloc`), safe to use from all its threads.
//! - [`log!`]: lines with the program's name in the system's log.
//! - Exception portals of the root task: a fault ends the program with a report; so does a panic.
//!
//! What it can make: [`thread::spawn`] (a thread with a scheduling context), [`thread::Server`] (a local EC whose
//! portals call a [`thread::Service`]: vCPU event handlers are these), [`sync::Semaphore`], [`sync::Mutex`].
//! [`channel::Sender`] and [`channel::Receiver`] are the ends of the rings in the manifest. [`syscall`] has every
//! hypercall. [`parent`] reports the end of a virtual machine.
//!
//! **UTCBs.** A [`thread::Service`] gets its EC's UTCB as an argument. What it reads there is lost at the next
//! `ipc_call` of that EC; the calls in [`parent`] (and so early logging) save and restore the words they use.
//!
//! **Blocking.** A service may block (semaphore, sleep); its callers wait or help. A lock held by a thread that waits
//! is never spun on.
//!
//! Rings and manifest are plain logic and work on the host too, where `cargo test` checks them; the rest exists only
//! for the freestanding target.
#![no_std]

#[cfg(target_os = "none")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod block;
pub mod manifest;
pub mod net;
pub mod parent;
pub mod pulse;
pub mod ring;
pub mod span;
pub mod text;
pub mod time;

#[cfg(target_os = "none")]
pub mod channel;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
pub mod log;
#[cfg(target_os = "none")]
pub mod port;
#[cfg(target_os = "none")]
pub mod sync;
#[cfg(target_os = "none")]
pub mod syscall;
#[cfg(target_os = "none")]
pub mod thread;
#[cfg(target_os = "none")]
pub mod utcb;

#[cfg(target_os = "none")]
pub use entry::{init, manifest, on_panic, start};

/// The `main.rs` of a crate whose logic is tested on the host: the program exists only for the freestanding target, and
/// begins with this function.
#[macro_export]
macro_rules! program {
    ($run:path) => {
        #[cfg(target_os = "none")]
        $crate::main!(main);

        fn main() {
            #[cfg(target_os = "none")]
            $run();
        }
    };
}

/// Bytes of every stack; stacks are aligned to it.
pub const STACK_SIZE: usize = 128 << 10;
/// Distance between stacks: below each lies as much unmapped memory.
pub const STACK_SLOT: usize = 2 * STACK_SIZE;
/// Bytes at the top of every stack that belong to the runtime; an EC starts with its stack pointer below them.
pub const STACK_RESERVE: usize = 48;
