//! The I/O APIC: 24 pins, level and edge, with an EOI register.
//!
//! Intel 82093AA (290566-001), chapter 3, for the register file; version 0x20 and its EOI register after the I/O
//! controller hub's (Intel ICH9 datasheet, 13.5). A pin's polarity is not modelled: devices state whether they assert
//! the line.

use crate::bus::Width;
use crate::interrupt::{Delivery, Destination, Message};

/// Guest-physical address of the register page.
pub const BASE: u64 = 0xfec0_0000;
/// Size of the register page in bytes.
pub const SIZE: u64 = 0x1000;
/// Number of pins.
pub const PINS: u8 = 24;

/// Offset of the register that selects others.
pub const REGISTER_SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Vector, modes, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// The I/O APIC's registers and the levels of its pins.
#[derive(Clone, Debug)]
pub struct Ioapic {
    id: u32,
    select: u8,
    entries: [u64; PINS as usize],
    /// One bit for each pin: the line is asserted.
    lines: u32,
}

impl Default for Ioapic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; PINS as usize], lines: 0 }
    }
}

impl Ioapic {
    /// Whether a pin could pass an interrupt on at all.
    pub fn is_masked(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_none_or(|entry| entry & MASKED != 0)
    }

    /// Whether a pin is unmasked and programmed to pass the 8259A's interrupts.
    pub fn passes_external(&self, pin: u8) -> bool {
        !self.is_masked(pin) && self.entries[usize::from(pin)] >> 8 & 7 == 7
    }

    /// Sets a line's level; the interrupt that this makes, if any, is to be delivered.
    #[must_use]
    pub fn set_line(&mut self, pin: u8, asserted: bool) -> Option<Message> {
        if pin >= PINS {
            return None;
        }
        let rises = asserted && self.lines & 1 << pin == 0;
        self.lines = self.lines & !(1 << pin) | u32::from(asserted) << pin;
        let entry = self.entries[usize::from(pin)];
        if entry & LEVEL != 0 {
            self.service_level(pin)
        } else if rises && entry & MASKED == 0 {
            // An edge on a masked pin is lost (82093AA, 3.2.4, interrupt mask).
            Some(message(entry))
        } else {
            None
        }
    }

    /// A level-triggered pin sends when its line is asserted and the previous interrupt has ended.
    fn service_level(&mut self, pin: u8) -> Option<Message> {
        let entry = &mut self.entries[usize::from(pin)];
        if self.lines & 1 << pin == 0 || *entry & LEVEL == 0 || *entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        let message = message(*entry);
        if matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority) {
            *entry |= REMOTE_IRR;
        }
        Some(message)
    }

    /// An end of interrupt for `vector`, from a LAPIC or the EOI register. Lines still asserted interrupt again.
    pub fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(Message)) {
        for pin in 0..PINS {
            let entry = &mut self.entries[usize::from(pin)];
            if *entry & REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                if let Some(message) = self.service_level(pin) {
                    send(message);
                }
            }
        }
    }

    /// Reads at an offset in the page.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset {
            REGISTER_SELECT => self.select.into(),
            WINDOW => self.read_register(),
            _ => 0,
        };
        u64::from(value) & width.ones()
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0 | 2 => self.id << 24,
            1 => VERSION,
            index @ 0x10..=0x3f => {
                let entry = self.entries[usize::from((index - 0x10) >> 1)];
                if index & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    /// Writes the register that selects others, from which nothing follows.
    #[inline]
    pub fn select(&mut self, value: u64) {
        self.select = value as u8;
    }

    /// Writes at an offset in the page; interrupts that become possible are given to `send`.
    pub fn write(&mut self, offset: u64, width: Width, value: u64, send: impl FnMut(Message)) {
        match (offset, width) {
            (REGISTER_SELECT, _) => self.select(value),
            (WINDOW, Width::Dword | Width::Qword) => self.write_register(value as u32, send),
            (EOI, _) => self.end_of_interrupt(value as u8, send),
            _ => {}
        }
    }

    fn write_register(&mut self, value: u32, mut send: impl FnMut(Message)) {
        match self.select {
            0 => self.id = value >> 24 & 0xf,
            index @ 0x10..=0x3f => {
                let pin = (index - 0x10) >> 1;
                let entry = &mut self.entries[usize::from(pin)];
                let written = if index & 1 == 0 {
                    *entry & 0xffff_ffff_0000_0000 | u64::from(value)
                } else {
                    *entry & 0xffff_ffff | u64::from(value) << 32
                };
                *entry = written & WRITABLE & !DELIVERY_STATUS | *entry & REMOTE_IRR;
                if *entry & LEVEL == 0 {
                    // Turned into an edge pin: nothing is in service any more.
                    *entry &= !REMOTE_IRR;
                }
                if let Some(message) = self.service_level(pin) {
                    send(message);
                }
            }
            _ => {}
        }
    }
}

