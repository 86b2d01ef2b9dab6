//! A 16550 UART at 115200 baud, 8N1, with its FIFOs (National Semiconductor PC16550D data sheet, 8.0).

/// The UART's eight registers.
pub trait Registers {
    /// Reads register `index`.
    fn read(&mut self, index: u16) -> u8;
    /// Writes register `index`.
    fn write(&mut self, index: u16, value: u8);
}

/// Bytes that the transmitter takes when it reports to be empty.
pub const FIFO: usize = 16;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
/// While the divisor latch is open, registers 0 and 1 hold the divisor.
const DIVISOR_OPEN: u8 = 1 << 7;
const EIGHT_BITS: u8 = 3;
const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_EMPTY: u8 = 1 << 1;
const FIFO_ENABLE: u8 = 1 << 0;
/// DTR, RTS, and OUT2, which connects the interrupt on PCs.
const MODEM_READY: u8 = 1 << 0 | 1 << 1 | 1 << 3;
const STATUS_RECEIVED: u8 = 1 << 0;
const STATUS_EMPTY: u8 = 1 << 5;
const STATUS_SENT: u8 = 1 << 6;
const STATUS_ABSENT: u8 = 0xff;

/// The UART behind these registers.
pub struct Uart<R>(R);

impl<R: Registers> Uart<R> {
    /// The UART; `None` if there is none. What is being sent goes on being sent.
    pub fn new(mut registers: R) -> Option<Self> {
        (registers.read(LINE_STATUS) != STATUS_ABSENT).then_some(Self(registers))
    }

    /// Sets line parameters and FIFOs, keeping received bytes. Only when [`Self::all_sent`].
    pub fn configure(&mut self) {
        let uart = &mut self.0;
        uart.write(INTERRUPT_ENABLE, 0);
        uart.write(LINE_CONTROL, DIVISOR_OPEN | EIGHT_BITS);
        uart.write(0, 1);
        uart.write(1, 0);
        uart.write(LINE_CONTROL, EIGHT_BITS);
        uart.write(FIFO_CONTROL, FIFO_ENABLE);
        uart.write(MODEM_CONTROL, MODEM_READY);
    }

    /// Whether everything has left the transmitter.
    pub fn all_sent(&mut self) -> bool {
        self.0.read(LINE_STATUS) & STATUS_SENT != 0
    }

    /// Whether [`FIFO`] bytes can be sent.
    pub fn can_send(&mut self) -> bool {
        self.0.read(LINE_STATUS) & STATUS_EMPTY != 0
    }

    /// Sends at most [`FIFO`] bytes, after [`Self::can_send`].
    pub fn send(&mut self, bytes: &[u8]) {
        for &byte in &bytes[..bytes.len().min(FIFO)] {
            self.0.write(DATA, byte);
        }
    }

    /// A received byte.
    pub fn receive(&mut self) -> Option<u8> {
        (self.0.read(LINE_STATUS) & STATUS_RECEIVED != 0).then(|| self.0.read(DATA))
    }

    /// Asks for interrupts: on received bytes, and on the empty transmitter if `sending`. A condition that holds
    /// already raises a new edge, because all are switched off in between.
    pub fn listen(&mut self, receiving: bool, sending: bool) {
        self.0.write(INTERRUPT_ENABLE, 0);
        let wanted = if receiving { ENABLE_RECEIVED } else { 0 } | if sending { ENABLE_EMPTY } else { 0 };
        self.0.write(INTERRUPT_ENABLE, wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[derive(Default)]
    struct Model {
        registers: [u8; 8],
        sent: Vec<u8>,
        received: Vec<u8>,
        divisor: u16,
    }

    impl Registers for &mut Model {
        fn read(&mut self, index: u16) -> u8 {
            match index {
                DATA => self.received.remove(0),
                LINE_STATUS => STATUS_EMPTY | STATUS_SENT | !self.received.is_empty() as u8,
                _ => self.registers[index as usize],
            }
        }
        fn write(&mut self, index: u16, value: u8) {
            match (index, self.registers[3] & DIVISOR_OPEN != 0) {
                (0, true) => self.divisor = self.divisor & 0xff00 | value as u16,
                (1, true) => self.divisor = self.divisor & 0xff | (value as u16) << 8,
                (0, false) => self.sent.push(value),
                _ => self.registers[index as usize] = value,
            }
        }
    }

    #[test]
    fn sends_and_receives() {
        let mut model = Model { received: b"xy".to_vec(), ..Model::default() };
        let mut uart = Uart::new(&mut model).unwrap();
        uart.configure();
        assert!(uart.can_send());
        uart.send(&[7; 20]);
        assert_eq!((uart.receive(), uart.receive(), uart.receive()), (Some(b'x'), Some(b'y'), None));
        uart.listen(true, false);
        assert_eq!(model.sent, [7; FIFO]);
        assert_eq!((model.divisor, model.registers[3], model.registers[1]), (1, EIGHT_BITS, ENABLE_RECEIVED));
    }

    #[test]
    fn an_absent_uart_is_noticed() {
        struct Nothing;
        impl Registers for Nothing {
            fn read(&mut self, _: u16) -> u8 {
                0xff
            }
            fn write(&mut self, _: u16, _: u8) {}
        }
        assert!(Uart::new(Nothing).is_none());
    }
}
