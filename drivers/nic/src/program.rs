//! The threads: two that share nothing, one for frames from the network, the other for frames from the switch.

use crate::{Misbehaviour, Receive, Transmit};
use abi::scd::Scd;
use runtime::channel::{Receiver, Sender};
use runtime::manifest::Role;
use runtime::net;
use runtime::sync::Semaphore;
use runtime::{log, thread, time};

/// Milliseconds between looks at a queue that has no interrupt.
const POLL: u64 = 1;
/// Milliseconds after which an interrupt that should have come is not waited for any longer.
const PATIENCE: u64 = 100;
/// Frames after which the switch, or the device, hears of them.
const BATCH: usize = 64;

/// The semaphores of a driver's interrupts: that of received frames, then that of sent ones.
pub fn interrupts() -> [Option<Semaphore>; 2] {
    let manifest = runtime::manifest();
    let interrupts = ["msi0", "msi1"].map(|name| Some(Semaphore::from_selector(manifest.interrupt(name)?.selector)));
    if interrupts.contains(&None) {
        log!("not enough interrupts: the device is looked at every millisecond");
    }
    interrupts
}

/// Serves a device that works, for ever. `mac` is its address, for the log.
pub fn serve<R: Receive + Send + 'static>(
    mac: Option<[u8; 6]>,
    receiver: R,
    transmitter: impl Transmit,
    [received, sent]: [Option<Semaphore>; 2],
) -> ! {
    let manifest = runtime::manifest();
    let Some(out) = manifest.ring("uplink.out", Role::Producer).and_then(Sender::from_entry) else {
        panic!("no ring uplink.out")
    };
    let Some(input) = manifest.ring("uplink.in", Role::Consumer) else { panic!("no ring uplink.in") };
    let work = Semaphore::from_selector(input.sel_data);
    let Some(input) = Receiver::from_entry(input) else { panic!("uplink.in is no ring") };
    match mac {
        Some([a, b, c, d, e, f]) => log!("ready, address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        None => log!("ready, without an address"),
    }
    let started = thread::spawn(Scd { budget: 10, priority: 110, cos: 0 }, move || receive(receiver, out, received));
    if let Err(status) = started {
        panic!("no second thread: {status:?}");
    }
    send(transmitter, input, work, sent)
}

fn checked<T>(result: Result<T, Misbehaviour>) -> T {
    match result {
        Ok(value) => value,
        Err(Misbehaviour) => panic!("the device breaks the rules"),
    }
}

/// Passes frames from the network to the switch, for ever.
fn receive(mut receiver: impl Receive, mut out: Sender, interrupt: Option<Semaphore>) {
    loop {
        let mut frames = 0;
        // A frame that finds the ring full, or its reader lying, is lost.
        while frames < BATCH && checked(receiver.next(|frame| _ = net::send(&mut out, frame))) {
            frames += 1;
        }
        out.notify();
        if !receiver.look_again() && frames < BATCH {
            wait_for_device(interrupt, 0);
        }
    }
}

/// Passes frames from the switch to the network, for ever.
fn send(mut transmitter: impl Transmit, mut input: Receiver, work: Semaphore, interrupt: Option<Semaphore>) -> ! {
    loop {
        let position = input.position();
        let (mut full, mut more) = (false, true);
        for _ in 0..BATCH {
            full = !checked(transmitter.can_send());
            // What a lying switch wrote is gone.
            more = full || transmitter.send(|space| net::receive(&mut input, space)) == Ok(true);
            if full || !more {
                break;
            }
        }
        transmitter.ring();
        if full {
            if !checked(transmitter.await_buffer()) {
                wait_for_device(interrupt, PATIENCE);
            }
        } else if !more
            && input.prepare_wait_since(position)
            && let Err(status) = work.wait(0)
        {
            panic!("cannot wait: {status:?}");
        }
    }
}

/// Waits until the device may have something to say: for `patience` milliseconds at most, 0 for ever.
fn wait_for_device(interrupt: Option<Semaphore>, patience: u64) {
    let after = |ms| time::now() + time::ticks_from_ms(ms);
    match interrupt {
        Some(interrupt) => {
            if let Err(status) = interrupt.wait(if patience == 0 { 0 } else { after(patience) }) {
                panic!("cannot wait: {status:?}");
            }
        }
        None => runtime::sync::sleep_until(after(POLL)),
    }
}
