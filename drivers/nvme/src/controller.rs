//! Bringing a controller up (7.6.1): reset, admin queue, identification, one pair of I/O queues.

use crate::queue::Pair;
use crate::spec::{
    self, ABSENT, CC_ENABLE, CC_SETTING, CSTS_FATAL, CSTS_READY, Capabilities, Entry, PAGE, admin, register,
};
use alloc::string::{String, ToString};
use block::{Hardware, Memory};
use core::fmt;
use runtime::block::SECTOR;

/// Offsets in the DMA memory, a page each.
pub mod layout {
    use super::PAGE;
    /// Admin submission and completion queue.
    pub const ADMIN: (u64, u64) = (0, PAGE);
    /// What Identify gives.
    pub const IDENTIFY: u64 = 2 * PAGE;
    /// I/O submission and completion queue.
    pub const IO: (u64, u64) = (3 * PAGE, 4 * PAGE);
    /// PRP lists: a page for each command.
    pub const LISTS: u64 = 5 * PAGE;
}

const ADMIN_ENTRIES: u16 = 8;
/// Entries of the I/O queues: a page of commands.
const IO_ENTRIES: u16 = 64;
/// The namespace that is served.
pub const NAMESPACE: u32 = 1;
/// Bytes of a command at most, whatever the controller allows: a page of PRP entries does for twice as much.
const TRANSFER: u64 = 1 << 20;
/// Milliseconds for an admin command.
const ADMIN_MS: u32 = 30_000;

/// Why a controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The registers read all ones.
    Absent,
    /// It has no NVM command set.
    CommandSet,
    /// Its smallest page, in bytes, is too large.
    Page(u64),
    /// The DMA memory is too small: bytes that are needed.
    Memory(u64),
    /// It does not stop within so many milliseconds.
    Stop(u32),
    /// It does not become ready within so many milliseconds.
    Start(u32),
    /// It reports a fatal error; CSTS.
    Fatal(u32),
    /// An admin command (opcode) ended with this status.
    Command(u8, u16),
    /// An admin command (opcode) did not end in time.
    TimeOut(u8),
    /// Namespace 1 has no blocks.
    NoNamespace,
    /// Its blocks have 2^n bytes and so many bytes of metadata.
    Blocks(u8, u16),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "the controller does not answer"),
            Self::CommandSet => write!(f, "the controller has no NVM command set"),
            Self::Page(bytes) => write!(f, "the controller's smallest page has {bytes} bytes"),
            Self::Memory(bytes) => write!(f, "{bytes} bytes of DMA memory are needed"),
            Self::Stop(ms) => write!(f, "the controller does not stop within {ms} ms"),
            Self::Start(ms) => write!(f, "the controller is not ready within {ms} ms"),
            Self::Fatal(status) => write!(f, "the controller reports a fatal error (CSTS {status:#x})"),
            Self::Command(opcode, status) => write!(f, "admin command {opcode:#x} ended with status {status:#x}"),
            Self::TimeOut(opcode) => write!(f, "admin command {opcode:#x} does not end"),
            Self::NoNamespace => write!(f, "namespace {NAMESPACE} does not exist"),
            Self::Blocks(log, 0) => write!(f, "blocks of 2^{log} bytes are not supported"),
            Self::Blocks(_, metadata) => write!(f, "blocks with {metadata} bytes of metadata are not supported"),
        }
    }
}

/// What the controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Sectors of 512 bytes in the namespace.
    pub sectors: u64,
    /// Bytes of a block.
    pub block: u32,
    /// Most bytes of one command.
    pub transfer: u32,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// Most commands at once.
    pub depth: u16,
}

