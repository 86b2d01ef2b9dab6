//! Registers (10.2) and descriptors (7.1, 7.2).

use device::registers::{Place, Registers};

/// Device control (10.2.2.1).
pub const CTRL: u32 = 0x0000;
/// In CTRL: the link is up as far as the driver is concerned; reset.
pub const CTRL_SLU: u32 = 1 << 6;
pub const CTRL_RST: u32 = 1 << 26;
/// Interrupt cause, mask set, mask clear, automatic clear, vectors (10.2.4).
pub const ICR: u32 = 0x00c0;
pub const IMS: u32 = 0x00d0;
pub const IMC: u32 = 0x00d8;
pub const EIAC: u32 = 0x00dc;
pub const IVAR: u32 = 0x00e4;
/// Causes: receive queue 0, transmit queue 0.
pub const RXQ0: u32 = 1 << 20;
pub const TXQ0: u32 = 1 << 22;
/// In IVAR: vector and validity of receive queue 0 in bits 3:0, of transmit queue 0 in bits 11:8.
pub const IVAR_VALID: u32 = 1 << 3;
pub const IVAR_TXQ0: u32 = 8;
/// Receive control (10.2.5.1): enabled, everything for every address, strip the checksum. Buffers of 2048 bytes.
pub const RCTL: u32 = 0x0100;
pub const RCTL_EN: u32 = 1 << 1;
pub const RCTL_UPE: u32 = 1 << 3;
pub const RCTL_MPE: u32 = 1 << 4;
pub const RCTL_BAM: u32 = 1 << 15;
pub const RCTL_SECRC: u32 = 1 << 26;
/// Transmit control (10.2.6.1): enabled, short frames are padded, thresholds for collisions.
pub const TCTL: u32 = 0x0400;
pub const TCTL_EN: u32 = 1 << 1;
pub const TCTL_PSP: u32 = 1 << 3;
pub const TCTL_CT: u32 = 15 << 4;
pub const TCTL_COLD: u32 = 63 << 12;
/// Receive and transmit queue 0 (10.2.5.6, 10.2.6.5): base, length, head, tail, from these offsets on.
pub const RX: u32 = 0x2800;
pub const TX: u32 = 0x3800;
pub const BASE_LOW: u32 = 0x00;
pub const BASE_HIGH: u32 = 0x04;
pub const LENGTH: u32 = 0x08;
pub const HEAD: u32 = 0x10;
pub const TAIL: u32 = 0x18;
/// First receive address (10.2.5.20, 10.2.5.21), which a reset loads from the EEPROM. Its upper half says whether it is
/// valid.
pub const RAL: u32 = 0x5400;
pub const RAH: u32 = 0x5404;
pub const RAH_VALID: u32 = 1 << 31;

/// Bytes of a legacy descriptor (7.1.4, 7.2.10.1): an address, then the words below.
pub const DESCRIPTOR: usize = 16;
/// Of the second 64 bits of a received one: length in bits 15:0, status from 32, errors from 40.
pub const RX_DONE: u64 = 1 << 32;
pub const RX_END: u64 = 1 << 33;
/// CRC or alignment, symbol, sequence, receive error (7.1.4.4).
pub const RX_ERRORS: u64 = (1 | 1 << 1 | 1 << 2 | 1 << 7) << 40;
/// Of one to send: length in bits 15:0, command from 24, status from 32. End of frame, insert the checksum, report.
pub const TX_COMMAND: u64 = (1 | 1 << 1 | 1 << 3) << 24;
pub const TX_DONE: u64 = 1 << 32;

/// Bytes of a buffer.
pub const BUFFER: usize = 2048;

/// The registers, which BAR 0 leads to.
#[derive(Clone)]
pub struct Controller<R>(pub R);

impl<R: Registers> Controller<R> {
    /// Reads a register.
    pub fn read(&self, offset: u32) -> u32 {
        self.0.read(Place { bar: 0, offset }, 4)
    }

    /// Writes a register.
    pub fn write(&self, offset: u32, value: u32) {
        self.0.write(Place { bar: 0, offset }, 4, value);
    }
}
