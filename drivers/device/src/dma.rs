//! Memory that the program shares with its device.
//!
//! A program drives one device and has one region. Queues and buffers are cut from it once, at the start, and last as
//! long as the program.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use core::iter::successors;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Areas begin and end at multiples of this.
pub const PAGE_SIZE: usize = 4096;

static WINDOWS: AtomicPtr<Window> = AtomicPtr::new(null_mut());
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static DEVICE: AtomicU64 = AtomicU64::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);

/// Makes the region known: `length` bytes at `address`, whole pages, which the device sees at `device`.
///
/// # Safety
/// Once, before anything else here. The memory is zeroed, mapped and shared with the device for ever, and nothing
/// else uses it.
pub unsafe fn init(address: usize, length: usize, device: u64) {
    ADDRESS.store(address, Ordering::Relaxed);
    DEVICE.store(device, Ordering::Relaxed);
    LENGTH.store(length, Ordering::Release);
}

/// What the device's addresses lie above the program's, in tests.
#[cfg(not(target_os = "none"))]
const SHIFT: u64 = 0x70_0000_0000;

/// Zeroed pages, for ever.
#[cfg(not(target_os = "none"))]
fn pages_for_tests(length: usize) -> usize {
    use std::alloc::{Layout, alloc_zeroed};
    assert_ne!(length, 0);
    // SAFETY: the size is not 0 and the alignment a power of two.
    unsafe { alloc_zeroed(Layout::from_size_align_unchecked(length, PAGE_SIZE)) as usize }
}

/// Makes a region for all tests of a process.
#[cfg(not(target_os = "none"))]
pub fn init_for_tests() {
    const BYTES: usize = 64 << 20;
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let start = pages_for_tests(BYTES);
        // SAFETY: the memory is zeroed, never freed, and nobody else's.
        unsafe { init(start, BYTES, start as u64 + SHIFT) };
    });
}

/// Makes a window for a test; the device's address.
#[cfg(not(target_os = "none"))]
pub fn window_for_tests(length: usize) -> u64 {
    let start = pages_for_tests(length);
    // SAFETY: the memory is never freed.
    unsafe { add_window(start, length, start as u64 + SHIFT) };
    start as u64 + SHIFT
}

/// Memory that both the program and its device reach, beside the region.
struct Window {
    address: usize,
    length: usize,
    device: u64,
    next: *const Self,
}

impl Window {
    fn region() -> Self {
        let length = LENGTH.load(Ordering::Acquire);
        let (address, device) = (ADDRESS.load(Ordering::Relaxed), DEVICE.load(Ordering::Relaxed));
        Self { address, length, device, next: WINDOWS.load(Ordering::Acquire) }
    }
}

/// Makes memory known that the program shares with its device and with somebody else, who may change it at any time:
/// `length` bytes at `address`, which the device sees at `device`.
///
/// # Safety
/// The memory is mapped and shared with the device for ever.
pub unsafe fn add_window(address: usize, length: usize, device: u64) {
    let window = Box::leak(Box::new(Window { address, length, device, next: null_mut() }));
    let mut head = WINDOWS.load(Ordering::Acquire);
    loop {
        window.next = head;
        match WINDOWS.compare_exchange(head, window, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(other) => head = other,
        }
    }
}

/// What `find` makes of the region or one of the windows.
fn search<T>(find: impl Fn(&Window) -> Option<T>) -> Option<T> {
    let region = Window::region();
    // SAFETY: windows are never freed, and do not change once they are known.
    let windows = successors(Some(&region), |window| unsafe { window.next.as_ref() });
    windows.filter_map(find).next()
}

/// The device's address of `length` bytes of the region or of a window; `None` if they are not inside.
pub fn device_address(start: *const u8, length: usize) -> Option<u64> {
    search(|window| {
        let offset = (start as usize).checked_sub(window.address)?;
        let inside = offset.checked_add(length)? <= window.length;
        inside.then(|| window.device + offset as u64)
    })
}

