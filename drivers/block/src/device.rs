//! What a disk is to the server.

use core::fmt;
use runtime::block::SECTOR;

/// The disk's properties; they do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes, a multiple of the block.
    pub sectors: u64,
    /// Bytes of a block, a multiple of 512: the device reads and writes whole blocks only.
    pub block: u32,
    /// Most bytes of one command, a multiple of the block.
    pub transfer: u32,
    /// Most commands that run at once.
    pub depth: u16,
    /// The device cannot be written.
    pub read_only: bool,
    /// The device has a volatile write cache: what is written is durable after a flush.
    pub volatile_cache: bool,
    /// The device can write past its cache.
    pub force_unit_access: bool,
}

impl Geometry {
    /// Sectors of a block.
    pub fn block_sectors(&self) -> u64 {
        u64::from(self.block) / SECTOR
    }

    /// Whether the values keep their promises.
    pub fn is_valid(&self) -> bool {
        let block = u64::from(self.block);
        block != 0
            && block.is_multiple_of(SECTOR)
            && self.sectors.is_multiple_of(self.block_sectors())
            && self.transfer != 0
            && self.transfer.is_multiple_of(self.block)
            && self.depth != 0
    }
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// From the disk to memory.
    Read,
    /// From memory to the disk.
    Write,
    /// Makes durable what was written by commands that have ended.
    Flush,
}

/// One command for the device; all fields have been checked. A flush has neither place nor length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub action: Action,
    /// A write is durable when it ends. Only where [`Geometry::force_unit_access`].
    pub force_unit_access: bool,
    /// First sector (512 bytes) on the disk.
    pub sector: u64,
    /// Where the data is or goes, as the device sees memory: contiguous, a multiple of 512.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Not done, or not all of it.
    Failed,
}

/// Why a device cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its registers are not there.
    Absent,
    /// It reports an error that only a reset ends; its status register.
    Fatal(u32),
    /// The command of this name did not end in time.
    TimeOut(u16),
    /// It did what no device may.
    Misbehaviour,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "the device does not answer any more"),
            Self::Fatal(status) => write!(f, "the device reports a fatal error, status {status:#x}"),
            Self::TimeOut(id) => write!(f, "command {id} does not end"),
            Self::Misbehaviour => write!(f, "the device breaks the rules"),
        }
    }
}

/// A disk. A device that does not work any more ends its program: a successor does everything again.
pub trait Device {
    /// The properties.
    fn geometry(&self) -> Geometry;
    /// Accepts a command under a name below [`Geometry::depth`] that no running command has.
    fn submit(&mut self, id: u16, command: &Command);
    /// Starts what was accepted: once for many.
    fn start(&mut self);
    /// A command that has ended.
    fn poll(&mut self) -> Option<(u16, Outcome)>;
    /// Whether the device still works: asked once a second while commands run.
    fn check(&mut self) -> Result<(), Failure>;
}
