//! What a device is: its features and its configuration (5.2.3, 5.2.4).

use core::fmt;
use device::registers::Registers;
use runtime::block::SECTOR;
use virtio::transport::PciTransport;
use virtio_drivers::transport::Transport;

/// `VIRTIO_BLK_F_SIZE_MAX`: a piece of data has a largest size.
const SIZE_MAX: u64 = 1 << 1;
/// `VIRTIO_BLK_F_RO`: it cannot be written.
const READ_ONLY: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`: it tells the size of its blocks.
const BLOCK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`: it has a cache, and a command that flushes it.
const FLUSH: u64 = 1 << 9;
/// `VIRTIO_F_EVENT_IDX`: each side says which buffer it wants to hear of.
const EVENT_IDX: u64 = 1 << 29;

/// Offsets in the configuration.
mod config {
    pub const CAPACITY: usize = 0;
    pub const SIZE_MAX: usize = 8;
    pub const BLOCK_SIZE: usize = 20;
}

/// Bytes of a command at most, whatever the device allows.
const TRANSFER: u32 = 1 << 20;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It cannot be brought up.
    Device(virtio_drivers::Error),
    /// Its queue has too few entries: so many.
    Queue(u32),
    /// Its blocks have so many bytes.
    Block(u32),
    /// It takes no piece of data with more than so many bytes, less than a block.
    Piece(u32),
}

impl From<virtio_drivers::Error> for Error {
    fn from(error: virtio_drivers::Error) -> Self {
        Self::Device(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => write!(f, "the device does not start: {error}"),
            Self::Queue(entries) => write!(f, "a queue of {entries} entries is too small"),
            Self::Block(bytes) => write!(f, "blocks of {bytes} bytes are not supported"),
            Self::Piece(bytes) => write!(f, "pieces of at most {bytes} bytes hold no block"),
        }
    }
}

/// What the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Sectors of 512 bytes, in whole blocks.
    pub sectors: u64,
    /// Bytes of a block.
    pub block: u32,
    /// Most bytes of one command.
    pub transfer: u32,
    /// It cannot be written.
    pub read_only: bool,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// `EVENT_IDX` was agreed on.
    pub(crate) events: bool,
}

impl Identity {
    /// Resets the device and asks it what it is.
    pub(crate) fn of<R: Registers>(transport: &mut PciTransport<R>) -> Result<Self, Error> {
        let features = transport.begin(SIZE_MAX | READ_ONLY | BLOCK_SIZE | FLUSH | EVENT_IDX)?;
        let word = |feature: u64, offset: usize, otherwise: u32| match features & feature {
            0 => Ok(otherwise),
            _ => transport.read_consistent(|| transport.read_config_space(offset)),
        };
        let block = word(BLOCK_SIZE, config::BLOCK_SIZE, SECTOR as u32)?;
        if !block.is_power_of_two() || !(512..=4096).contains(&block) {
            return Err(Error::Block(block));
        }
        let piece = word(SIZE_MAX, config::SIZE_MAX, TRANSFER)?;
        let transfer = piece.min(TRANSFER) / block * block;
        if transfer == 0 {
            return Err(Error::Piece(piece));
        }
        let sectors: u64 = transport.read_consistent(|| transport.read_config_space(config::CAPACITY))?;
        let has = |feature| features & feature != 0;
        Ok(Self {
            sectors: sectors - sectors % (u64::from(block) / SECTOR),
            block,
            transfer,
            read_only: has(READ_ONLY),
            // Who accepts the command gets a cache (5.2.5, 5.2.6.2).
            volatile_cache: has(FLUSH),
            events: has(EVENT_IDX),
        })
    }
}
