//! What the kernel takes back when a child has ended: its protection domain with everything in it, where the kernel can.

use crate::child;
use abi::Status;
use abi::extension::FEATURE_DESTROY;
use abi::hip::Hip;
use core::sync::atomic::{AtomicU64, Ordering};
use runtime::log;
use runtime::manifest::selector as own;
use runtime::syscall;

/// Frames of kernel memory that were free at first; 0: the kernel takes nothing back.
static AT_FIRST: AtomicU64 = AtomicU64::new(0);

/// Finds out whether the kernel takes anything back, and how much memory it has. Before anything is created.
pub fn learn(hip: &Hip) {
    if hip.extension.features & FEATURE_DESTROY != 0 {
        AT_FIRST.store(free(), Ordering::Relaxed);
    }
}

fn free() -> u64 {
    syscall::balance(own::PROTECTION_DOMAIN).map_or(0, |(_, free)| free)
}

/// Logs how much memory the kernel has left.
pub fn report() {
    match AT_FIRST.load(Ordering::Relaxed) {
        0 => {}
        total => log!("root: kernel memory: {} of {total} frames free", free()),
    }
}

/// Takes back the objects of child `id`, which was `what` and has ended; whether the kernel did so.
pub fn ended(id: usize, what: &str) -> bool {
    if AT_FIRST.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let before = free();
    if let Err(status) = destroy(id) {
        log!("root: the kernel does not take back {what}: {status:?}");
        return false;
    }
    log!("root: {what}: {} frames of kernel memory came back", free().saturating_sub(before));
    report();
    true
}

/// Takes back the objects of child `id`.
pub fn destroy(id: usize) -> Result<(), Status> {
    syscall::destroy(child::protection_domain(id), own::PROTECTION_DOMAIN)
}
