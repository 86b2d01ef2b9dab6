//! How the crate's queues get at the memory for DMA.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use device::dma::{Area, device_address};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The region for DMA, from which queues are cut; buffers may also lie in windows.
pub struct Region;

// SAFETY: areas are handed out once, zeroed and valid for ever.
unsafe impl Hal for Region {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // A zero tells the crate that there is none.
        Area::new(pages * PAGE_SIZE).map_or((0, NonNull::dangling()), |area| (area.device(0), area.start()))
    }

    /// What has been the device's is never used for anything else.
    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("registers are reached by the transport alone")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        match device_address(buffer.as_ptr().cast(), buffer.len()) {
            Some(address) => address,
            None => panic!("a buffer that the device does not reach"),
        }
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
