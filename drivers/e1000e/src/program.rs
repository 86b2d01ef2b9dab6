//! The program around the logic: the controller's parts from the manifest.

use e1000e::start::Device;

/// The program.
pub fn run() {
    let interrupts = nic::interrupts();
    let registers = match device::program::open() {
        Ok(registers) => registers,
        Err(why) => panic!("no device: {why}"),
    };
    let vectors = [interrupts[0].map(|_| 0), interrupts[1].map(|_| 1)];
    match Device::start(registers, vectors) {
        Ok(Device { mac, receiver, transmitter }) => nic::serve(mac, receiver, transmitter, interrupts),
        Err(error) => panic!("the device does not start: {error}"),
    }
}
