//! NVMe driver: serves the first namespace of one controller.
//!
//! Its root task gives it the controller's registers (`bar0`), memory for queues (`dma`), one interrupt, and its clients'
//! rings and windows. Data goes by DMA straight to and from the windows.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
