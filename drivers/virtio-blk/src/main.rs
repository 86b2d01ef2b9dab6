//! Driver program for virtio disks.
//!
//! Its root task gives it the device's registers, memory for the queue (`dma`), one interrupt, and its clients' rings and
//! windows. Data goes by DMA straight to and from the windows.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
