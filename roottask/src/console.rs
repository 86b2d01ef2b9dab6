//! Where the root task's lines go: to COM1 directly until the serial program has it, then to a ring.
//!
//! Writing never waits for the serial program: what does not fit into the ring is kept here and sent by the main
//! thread when there is space.
#![allow(unsafe_code)]

use crate::authority::{self, selector};
use alloc::collections::VecDeque;
use runtime::channel::Sender;
use runtime::manifest::selector as own;
use runtime::sync::Mutex;
use runtime::{port, time};

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// First port of COM2.
pub const COM2: u16 = 0x2f8;
/// Ports of a UART.
pub const PORTS: u16 = 8;
const DATA: u16 = 0;
const INTERRUPTS: u16 = 1;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
/// Line control: the first two ports are the divisor.
const DIVISOR: u8 = 1 << 7;
/// Line control: eight bits, no parity, one stop bit.
const EIGHT_BITS: u8 = 3;
/// Line status: the transmitter accepts a byte.
const ACCEPTS: u8 = 1 << 5;
/// Line status: everything has left the transmitter.
const SENT: u8 = 1 << 6;
/// Looks at the line status before a byte is given up: the machine may have no UART.
const PATIENCE: usize = 100_000;
/// Bytes kept for the ring; what exceeds them is lost, and a line says so.
const BACKLOG: usize = 64 << 10;

struct Output {
    ring: Option<Sender>,
    backlog: VecDeque<u8>,
    lost: usize,
}

static OUTPUT: Mutex<Output> =
    Mutex::new(Output { ring: None, backlog: VecDeque::new(), lost: 0 }, selector::LOCK_CONSOLE);

/// Takes COM1 from the kernel, which thereby stops using it, and sends the log there: 115200 baud, 8N1. A kernel need
/// not have used the UART before.
pub fn open() -> Result<(), abi::Status> {
    authority::give_ports(own::PIO_SPACE, COM1, PORTS)?;
    await_status(SENT);
    let settings = [(INTERRUPTS, 0), (LINE_CONTROL, DIVISOR), (DATA, 1), (INTERRUPTS, 0), (LINE_CONTROL, EIGHT_BITS)];
    for (register, value) in settings {
        // SAFETY: the UART touches no memory.
        unsafe { port::write(COM1 + register, value) };
    }
    Ok(())
}

/// Sends further lines to the serial program.
pub fn use_ring(ring: Sender) {
    let mut output = OUTPUT.lock();
    output.backlog.reserve(BACKLOG);
    output.ring = Some(ring);
}

/// Writes the last line of all. It goes the way of those before it, so that they do not mix, unless nobody takes it:
/// then COM1 gets it, and what is left, directly.
pub fn write_last(line: &str) {
    write(line);
    if !taken() {
        use_port();
        write_regardless(line);
    }
}

/// Waits until the serial program has taken everything; whether it has. It may be why these are the last words.
fn taken() -> bool {
    const PATIENCE_MS: u64 = 200;
    let mut last = usize::MAX;
    let mut deadline = 0;
    loop {
        let waiting = {
            let mut output = OUTPUT.lock();
            output.push();
            let Some(ring) = &output.ring else { return true };
            output.backlog.len() + ring.backlog()
        };
        if waiting == 0 {
            return true;
        }
        if waiting != last {
            (last, deadline) = (waiting, time::now() + time::ticks_from_ms(PATIENCE_MS));
        }
        if time::now() >= deadline {
            return false;
        }
        runtime::sync::sleep_until(time::now() + time::ticks_from_ms(5));
    }
}

/// Sends further lines, and those that are still waiting here, to COM1 directly.
fn use_port() {
    let mut output = OUTPUT.lock();
    output.ring = None;
    while let Some(byte) = output.backlog.pop_front() {
        send(byte);
    }
}

/// Waits, as long as patience lasts, until the line status has one of these bits.
fn await_status(bits: u8) {
    for _ in 0..PATIENCE {
        // SAFETY: the UART touches no memory.
        if unsafe { port::read(COM1 + LINE_STATUS) } & bits != 0 {
            break;
        }
        core::hint::spin_loop();
    }
}

fn send(byte: u8) {
    await_status(ACCEPTS);
    // SAFETY: the UART touches no memory.
    unsafe { port::write(COM1, byte) };
}

/// Writes one line.
pub fn write(line: &str) {
    let mut output = OUTPUT.lock();
    if output.ring.is_none() {
        for byte in line.bytes().chain(*b"\r\n") {
            send(byte);
        }
        return;
    }
    if output.backlog.len() + line.len() + 1 > BACKLOG {
        output.lost += 1;
        return;
    }
    output.backlog.extend(line.bytes().chain(*b"\n"));
    output.push();
}

/// Writes to COM1 whatever holds the lock: for last words.
pub fn write_regardless(line: &str) {
    for byte in line.bytes().chain(*b"\r\n") {
        send(byte);
    }
}

/// Sends what waits, as far as there is space.
pub fn flush() {
    OUTPUT.lock().push();
}

impl Output {
    fn push(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        while !self.backlog.is_empty() {
            match ring.send(self.backlog.as_slices().0) {
                Ok(0) | Err(_) => {
                    // The ring's space semaphore is the main thread's: it will flush.
                    if ring.prepare_wait() {
                        return;
                    }
                    if ring.space().is_err() {
                        return;
                    }
                }
                Ok(count) => drop(self.backlog.drain(..count)),
            }
        }
    }
}

/// Whether lines wait for the serial program.
pub fn pending() -> bool {
    !OUTPUT.lock().backlog.is_empty()
}

/// Waits until the UART at `base` has sent everything, at most `ms` milliseconds.
pub fn drain_uart(base: u16, ms: u64) {
    /// Looks, a millisecond apart, that must all find the UART idle: between two fillings of its buffer it is, too.
    const LOOKS: u32 = 10;
    let end = time::now() + time::ticks_from_ms(ms);
    let mut idle = 0;
    while idle < LOOKS && time::now() < end {
        // SAFETY: the UART touches no memory.
        let status = unsafe { port::read(base + LINE_STATUS) };
        idle = if status & SENT != 0 { idle + 1 } else { 0 };
        runtime::sync::sleep_until(time::now() + time::ticks_from_ms(1));
    }
}
