//! Interrupt semaphores (4.1.2.11, 6.1.3.1), and a device that raises an interrupt when it is told to.

use super::console::{allow, input, output};
use super::semaphore::Semaphore;
use super::{acpi, root, selector};
use crate::report::{Stop, must};
use crate::spec::{Selector, perm};

/// First selector of interrupt semaphores in the NOVA object space.
const FIRST: Selector = 1 << 16;

/// The semaphore of a pin.
#[track_caller]
pub fn semaphore(pin: u64) -> Result<Semaphore, Stop> {
    let sm = selector();
    must(root::from_nova(FIRST + pin, sm, perm::ALL))?;
    Ok(Semaphore(sm))
}

/// The pin of ISA interrupt `number` (ACPI 6.5, 5.2.12.5).
pub fn pin_of(number: u8) -> u64 {
    let mut pin = u64::from(number);
    let madt = acpi::find(b"APIC").unwrap_or_default();
    let mut rest = madt.get(44..).unwrap_or_default();
    while let Some([kind, length, bus, source, g0, g1, ..]) = rest.first_chunk::<8>().copied() {
        if (kind, bus, source) == (2, 0, number) {
            pin = u64::from(u16::from_le_bytes([g0, g1]));
        }
        rest = rest.get(usize::from(length.max(2))..).unwrap_or_default();
    }
    pin
}

/// COM2, which nobody uses: its interrupt is raised while it has nothing to send, until its cause has been read.
pub struct Uart;

impl Uart {
    /// Its first port.
    pub const BASE: u16 = 0x2f8;
    const CAUSE: u16 = Self::BASE + 2;

    /// It, silent, and the semaphore of its interrupt.
    #[track_caller]
    pub fn new() -> Result<(Self, Semaphore), Stop> {
        allow(Self::BASE, 3)?;
        if input(Self::BASE + 5) == 0xff {
            return Err(Stop::Skipped("there is no COM2"));
        }
        // OUT2 opens the way to the interrupt controller.
        output(Self::BASE + 4, 8);
        Self.lower();
        Ok((Self, semaphore(pin_of(3))?))
    }

    /// Raises the interrupt, if it was not.
    pub fn raise(&self) {
        output(Self::BASE + 1, 0);
        output(Self::BASE + 1, 2);
    }

    /// Stops it.
    pub fn lower(&self) {
        output(Self::BASE + 1, 0);
        input(Self::CAUSE);
    }
}
