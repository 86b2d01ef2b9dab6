//! The block protocol, version 1: how a program uses a region of a disk that a driver serves.
//!
//! A client and a driver share two rings of records ([`crate::ring`]), requests one way and completions the other, and
//! a data window. The client writes data to the window and sends a request that names the place; it leaves the place
//! alone until the completion. At most [`IN_FLIGHT`] requests are on their way. All fields are little-endian, sectors
//! have [`SECTOR`] bytes and are counted from the beginning of the client's region.
//!
//! | request | | completion | |
//! | --- | --- | --- | --- |
//! | 0x00 | tag, chosen by the client | 0x00 | tag of the request |
//! | 0x04 | operation (8 bits) | 0x04 | [`Status`] |
//! | 0x05 | flags (8 bits); bit 0: force unit access | 0x08 | value (64 bits): 0 |
//! | 0x08 | sector (64 bits) | | |
//! | 0x10 | offset in the window (64 bits) | | |
//! | 0x18 | length in bytes, a multiple of 512 | | |
//!
//! Everything else is 0. Requests run in any order; who needs an order waits for completions. A flush is acknowledged
//! when all writes are durable that were acknowledged before it was sent; so is a write with force unit access.
//!
//! **Lives.** Either side may die and have a successor. A driver begins each of its lives with a *hello*: a completion
//! with tag [`NO_TAG`], the number of sectors as value, and as status the [`Hello`]'s bits with the life's number. The
//! client answers with operation *begin* (tag [`NO_TAG`], the life's number as sector) and sends everything again of
//! which it has not seen the completion: reads, writes and flushes may run twice. The driver drops all requests until it
//! has read *begin* with its own number. Without that a request sent just before the hello would run a second time
//! after its completion, when the client uses the window for something else. A client that starts, or has lost
//! completions, sends *begin* with life 0: the driver finishes what runs, and says hello with another number. Completions
//! before a client's first hello were for its predecessor.
//!
//! **Trust.** Neither side believes the other: records are copied out of the ring and checked once.

mod client;

pub use client::{Client, Event, Link};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Most requests of a client that are on their way.
pub const IN_FLIGHT: usize = 128;
/// Tag of hello and begin; no request has it.
pub const NO_TAG: u32 = u32::MAX;
/// Largest number of a life; the smallest is 1.
pub const LIFE_MAX: u32 = (1 << 24) - 1;
/// Bytes of a request.
pub const REQUEST_LENGTH: usize = 32;
/// Bytes of a completion.
pub const COMPLETION_LENGTH: usize = 16;
/// A request as it lies in the ring.
pub type RequestRecord = [u8; REQUEST_LENGTH];
/// A completion as it lies in the ring.
pub type CompletionRecord = [u8; COMPLETION_LENGTH];

