//! MSI-X: a table of messages, and which of them wait because they are masked.
//!
//! PCI Local Bus Specification 3.0, 6.8.2 (structures), 6.8.3.4 (masking and pending).

use alloc::vec;
use alloc::vec::Vec;

use crate::bus::Width;
use crate::interrupt::Message;

/// Capability id.
pub const CAPABILITY: u8 = 0x11;
/// Most messages of a function here: the pending bits are one word.
pub const VECTORS_MAX: u16 = 64;
/// Message control: all are masked; MSI-X is on.
const FUNCTION_MASK: u16 = 1 << 14;
const ENABLE: u16 = 1 << 15;
/// Vector control: this one is masked.
const MASKED: u32 = 1;
const ENTRY: u64 = 16;

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The messages of one function.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    pending: u64,
    control: u16,
}

impl Msix {
    /// `vectors` messages, 1 to [`VECTORS_MAX`].
    pub fn new(vectors: u16) -> Self {
        let empty = Entry { address: 0, data: 0, control: MASKED };
        Self { entries: vec![empty; vectors.clamp(1, VECTORS_MAX).into()], pending: 0, control: 0 }
    }

    /// The capability's body, with the table and the pending bits at these offsets in the memory of `bar`; and which bits of
    /// it can be written.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.entries.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        (body, (FUNCTION_MASK | ENABLE).to_le_bytes())
    }

    /// Power-on values.
    pub fn reset(&mut self) {
        *self = Self::new(self.vectors());
    }

    /// Number of messages.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Whether MSI-X is on.
    pub fn enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// The guest wrote message control; `send` gets what no longer waits.
    pub fn set_control(&mut self, control: u16, send: impl FnMut(Message)) {
        self.control = control;
        self.release(send);
    }

    /// Sends a message, or lets it wait while it is masked. Nothing if there is no such message or MSI-X is off.
    pub fn fire(&mut self, vector: u16) -> Option<Message> {
        let entry = *self.entries.get(usize::from(vector))?;
        if !self.enabled() {
            return None;
        }
        if self.control & FUNCTION_MASK != 0 || entry.control & MASKED != 0 {
            self.pending |= 1 << vector;
            return None;
        }
        Message::from_msi(entry.address, entry.data)
    }

    fn release(&mut self, mut send: impl FnMut(Message)) {
        if !self.enabled() || self.control & FUNCTION_MASK != 0 {
            return;
        }
        for vector in 0..self.vectors() {
            let waits = self.pending >> vector & 1 != 0;
            if waits && self.entries[usize::from(vector)].control & MASKED == 0 {
                self.pending &= !(1 << vector);
                self.fire(vector).into_iter().for_each(&mut send);
            }
        }
    }

    /// Reads the table: double words and quad words, aligned; all else reads as zero.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        match width {
            Width::Dword if offset.is_multiple_of(4) => self.dword(offset).into(),
            Width::Qword if offset.is_multiple_of(8) => {
                u64::from(self.dword(offset)) | u64::from(self.dword(offset + 4)) << 32
            }
            _ => 0,
        }
    }

    fn dword(&self, offset: u64) -> u32 {
        let Some(entry) = self.entries.get((offset / ENTRY) as usize) else { return 0 };
        match offset % ENTRY {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            _ => entry.control,
        }
    }

    /// Writes the table; `send` gets what no longer waits.
    pub fn write(&mut self, offset: u64, width: Width, value: u64, send: impl FnMut(Message)) {
        match width {
            Width::Dword if offset.is_multiple_of(4) => self.set_dword(offset, value as u32),
            Width::Qword if offset.is_multiple_of(8) => {
                self.set_dword(offset, value as u32);
                self.set_dword(offset + 4, (value >> 32) as u32);
            }
            _ => return,
        }
        self.release(send);
    }

    fn set_dword(&mut self, offset: u64, value: u32) {
        let Some(entry) = self.entries.get_mut((offset / ENTRY) as usize) else { return };
        match offset % ENTRY {
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.data = value,
            _ => entry.control = value & MASKED,
        }
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, width: Width) -> u64 {
        if offset < 8 { self.pending >> (8 * offset) & width.ones() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn written(msix: &mut Msix, offset: u64, value: u32) -> Vec<u8> {
        let mut sent = Vec::new();
        msix.write(offset, Width::Dword, value.into(), |message| sent.push(message.vector));
        sent
    }

    #[test]
    fn a_masked_message_waits() {
        let mut msix = Msix::new(3);
        for (vector, offset) in [(0x41, 0), (0x42, 16), (0x43, 32)] {
            assert!(written(&mut msix, offset, 0xfee0_1000).is_empty());
            assert!(written(&mut msix, offset + 8, vector).is_empty());
            if vector != 0x43 {
                assert!(written(&mut msix, offset + 12, 0).is_empty());
            }
        }
        assert_eq!(msix.fire(1), None, "MSI-X is off");
        msix.set_control(ENABLE | FUNCTION_MASK, |_| panic!("nothing waits"));
        assert_eq!((msix.fire(1), msix.fire(2), msix.fire(3)), (None, None, None));
        assert_eq!(msix.read_pending(0, Width::Qword), 0b110);
        let mut sent = Vec::new();
        msix.set_control(ENABLE, |message| sent.push(message.vector));
        assert_eq!(sent, [0x42]);
        assert_eq!(msix.fire(0).map(|message| message.vector), Some(0x41));
        assert_eq!(msix.fire(2), None);
        assert_eq!(written(&mut msix, 44, 0), [0x43]);
        assert_eq!(msix.read_pending(0, Width::Qword), 0);
        assert_eq!(msix.read(32, Width::Qword), 0xfee0_1000);
        assert_eq!(msix.read(48, Width::Dword), 0, "behind the table's end");
        msix.reset();
        assert_eq!((msix.fire(0), msix.read(12, Width::Dword)), (None, 1));
    }

    #[test]
    fn an_address_that_is_no_interrupt_sends_nothing() {
        let mut msix = Msix::new(1);
        msix.set_control(ENABLE, |_| {});
        assert!(written(&mut msix, 0, 0x1234_5000).is_empty());
        assert!(written(&mut msix, 12, 0).is_empty());
        assert_eq!(msix.fire(0), None);
    }
}
