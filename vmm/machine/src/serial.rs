//! The 16550A serial port.
//!
//! National Semiconductor PC16550D (June 1995), section 8 (registers, FIFO operation). The line has no speed: a byte
//! is on its way as soon as it is written. The transmitter shows itself busy only when the VMM's queue is full, so that
//! output is throttled and never lost. Received bytes wait outside and enter the FIFO as the guest makes room, so that
//! there is no overrun either.

use crate::byte_queue::ByteQueue;

/// First port of COM1.
pub const PORT: u16 = 0x3f8;
/// Ports of COM1.
pub const REGISTERS: u16 = 8;
/// The register at a port, if it is one of COM1's.
#[inline]
pub const fn register(port: u16) -> Option<u16> {
    let register = port.wrapping_sub(PORT);
    if register < REGISTERS { Some(register) } else { None }
}

/// Interrupt line of COM1.
pub const IRQ: u8 = 4;

/// Depth of the receive FIFO.
const FIFO: usize = 16;
/// Bytes of output that may wait for the VMM.
const OUTPUT: usize = 4096;
/// Bytes of input that may wait for the guest.
const INPUT: usize = 4096;

const IER_RECEIVED: u8 = 1;
const IER_TRANSMIT: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;

const IIR_NONE: u8 = 1;
const IIR_MODEM: u8 = 0;
const IIR_TRANSMIT: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_LINE: u8 = 6;
const IIR_TIMEOUT: u8 = 0xc;

const LCR_DIVISOR: u8 = 0x80;
const LCR_BREAK: u8 = 0x40;

const MCR_OUT2: u8 = 8;
const MCR_LOOPBACK: u8 = 0x10;

const LSR_READY: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_BREAK: u8 = 0x10;
const LSR_HOLDING_EMPTY: u8 = 0x20;
const LSR_IDLE: u8 = 0x40;
const LSR_FIFO_ERROR: u8 = 0x80;
const LSR_ERRORS: u8 = 0x1e;

/// Clear to send, data set ready, carrier: the other end is there.
const MODEM_PRESENT: u8 = 0xb0;

/// The serial port.
#[derive(Clone, Debug)]
pub struct Serial {
    ier: u8,
    lcr: u8,
    mcr: u8,
    fcr: u8,
    /// Error bits of the line status that were not read yet.
    errors: u8,
    modem_delta: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter became empty and the guest has not been told.
    transmit_pending: bool,
    /// The receive FIFO, or the one receive buffer.
    received: ByteQueue,
    /// A break comes after the bytes in the FIFO.
    break_next: bool,
    output: ByteQueue,
    input: ByteQueue,
}

impl Default for Serial {
    fn default() -> Self {
        Self {
            ier: 0,
            lcr: 0,
            mcr: 0,
            fcr: 0,
            errors: 0,
            modem_delta: 0,
            scratch: 0,
            divisor: 12,
            transmit_pending: false,
            received: ByteQueue::new(FIFO),
            break_next: false,
            output: ByteQueue::new(OUTPUT),
            input: ByteQueue::new(INPUT),
        }
    }
}

impl Serial {
    /// Power-on values. Output that the VMM has not taken and input that the guest has not seen stay queued.
    pub fn reset(&mut self) {
        let old = core::mem::take(self);
        self.output = old.output;
        self.input = old.input;
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & MCR_LOOPBACK != 0
    }

