//! ACPI fixed hardware: PM1a event and control blocks, the power-management timer, the reset register.
//!
//! ACPI 6.5, 4.8.2 (PM1 registers), 4.8.2.1.4 (PM timer), 4.8.3.6 (reset register). The machine is always in ACPI mode:
//! there is no SMI command port (FADT SMI_CMD = 0) and SCI_EN reads as one. Reset control at 0xcf9: ICH9 datasheet,
//! 13.7.5.

use crate::clock::Clock;

/// First port of the PM1a event block (4 bytes: status, enable), for the FADT.
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a control block (2 bytes).
pub const PM1A_CONTROL: u16 = 0x604;
/// PM timer (4 bytes, 32-bit: set TMR_VAL_EXT).
pub const PM_TIMER: u16 = 0x608;
/// Reset register and the value that resets.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there.
pub const RESET_VALUE: u8 = 0x06;
/// System control interrupt: global system interrupt 9, level, active high (MADT override flags 0x000d).
pub const SCI: u8 = 9;
/// SLP_TYPa for \_S5.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The PM timer's frequency.
pub const HERTZ: u64 = 3_579_545;

const TIMER_STATUS: u16 = 1;
const GLOBAL_STATUS: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC_STATUS: u16 = 1 << 10;
const WAKE_STATUS: u16 = 1 << 15;
/// Events that can be enabled.
const EVENTS: u16 = TIMER_STATUS | GLOBAL_STATUS | POWER_BUTTON | SLEEP_BUTTON | RTC_STATUS;

const SCI_ENABLE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Bus-master reload, sleep type: bits that keep what was written.
const CONTROL_KEPT: u16 = 0x1c02;

/// What a write asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Request {
    /// Nothing.
    None,
    /// Soft-off.
    PowerOff,
    /// Reset of the machine.
    Reset,
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Pm {
    clock: Clock,
    status: u16,
    enable: u16,
    control: u16,
    reset_control: u8,
    /// Changes of the timer's highest bit that were looked at.
    seen_carry: u128,
}

impl Pm {
    /// Power-on values.
    pub fn new(clock: Clock, now: u64) -> Self {
        let mut pm = Self { clock, status: 0, enable: 0, control: 0, reset_control: 0, seen_carry: 0 };
        pm.seen_carry = pm.carry(now);
        pm
    }

    /// Values after RESET.
    pub fn reset(&mut self, now: u64) {
        *self = Self::new(self.clock, now);
    }

    fn count(&self, now: u64) -> u128 {
        self.clock.count(now, HERTZ)
    }

    fn carry(&self, now: u64) -> u128 {
        self.count(now) >> 31
    }

    /// Sets the timer's status when its highest bit has changed.
    pub fn advance(&mut self, now: u64) {
        let carry = self.carry(now);
        if carry > self.seen_carry {
            self.status |= TIMER_STATUS;
        }
        self.seen_carry = carry;
    }

    /// When the timer's highest bit changes next, if that interrupts.
    pub fn next_deadline(&self) -> Option<u64> {
        let wanted = self.enable & TIMER_STATUS != 0 && self.status & TIMER_STATUS == 0;
        wanted.then(|| self.clock.ticks((self.seen_carry + 1) << 31, HERTZ))
    }

