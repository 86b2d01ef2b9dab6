//! Addresses, pages and stacks.
#![allow(unsafe_code)]

use alloc::alloc::{Layout, alloc_zeroed};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::root;
use crate::entry::hip;
use crate::hypercall::{Delegation, ctrl_pd};
use crate::report::{Outcome, must};
use crate::spec::{Selector, hip as page};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
const STACK: usize = 8 << 10;
/// Where nothing of the image is mapped.
const WINDOW: u64 = 0x100_0000_0000;

static NEXT_PAGE: AtomicU64 = AtomicU64::new(WINDOW);

/// The address of a page where nothing is mapped.
pub fn page_address() -> u64 {
    address(0)
}

/// The address of 2 to the power of `order` pages where nothing is mapped, aligned to that.
pub fn address(order: u32) -> u64 {
    let size = PAGE << order;
    NEXT_PAGE.fetch_add(2 * size, Relaxed).next_multiple_of(size)
}

/// Zeroed memory of the image, `pages` pages aligned to `pages` pages, a power of two.
pub fn pages(pages: u64) -> u64 {
    let size = (pages * PAGE) as usize;
    let layout = Layout::from_size_align(size, size).expect("a power of two");
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    assert!(!memory.is_null(), "the heap is used up");
    memory as u64
}

/// 2^[`LARGE`] pages of the image, aligned to their size; the same for all who ask.
pub fn large() -> u64 {
    static MEMORY: AtomicU64 = AtomicU64::new(0);
    if MEMORY.load(Relaxed) == 0 {
        MEMORY.store(pages(1 << LARGE), Relaxed);
    }
    MEMORY.load(Relaxed)
}

/// See [`large`].
pub const LARGE: u32 = 10;

/// The top of a new stack, aligned to 16.
pub fn stack() -> u64 {
    let layout = Layout::from_size_align(STACK, 16).expect("a power of two");
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    assert!(!memory.is_null(), "the heap is used up");
    memory as u64 + STACK as u64
}

unsafe extern "C" {
    static image_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static image_end: u8;
}

/// The image's segments: start, end, whether it is executable, whether it is writable.
pub fn segments() -> [(u64, u64, bool, bool); 3] {
    let [start, rodata, data, end] =
        [&raw const image_start, &raw const rodata_start, &raw const data_start, &raw const image_end]
            .map(|symbol| symbol as u64);
    [(start, rodata, true, false), (rodata, data, false, false), (data, end, false, true)]
}

/// The physical address of an address in the image, which the boot loader has put in one piece (6.2.1).
pub fn physical(address: u64) -> u64 {
    address - segments()[0].0 + hip(page::ROOT_START)
}

/// Reads a 64-bit word, which must be mapped.
pub fn peek(address: u64) -> u64 {
    // SAFETY: a plain read of memory that the tests own; if it is not mapped, an event.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a 64-bit word, which must be the test's own.
pub fn poke(address: u64, value: u64) {
    // SAFETY: pages from this module belong to the test that asked for them.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// Maps physical memory into the root host space.
#[track_caller]
pub fn map_physical(physical: u64, address: u64, order: u64, mask: u64, mad: u64) -> Outcome {
    must(ctrl_pd(&Delegation {
        src: root::NOVA_HST,
        dst: root::HST,
        ssb: physical >> 12,
        dsb: address >> 12,
        order,
        mask,
        mad,
    }))
}

/// Maps pages of the root host space into the space `dst`.
#[track_caller]
pub fn delegate(address: u64, dst: Selector, to: u64, order: u64, mask: u64) -> Outcome {
    must(ctrl_pd(&Delegation { src: root::HST, dst, ssb: address >> 12, dsb: to >> 12, order, mask, mad: 0 }))
}

/// Maps pages of the image into the space `dst`, with permissions that the image itself may not have.
#[track_caller]
pub fn grant(address: u64, dst: Selector, to: u64, pages: u64, mask: u64) -> Outcome {
    (0..pages).try_for_each(|index| {
        let (ssb, dsb) = ((physical(address) >> 12) + index, (to >> 12) + index);
        must(ctrl_pd(&Delegation { src: root::NOVA_HST, dst, ssb, dsb, order: 0, mask, mad: 0 }))
    })
}

/// Reads a byte, which must be mapped.
pub fn peek_byte(address: u64) -> u8 {
    // SAFETY: as for `peek`.
    unsafe { (address as *const u8).read_volatile() }
}
