//! The heap: a first-fit allocator in the manifest's heap window, behind a lock that may sleep.
#![allow(unsafe_code)]

use crate::manifest::{Range, selector};
use crate::sync::Mutex;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;

struct Allocator(Mutex<Heap>);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator(Mutex::new(Heap::empty(), selector::HEAP_LOCK));

/// Gives the heap its memory.
///
/// # Safety
/// Once; `window` must be mapped, writable and used by nothing else.
pub(crate) unsafe fn init(window: Range) {
    // SAFETY: the caller's promise.
    unsafe { ALLOCATOR.0.lock().init(window.address as *mut u8, window.length as usize) }
}

// SAFETY: the allocator behind the lock hands out disjoint blocks that fit the layout.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got `block` from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(block, layout) }
        }
    }
}