    fn trigger(&self) -> usize {
        match (self.fifo_enabled(), self.fcr >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// Moves waiting input to the receiver as far as there is room.
    fn refill(&mut self) {
        if self.loopback() {
            return;
        }
        let depth = if self.fifo_enabled() { FIFO } else { 1 };
        while self.received.len() < depth
            && let Some(byte) = self.input.pop()
        {
            self.received.push(byte);
        }
    }

    /// The pending interrupt with the highest priority, as in the interrupt identification register.
    fn identification(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.errors != 0 {
            IIR_LINE
        } else if self.ier & IER_RECEIVED != 0 && self.received.len() >= self.trigger() {
            IIR_RECEIVED
        } else if self.ier & IER_RECEIVED != 0 && !self.received.is_empty() {
            // On a line without speed, four character times have passed.
            IIR_TIMEOUT
        } else if self.ier & IER_TRANSMIT != 0 && self.transmit_pending {
            IIR_TRANSMIT
        } else if self.ier & IER_MODEM != 0 && self.modem_delta != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// The level of the interrupt line, which OUT2 gates on a PC.
    #[inline]
    pub fn interrupt(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOPBACK) == MCR_OUT2 && self.identification() != IIR_NONE
    }

    fn modem(&self) -> u8 {
        if !self.loopback() {
            return MODEM_PRESENT;
        }
        // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
        (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
    }

    /// Reads register 0 to 7.
    pub fn read(&mut self, register: u16) -> u8 {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match register {
            0 if divisor => self.divisor as u8,
            1 if divisor => (self.divisor >> 8) as u8,
            0 => {
                let byte = self.received.pop().unwrap_or(0);
                if self.received.is_empty() && core::mem::take(&mut self.break_next) {
                    self.receive_break();
                }
                self.refill();
                byte
            }
            1 => self.ier,
            2 => {
                let identification = self.identification();
                if identification == IIR_TRANSMIT {
                    self.transmit_pending = false;
                }
                identification | if self.fifo_enabled() { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let mut status = core::mem::take(&mut self.errors);
                if self.fifo_enabled() && status & LSR_ERRORS & !LSR_OVERRUN != 0 {
                    status |= LSR_FIFO_ERROR;
                }
                status | self.status()
            }
            6 => self.modem() | core::mem::take(&mut self.modem_delta),
            _ => self.scratch,
        }
    }

    /// As [`Serial::read`], of a register that nothing follows from reading; None for any other.
    #[inline]
    pub fn quiet_read(&self, register: u16) -> Option<u8> {
        match register {
            3 => Some(self.lcr),
            4 => Some(self.mcr),
            5 if self.errors == 0 => Some(self.status()),
            7 => Some(self.scratch),
            _ => None,
        }
    }

    /// As [`Serial::write`], if nothing follows from it but that the register has the value; false otherwise.
    #[inline]
    pub fn quiet_write(&mut self, register: u16, value: u8) -> bool {
        match register {
            3 if !self.loopback() => self.lcr = value,
            7 => self.scratch = value,
            _ => return false,
        }
        true
    }

    /// The line status beside errors.
    fn status(&self) -> u8 {
        let received = if self.received.is_empty() { 0 } else { LSR_READY };
        let sent = if self.output.room() == 0 { 0 } else { LSR_HOLDING_EMPTY | LSR_IDLE };
        received | sent
    }

    /// Writes register 0 to 7; whether a byte came into the output queue.
    pub fn write(&mut self, register: u16, value: u8) -> bool {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match register {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if divisor => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            0 => return self.transmit(value),
            1 => {
                if value & !self.ier & IER_TRANSMIT != 0 && self.output.room() != 0 {
                    // Enabling the interrupt while the holding register is empty raises it.
                    self.transmit_pending = true;
                }
                self.ier = value & 0xf;
            }
            2 => self.write_fifo_control(value),
            3 => {
                if value & !self.lcr & LCR_BREAK != 0 && self.loopback() {
                    self.receive_break();
                }
                self.lcr = value;
            }
            4 => {
                let before = self.modem();
                self.mcr = value & 0x1f;
                let after = self.modem();
                let changed = (before ^ after) >> 4;
                // Ring indicator: only its trailing edge counts.
                self.modem_delta |= changed & !4 | changed & before >> 4 & 4;
                self.refill();
            }
            7 => self.scratch = value,
            _ => {}
        }
        false
    }

    fn transmit(&mut self, byte: u8) -> bool {
        if self.loopback() {
            let depth = if self.fifo_enabled() { FIFO } else { 1 };
            if self.received.len() >= depth {
                self.errors |= LSR_OVERRUN;
            } else {
                self.received.push(byte);
            }
            self.transmit_pending = true;
            return false;
        }
        let taken = self.output.push(byte);
        // With the queue full, "empty" comes when the VMM has drained it.
        self.transmit_pending = self.output.room() != 0;
        taken
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (self.fcr ^ value) & 1 != 0;
        if toggled || value & 3 == 3 {
            self.received.clear();
            self.errors = 0;
            self.break_next = false;
        }
        // The other bits count only while the FIFOs are enabled.
        self.fcr = if value & 1 != 0 { value & 0xc9 } else { 0 };
        self.refill();
    }

    /// Output bytes that wait.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Takes output, oldest first.
    pub fn drain(&mut self, out: &mut [u8]) -> usize {
        let was_full = self.output.room() == 0;
        let taken = self.output.drain(out);
        if was_full && taken != 0 {
            self.transmit_pending = true;
        }
        taken
    }

    /// Offers received bytes; returns how many found room.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.input.extend(bytes);
        self.refill();
        taken
    }

    /// A break condition arrives behind what the receiver holds.
    pub fn receive_break(&mut self) {
        if !self.received.is_empty() {
            self.break_next = true;
        } else {
            self.received.push(0);
            self.errors |= LSR_BREAK;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn drained(serial: &mut Serial) -> Vec<u8> {
        let mut out = [0; 8192];
        let len = serial.drain(&mut out);
        out[..len].to_vec()
    }

    /// The steps of Linux's autoconfig() and its FIFO probe.
    #[test]
    fn linux_recognizes_a_16550a() {
        let mut serial = Serial::default();
        serial.write(1, 0);
        assert_eq!(serial.read(1) & 0xf, 0);
        serial.write(1, 0xf);
        assert_eq!(serial.read(1) & 0xf, 0xf);
        serial.write(1, 0);
        serial.write(4, MCR_LOOPBACK | 0x0a);
        assert_eq!(serial.read(6) & 0xf0, 0x90);
        serial.write(4, 0);
        serial.write(3, 0xbf);
        serial.write(2, 0);
        serial.write(3, 0);
        serial.write(2, 1);
        assert_eq!(serial.read(2) >> 6, 3);
        // No EFR, neither with DLAB nor with 0xbf; no 64-byte FIFO; no UUE bit; divisor latch 2 does not exist.
        for lcr in [0x80, 0xbf] {
            serial.write(3, lcr);
            assert_ne!(serial.read(2), 0);
        }
        serial.write(2, 0x21);
        assert_eq!(serial.read(2) & 0x20, 0);
        serial.write(3, 0);
        serial.write(1, 0x40);
        assert_eq!(serial.read(1), 0);
    }

    /// Linux's tests for the THRE and TXEN bugs when it opens the port.
    #[test]
    fn enabling_the_transmit_interrupt_raises_it_each_time() {
        let mut serial = Serial::default();
        serial.write(4, MCR_OUT2);
        for _ in 0..2 {
            serial.write(1, IER_TRANSMIT);
            assert!(serial.interrupt());
            assert_ne!(serial.read(5) & LSR_IDLE, 0);
            assert_eq!(serial.read(2), IIR_TRANSMIT);
            assert!(!serial.interrupt());
            assert_eq!(serial.read(2), IIR_NONE);
            serial.write(1, 0);
        }
    }

    #[test]
    fn a_full_queue_throttles_and_draining_wakes() {
        let mut serial = Serial::default();
        serial.write(4, MCR_OUT2);
        serial.write(1, IER_TRANSMIT);
        for index in 0..OUTPUT {
            assert_ne!(serial.read(5) & LSR_HOLDING_EMPTY, 0);
            assert!(serial.write(0, index as u8));
        }
        assert_eq!(serial.read(5) & (LSR_HOLDING_EMPTY | LSR_IDLE), 0);
        assert!(!serial.interrupt());
        assert!(!serial.write(0, 0xff));
        let out = drained(&mut serial);
        assert!(out.iter().enumerate().all(|(index, &byte)| byte == index as u8) && out.len() == OUTPUT);
        assert!(serial.interrupt());
    }

    #[test]
    fn receive_trigger_timeout_and_priorities() {
        let mut serial = Serial::default();
        serial.write(2, 0x81);
        serial.write(4, MCR_OUT2);
        serial.write(1, IER_RECEIVED | IER_TRANSMIT | IER_LINE);
        assert_eq!(serial.read(2) & 0xf, IIR_TRANSMIT);
        assert_eq!(serial.receive(b"0123456789abcdefghij"), 20);
        assert!(serial.interrupt());
        assert_eq!(serial.read(2) & 0xf, IIR_RECEIVED);
        let text: Vec<u8> = (0..13).map(|_| serial.read(0)).collect();
        assert_eq!(text, b"0123456789abc");
        assert_eq!(serial.read(2) & 0xf, IIR_TIMEOUT);
        serial.receive_break();
        assert_eq!(serial.read(2) & 0xf, IIR_TIMEOUT);
        while serial.read(5) & (LSR_READY | LSR_BREAK) == LSR_READY {
            serial.read(0);
        }
        assert_eq!(serial.read(0), 0);
        assert_eq!(serial.read(5), LSR_HOLDING_EMPTY | LSR_IDLE);
        assert!(!serial.interrupt());
    }

    #[test]
    fn loopback_comes_back_and_overruns() {
        let mut serial = Serial::default();
        serial.write(4, MCR_LOOPBACK);
        assert!(!serial.write(0, b'x'));
        serial.write(0, b'y');
        assert_eq!(serial.read(5) & (LSR_READY | LSR_OVERRUN), LSR_READY | LSR_OVERRUN);
        assert_eq!(serial.read(0), b'x');
        assert_eq!(serial.output_len(), 0);
        serial.receive(b"outside");
        assert_eq!(serial.read(5) & LSR_READY, 0);
        serial.write(4, 0);
        assert_eq!(serial.read(0), b'o');
    }

    #[test]
    fn divisor_scratch_and_reset() {
        let mut serial = Serial::default();
        serial.write(3, 0x83);
        serial.write(0, 1);
        serial.write(1, 2);
        assert_eq!((serial.read(0), serial.read(1)), (1, 2));
        serial.write(7, 0x5a);
        assert_eq!(serial.read(7), 0x5a);
        serial.write(3, 3);
        serial.write(0, b'k');
        serial.reset();
        assert_eq!((serial.read(7), serial.read(3)), (0, 0));
        assert_eq!(drained(&mut serial), b"k");
    }

    proptest! {
        /// Whatever the guest does to other registers, bytes pass in order, none is lost and none invented.
        #[test]
        fn bytes_pass_in_order(ops in prop::collection::vec((0u8..4, any::<u8>()), 0..500)) {
            let mut serial = Serial::default();
            serial.write(2, 1);
            let (mut sent, mut seen, mut given, mut read) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for (op, value) in ops {
                match op {
                    0 => if serial.write(0, value) { sent.push(value) },
                    1 => given.extend_from_slice(&[value][..serial.receive(&[value])]),
                    2 => if serial.read(5) & LSR_READY != 0 { read.push(serial.read(0)) },
                    _ => { serial.write(1, value); serial.read(2); seen.extend(drained(&mut serial)); }
                }
            }
            seen.extend(drained(&mut serial));
            while serial.read(5) & LSR_READY != 0 { read.push(serial.read(0)); }
            prop_assert_eq!(sent, seen);
            prop_assert_eq!(given, read);
        }
    }
}
