//! The controller as a disk.

use crate::controller::{self, Error, Identity, NAMESPACE, layout};
use crate::queue::Pair;
use crate::spec::{ABSENT, CSTS_FATAL, Entry, PAGE, nvm, register};
use alloc::vec;
use alloc::vec::Vec;
use block::hardware::Ages;
use block::{Action, Command, Device, Failure, Geometry, Hardware, Memory, Outcome};
use runtime::block::SECTOR;

/// More than a queue has.
const COMMANDS: usize = 64;

/// A disk.
pub struct Disk<H> {
    hardware: H,
    identity: Identity,
    pair: Pair,
    ages: Ages<COMMANDS>,
    /// The last command that failed: action's opcode, first sector, status (4.6.1).
    error: Option<(u8, u64, u16)>,
    starts: Vec<(u8, u64)>,
}

impl<H: Hardware> Disk<H> {
    /// Brings the controller up.
    pub fn new(mut hardware: H) -> Result<Self, Error> {
        let (identity, pair) = controller::start(&mut hardware)?;
        let depth = usize::from(identity.depth);
        Ok(Self { hardware, identity, pair, ages: Ages::default(), error: None, starts: vec![(0, 0); depth] })
    }

    /// What the controller says it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The last command that failed since the last question: opcode, first sector, status (4.6.1).
    pub fn take_error(&mut self) -> Option<(u8, u64, u16)> {
        self.error.take()
    }

    /// The PRP entries (4.3) of a contiguous piece of memory: the first page, and the second or a list of all others.
    fn pages(&mut self, id: u16, address: u64, length: u32) -> (u64, u64) {
        let end = address + u64::from(length);
        let second = (address / PAGE + 1) * PAGE;
        if end <= second {
            return (address, 0);
        }
        if end <= second + PAGE {
            return (address, second);
        }
        let list = layout::LISTS + u64::from(id) * PAGE;
        for (i, page) in (second..end).step_by(PAGE as usize).enumerate() {
            self.hardware.memory().store(list + i as u64 * 8, page);
        }
        (address, self.hardware.memory().address() + list)
    }
}

impl<H: Hardware> Device for Disk<H> {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: self.identity.sectors,
            block: self.identity.block,
            transfer: self.identity.transfer,
            depth: self.identity.depth,
            read_only: false,
            volatile_cache: self.identity.volatile_cache,
            force_unit_access: true,
        }
    }

    fn submit(&mut self, id: u16, command: &Command) {
        let mut entry = Entry { opcode: nvm::FLUSH, id, namespace: NAMESPACE, ..Entry::default() };
        if command.action != Action::Flush {
            (entry.prp1, entry.prp2) = self.pages(id, command.address, command.length);
            let first = command.sector / (u64::from(self.identity.block) / SECTOR);
            let durable = if command.force_unit_access { nvm::FORCE_UNIT_ACCESS } else { 0 };
            entry.dwords = [first as u32, (first >> 32) as u32, (command.length / self.identity.block - 1) | durable];
            entry.opcode = if command.action == Action::Write { nvm::WRITE } else { nvm::READ };
        }
        self.ages.start(id);
        self.starts[usize::from(id)] = (entry.opcode, command.sector);
        self.pair.push(&mut self.hardware, &entry);
    }

    fn start(&mut self) {
        self.pair.start(&mut self.hardware);
    }

    fn poll(&mut self) -> Option<(u16, Outcome)> {
        loop {
            let completion = self.pair.pop(&mut self.hardware)?;
            let id = completion.id();
            // A name that is not in use: the controller is wrong, and its health will show that.
            if !self.ages.end(id) {
                continue;
            }
            if completion.status() == 0 {
                return Some((id, Outcome::Done));
            }
            let (opcode, sector) = self.starts[usize::from(id)];
            self.error = Some((opcode, sector, completion.status()));
            return Some((id, Outcome::Failed));
        }
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.hardware.read(register::CSTS) {
            ABSENT => return Err(Failure::Absent),
            status if status & CSTS_FATAL != 0 => return Err(Failure::Fatal(status)),
            _ => {}
        }
        self.ages.look().map_or(Ok(()), |id| Err(Failure::TimeOut(id)))
    }
}
