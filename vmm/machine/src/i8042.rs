//! The keyboard controller, with nothing plugged in, and system control port A.
//!
//! Intel 8042 as in the IBM PC AT Technical Reference (6280070), "Keyboard Controller". It passes its self-test, reports
//! no devices, and pulses the reset line: the way in which PCs were reset before ACPI. Port 0x92: ICH9 datasheet,
//! 13.7.3.

use crate::pm::Request;

const STATUS_OUTPUT: u8 = 1;
const STATUS_SYSTEM: u8 = 4;
const STATUS_COMMAND: u8 = 8;
const STATUS_NOT_LOCKED: u8 = 0x10;
const STATUS_AUXILIARY: u8 = 0x20;
const STATUS_TIMEOUT: u8 = 0x40;

/// What a write to the data port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Keyboard,
    Configuration,
    OutputPort,
    LoopKeyboard,
    LoopAuxiliary,
    Auxiliary,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct I8042 {
    configuration: u8,
    output_port: u8,
    /// The output buffer, with the status bits that belong to the byte.
    output: Option<(u8, u8)>,
    last_was_command: bool,
    expect: Expect,
    port_a: u8,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            // Both interfaces disabled, no interrupts, system flag.
            configuration: 0x34,
            // A20 open, reset line high.
            output_port: 0xc3,
            output: None,
            last_was_command: false,
            expect: Expect::Keyboard,
            port_a: 2,
        }
    }
}

impl I8042 {
    /// Power-on values.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Reads port 0x64.
    pub fn read_status(&self) -> u8 {
        let output = self.output.map_or(0, |(_, status)| status | STATUS_OUTPUT);
        let command = if self.last_was_command { STATUS_COMMAND } else { 0 };
        output | command | STATUS_SYSTEM | STATUS_NOT_LOCKED
    }

    /// Reads port 0x60.
    pub fn read_data(&mut self) -> u8 {
        self.output.take().map_or(0, |(byte, _)| byte)
    }

    /// Writes port 0x64.
    pub fn write_command(&mut self, command: u8) -> Request {
        self.last_was_command = true;
        self.expect = Expect::Keyboard;
        match command {
            0x20 => self.output = Some((self.configuration, 0)),
            0x60 => self.expect = Expect::Configuration,
            // Disable and enable the auxiliary interface, test it (1: clock line stuck low: there is none).
            0xa7 => self.configuration |= 0x20,
            0xa8 => self.configuration &= !0x20,
            0xa9 => self.output = Some((1, 0)),
            0xaa => self.output = Some((0x55, 0)),
            0xab => self.output = Some((0, 0)),
            0xad => self.configuration |= 0x10,
            0xae => self.configuration &= !0x10,
            0xd0 => self.output = Some((self.output_port, 0)),
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::LoopKeyboard,
            0xd3 => self.expect = Expect::LoopAuxiliary,
            0xd4 => self.expect = Expect::Auxiliary,
            // Pulse the lines of the output port whose bits are clear; bit 0 is reset.
            0xf0..=0xff if command & 1 == 0 => return Request::Reset,
            _ => {}
        }
        Request::None
    }

    /// Writes port 0x60.
    pub fn write_data(&mut self, byte: u8) -> Request {
        self.last_was_command = false;
        match core::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Configuration => self.configuration = byte & 0x77,
            Expect::OutputPort => {
                self.output_port = byte;
                if byte & 1 == 0 {
                    return Request::Reset;
                }
            }
            Expect::LoopKeyboard => self.output = Some((byte, 0)),
            Expect::LoopAuxiliary => self.output = Some((byte, STATUS_AUXILIARY)),
            // Nobody answers: 0xfe with the time-out bit.
            Expect::Keyboard => self.output = Some((0xfe, STATUS_TIMEOUT)),
            Expect::Auxiliary => self.output = Some((0xfe, STATUS_TIMEOUT | STATUS_AUXILIARY)),
        }
        Request::None
    }

    /// Reads port 0x92.
    pub fn read_port_a(&self) -> u8 {
        self.port_a
    }

    /// Writes port 0x92: bit 0 rising resets, bit 1 opens A20 (which is always open).
    pub fn write_port_a(&mut self, value: u8) -> Request {
        let rises = value & !self.port_a & 1 != 0;
        self.port_a = value & 3;
        if rises { Request::Reset } else { Request::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_linux_probes() {
        let mut controller = I8042::default();
        assert_eq!(controller.read_status() & 3, 0);
        assert_eq!(controller.write_command(0xaa), Request::None);
        assert_eq!(controller.read_status() & STATUS_OUTPUT, STATUS_OUTPUT);
        assert_eq!(controller.read_data(), 0x55);
        assert_eq!(controller.read_status() & STATUS_OUTPUT, 0);
        assert_eq!(controller.write_command(0x60), Request::None);
        assert_eq!(controller.write_data(0x65), Request::None);
        assert_eq!(controller.write_command(0x20), Request::None);
        assert_eq!(controller.read_data(), 0x65);
        assert_eq!(controller.write_command(0xd3), Request::None);
        assert_eq!(controller.write_data(0x5a), Request::None);
        assert_eq!(controller.read_status() & (STATUS_AUXILIARY | STATUS_OUTPUT), STATUS_AUXILIARY | STATUS_OUTPUT);
        assert_eq!(controller.read_data(), 0x5a);
        assert_eq!(controller.write_data(0xf2), Request::None);
        assert_eq!(controller.read_status() & STATUS_TIMEOUT, STATUS_TIMEOUT);
        assert_eq!(controller.read_data(), 0xfe);
    }

    #[test]
    fn resets() {
        let mut controller = I8042::default();
        assert_eq!(controller.write_command(0xff), Request::None);
        assert_eq!(controller.write_command(0xfe), Request::Reset);
        assert_eq!(controller.write_command(0xd1), Request::None);
        assert_eq!(controller.write_data(0xfe), Request::Reset);
        assert_eq!(controller.write_port_a(2), Request::None);
        assert_eq!(controller.write_port_a(3), Request::Reset);
        controller.reset();
        assert_eq!(controller.read_port_a(), 2);
    }
}
