//! The program around the logic: the device's parts from the manifest.

use runtime::sync::Semaphore;
use virtio_drivers::transport::DeviceType;
use virtio_net::device::Device;

/// The program.
pub fn run() {
    let interrupts: [Option<Semaphore>; 2] = nic::interrupts();
    // Vectors are as many as there are interrupts: the second is there only if the first is.
    let vectors = (0..).zip(interrupts.iter().flatten()).map(|(vector, _)| vector).collect();
    let transport = match virtio::program::open(DeviceType::Network, vectors) {
        Ok(transport) => transport,
        Err(why) => panic!("no device: {why}"),
    };
    match Device::start(transport) {
        Ok(Device { mac, receiver, transmitter }) => nic::serve(mac, receiver, transmitter, interrupts),
        Err(error) => panic!("the device does not start: {error}"),
    }
}
