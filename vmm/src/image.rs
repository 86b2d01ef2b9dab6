//! The guest's files and what they become in its memory.
//!
//! Unsafe: makes slices of the read-only regions that the root task mapped.
#![allow(unsafe_code)]

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use machine::acpi;
use machine::loader::{Entry, Images, bzimage, multiboot1};
use machine::memory::GuestMemory;
use machine::pci::bus::Bus;
use plan::{GuestKind, VmConfig};
use runtime::manifest::Range;

use crate::memory::HostMemory;

/// The guest's files.
pub struct Files {
    kernel: &'static [u8],
    initrds: Vec<&'static [u8]>,
}

/// The bytes of a region.
pub fn bytes(range: Range) -> &'static [u8] {
    // SAFETY: the root task maps regions and the configuration read-only, for ever, and shares them with no guest.
    unsafe { core::slice::from_raw_parts(range.address as *const u8, range.length as usize) }
}

impl Files {
    /// The regions `kernel`, `initrd0`, `initrd1` and so on.
    pub fn find() -> Result<Self, String> {
        let manifest = runtime::manifest();
        let kernel = manifest.region("kernel").ok_or_else(|| "there is no kernel image".to_string())?;
        let initrds = (0..)
            .map_while(|index| manifest.region(&format!("initrd{index}")))
            .map(|region| bytes(region.memory))
            .collect();
        Ok(Self { kernel: bytes(kernel.memory), initrds })
    }

    /// Puts everything into the memory of a guest with this bus.
    pub fn load(&self, memory: &HostMemory, config: &VmConfig, bus: &Bus) -> Result<Entry, String> {
        let ecam = bus.has_functions();
        let explain = |error: &dyn core::fmt::Display| format!("cannot start the guest: {error}");
        let images = Images { kernel: self.kernel, initrds: &self.initrds, cmdline: &config.cmdline };
        memory.clear(0, bzimage::FIRMWARE_END.min(memory.ram().size())).map_err(|error| explain(&error))?;
        match config.guest {
            GuestKind::Linux => {
                let content = acpi::Content { vcpus: config.vcpus as u8, ecam, high: bus.is_high() };
                let rsdp = acpi::install(memory, content).map_err(|error| explain(&error))?;
                bzimage::load(memory, &images, bzimage::Firmware { rsdp, ecam }).map_err(|error| explain(&error))
            }
            GuestKind::Multiboot => multiboot1::load(memory, &images).map_err(|error| explain(&error)),
        }
    }
}
