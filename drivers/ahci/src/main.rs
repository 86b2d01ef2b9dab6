//! AHCI driver: serves the first disk of one controller.
//!
//! Its root task gives it the controller's registers (`bar5`), memory for commands (`dma`), one interrupt, and its clients'
//! rings and windows. Data goes by DMA straight to and from the windows.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod program;

runtime::program!(program::run);
