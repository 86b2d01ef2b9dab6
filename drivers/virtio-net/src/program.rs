//! The program around the logic: the device's parts from the manifest, the rings, and the two threads.

use abi::scd::Scd;
use device::registers::Bars;
use runtime::channel::{Receiver, Sender};
use runtime::manifest::Role;
use runtime::net;
use runtime::sync::Semaphore;
use runtime::{log, thread, time};
use virtio_drivers::transport::DeviceType;
use virtio_net::device::{Device, RECEIVE_QUEUE, SEND_QUEUE};
use virtio_net::receive::Receiver as FromNetwork;
use virtio_net::send::Transmitter;

/// Milliseconds between looks at a full queue whose device has no interrupt for it.
const POLL: u64 = 1;
/// Milliseconds after which an interrupt that should have come is not waited for any longer.
const PATIENCE: u64 = 100;
/// Frames after which the switch, or the device, hears of them.
const BATCH: usize = 64;

/// The program.
pub fn run() {
    let interrupts = [RECEIVE_QUEUE, SEND_QUEUE].map(device::program::interrupt);
    let [Some(received), sent] = interrupts else { panic!("no interrupt in the manifest") };
    let vectors = interrupts.iter().enumerate().filter(|(_, i)| i.is_some()).map(|(vector, _)| vector as u16).collect();
    let transport = match virtio::program::open(DeviceType::Network, vectors) {
        Ok(transport) => transport,
        Err(why) => panic!("no device: {why}"),
    };
    let device = match Device::start(transport) {
        Ok(device) => device,
        Err(error) => panic!("the device does not start: {error}"),
    };
    let manifest = runtime::manifest();
    let Some(out) = manifest.ring("uplink.out", Role::Producer).and_then(Sender::from_entry) else {
        panic!("no ring uplink.out")
    };
    let Some(input) = manifest.ring("uplink.in", Role::Consumer) else { panic!("no ring uplink.in") };
    let work = Semaphore::from_selector(input.sel_data);
    let Some(input) = Receiver::from_entry(input) else { panic!("uplink.in is no ring") };
    match device.mac {
        Some([a, b, c, d, e, f]) => log!("ready, address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        None => log!("ready, without an address"),
    }
    let Device { receiver, transmitter, .. } = device;
    let started = thread::spawn(Scd { budget: 10, priority: 110, cos: 0 }, move || receive(receiver, out, received));
    if let Err(status) = started {
        panic!("no second thread: {status:?}");
    }
    send(transmitter, input, work, sent)
}

/// Passes frames from the network to the switch, for ever.
fn receive(mut receiver: FromNetwork<Bars>, mut out: Sender, interrupt: Semaphore) {
    loop {
        let mut frames = 0;
        // A frame that finds the ring full, or its reader lying, is lost.
        let mut deliver = |frame: &[u8]| _ = net::send(&mut out, frame);
        while frames < BATCH {
            match receiver.next(&mut deliver) {
                Ok(true) => frames += 1,
                Ok(false) => break,
                Err(error) => panic!("the device breaks the rules: {error:?}"),
            }
        }
        out.notify();
        if receiver.look_again() || frames == BATCH {
            continue;
        }
        if let Err(status) = interrupt.wait(0) {
            panic!("cannot wait: {status:?}");
        }
    }
}

/// Passes frames from the switch to the network, for ever.
fn send(mut transmitter: Transmitter<Bars>, mut input: Receiver, work: Semaphore, interrupt: Option<Semaphore>) -> ! {
    loop {
        let position = input.position();
        let (mut full, mut more) = (false, true);
        for _ in 0..BATCH {
            match transmitter.can_send() {
                Ok(true) => {}
                Ok(false) => {
                    full = true;
                    break;
                }
                Err(error) => panic!("the device breaks the rules: {error:?}"),
            }
            match transmitter.send(|space| net::receive(&mut input, space)) {
                Ok(true) => {}
                // What a lying switch wrote is gone.
                Ok(false) | Err(_) => {
                    more = false;
                    break;
                }
            }
        }
        transmitter.ring();
        if full {
            wait_for_device(interrupt);
        } else if !more
            && input.prepare_wait_since(position)
            && let Err(status) = work.wait(0)
        {
            panic!("cannot wait: {status:?}");
        }
    }
}

/// Waits until the device may have sent something.
fn wait_for_device(interrupt: Option<Semaphore>) {
    match interrupt {
        Some(interrupt) => _ = interrupt.wait(time::now() + time::ticks_from_ms(PATIENCE)),
        None => runtime::sync::sleep_until(time::now() + time::ticks_from_ms(POLL)),
    }
}
