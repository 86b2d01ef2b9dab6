//! Bringing the controller and one port up (10.1), and commands as they lie in memory (4.2).

use crate::identify::Identity;
use crate::spec::{self, host, port};
use block::{Hardware, Memory};
use core::fmt;

/// Offsets in the DMA memory.
pub mod layout {
    /// The command list: a header of 32 bytes for each slot (4.2.2).
    pub const LIST: u64 = 0;
    /// Received FISes (4.2.1).
    pub const RECEIVED: u64 = 0x400;
    /// What IDENTIFY DEVICE gives.
    pub const IDENTIFY: u64 = 0x1000;
    /// A command table for each slot (4.2.3).
    pub const TABLES: u64 = 0x2000;
    /// Bytes of a command table with one piece of memory.
    pub const TABLE: u64 = 0x100;
    /// Bytes in use.
    pub const LENGTH: u64 = TABLES + 32 * TABLE;
}

/// Milliseconds for a reset (10.4.3).
const RESET_MS: u32 = 1000;
/// Milliseconds for a port to stop (10.3.2).
const STOP_MS: u32 = 500;
/// Milliseconds in which a device shows that it is there, and then until it talks.
const LINK_MS: (u32, u32) = (100, 1000);
/// Milliseconds until a disk that is there can take commands: it may have to spin up.
const READY_MS: u32 = 30_000;
/// Milliseconds for the firmware to let go (10.6.3).
const HANDOFF_MS: u32 = 2000;

/// Why a controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The registers read all ones.
    Absent,
    /// The DMA memory is too small, or the controller cannot reach it.
    Memory,
    /// The controller's reset does not end.
    Reset,
    /// A port does not stop.
    Stop(u32),
    /// No port has a disk.
    NoDisk,
    /// The disk on this port does not become ready.
    NotReady(u32),
    /// The disk does not tell what it is; PxTFD.
    Identify(u32),
    /// The disk has no 48-bit addresses.
    NoLongAddresses,
    /// Logical sectors of so many bytes.
    Blocks(u32),
    /// The disk has no sectors.
    Empty,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "the controller does not answer"),
            Self::Memory => write!(f, "the controller cannot use its DMA memory"),
            Self::Reset => write!(f, "the controller's reset does not end"),
            Self::Stop(port) => write!(f, "port {port} does not stop"),
            Self::NoDisk => write!(f, "no port has a disk"),
            Self::NotReady(port) => write!(f, "the disk on port {port} does not become ready"),
            Self::Identify(status) => write!(f, "the disk does not tell what it is (PxTFD {status:#x})"),
            Self::NoLongAddresses => write!(f, "the disk has no 48-bit addresses"),
            Self::Blocks(bytes) => write!(f, "logical sectors of {bytes} bytes are not supported"),
            Self::Empty => write!(f, "the disk has no sectors"),
        }
    }
}

/// What a command asks of the disk.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The command.
    pub command: u8,
    /// First logical sector.
    pub sector: u64,
    /// Number of logical sectors, at most 2^16 - 1.
    pub count: u16,
    /// Data goes to the disk.
    pub write: bool,
    /// Where it is for the controller, an even address.
    pub address: u64,
    /// Bytes, even, at most 2^22; 0: no data.
    pub length: u32,
}

/// One port of a controller.
pub struct Port<H> {
    /// Registers and memory.
    pub hardware: H,
    /// Its number.
    pub number: u32,
    /// Command slots.
    pub slots: u32,
    /// The controller has 64-bit addresses.
    pub wide: bool,
}

impl<H: Hardware> Port<H> {
    /// Resets the controller, and brings up the first port that has a disk.
    pub fn start(mut hardware: H) -> Result<(Self, Identity), Error> {
        let capabilities = hardware.read(host::CAP);
        if capabilities == u32::MAX {
            return Err(Error::Absent);
        }
        let wide = capabilities & spec::CAP_64 != 0;
        let end = hardware.memory().address() + layout::LENGTH;
        if hardware.memory().length() < layout::LENGTH || (!wide && end > 1 << 32) {
            return Err(Error::Memory);
        }
        reset(&mut hardware)?;
        let implemented = hardware.read(host::PI);
        let mut port = Self { hardware, number: 0, slots: (capabilities >> 8 & 0x1f) + 1, wide };
        for number in (0..32).filter(|number| implemented >> number & 1 != 0) {
            port.number = number;
            if port.bring_up()? {
                let identity = port.identify()?;
                port.write(port::IS, u32::MAX);
                port.hardware.write(host::IS, u32::MAX);
                port.write(port::IE, spec::IE_WANTED);
                port.hardware.write(host::GHC, spec::GHC_AHCI | spec::GHC_INTERRUPTS);
                return Ok((port, identity));
            }
        }
        Err(Error::NoDisk)
    }

    /// Reads a register of the port.
    pub fn read(&mut self, register: u64) -> u32 {
        self.hardware.read(port::base(self.number) + register)
    }

    /// Writes a register of the port.
    pub fn write(&mut self, register: u64, value: u32) {
        self.hardware.write(port::base(self.number) + register, value);
    }

    fn write64(&mut self, register: u64, value: u64) {
        self.write(register, value as u32);
        self.write(register + 4, (value >> 32) as u32);
    }

    /// Waits until bits of a register have a value; false if that takes longer.
    fn wait(&mut self, register: u64, mask: u32, value: u32, ms: u32) -> bool {
        for _ in 0..ms {
            if self.read(register) & mask == value {
                return true;
            }
            self.hardware.pause();
        }
        self.read(register) & mask == value
    }