const FORCE_UNIT_ACCESS: u8 = 1 << 0;
const HELLO_READ_ONLY: u32 = 1 << 0;
const HELLO_CACHE: u32 = 1 << 1;
const HELLO_LIFE_SHIFT: u32 = 8;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// From the disk to the window.
    Read = 0,
    /// From the window to the disk.
    Write = 1,
    /// Make acknowledged writes durable.
    Flush = 2,
    /// The client knows the driver's life.
    Begin = 3,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in its completion.
    pub tag: u32,
    /// What to do.
    pub operation: Operation,
    /// A write is durable when it is acknowledged.
    pub force_unit_access: bool,
    /// First sector, relative to the client's region; for begin: the number of the life.
    pub sector: u64,
    /// Place in the data window, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Request {
    /// The beginning of life `life`; 0: the client does not know it.
    pub const fn begin(life: u32) -> Self {
        let operation = Operation::Begin;
        Self { tag: NO_TAG, operation, force_unit_access: false, sector: life as u64, offset: 0, length: 0 }
    }

    /// The record.
    pub fn encode(&self) -> RequestRecord {
        let mut record = [0; REQUEST_LENGTH];
        record[0..4].copy_from_slice(&self.tag.to_le_bytes());
        record[4] = self.operation as u8;
        record[5] = if self.force_unit_access { FORCE_UNIT_ACCESS } else { 0 };
        record[8..16].copy_from_slice(&self.sector.to_le_bytes());
        record[16..24].copy_from_slice(&self.offset.to_le_bytes());
        record[24..28].copy_from_slice(&self.length.to_le_bytes());
        record
    }

    /// The request in `record`; the tag alone if an operation or a flag is unknown or a reserved field is not 0.
    pub fn decode(record: &RequestRecord) -> Result<Self, u32> {
        let tag = half(record, 0);
        let operation = match record[4] {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Begin,
            _ => return Err(tag),
        };
        let reserved = half(record, 28) | u32::from(record[6]) | u32::from(record[7]);
        if record[5] & !FORCE_UNIT_ACCESS != 0 || reserved != 0 {
            return Err(tag);
        }
        Ok(Self {
            tag,
            operation,
            force_unit_access: record[5] & FORCE_UNIT_ACCESS != 0,
            sector: word(record, 8),
            offset: word(record, 16),
            length: half(record, 24),
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The request breaks the protocol or leaves its region or window; nothing was done.
    BadRequest = 1,
    /// The disk could not do it, or not all of it.
    MediumError = 2,
    /// A write to a region that may only be read.
    ReadOnly = 3,
}

/// What a driver says about the client's region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Number of the driver's life, 1 to [`LIFE_MAX`].
    pub life: u32,
    /// Sectors in the region.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Acknowledged writes are durable only after a flush.
    pub volatile_cache: bool,
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// A driver's life begins.
    Hello(Hello),
    /// A request has ended.
    Done {
        /// The request's tag.
        tag: u32,
        /// How it ended.
        status: Status,
    },
}

impl Completion {
    /// The record.
    pub fn encode(&self) -> CompletionRecord {
        let (tag, status, value) = match *self {
            Self::Hello(hello) => {
                let bits = hello.life << HELLO_LIFE_SHIFT
                    | if hello.read_only { HELLO_READ_ONLY } else { 0 }
                    | if hello.volatile_cache { HELLO_CACHE } else { 0 };
                (NO_TAG, bits, hello.sectors)
            }
            Self::Done { tag, status } => (tag, status as u32, 0),
        };
        let mut record = [0; COMPLETION_LENGTH];
        record[0..4].copy_from_slice(&tag.to_le_bytes());
        record[4..8].copy_from_slice(&status.to_le_bytes());
        record[8..16].copy_from_slice(&value.to_le_bytes());
        record
    }

    /// The completion in `record`. A status that nobody knows is an error.
    pub fn decode(record: &CompletionRecord) -> Self {
        let (tag, status) = (half(record, 0), half(record, 4));
        if tag == NO_TAG {
            return Self::Hello(Hello {
                life: status >> HELLO_LIFE_SHIFT,
                sectors: word(record, 8),
                read_only: status & HELLO_READ_ONLY != 0,
                volatile_cache: status & HELLO_CACHE != 0,
            });
        }
        let status = match status {
            0 => Status::Ok,
            1 => Status::BadRequest,
            3 => Status::ReadOnly,
            _ => Status::MediumError,
        };
        Self::Done { tag, status }
    }
}

fn half(record: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&record[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn word(record: &[u8], at: usize) -> u64 {
    u64::from(half(record, at)) | u64::from(half(record, at + 4)) << 32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_lie_as_the_protocol_says() {
        let request = Request {
            tag: 0x0403_0201,
            operation: Operation::Write,
            force_unit_access: true,
            sector: 0x1817_1615_1413_1211,
            offset: 0x2827_2625_2423_2221,
            length: 0x3433_3231,
        };
        let mut record = [0; 32];
        record[..6].copy_from_slice(&[1, 2, 3, 4, 1, 1]);
        (0..8).for_each(|i| (record[8 + i], record[16 + i]) = (0x11 + i as u8, 0x21 + i as u8));
        (0..4).for_each(|i| record[24 + i] = 0x31 + i as u8);
        assert_eq!(request.encode(), record);
        let hello = Hello { life: 0x123456, sectors: 1 << 40, read_only: true, volatile_cache: true };
        let record = [0xff, 0xff, 0xff, 0xff, 3, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(Completion::Hello(hello).encode(), record);
        let done = Completion::Done { tag: 5, status: Status::ReadOnly };
        assert_eq!(done.encode(), [5, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_record_is_refused_or_means_itself(record: RequestRecord, clean: bool) {
            let mut record = record;
            if clean {
                record[4] &= 3;
                record[5] &= 1;
                (6..8).chain(28..32).for_each(|i| record[i] = 0);
            }
            match Request::decode(&record) {
                Ok(request) => prop_assert_eq!(request.encode(), record),
                Err(tag) => prop_assert!(!clean && tag.to_le_bytes() == record[..4]),
            }
        }

        #[test]
        fn any_completion_is_understood(record: CompletionRecord, hello: bool) {
            let mut record = record;
            if hello {
                record[..4].fill(0xff);
            }
            let completion = Completion::decode(&record);
            prop_assert_eq!(Completion::decode(&completion.encode()), completion);
            prop_assert_eq!(matches!(completion, Completion::Hello(_)), record[..4] == [0xff; 4]);
        }
    }
}