fn message(entry: u64) -> Message {
    Message {
        destination: Destination::from_byte(entry & LOGICAL != 0, (entry >> 56) as u8),
        delivery: Delivery::from_bits((entry >> 8) as u32),
        vector: entry as u8,
        level: entry & LEVEL != 0,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn write_entry(ioapic: &mut Ioapic, pin: u8, value: u64) -> Vec<Message> {
        let mut sent = Vec::new();
        // As Linux does: the high half first, the low half with the mask last.
        for (index, half) in [(1, value >> 32), (0, value & 0xffff_ffff)] {
            ioapic.write(0x00, Width::Dword, u64::from(0x10 + 2 * pin + index), |_| unreachable!());
            ioapic.write(0x10, Width::Dword, half, |message| sent.push(message));
        }
        sent
    }

    fn read_register(ioapic: &mut Ioapic, index: u64) -> u64 {
        ioapic.write(0x00, Width::Byte, index, |_| unreachable!());
        ioapic.read(0x10, Width::Dword)
    }

    fn end(ioapic: &mut Ioapic, vector: u8) -> Vec<Message> {
        let mut sent = Vec::new();
        ioapic.end_of_interrupt(vector, |message| sent.push(message));
        sent
    }

    #[test]
    fn identification() {
        let mut ioapic = Ioapic::default();
        assert_eq!(read_register(&mut ioapic, 1), 0x17_0020);
        ioapic.write(0x00, Width::Dword, 0, |_| ());
        ioapic.write(0x10, Width::Dword, 0xffff_ffff, |_| ());
        assert_eq!(read_register(&mut ioapic, 0), 0x0f00_0000);
        assert_eq!(read_register(&mut ioapic, 0x10), 0x1_0000);
        assert_eq!(read_register(&mut ioapic, 0x40), 0);
    }

    #[test]
    fn an_edge_interrupts_once_and_is_lost_when_masked() {
        let mut ioapic = Ioapic::default();
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(write_entry(&mut ioapic, 4, 0x34), []);
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(ioapic.set_line(4, false), None);
        let message = ioapic.set_line(4, true).unwrap();
        assert_eq!((message.vector, message.level), (0x34, false));
        assert_eq!(message.destination, Destination::Physical(0));
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(read_register(&mut ioapic, 0x18), 0x34);
    }

    #[test]
    fn a_level_interrupts_until_released() {
        let mut ioapic = Ioapic::default();
        assert_eq!(write_entry(&mut ioapic, 9, 0x8029), []);
        assert!(ioapic.set_line(9, true).unwrap().level);
        assert_eq!(ioapic.set_line(9, true), None);
        assert_eq!(read_register(&mut ioapic, 0x22), 0xc029);
        assert_eq!(end(&mut ioapic, 0x30), []);
        assert_eq!(end(&mut ioapic, 0x29).len(), 1);
        assert_eq!(ioapic.set_line(9, false), None);
        assert_eq!(end(&mut ioapic, 0x29), []);
        assert_eq!(read_register(&mut ioapic, 0x22), 0x8029);
    }

    #[test]
    fn masking_holds_a_level_back_and_unmasking_sends_it() {
        let mut ioapic = Ioapic::default();
        assert_eq!(write_entry(&mut ioapic, 9, 0x1_8029), []);
        assert_eq!(ioapic.set_line(9, true), None);
        assert_eq!(write_entry(&mut ioapic, 9, 0x8029).len(), 1);
        // Masking while in service keeps remote IRR; the end then sends nothing, unmasking does.
        assert_eq!(write_entry(&mut ioapic, 9, 0x1_8029), []);
        assert_eq!(end(&mut ioapic, 0x29), []);
        assert_eq!(write_entry(&mut ioapic, 9, 0x8029).len(), 1);
        // The old trick for chips without an EOI register: edge and masked, then level again.
        assert_eq!(write_entry(&mut ioapic, 9, 0x1_0029), []);
        assert_eq!(read_register(&mut ioapic, 0x22), 0x1_0029);
        assert_eq!(write_entry(&mut ioapic, 9, 0x8029).len(), 1);
        let mut sent = 0;
        ioapic.write(0x40, Width::Dword, 0x29, |_| sent += 1);
        assert_eq!(sent, 1);
    }

    #[test]
    fn external_interrupts_pass() {
        let mut ioapic = Ioapic::default();
        assert!(!ioapic.passes_external(0));
        write_entry(&mut ioapic, 0, 0x700);
        assert!(ioapic.passes_external(0) && !ioapic.passes_external(24) && ioapic.is_masked(24));
        assert_eq!(ioapic.set_line(24, true), None);
    }

    proptest! {
        #[test]
        fn an_asserted_unmasked_level_is_always_in_service(
            ops in prop::collection::vec((0u8..4, 0u8..26, any::<u64>()), 0..200)) {
            let mut ioapic = Ioapic::default();
            for (op, pin, value) in ops {
                match op {
                    0 => { let _ = ioapic.set_line(pin, value & 1 != 0); }
                    1 => { write_entry(&mut ioapic, pin % PINS, value & !0x700); }
                    2 => { end(&mut ioapic, value as u8); }
                    _ => ioapic.write(value & 0xfff, Width::Dword, value >> 12, |_| ()),
                }
                for pin in 0..PINS {
                    let entry = ioapic.entries[usize::from(pin)];
                    let sends = matches!(message(entry).delivery, Delivery::Fixed | Delivery::LowestPriority);
                    if entry & LEVEL != 0 && entry & MASKED == 0 && ioapic.lines & 1 << pin != 0 && sends {
                        prop_assert!(entry & REMOTE_IRR != 0);
                    }
                    prop_assert!(entry & LEVEL != 0 || entry & REMOTE_IRR == 0);
                }
            }
        }
    }
}
