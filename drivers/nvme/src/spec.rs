//! Facts of the NVM Express base specification, revision 1.4.

/// Bytes of a memory page: CC.MPS is 0, which every controller that we drive supports.
pub const PAGE: u64 = 4096;

/// Registers (3.1).
pub mod register {
    /// Controller capabilities, 64 bits (3.1.1).
    pub const CAP: u64 = 0x00;
    /// Version (3.1.2).
    pub const VS: u64 = 0x08;
    /// Controller configuration (3.1.5).
    pub const CC: u64 = 0x14;
    /// Controller status (3.1.6).
    pub const CSTS: u64 = 0x1c;
    /// Admin queue attributes (3.1.8).
    pub const AQA: u64 = 0x24;
    /// Admin submission queue base address, 64 bits (3.1.9).
    pub const ASQ: u64 = 0x28;
    /// Admin completion queue base address, 64 bits (3.1.10).
    pub const ACQ: u64 = 0x30;
    /// First doorbell (3.1.25).
    pub const DOORBELLS: u64 = 0x1000;
}

/// CC.EN: enable (3.1.5).
pub const CC_ENABLE: u32 = 1 << 0;
/// CC: NVM command set, 4 KiB pages, round robin, entries of 2^6 and 2^4 bytes (3.1.5).
pub const CC_SETTING: u32 = 6 << 16 | 4 << 20;
/// CSTS.RDY: ready (3.1.6).
pub const CSTS_READY: u32 = 1 << 0;
/// CSTS.CFS: controller fatal status (3.1.6).
pub const CSTS_FATAL: u32 = 1 << 1;
/// What every register of a device reads that is not there any more.
pub const ABSENT: u32 = u32::MAX;

/// The fields of CAP that matter (3.1.1).
#[derive(Clone, Copy, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Most entries of a queue: MQES is less by one.
    pub fn queue_entries(self) -> u32 {
        (self.0 as u32 & 0xffff) + 1
    }
    /// Most milliseconds until CSTS.RDY follows CC.EN: TO counts halves of a second.
    pub fn ready_ms(self) -> u32 {
        (self.0 >> 24 & 0xff) as u32 * 500
    }
    /// Distance of doorbells in bytes: DSTRD is its logarithm less two.
    pub fn doorbell_stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }
    /// Whether there is the NVM command set: CSS bit 0.
    pub fn has_nvm_commands(self) -> bool {
        self.0 >> 37 & 1 != 0
    }
    /// Smallest memory page in bytes: MPSMIN is its logarithm less twelve.
    pub fn page_min(self) -> u64 {
        PAGE << (self.0 >> 48 & 0xf)
    }
}

/// Admin commands (5).
pub mod admin {
    /// Create I/O Submission Queue (5.4).
    pub const CREATE_SUBMISSION: u8 = 0x01;
    /// Create I/O Completion Queue (5.3).
    pub const CREATE_COMPLETION: u8 = 0x05;
    /// Identify (5.15).
    pub const IDENTIFY: u8 = 0x06;
    /// Set Features (5.21).
    pub const SET_FEATURES: u8 = 0x09;
    /// CNS of Identify: the namespace (5.15.2.1).
    pub const CNS_NAMESPACE: u32 = 0;
    /// CNS of Identify: the controller (5.15.2.2).
    pub const CNS_CONTROLLER: u32 = 1;
    /// Number of Queues (5.21.1.7).
    pub const FEATURE_QUEUES: u32 = 7;
    /// The queue lies in one piece, in Create I/O ... Queue.
    pub const CONTIGUOUS: u32 = 1 << 0;
    /// The queue interrupts, in Create I/O Completion Queue.
    pub const INTERRUPTS: u32 = 1 << 1;
}

/// Commands of the NVM command set (6).
pub mod nvm {
    /// Flush (6.8).
    pub const FLUSH: u8 = 0x00;
    /// Write (6.15).
    pub const WRITE: u8 = 0x01;
    /// Read (6.9).
    pub const READ: u8 = 0x02;
    /// Force unit access, in dword 12 of Write (6.15).
    pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
}

/// Identify Controller (5.15.2.2): offsets.
pub mod controller {
    /// Serial number, 20 characters.
    pub const SERIAL: usize = 4;
    /// Model number, 40 characters.
    pub const MODEL: usize = 24;
    /// Maximum data transfer size: logarithm, in smallest pages; 0: no limit.
    pub const MDTS: usize = 77;
    /// Volatile write cache: bit 0, there is one.
    pub const VWC: usize = 525;
}

/// Identify Namespace (5.15.2.1): offsets.
pub mod namespace {
    /// Size in blocks, 64 bits.
    pub const NSZE: usize = 0;
    /// Formatted LBA size: bits 3:0, the number of the format.
    pub const FLBAS: usize = 26;
    /// The formats, 4 bytes each: metadata size (15:0), logarithm of the block's size (23:16).
    pub const LBAF: usize = 128;
}

/// A submission queue entry (4.2): the fields that all commands share, and dwords 10 to 12.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Operation.
    pub opcode: u8,
    /// Name of the command.
    pub id: u16,
    /// Namespace.
    pub namespace: u32,
    /// PRP entry 1.
    pub prp1: u64,
    /// PRP entry 2.
    pub prp2: u64,
    /// Dwords 10 to 12.
    pub dwords: [u32; 3],
}

impl Entry {
    /// The entry as it lies in memory.
    pub fn encode(&self) -> [u64; 8] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let first = u32::from(self.opcode) | u32::from(self.id) << 16;
        let [d10, d11, d12] = self.dwords;
        [pair(first, self.namespace), 0, 0, self.prp1, self.prp2, pair(d10, d11), pair(d12, 0), 0]
    }
}

/// The second half of a completion queue entry (4.6): dwords 2 and 3.
#[derive(Clone, Copy, Debug)]
pub struct Completion(pub u64);

impl Completion {
    /// Name of the command.
    pub fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }
    /// The phase tag (4.6).
    pub fn phase(self) -> bool {
        self.0 >> 48 & 1 != 0
    }
    /// The status field without the "more" and "do not retry" bits (4.6.1): type in bits 10:8, code in bits 7:0; 0: success.
    pub fn status(self) -> u16 {
        (self.0 >> 49) as u16 & 0x7ff
    }
}
