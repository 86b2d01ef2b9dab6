//! Tells what devices tried that they may not do: an IOMMU keeps them from it, and the kernel says what it was.

use crate::authority::{self, selector};
use abi::Status;
use abi::scd::Scd;
use plan::PciAddress;
use roottask::pci::Fault;
use runtime::sync::{Semaphore, sleep_until};
use runtime::{log, syscall, thread, time};

/// Below all that serves somebody: a device that faults for ever takes nobody's time.
const SCD: Scd = Scd { budget: 10, priority: 20, cos: 0 };
/// Faults that are told of in one go; the others are counted.
const TOLD: u64 = 4;
/// Most faults that are collected in one go.
const ROUND: u64 = 256;
/// Milliseconds between two goes.
const PAUSE_MS: u64 = 1000;

/// Starts the thread that collects them.
pub fn start() -> Result<(), Status> {
    authority::take_faults()?;
    syscall::assign_int(selector::DMA_FAULTS, 0, runtime::manifest().cpu, 0)?;
    thread::spawn(SCD, || {
        let announced = Semaphore::from_selector(selector::DMA_FAULTS);
        while announced.wait(0).is_ok() {
            // Until there is no more the kernel announces nothing.
            while !collect() {
                sleep_until(time::now() + time::ticks_from_ms(PAUSE_MS));
            }
        }
    })?;
    Ok(())
}

/// Collects some and tells of them; whether there was no more.
fn collect() -> bool {
    for number in 0..ROUND {
        let Ok((what, address)) = syscall::fault() else { return true };
        let Some(fault) = Fault::read(what, address) else {
            if number > TOLD {
                log!("root: and {} more faults of devices", number - TOLD);
            }
            return true;
        };
        if number < TOLD {
            log!("root: pci {} {fault}", PciAddress::from_requester(fault.source));
        }
    }
    log!("root: and {} more faults of devices, at least", ROUND - TOLD);
    false
}
