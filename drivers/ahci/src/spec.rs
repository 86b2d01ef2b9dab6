//! Facts of AHCI 1.3.1 and of the ATA command set (ACS-3).

/// Generic host control (3.1).
pub mod host {
    /// Capabilities (3.1.1).
    pub const CAP: u64 = 0x00;
    /// Global control (3.1.2).
    pub const GHC: u64 = 0x04;
    /// Interrupt status: a bit for each port (3.1.3).
    pub const IS: u64 = 0x08;
    /// Ports implemented: a bit for each (3.1.4).
    pub const PI: u64 = 0x0c;
    /// Extended capabilities (3.1.10).
    pub const CAP2: u64 = 0x24;
    /// Hand-off from the firmware (3.1.11).
    pub const BOHC: u64 = 0x28;
}

/// A port's registers, from [`port::base`] on (3.3).
pub mod port {
    /// Command list base address, 64 bits (3.3.1).
    pub const CLB: u64 = 0x00;
    /// FIS base address, 64 bits (3.3.3).
    pub const FB: u64 = 0x08;
    /// Interrupt status (3.3.5).
    pub const IS: u64 = 0x10;
    /// Interrupt enable (3.3.6).
    pub const IE: u64 = 0x14;
    /// Command and status (3.3.7).
    pub const CMD: u64 = 0x18;
    /// Task file data (3.3.8).
    pub const TFD: u64 = 0x20;
    /// Signature (3.3.9).
    pub const SIG: u64 = 0x24;
    /// Serial ATA status (3.3.10).
    pub const SSTS: u64 = 0x28;
    /// Serial ATA error (3.3.12).
    pub const SERR: u64 = 0x30;
    /// Command issue: a bit for each slot (3.3.14).
    pub const CI: u64 = 0x38;

    /// First register of a port.
    pub const fn base(port: u32) -> u64 {
        0x100 + 0x80 * port as u64
    }
}

/// CAP.S64A: 64-bit addresses.
pub const CAP_64: u32 = 1 << 31;
/// GHC.HR: reset, until the controller clears it.
pub const GHC_RESET: u32 = 1 << 0;
/// GHC.IE: interrupts.
pub const GHC_INTERRUPTS: u32 = 1 << 1;
/// GHC.AE: the controller is used by AHCI.
pub const GHC_AHCI: u32 = 1 << 31;
/// CAP2.BOH: there is a hand-off.
pub const CAP2_HANDOFF: u32 = 1 << 0;
/// BOHC.BOS: the firmware owns the controller.
pub const BOHC_FIRMWARE: u32 = 1 << 0;
/// BOHC.OOS: the system wants it.
pub const BOHC_SYSTEM: u32 = 1 << 1;

/// PxCMD.ST: commands are processed.
pub const CMD_START: u32 = 1 << 0;
/// PxCMD.SUD and POD: the device may spin up and has power.
pub const CMD_UP: u32 = 1 << 1 | 1 << 2;
/// PxCMD.FRE: received FISes go to memory.
pub const CMD_RECEIVE: u32 = 1 << 4;
/// PxCMD.FR: receiving runs.
pub const CMD_RECEIVING: u32 = 1 << 14;
/// PxCMD.CR: the command list runs.
pub const CMD_RUNNING: u32 = 1 << 15;
/// PxCMD.CCS: the slot of the current command.
pub const fn cmd_slot(cmd: u32) -> u32 {
    cmd >> 8 & 0x1f
}

/// PxTFD: busy, or a transfer is due.
pub const TFD_BUSY: u32 = 1 << 7 | 1 << 3;
/// PxTFD: the last command failed.
pub const TFD_ERROR: u32 = 1 << 0;
/// PxSSTS.DET: a device is there, and talks.
pub const SSTS_READY: u32 = 3;
/// PxSIG of a disk.
pub const SIGNATURE_DISK: u32 = 0x0000_0101;

/// PxIS.TFES: a command failed.
pub const IS_TASK_FILE: u32 = 1 << 30;
/// PxIS: IFS, HBDS, HBFS: the interface, or the controller's access to memory, failed.
pub const IS_FATAL: u32 = 1 << 27 | 1 << 28 | 1 << 29;
/// PxIE: register, PIO set-up and DMA set-up FISes, and all failures.
pub const IE_WANTED: u32 = 7 | IS_TASK_FILE | IS_FATAL;

/// Length of the command FIS in a command header, in dwords (4.2.2).
pub const HEADER_FIS: u32 = 5;
/// The command writes to the disk, in a command header (4.2.2).
pub const HEADER_WRITE: u32 = 1 << 6;
/// Offset of the table of memory pieces in a command table (4.2.3).
pub const TABLE_PIECES: u64 = 0x80;

/// First dword of a FIS from host to device that carries a command (Serial ATA, 10.3.4; command in bits 23:16).
pub const FIS_COMMAND: u32 = 0x27 | 1 << 15;
/// Device register: the address counts sectors.
pub const DEVICE_LBA: u8 = 1 << 6;

/// Commands (ACS-3, 7).
pub mod ata {
    /// READ DMA EXT.
    pub const READ: u8 = 0x25;
    /// WRITE DMA EXT.
    pub const WRITE: u8 = 0x35;
    /// WRITE DMA FUA EXT.
    pub const WRITE_FUA: u8 = 0x3d;
    /// FLUSH CACHE EXT.
    pub const FLUSH: u8 = 0xea;
    /// IDENTIFY DEVICE.
    pub const IDENTIFY: u8 = 0xec;
}
