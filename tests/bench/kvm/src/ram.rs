//! The guest's RAM: memory of this process.
#![allow(unsafe_code)] // Raw copies to and from memory that the guest changes at any time.

use std::alloc::{Layout, alloc_zeroed};
use std::ptr;

use machine::memory::{GuestMemory, Ram};

/// So that Linux can take large pages for it.
const ALIGNMENT: usize = 2 << 20;

/// RAM from guest-physical address 0; it stays for ever.
pub struct HostRam {
    base: usize,
    ram: Ram,
}

impl HostRam {
    /// `size` bytes of zeros, of which every page has been touched.
    pub fn new(size: usize) -> Self {
        let layout = Layout::from_size_align(size, ALIGNMENT).expect("a size of some MiB");
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null(), "not enough memory");
        for page in (0..size).step_by(4096) {
            // SAFETY: it is inside, and nobody else has it yet.
            unsafe { base.add(page).write_volatile(0) };
        }
        Self { base: base as usize, ram: Ram::new(size as u64) }
    }

    /// Its address in this process.
    pub fn address(&self) -> u64 {
        self.base as u64
    }
}

impl GuestMemory for HostRam {
    fn ram(&self) -> Ram {
        self.ram
    }

    fn load(&self, offset: u64, bytes: &mut [u8]) {
        assert!(offset + bytes.len() as u64 <= self.ram.size());
        // SAFETY: inside, as checked; the other side is this program's own.
        unsafe { ptr::copy_nonoverlapping((self.base + offset as usize) as *const u8, bytes.as_mut_ptr(), bytes.len()) }
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.ram.size());
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), (self.base + offset as usize) as *mut u8, bytes.len()) }
    }
}
