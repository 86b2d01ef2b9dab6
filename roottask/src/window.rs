//! The root task's view of physical memory: page N is mapped, when needed, at [`BASE`] + N pages.
#![allow(unsafe_code)]

use crate::authority::selector;
use crate::scrub;
use abi::capability::{Cacheability, Permissions};
use abi::{Selector, Status};
use roottask::acpi::PhysicalMemory;
use roottask::frames::{PAGE, PhysRange};
use runtime::manifest::selector as own;
use runtime::syscall;

/// Virtual address of physical address 0.
const BASE: u64 = 1 << 46;
/// Physical addresses that fit behind [`BASE`].
const LIMIT: u64 = 1 << 46;

/// Grants the pages of `memory` to the host space `space` at `address`.
///
/// # Safety
/// If `space` is the root task's own, the caller answers for what is at `address`.
pub unsafe fn grant(space: Selector, memory: PhysRange, address: u64, mask: Permissions) -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { grant_as(space, memory, address, mask, Cacheability::WriteBack) }
}

/// Grants the pages of `memory` to the DMA space `space` at the device address `address`.
pub fn grant_device(space: Selector, memory: PhysRange, address: u64) -> Result<(), Status> {
    // SAFETY: not a host space.
    unsafe { grant(space, memory, address, Permissions::READ | Permissions::WRITE) }
}

/// As [`grant`], uncacheable.
///
/// # Safety
/// See [`grant`].
pub unsafe fn grant_registers(
    space: Selector,
    registers: PhysRange,
    address: u64,
    mask: Permissions,
) -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { grant_as(space, registers, address, mask, Cacheability::Uncacheable) }
}

/// # Safety
/// See [`grant`].
unsafe fn grant_as(
    space: Selector,
    memory: PhysRange,
    address: u64,
    mask: Permissions,
    kind: Cacheability,
) -> Result<(), Status> {
    let source = (selector::NOVA_HOST_SPACE, memory.start / PAGE);
    let count = memory.length().div_ceil(PAGE);
    // SAFETY: the caller's promise.
    unsafe { syscall::delegate_range(source, (space, address / PAGE), count, mask, kind as u32) }
}

/// Maps the pages around `range`, registers of a device, uncacheable and for ever; returns the address of its first byte.
pub fn registers(range: PhysRange) -> Result<*mut u8, Status> {
    if range.end > LIMIT {
        return Err(Status::BadPar);
    }
    let pages = range.pages_around();
    let mask = Permissions::READ | Permissions::WRITE;
    // SAFETY: the window's addresses are used for nothing else.
    unsafe { grant_registers(own::HOST_SPACE, pages, BASE + pages.start, mask)? };
    Ok((BASE + range.start) as *mut u8)
}

/// Maps the pages around `range`; returns the address of its first byte.
pub fn map(range: PhysRange, mask: Permissions) -> Result<*mut u8, Status> {
    if range.end > LIMIT {
        return Err(Status::BadPar);
    }
    let pages = range.pages_around();
    // SAFETY: the window's addresses are used for nothing else.
    unsafe { grant(own::HOST_SPACE, pages, BASE + pages.start, mask)? };
    Ok((BASE + range.start) as *mut u8)
}

/// Takes the pages of `range` out of the window again.
pub fn unmap(range: PhysRange) -> Result<(), Status> {
    // SAFETY: the callers in this module and `bytes` keep no reference into what they unmap.
    unsafe { grant(own::HOST_SPACE, range, BASE + range.start, Permissions::empty()) }
}

/// Maps `range` read-only for ever.
pub fn bytes(range: PhysRange) -> Result<&'static [u8], Status> {
    let start = map(range, Permissions::READ)?;
    // SAFETY: mapped just now and never unmapped: callers ask for boot information, firmware tables and the root
    // image, which are never given away as memory. Nothing writes to them.
    Ok(unsafe { core::slice::from_raw_parts(start, range.length() as usize) })
}

/// Physical address of a byte in a slice from [`bytes`].
pub fn physical(slice: &[u8]) -> u64 {
    slice.as_ptr() as u64 - BASE
}

/// Clears `memory`, whole pages that nobody has, and copies `content` to offset `at`.
pub fn fill(memory: PhysRange, content: &[u8], at: usize) -> Result<(), Status> {
    let start = map(memory, Permissions::READ | Permissions::WRITE)?;
    let length = memory.length() as usize;
    // SAFETY: mapped just now; fresh from the allocator, so nobody refers to it.
    unsafe {
        scrub::clear(start, length);
        let content = &content[..content.len().min(length.saturating_sub(at))];
        core::ptr::copy_nonoverlapping(content.as_ptr(), start.add(at), content.len());
    }
    unmap(memory)
}

/// Firmware tables, seen through the window.
pub struct Tables;

impl PhysicalMemory for Tables {
    fn read(&mut self, address: u64, length: usize) -> Option<&'static [u8]> {
        let end = address.checked_add(length as u64)?;
        bytes(PhysRange::new(address, end)).ok()
    }
}
