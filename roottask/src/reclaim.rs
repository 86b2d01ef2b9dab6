//! What the kernel takes back when a child has ended: its protection domain with everything in it, where the kernel can.

#![allow(unsafe_code)]

use crate::authority::selector;
use crate::child;
use abi::Status;
use abi::capability::Permissions;
use abi::extension::FEATURE_DESTROY;
use abi::hip::Hip;
use core::sync::atomic::{AtomicU64, Ordering};
use runtime::log;
use runtime::manifest::selector as own;
use runtime::syscall::{self, Span};

/// Pages of a host space and of a guest space.
const HOST_PAGES: u64 = abi::USER_END >> abi::PAGE_BITS;
const GUEST_PAGES: u64 = 1 << (48 - abi::PAGE_BITS);
/// Pages that one call takes away: as many as it can name.
const ORDER: u32 = 31;

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
    take_memory(id);
    let tables = free().saturating_sub(before);
    if let Err(status) = destroy(id) {
        log!("root: the kernel does not take back {what}: {status:?}");
        return false;
    }
    let frames = free().saturating_sub(before);
    log!("root: {what}: {frames} frames of kernel memory came back, {tables} of them page tables");
    report();
    true
}

/// Takes all memory out of the host space of child `id`, and out of its guest space if it is a monitor: the kernel gives
/// back each table that becomes empty, so that these can be counted apart from all else. The roots stay, as part of the spaces.
fn take_memory(id: usize) {
    let (objects, host) = child::spaces(id);
    // Nothing at all, if it has none.
    let _ = syscall::delegate_object(objects, own::GUEST_SPACE, own::OBJECT_SPACE, selector::ENDED, Permissions::all());
    for (space, pages) in [(selector::ENDED, GUEST_PAGES), (host, HOST_PAGES)] {
        for destination in (0..pages).step_by(1 << ORDER) {
            let span = Span { source: 0, destination, order: ORDER };
            // SAFETY: not the root task's own memory: the program that ended has it, and ends by a fault whatever it still does.
            if unsafe { syscall::delegate(own::HOST_SPACE, space, span, Permissions::empty(), 0) }.is_err() {
                break;
            }
        }
    }
}

/// Takes back the objects of child `id`.
pub fn destroy(id: usize) -> Result<(), Status> {
    syscall::destroy(child::protection_domain(id), own::PROTECTION_DOMAIN)
}
