//! The guest's RAM in this program's address space.
//!
//! Unsafe: raw copies to and from memory that the guest changes at any time. They are string instructions, opaque to
//! the compiler, and no Rust reference to the memory ever exists.
#![allow(unsafe_code)]

use core::arch::asm;

use machine::memory::{GuestMemory, NotRam, Ram};
use runtime::manifest::Range;

/// The region `guest-ram`.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    base: u64,
    ram: Ram,
    /// End of the addresses of eight bytes in the RAM from address 0: reads below are the most frequent ones.
    last: u64,
}

impl HostMemory {
    /// The RAM that the root task mapped at `range`, writable and for ever.
    pub fn new(range: Range) -> Self {
        let ram = Ram::new(range.length);
        Self { base: range.address, ram, last: ram.below_4g().saturating_sub(7) }
    }

    /// Host-virtual address of the RAM.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Eight bytes that are not below [`HostMemory::last`].
    #[inline(never)]
    fn far_u64(&self, gpa: u64) -> Result<u64, NotRam> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The address of `length` bytes at `offset`, or null when they are not all inside.
    fn pointer(&self, offset: u64, length: usize) -> *mut u8 {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.ram.size() => (self.base + offset) as *mut u8,
            _ => core::ptr::null_mut(),
        }
    }
}

impl GuestMemory for HostMemory {
    fn ram(&self) -> Ram {
        self.ram
    }

    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, NotRam> {
        match self.near_u64(gpa) {
            Some(value) => Ok(value),
            None => self.far_u64(gpa),
        }
    }

    #[inline(always)]
    fn near_u64(&self, gpa: u64) -> Option<u64> {
        if gpa >= self.last {
            return None;
        }
        let value;
        // SAFETY: it lies in the mapped RAM. An instruction of its own, for it need not be aligned.
        unsafe {
            asm!("mov {}, [{} + {}]", out(reg) value, in(reg) self.base, in(reg) gpa,
                options(nostack, readonly, preserves_flags));
        }
        Some(value)
    }

    #[inline]
    fn load_u16(&self, offset: u64) -> u16 {
        match self.pointer(offset, 2) {
            from if from.is_null() || !from.cast::<u16>().is_aligned() => 0,
            // SAFETY: it lies in the mapped RAM, and is aligned.
            from => unsafe { from.cast::<u16>().read_volatile() },
        }
    }

    #[inline]
    fn store_u16(&self, offset: u64, value: u16) {
        let to = self.pointer(offset, 2).cast::<u16>();
        if !to.is_null() && to.is_aligned() {
            // SAFETY: it lies in the mapped RAM, and is aligned.
            unsafe { to.write_volatile(value) };
        }
    }

    fn load(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.pointer(offset, bytes.len());
        if !from.is_null() {
            // SAFETY: `from` lies in the mapped RAM, `bytes` is this program's own.
            unsafe { copy(from, bytes.as_mut_ptr(), bytes.len()) };
        }
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        let to = self.pointer(offset, bytes.len());
        if !to.is_null() {
            // SAFETY: `to` lies in the mapped RAM, `bytes` is this program's own.
            unsafe { copy(bytes.as_ptr(), to, bytes.len()) };
        }
    }
}

/// Memory that this program shares with a service. Its content is the service's to change at any time, too.
#[derive(Clone, Copy, Debug)]
pub struct Window(Range);

impl Window {
    /// The memory that the root task mapped at `range`, writable and for ever.
    pub fn new(range: Range) -> Self {
        Self(range)
    }

    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.0.length
    }

    fn pointer(&self, at: u64, length: u64) -> *mut u8 {
        match at.checked_add(length) {
            Some(end) if end <= self.0.length => (self.0.address + at) as *mut u8,
            _ => core::ptr::null_mut(),
        }
    }

    /// Copies from the guest's RAM at `offset`. Nothing if it is not all inside both.
    pub fn fill(&self, at: u64, memory: &HostMemory, offset: u64, length: u64) {
        let (from, to) = (memory.pointer(offset, length as usize), self.pointer(at, length));
        if !from.is_null() && !to.is_null() {
            // SAFETY: both lie in mapped memory, which are different regions.
            unsafe { copy(from, to, length as usize) };
        }
    }

    /// Copies to the guest's RAM at `offset`. Nothing if it is not all inside both.
    pub fn empty(&self, at: u64, memory: &HostMemory, offset: u64, length: u64) {
        let (from, to) = (self.pointer(at, length), memory.pointer(offset, length as usize));
        if !from.is_null() && !to.is_null() {
            // SAFETY: both lie in mapped memory, which are different regions.
            unsafe { copy(from, to, length as usize) };
        }
    }
}

/// # Safety
/// `from` must be readable and `to` writable for `length` bytes, and they must not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    if length == 8 && (from as usize | to as usize) & 7 == 0 {
        // SAFETY: the caller's promise; both are aligned.
        unsafe { to.cast::<u64>().write_volatile(from.cast::<u64>().read_volatile()) };
        return;
    }
    // SAFETY: the caller's promise; the direction flag is clear, as the ABI says.
    unsafe {
        asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) length & 7,
            inout("rcx") length / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}
