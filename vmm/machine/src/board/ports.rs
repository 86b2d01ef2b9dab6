//! Port accesses of the board: from the bus table to the devices.

use super::{Board, Effect, IRQ_TIMER};
use crate::bus::{PortDevice, Route, Width, route};
use crate::debug_port;
use crate::pic::Chip;
use crate::{exec_port, pm, rtc};

/// Whether an access to the device may change when the board needs service.
fn concerns_time(device: PortDevice) -> bool {
    use PortDevice::{Debug, Delay, Exec, PciAddress, PciData, Serial};
    !matches!(device, Serial | Delay | Exec | Debug | PciAddress | PciData)
}

impl Board {
    /// IN: the value in the low bits, ones where nobody answers. `width` is at most a double word.
    #[inline]
    pub fn io_read(&mut self, port: u16, width: Width, now: u64) -> u32 {
        match route(port, width) {
            // By far the most frequent one.
            Route::Whole(PortDevice::Serial, offset) => self.read_serial(offset).into(),
            other => self.read_routed(other, port, width, now),
        }
    }

    /// Reads a serial register, if nothing follows from it: no interrupt, no output, no other deadline.
    #[inline]
    pub fn quiet_read(&self, register: u16) -> Option<u8> {
        self.serial.quiet_read(register)
    }

    /// Writes a serial register, if nothing follows from it; false, and nothing is done, otherwise.
    #[inline]
    pub fn quiet_write(&mut self, register: u16, byte: u8) -> bool {
        self.serial.quiet_write(register, byte)
    }

    #[inline]
    fn read_serial(&mut self, offset: u16) -> u8 {
        let byte = self.serial.read(offset);
        self.wire_serial();
        byte
    }

    #[inline]
    fn write_serial(&mut self, offset: u16, byte: u8) -> Effect {
        let sent = self.serial.write(offset, byte);
        self.wire_serial();
        if sent { Effect::SerialOutput } else { Effect::None }
    }

    #[inline(never)]
    fn read_routed(&mut self, route: Route, port: u16, width: Width, now: u64) -> u32 {
        match route {
            Route::Whole(device, offset) => self.read_port(device, offset, width, now),
            Route::Split => (0..width.bytes() as u16).fold(0, |value, index| {
                let byte = match port.checked_add(index) {
                    Some(port) => self.io_read(port, Width::Byte, now),
                    None => 0xff,
                };
                value | byte << (8 * index)
            }),
            Route::Unclaimed => {
                self.unclaimed_ports.count(port.into(), false);
                width.ones() as u32
            }
        }
    }

    /// OUT.
    #[inline]
    pub fn io_write(&mut self, port: u16, width: Width, value: u32, now: u64) -> Effect {
        match route(port, width) {
            Route::Whole(PortDevice::Serial, offset) => self.write_serial(offset, value as u8),
            other => self.write_routed(other, port, width, value, now),
        }
    }

    #[inline(never)]
    fn write_routed(&mut self, route: Route, port: u16, width: Width, value: u32, now: u64) -> Effect {
        match route {
            Route::Whole(device, offset) => self.write_port(device, offset, width, value, now),
            Route::Split => (0..width.bytes() as u16).fold(Effect::None, |effect, index| {
                let byte = value >> (8 * index) & 0xff;
                match port.checked_add(index).map(|port| self.io_write(port, Width::Byte, byte, now)) {
                    None | Some(Effect::None) => effect,
                    Some(last) => last,
                }
            }),
            Route::Unclaimed => {
                self.unclaimed_ports.count(port.into(), true);
                Effect::None
            }
        }
    }