    /// Stops the processing of commands (10.3.2); false if it goes on.
    pub fn stop(&mut self) -> bool {
        let command = self.read(port::CMD);
        self.write(port::CMD, command & !spec::CMD_START);
        self.wait(port::CMD, spec::CMD_RUNNING, 0, STOP_MS)
    }

    /// Starts the processing of commands (10.3.1).
    pub fn go(&mut self) {
        let command = self.read(port::CMD);
        self.write(port::CMD, command | spec::CMD_START);
    }

    /// Whether there is a disk on the port, which then takes commands.
    fn bring_up(&mut self) -> Result<bool, Error> {
        let stopped = self.stop();
        let command = self.read(port::CMD);
        self.write(port::CMD, command & !spec::CMD_RECEIVE);
        if !stopped || !self.wait(port::CMD, spec::CMD_RECEIVING, 0, STOP_MS) {
            return Err(Error::Stop(self.number));
        }
        (0..layout::LENGTH).step_by(8).for_each(|offset| self.hardware.memory().store(offset, 0));
        let memory = self.hardware.memory().address();
        self.write64(port::CLB, memory + layout::LIST);
        self.write64(port::FB, memory + layout::RECEIVED);
        self.write(port::CMD, spec::CMD_UP | spec::CMD_RECEIVE);
        if !self.is_linked() {
            self.write(port::CMD, 0);
            return Ok(false);
        }
        self.write(port::SERR, u32::MAX);
        if !self.wait(port::TFD, spec::TFD_BUSY, 0, READY_MS) {
            return Err(Error::NotReady(self.number));
        }
        if self.read(port::SIG) != spec::SIGNATURE_DISK {
            self.write(port::CMD, 0);
            return Ok(false);
        }
        self.go();
        Ok(true)
    }

    fn is_linked(&mut self) -> bool {
        let (shows, talks) = LINK_MS;
        for _ in 0..shows {
            if self.read(port::SSTS) & 0xf != 0 {
                return self.wait(port::SSTS, 0xf, spec::SSTS_READY, talks);
            }
            self.hardware.pause();
        }
        false
    }

    /// Puts a command into a slot (4.2.2, 4.2.3; the FIS: Serial ATA 3.2, 10.5.5).
    pub fn prepare(&mut self, slot: u32, task: &Task) {
        let table = layout::TABLES + u64::from(slot) * layout::TABLE;
        let (sector, count) = (task.sector, task.count);
        let low = spec::FIS_COMMAND | u32::from(task.command) << 16;
        let first = (sector & 0xff_ffff) as u32 | u32::from(spec::DEVICE_LBA) << 24;
        let second = (sector >> 24 & 0xff_ffff) as u32;
        self.hardware.memory().store(table, u64::from(low) | u64::from(first) << 32);
        self.hardware.memory().store(table + 8, u64::from(second) | u64::from(count) << 32);
        self.hardware.memory().store(table + 16, 0);
        let pieces = u32::from(task.length != 0);
        if pieces != 0 {
            self.hardware.memory().store(table + spec::TABLE_PIECES, task.address);
            self.hardware.memory().store(table + spec::TABLE_PIECES + 8, u64::from(task.length - 1) << 32);
        }
        let write = if task.write { spec::HEADER_WRITE } else { 0 };
        let header = layout::LIST + u64::from(slot) * 32;
        self.hardware.memory().store(header, u64::from(spec::HEADER_FIS | write | pieces << 16));
        self.hardware.memory().store(header + 8, self.hardware.memory().address() + table);
    }

    fn identify(&mut self) -> Result<Identity, Error> {
        let address = self.hardware.memory().address() + layout::IDENTIFY;
        let command = spec::ata::IDENTIFY;
        self.prepare(0, &Task { command, sector: 0, count: 0, write: false, address, length: 512 });
        self.write(port::CI, 1);
        let ended = self.wait(port::CI, 1, 0, READY_MS);
        let status = self.read(port::TFD);
        if !ended || status & spec::TFD_ERROR != 0 {
            return Err(Error::Identify(status));
        }
        let mut words = [0; 256];
        for (i, word) in words.iter_mut().enumerate() {
            *word = (self.hardware.memory().load(layout::IDENTIFY + i as u64 / 4 * 8) >> (i % 4 * 16)) as u16;
        }
        Identity::new(&words)
    }
}

/// Takes the controller from the firmware (10.6.3) and resets it (10.4.3): all that a predecessor started ends.
fn reset(hardware: &mut impl Hardware) -> Result<(), Error> {
    if hardware.read(host::CAP2) & spec::CAP2_HANDOFF != 0 {
        let owner = hardware.read(host::BOHC);
        hardware.write(host::BOHC, owner | spec::BOHC_SYSTEM);
        // A firmware that does not let go has no say after the reset.
        let mut patience = HANDOFF_MS;
        while hardware.read(host::BOHC) & spec::BOHC_FIRMWARE != 0 && patience != 0 {
            hardware.pause();
            patience -= 1;
        }
    }
    hardware.write(host::GHC, spec::GHC_AHCI);
    hardware.write(host::GHC, spec::GHC_AHCI | spec::GHC_RESET);
    for _ in 0..RESET_MS {
        if hardware.read(host::GHC) & spec::GHC_RESET == 0 {
            hardware.write(host::GHC, spec::GHC_AHCI);
            return Ok(());
        }
        hardware.pause();
    }
    Err(Error::Reset)
}