/// Where in the program `length` bytes at the device's address lie; `None` if they are not inside the region or a window.
pub fn program_address(device: u64, length: usize) -> Option<*mut u8> {
    search(|window| {
        let offset = usize::try_from(device.checked_sub(window.device)?).ok()?;
        let inside = offset.checked_add(length)? <= window.length;
        inside.then(|| (window.address + offset) as *mut u8)
    })
}

/// Bytes that have not been cut off yet.
pub fn left() -> usize {
    LENGTH.load(Ordering::Acquire).saturating_sub(USED.load(Ordering::Relaxed))
}

/// A piece of the region. What is read from it may be anything: the device writes it.
pub struct Area {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is this value's alone, and the device's.
unsafe impl Send for Area {}

impl Area {
    /// Cuts `length` bytes off, rounded up to whole pages; zeroed. `None` if the region is used up.
    pub fn new(length: usize) -> Option<Self> {
        let length = length.checked_next_multiple_of(PAGE_SIZE)?;
        let most = LENGTH.load(Ordering::Acquire);
        let take = |used: usize| used.checked_add(length).filter(|end| *end <= most);
        let start = USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let start = NonNull::new((ADDRESS.load(Ordering::Relaxed) + start) as *mut u8)?;
        Some(Self { start, length })
    }

    /// Its first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The device's address of the byte at `offset`.
    pub fn device(&self, offset: usize) -> u64 {
        device_address(self.start.as_ptr(), self.length).unwrap_or(0) + offset as u64
    }

    /// Reads the 64 bits at `offset`, a multiple of 8, which the device may write meanwhile.
    pub fn load(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: inside the area, and aligned.
        unsafe { self.start.add(offset).cast::<u64>().read_volatile() }
    }

    /// Writes the 64 bits at `offset`, a multiple of 8, which the device may read meanwhile.
    pub fn store(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: inside the area, and aligned.
        unsafe { self.start.add(offset).cast::<u64>().write_volatile(value) }
    }

    /// `length` bytes from `offset` on: a buffer that the device does not have at this time.
    pub fn buffer(&mut self, offset: usize, length: usize) -> &mut [u8] {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length));
        // SAFETY: inside the area, which is borrowed meanwhile.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().add(offset), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_apart_and_zero() {
        init_for_tests();
        let (mut a, mut b) = (Area::new(5000).unwrap(), Area::new(1).unwrap());
        assert!(a.start() != b.start() && a.buffer(0, 8192).iter().all(|&byte| byte == 0));
        a.store(8184, 0x1122_3344_5566_7788);
        assert_eq!((a.load(8184), a.buffer(8190, 2)), (0x1122_3344_5566_7788, &mut [0x22, 0x11][..]));
        assert_eq!(b.buffer(0, 4096), [0; 4096]);
        assert_eq!(
            program_address(a.device(8184), 8),
            NonNull::new(a.buffer(8184, 8).as_mut_ptr()).map(NonNull::as_ptr)
        );
        assert!(Area::new(1 << 40).is_none() && Area::new(usize::MAX).is_none());
        assert_eq!(device_address(core::ptr::from_ref(&0u8), 1), None, "the stack is not the device's");
    }

    #[test]
    fn windows_are_found_from_both_sides() {
        init_for_tests();
        for window in [PAGE_SIZE, 3 * PAGE_SIZE].map(window_for_tests) {
            let start = program_address(window + 8, PAGE_SIZE - 8).unwrap();
            assert_eq!(device_address(start, PAGE_SIZE - 8), Some(window + 8));
            assert_eq!((program_address(window - 1, 1), program_address(window, 3 * PAGE_SIZE + 1)), (None, None));
            assert_eq!((program_address(0, 1), program_address(window, usize::MAX)), (None, None));
        }
    }

    #[test]
    #[should_panic]
    fn nothing_beyond_an_area_is_given_out() {
        init_for_tests();
        Area::new(4096).unwrap().buffer(4000, 97);
    }
}