    /// The level of the system control interrupt.
    pub fn interrupt(&self) -> bool {
        self.status & self.enable & EVENTS != 0
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// Reads the byte at an offset from [`PM1A_EVENT`]. For the timer use [`Pm::read_timer`].
    fn read_byte(&mut self, offset: u16, now: u64) -> u8 {
        let word = match offset & !1 {
            0 => {
                self.advance(now);
                self.status
            }
            2 => self.enable,
            4 => self.control | SCI_ENABLE,
            8 => self.read_timer(now) as u16,
            10 => (self.read_timer(now) >> 16) as u16,
            _ => 0,
        };
        word.to_le_bytes()[usize::from(offset & 1)]
    }

    /// The PM timer.
    pub fn read_timer(&self, now: u64) -> u32 {
        self.count(now) as u32
    }

    /// Reads `bytes` bytes at an offset from [`PM1A_EVENT`].
    pub fn read(&mut self, offset: u16, bytes: usize, now: u64) -> u32 {
        if offset == PM_TIMER - PM1A_EVENT && bytes == 4 {
            return self.read_timer(now);
        }
        (0..bytes as u16).fold(0, |value, index| value | u32::from(self.read_byte(offset + index, now)) << (8 * index))
    }

    /// Writes `bytes` bytes at an offset from [`PM1A_EVENT`].
    pub fn write(&mut self, offset: u16, bytes: usize, value: u32, now: u64) -> Request {
        self.advance(now);
        for index in 0..bytes as u16 {
            let (at, byte) = (offset + index, (value >> (8 * index)) as u8);
            let shift = 8 * (at & 1);
            let (bits, others) = (u16::from(byte) << shift, !(0xff << shift));
            match at & !1 {
                0 => self.status &= !bits,
                2 => self.enable = (self.enable & others | bits) & EVENTS,
                4 => {
                    self.control = (self.control & others | bits) & CONTROL_KEPT;
                    let sleep_type = (self.control >> 10 & 7) as u8;
                    if bits & SLEEP_ENABLE != 0 {
                        if sleep_type == SLEEP_TYPE_S5 {
                            return Request::PowerOff;
                        }
                        // No other sleep state exists: awake again at once.
                        self.status |= WAKE_STATUS;
                    }
                }
                _ => {}
            }
        }
        Request::None
    }

    /// Reads the reset control register.
    pub fn read_reset_control(&self) -> u8 {
        self.reset_control
    }

    /// Writes the reset control register: a rising bit 2 resets.
    pub fn write_reset_control(&mut self, value: u8) -> Request {
        let rises = value & !self.reset_control & 4 != 0;
        self.reset_control = value & 0xe;
        if rises { Request::Reset } else { Request::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOCK: Clock = Clock::new(2_000_000_000);

    #[test]
    fn power_off_and_reset() {
        let mut pm = Pm::new(CLOCK, 0);
        assert_eq!(pm.read(4, 2, 0), 1);
        // Linux writes the type first, then type and enable.
        assert_eq!(pm.write(4, 2, 5 << 10 | 1, 0), Request::None);
        assert_eq!(pm.write(4, 2, 5 << 10 | 1 << 13 | 1, 0), Request::PowerOff);
        let mut pm = Pm::new(CLOCK, 0);
        assert_eq!(pm.write(4, 2, 1 << 13, 0), Request::None);
        assert_eq!(pm.read(0, 2, 0), 0x8000);
        assert_eq!(pm.write_reset_control(2), Request::None);
        assert_eq!(pm.write_reset_control(RESET_VALUE), Request::Reset);
        assert_eq!(pm.write_reset_control(RESET_VALUE), Request::None);
    }

    #[test]
    fn the_power_button_interrupts_until_acknowledged() {
        let mut pm = Pm::new(CLOCK, 0);
        assert_eq!(pm.write(2, 2, 0xffff, 0), Request::None);
        assert_eq!(pm.read(2, 2, 0), EVENTS.into());
        pm.press_power_button();
        assert!(pm.interrupt());
        assert_eq!(pm.read(0, 4, 0), u32::from(EVENTS) << 16 | 0x100);
        assert_eq!(pm.write(0, 2, 0x100, 0), Request::None);
        assert!(!pm.interrupt());
    }

    #[test]
    fn the_timer_carries() {
        let mut pm = Pm::new(CLOCK, 0);
        assert_eq!(pm.next_deadline(), None);
        assert_eq!(pm.write(2, 2, 1, 0), Request::None);
        let due = pm.next_deadline().unwrap();
        pm.advance(due - 1);
        assert!(!pm.interrupt());
        pm.advance(due);
        assert!(pm.interrupt());
        assert_eq!(pm.read(8, 4, due), 0x8000_0000);
        assert_eq!((pm.read(10, 2, due), pm.read(11, 1, due)), (0x8000, 0x80));
        assert_eq!(pm.next_deadline(), None);
    }

    proptest! {
        #[test]
        fn the_timer_never_drifts(frequency in 1_000_000u64..5_000_000_000, seconds in 0u64..1_000_000_000) {
            let pm = Pm::new(Clock::new(frequency), 0);
            prop_assert_eq!(pm.read_timer(frequency * seconds), (HERTZ * seconds) as u32);
        }

        #[test]
        fn any_sequence_is_safe(ops in prop::collection::vec((0u16..12, 1usize..5, any::<u32>(), any::<u64>()), 0..200)) {
            let mut pm = Pm::new(CLOCK, 0);
            for (offset, bytes, value, now) in ops {
                pm.read(offset, bytes, now);
                let _ = pm.write(offset, bytes, value, now);
                pm.next_deadline();
            }
        }
    }
}
