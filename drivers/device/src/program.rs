//! The device's parts as a driver program finds them in its manifest.
#![allow(unsafe_code)]

use crate::dma;
use crate::registers::Bars;
use runtime::sync::Semaphore;

/// Bytes of the configuration space that hold the old capabilities.
pub const CONFIG: usize = 256;

/// The device's BARs; makes its memory for DMA known. Once.
pub fn open() -> Result<Bars, &'static str> {
    let manifest = runtime::manifest();
    let mut bars = Bars::new();
    for (number, name) in (0..).zip(["bar0", "bar1", "bar2", "bar3", "bar4", "bar5"]) {
        let Some(bar) = manifest.region(name) else { continue };
        let length = u32::try_from(bar.memory.length).unwrap_or(u32::MAX);
        // SAFETY: the manifest says that this is the device's BAR, mapped for ever. The device reaches no memory but the
        // region `dma`: by the IOMMU or, without one, because drivers tell it no other addresses.
        unsafe { bars.add(number, bar.memory.address as usize, length) };
    }
    let memory = manifest.region("dma").ok_or("no memory for DMA in the manifest")?;
    // SAFETY: zeroed, mapped and shared with the device for ever by the manifest, and used here only.
    unsafe { dma::init(memory.memory.address as usize, memory.memory.length as usize, memory.device) };
    Ok(bars)
}

/// The beginning of the device's configuration space, as it is now.
pub fn config() -> Option<[u8; CONFIG]> {
    let config = runtime::manifest().region("config").filter(|config| config.memory.length >= CONFIG as u64)?;
    let start = config.memory.address as *const u8;
    // SAFETY: mapped read-only for ever; the device may change registers at any time.
    Some(core::array::from_fn(|i| unsafe { start.add(i).read_volatile() }))
}

/// Interrupt `number`, if the program has it.
pub fn interrupt(number: u16) -> Option<Semaphore> {
    let name = ["msi0", "msi1", "msi2", "msi3"].get(usize::from(number))?;
    Some(Semaphore::from_selector(runtime::manifest().interrupt(name)?.selector))
}