/// Brings the controller up; its only interrupt is entry 0, for admin and I/O completions.
pub fn start<H: Hardware>(hardware: &mut H) -> Result<(Identity, Pair), Error> {
    let capabilities = read64(hardware, register::CAP);
    if capabilities as u32 == ABSENT {
        return Err(Error::Absent);
    }
    let capabilities = Capabilities(capabilities);
    if !capabilities.has_nvm_commands() {
        return Err(Error::CommandSet);
    }
    if capabilities.page_min() != PAGE {
        return Err(Error::Page(capabilities.page_min()));
    }
    let entries = capabilities.queue_entries().min(IO_ENTRIES.into()).max(2) as u16;
    let needed = layout::LISTS + u64::from(entries) * PAGE;
    if hardware.memory().length() < needed {
        return Err(Error::Memory(needed));
    }
    stop(hardware, capabilities)?;
    enable(hardware, capabilities)?;
    let (submissions, completions) = layout::ADMIN;
    let pair = Pair::new(0, submissions, completions, ADMIN_ENTRIES, capabilities);
    let mut admin = Admin { hardware, pair };
    let identity = admin.identify(capabilities, entries - 1)?;
    admin.create_queues(entries)?;
    let (submissions, completions) = layout::IO;
    Ok((identity, Pair::new(1, submissions, completions, entries, capabilities)))
}

fn read64(hardware: &mut impl Hardware, register: u64) -> u64 {
    u64::from(hardware.read(register)) | u64::from(hardware.read(register + 4)) << 32
}

fn write64(hardware: &mut impl Hardware, register: u64, value: u64) {
    hardware.write(register, value as u32);
    hardware.write(register + 4, (value >> 32) as u32);
}

/// Waits until CSTS.RDY is `ready`; false if that takes longer than CAP.TO.
fn wait(hardware: &mut impl Hardware, ready: bool, ms: u32) -> Result<bool, Error> {
    for _ in 0..=ms {
        let status = hardware.read(register::CSTS);
        if status == ABSENT {
            return Err(Error::Absent);
        }
        if (status & CSTS_READY != 0) == ready {
            return Ok(true);
        }
        if ready && status & CSTS_FATAL != 0 {
            return Err(Error::Fatal(status));
        }
        hardware.pause();
    }
    Ok(false)
}

/// Controller reset (7.3.2): stops all that a predecessor has started, DMA included.
fn stop(hardware: &mut impl Hardware, capabilities: Capabilities) -> Result<(), Error> {
    let configuration = hardware.read(register::CC);
    // A controller that is starting must not be stopped before it is ready (3.1.5, EN), unless it never will be.
    if configuration & CC_ENABLE != 0 && hardware.read(register::CSTS) & CSTS_FATAL == 0 {
        match wait(hardware, true, capabilities.ready_ms()) {
            Ok(_) | Err(Error::Fatal(_)) => {}
            Err(error) => return Err(error),
        }
    }
    hardware.write(register::CC, configuration & !CC_ENABLE);
    let stopped = wait(hardware, false, capabilities.ready_ms())?;
    if stopped { Ok(()) } else { Err(Error::Stop(capabilities.ready_ms())) }
}

fn enable(hardware: &mut impl Hardware, capabilities: Capabilities) -> Result<(), Error> {
    // The memory may be a predecessor's: old completions would be taken for new ones.
    for offset in (0..layout::LISTS).step_by(8) {
        hardware.memory().store(offset, 0);
    }
    let (submissions, completions) = layout::ADMIN;
    let last = u32::from(ADMIN_ENTRIES) - 1;
    hardware.write(register::AQA, last << 16 | last);
    let base = hardware.memory().address();
    write64(hardware, register::ASQ, base + submissions);
    write64(hardware, register::ACQ, base + completions);
    hardware.write(register::CC, CC_SETTING);
    hardware.write(register::CC, CC_SETTING | CC_ENABLE);
    let ready = wait(hardware, true, capabilities.ready_ms())?;
    if ready { Ok(()) } else { Err(Error::Start(capabilities.ready_ms())) }
}

/// The admin queue, one command at a time.
struct Admin<'a, H> {
    hardware: &'a mut H,
    pair: Pair,
}

