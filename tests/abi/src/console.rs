//! COM1, which a root task takes from the NOVA PIO space as any other program must (6.1.3.3).
#![allow(unsafe_code)]

use core::arch::asm;
use core::fmt;

use crate::hypercall::{Delegation, ctrl_pd};
use crate::report::{Outcome, must};
use crate::root;
use crate::spec::perm;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
const INTERRUPTS: u16 = COM1 + 1;
const LINE_CONTROL: u16 = COM1 + 3;
const LINE_STATUS: u16 = COM1 + 5;
const DIVISOR: u8 = 1 << 7;
const EIGHT_BITS: u8 = 3;
const ACCEPTS: u8 = 1 << 5;
const SENT: u8 = 1 << 6;
/// Looks at the line status before the UART is taken for absent.
const PATIENCE: usize = 1_000_000;

/// Reads a port; without authority over it that raises #GP.
pub fn input(port: u16) -> u8 {
    let value;
    // SAFETY: the tests use only ports whose reading does nothing to memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a port; without authority over it that raises #GP.
pub fn output(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads four bytes of a port.
pub fn input_long(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Takes 2 to the power of `order` ports from the NOVA PIO space.
#[track_caller]
pub fn allow(port: u16, order: u64) -> Outcome {
    let port = u64::from(port);
    must(ctrl_pd(&Delegation {
        src: root::NOVA_PIO,
        dst: root::PIO,
        ssb: port,
        dsb: port,
        order,
        mask: perm::A,
        mad: 0,
    }))
}

fn await_status(bits: u8) {
    for _ in 0..PATIENCE {
        if input(LINE_STATUS) & bits == bits {
            break;
        }
    }
}

/// Sets up the UART: 115200 baud, 8N1. The ports must be accessible.
pub fn open() {
    await_status(SENT);
    for (port, value) in
        [(INTERRUPTS, 0), (LINE_CONTROL, DIVISOR), (COM1, 1), (INTERRUPTS, 0), (LINE_CONTROL, EIGHT_BITS)]
    {
        output(port, value);
    }
}

/// Waits until everything has left.
pub fn drain() {
    await_status(SENT | ACCEPTS);
}

/// The console as a writer.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                await_status(ACCEPTS);
                output(COM1, b'\r');
            }
            await_status(ACCEPTS);
            output(COM1, byte);
        }
        Ok(())
    }
}

/// Writes a line on the console.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::console::Console, $($text)*);
    }};
}
