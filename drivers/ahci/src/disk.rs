//! The disk on a port: several slots, which the controller works off one after the other.

use crate::controller::{Error, Port, Task};
use crate::identify::Identity;
use crate::spec::{self, ata, host, port};
use block::hardware::Ages;
use block::{Action, Command, Device, Failure, Geometry, Hardware, Outcome};

/// Most bytes of a command: one piece of memory could have four times as many (4.2.3.3).
const TRANSFER: u32 = 1 << 20;

/// A disk.
pub struct Disk<H> {
    port: Port<H>,
    identity: Identity,
    /// Slots, a bit each: prepared, running in the controller, ended well, failed.
    prepared: u32,
    running: u32,
    done: u32,
    failed: u32,
    ages: Ages<32>,
    /// PxTFD or PxIS when the port could not go on.
    fatal: Option<u32>,
    /// PxTFD of the last command that failed.
    error: Option<u32>,
}

impl<H: Hardware> Disk<H> {
    /// Brings the controller's first disk up.
    pub fn new(hardware: H) -> Result<Self, Error> {
        let (port, identity) = Port::start(hardware)?;
        let ages = Ages::default();
        Ok(Self { port, identity, prepared: 0, running: 0, done: 0, failed: 0, ages, fatal: None, error: None })
    }

    /// What the disk says it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The port it is on.
    pub fn port(&self) -> u32 {
        self.port.number
    }

    /// PxTFD of the last command that failed since the last question.
    pub fn take_error(&mut self) -> Option<u32> {
        self.error.take()
    }

    /// Looks what has ended. The interrupt's causes are cleared first: what ends later raises another.
    fn look(&mut self) {
        let causes = self.port.read(port::IS);
        if causes != 0 {
            self.port.write(port::IS, causes);
            self.port.hardware.write(host::IS, 1 << self.port.number);
        }
        if causes == u32::MAX {
            self.fatal = Some(causes);
            return;
        }
        let issued = self.port.read(port::CI);
        let ended = self.running & !issued;
        self.running &= issued;
        self.done |= ended;
        if causes & spec::IS_FATAL != 0 {
            self.fatal = Some(causes);
        } else if causes & spec::IS_TASK_FILE != 0 {
            self.recover();
        }
    }

    /// A command failed and the port has stopped (6.2.2.1): the others are issued again.
    fn recover(&mut self) {
        let current = 1 << spec::cmd_slot(self.port.read(port::CMD));
        let status = self.port.read(port::TFD);
        self.error = Some(status);
        let stopped = self.port.stop();
        self.port.write(port::SERR, u32::MAX);
        if !stopped || status & spec::TFD_BUSY != 0 {
            self.fatal = Some(status);
            return;
        }
        self.failed |= current & self.running;
        self.running &= !current;
        self.port.go();
        if self.running != 0 {
            self.port.write(port::CI, self.running);
        }
    }
}

impl<H: Hardware> Device for Disk<H> {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: self.identity.sectors,
            block: self.identity.block,
            transfer: TRANSFER,
            depth: self.port.slots as u16,
            read_only: false,
            volatile_cache: self.identity.volatile_cache,
            force_unit_access: self.identity.force_unit_access,
        }
    }

    fn submit(&mut self, id: u16, command: &Command) {
        self.ages.start(id);
        let Command { address, length, .. } = *command;
        if !self.port.wide && address + u64::from(length) > 1 << 32 {
            self.failed |= 1 << id;
            return;
        }
        let block = self.identity.block;
        let (code, write) = match (command.action, command.force_unit_access) {
            (Action::Read, _) => (ata::READ, false),
            (Action::Write, false) => (ata::WRITE, true),
            (Action::Write, true) => (ata::WRITE_FUA, true),
            (Action::Flush, _) => (ata::FLUSH, false),
        };
        let mut task = Task { command: code, sector: 0, count: 0, write, address: 0, length: 0 };
        if command.action != Action::Flush {
            task.sector = command.sector / (u64::from(block) / runtime::block::SECTOR);
            (task.count, task.address, task.length) = ((length / block) as u16, address, length);
        }
        self.port.prepare(id.into(), &task);
        self.prepared |= 1 << id;
    }

    fn start(&mut self) {
        let slots = core::mem::take(&mut self.prepared);
        if slots != 0 {
            self.running |= slots;
            self.port.write(port::CI, slots);
        }
    }

    fn poll(&mut self) -> Option<(u16, Outcome)> {
        if self.done | self.failed == 0 && self.running != 0 && self.fatal.is_none() {
            self.look();
        }
        let (slots, outcome) = match self.done {
            0 => (&mut self.failed, Outcome::Failed),
            _ => (&mut self.done, Outcome::Done),
        };
        if *slots == 0 {
            return None;
        }
        let id = slots.trailing_zeros() as u16;
        *slots &= *slots - 1;
        self.ages.end(id);
        Some((id, outcome))
    }

    fn check(&mut self) -> Result<(), Failure> {
        if self.port.hardware.read(host::CAP) == u32::MAX {
            return Err(Failure::Absent);
        }
        if let Some(status) = self.fatal {
            return Err(Failure::Fatal(status));
        }
        self.ages.look().map_or(Ok(()), |id| Err(Failure::TimeOut(id)))
    }
}
