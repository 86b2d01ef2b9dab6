//! The device as a driver program finds it in its manifest.

use crate::capability::Structures;
use crate::transport::PciTransport;
use alloc::vec::Vec;
use device::registers::Bars;
use virtio_drivers::transport::DeviceType;

/// The device of this program; queue n interrupts by vector `vectors[n]`. Once.
pub fn open(kind: DeviceType, vectors: Vec<u16>) -> Result<PciTransport<Bars>, &'static str> {
    let config = device::program::config().ok_or("no configuration space in the manifest")?;
    let structures = Structures::find(&config).ok_or("it is no modern virtio device")?;
    Ok(PciTransport::new(device::program::open()?, structures, kind, vectors))
}
