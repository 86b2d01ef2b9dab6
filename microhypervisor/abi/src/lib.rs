//! The contract between the microhypervisor and user programs.
//!
//! Types and numbers only: no code that runs, no `unsafe`. The base is the *NOVA Microhypervisor Interface
//! Specification* for x86-64, release 24.08; "NOVA x.y" below names its sections. What goes beyond it stands in
//! [`extension`]. `docs/abi.md` describes the interface in words.
#![no_std]

pub mod capability;
pub mod event;
pub mod extension;
pub mod hip;
pub mod hypercall;
pub mod mtd;
pub mod observation;
pub mod scd;
pub mod utcb;

pub use capability::Selector;
pub use hypercall::{Hypercall, Status};
pub use mtd::Mtd;

/// Size of a page and of a UTCB in bytes.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_BITS: u32 = 12;
/// End of the user-accessible virtual address range (NOVA 8.4.1 with H = 47).
pub const USER_END: u64 = 1 << 47;
/// Host-virtual address of the information page in the root protection domain (NOVA 6.2.3.2).
pub const HIP_ADDRESS: u64 = USER_END - PAGE_SIZE as u64;
/// Host-virtual address of the UTCB of the root execution context (NOVA 6.2.3.2).
pub const ROOT_UTCB_ADDRESS: u64 = HIP_ADDRESS - PAGE_SIZE as u64;