    fn read_port(&mut self, device: PortDevice, offset: u16, width: Width, now: u64) -> u32 {
        self.timing |= concerns_time(device);
        let odd = offset & 1 != 0;
        let byte = match device {
            PortDevice::PicMaster | PortDevice::PicSlave => {
                self.service_pit(now);
                let chip = if device == PortDevice::PicMaster { Chip::Master } else { Chip::Slave };
                let byte = self.pic.read(chip, odd);
                self.wire_external();
                byte
            }
            PortDevice::PicTrigger => self.pic.trigger(if odd { Chip::Slave } else { Chip::Master }),
            PortDevice::Pit => self.pit.read(offset, now),
            PortDevice::PortB => self.pit.read_port_b(now),
            PortDevice::KeyboardData => self.i8042.read_data(),
            PortDevice::KeyboardCommand => self.i8042.read_status(),
            PortDevice::PortA => self.i8042.read_port_a(),
            PortDevice::Rtc => {
                let byte = self.rtc.read(odd, now);
                self.wire(rtc::IRQ, self.rtc.interrupt());
                byte
            }
            PortDevice::Delay => 0xff,
            PortDevice::Serial => self.read_serial(offset),
            PortDevice::ResetControl => self.pm.read_reset_control(),
            PortDevice::Debug => debug_port::PRESENT,
            PortDevice::PciAddress => return self.pci.read_address(),
            PortDevice::PciData => return self.pci.read_data(offset, width),
            PortDevice::Pm => {
                let value = self.pm.read(offset, width.bytes(), now);
                self.wire(pm::SCI, self.pm.interrupt());
                return value;
            }
            PortDevice::Exec => return self.exec.read(offset, width.bytes()),
        };
        byte.into()
    }

    fn write_port(&mut self, device: PortDevice, offset: u16, width: Width, value: u32, now: u64) -> Effect {
        self.timing |= concerns_time(device);
        let (odd, byte) = (offset & 1 != 0, value as u8);
        match device {
            PortDevice::PicMaster | PortDevice::PicSlave => {
                self.service_pit(now);
                let chip = if device == PortDevice::PicMaster { Chip::Master } else { Chip::Slave };
                self.pic.write(chip, odd, byte);
                self.wire_external();
            }
            PortDevice::PicTrigger => {
                self.pic.set_trigger(if odd { Chip::Slave } else { Chip::Master }, byte);
                self.wire_external();
            }
            PortDevice::Pit => {
                self.service_pit(now);
                self.pit.write(offset, byte, now);
                self.wire(IRQ_TIMER, self.pit.output(now));
            }
            PortDevice::PortB => self.pit.write_port_b(byte, now),
            PortDevice::KeyboardData => return self.i8042.write_data(byte).into(),
            PortDevice::KeyboardCommand => return self.i8042.write_command(byte).into(),
            PortDevice::PortA => return self.i8042.write_port_a(byte).into(),
            PortDevice::Rtc => {
                self.rtc.write(odd, byte, now);
                self.wire(rtc::IRQ, self.rtc.interrupt());
            }
            PortDevice::Delay => {}
            PortDevice::Serial => return self.write_serial(offset, byte),
            PortDevice::ResetControl => return self.pm.write_reset_control(byte).into(),
            PortDevice::Debug => {
                self.debug.write(byte);
                return Effect::DebugOutput;
            }
            PortDevice::PciAddress => self.pci.write_address(value),
            PortDevice::PciData => {
                let wakes = self.pci.write_data(offset, width, value);
                self.wakes = self.wakes.union(wakes);
            }
            PortDevice::Pm => {
                let request = self.pm.write(offset, width.bytes(), value, now);
                self.wire(pm::SCI, self.pm.interrupt());
                return request.into();
            }
            PortDevice::Exec => return self.write_exec(offset, width, value),
        }
        Effect::None
    }

    fn write_exec(&mut self, offset: u16, width: Width, value: u32) -> Effect {
        match (offset + exec_port::PORT, width) {
            (exec_port::PORT, _) => {
                value.to_le_bytes()[..width.bytes().min(4)].iter().for_each(|&byte| self.exec.write(byte));
                if self.exec.is_empty() { Effect::None } else { Effect::ExecOutput }
            }
            (exec_port::MARK_PORT, Width::Dword) => Effect::Mark(value),
            _ => Effect::None,
        }
    }
}
