//! Reads the CMOS clock once, so that programs can tell wall-clock time from the time counter.
#![allow(unsafe_code)]

use crate::authority;
use roottask::calendar::Registers;
use runtime::manifest::selector as own;
use runtime::{port, time};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Tries until two readings agree; an update takes 2 ms, a reading some microseconds.
const TRIES: usize = 10_000;

fn register(index: u8) -> u8 {
    // SAFETY: the CMOS clock touches no memory.
    unsafe {
        port::write(INDEX, index);
        port::read(DATA)
    }
}

fn registers() -> Registers {
    Registers {
        second: register(0x00),
        minute: register(0x02),
        hour: register(0x04),
        day: register(0x07),
        month: register(0x08),
        year: register(0x09),
        century: register(0x32),
        status_b: register(0x0b),
    }
}

/// Wall-clock time in nanoseconds since 1970 UTC and the time counter at that moment; 0 if there is no clock.
pub fn read() -> (u64, u64) {
    if authority::give_ports(own::PIO_SPACE, INDEX, 2).is_err() {
        return (0, time::now());
    }
    let mut before = registers();
    for _ in 0..TRIES {
        let updating = register(0x0a) & 0x80 != 0;
        let now = registers();
        if !updating && now == before {
            break;
        }
        before = now;
    }
    (before.unix_seconds().unwrap_or(0).saturating_mul(1_000_000_000), time::now())
}