impl<H: Hardware> Admin<'_, H> {
    fn command(&mut self, entry: Entry) -> Result<(), Error> {
        self.pair.push(self.hardware, &entry);
        self.pair.start(self.hardware);
        for _ in 0..ADMIN_MS {
            if let Some(completion) = self.pair.pop(self.hardware) {
                // Tells the controller that it has been taken.
                self.pair.pop(self.hardware);
                let status = completion.status();
                return if status == 0 { Ok(()) } else { Err(Error::Command(entry.opcode, status)) };
            }
            let status = self.hardware.read(register::CSTS);
            if status == ABSENT {
                return Err(Error::Absent);
            }
            if status & CSTS_FATAL != 0 {
                return Err(Error::Fatal(status));
            }
            self.hardware.pause();
        }
        Err(Error::TimeOut(entry.opcode))
    }

    fn identify_page(&mut self, what: u32, namespace: u32) -> Result<Page, Error> {
        let prp1 = self.hardware.memory().address() + layout::IDENTIFY;
        self.command(Entry { opcode: admin::IDENTIFY, namespace, prp1, dwords: [what, 0, 0], ..Entry::default() })?;
        let mut page = Page([0; PAGE as usize]);
        for (i, chunk) in page.0.as_chunks_mut().0.iter_mut().enumerate() {
            *chunk = self.hardware.memory().load(layout::IDENTIFY + i as u64 * 8).to_le_bytes();
        }
        Ok(page)
    }

    fn identify(&mut self, capabilities: Capabilities, depth: u16) -> Result<Identity, Error> {
        let page = self.identify_page(admin::CNS_CONTROLLER, 0)?;
        let limit = match page.0[spec::controller::MDTS] {
            0 => TRANSFER,
            // 2^8 pages are the limit anyway.
            log => TRANSFER.min(capabilities.page_min() << log.min(8)),
        };
        let (model, serial) = (page.text(spec::controller::MODEL, 40), page.text(spec::controller::SERIAL, 20));
        let volatile_cache = page.0[spec::controller::VWC] & 1 != 0;
        let page = self.identify_page(admin::CNS_NAMESPACE, NAMESPACE)?;
        let format = spec::namespace::LBAF + 4 * usize::from(page.0[spec::namespace::FLBAS] & 0xf);
        let metadata = u16::from_le_bytes([page.0[format], page.0[format + 1]]);
        let log = page.0[format + 2];
        let blocks = page.word(spec::namespace::NSZE);
        if blocks == 0 {
            return Err(Error::NoNamespace);
        }
        if metadata != 0 || !(9..=12).contains(&log) {
            return Err(Error::Blocks(log, metadata));
        }
        let block = 1 << log;
        let sectors = blocks.checked_mul(u64::from(block) / SECTOR).ok_or(Error::NoNamespace)?;
        Ok(Identity { model, serial, sectors, block, transfer: limit as u32, volatile_cache, depth })
    }

    fn create_queues(&mut self, entries: u16) -> Result<(), Error> {
        // One of each, both less by one.
        let dwords = [admin::FEATURE_QUEUES, 0, 0];
        self.command(Entry { opcode: admin::SET_FEATURES, dwords, ..Entry::default() })?;
        let (submissions, completions) = layout::IO;
        let (base, size) = (self.hardware.memory().address(), u32::from(entries - 1) << 16 | 1);
        let interrupt = admin::INTERRUPTS | admin::CONTIGUOUS;
        self.command(Entry {
            opcode: admin::CREATE_COMPLETION,
            prp1: base + completions,
            dwords: [size, interrupt, 0],
            ..Entry::default()
        })?;
        self.command(Entry {
            opcode: admin::CREATE_SUBMISSION,
            prp1: base + submissions,
            dwords: [size, 1 << 16 | admin::CONTIGUOUS, 0],
            ..Entry::default()
        })
    }
}

/// What Identify gives.
struct Page([u8; PAGE as usize]);

impl Page {
    fn word(&self, at: usize) -> u64 {
        self.0[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Printable characters, without the padding.
    fn text(&self, at: usize, length: usize) -> String {
        let graphic = |&byte: &u8| if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '?' };
        self.0[at..at + length].iter().map(graphic).collect::<String>().trim().to_string()
    }
}
