//! The device as a disk.

use crate::identity::{Error, Identity};
use crate::requests::{ENTRIES, Misbehaviour, Requests};
use ::device::registers::Registers;
use block::hardware::Ages;
use block::{Action, Command, Device, Failure, Geometry, Outcome};
use virtio::transport::PciTransport;
use virtio_drivers::transport::{DeviceStatus, Transport};

pub use crate::requests::DEPTH;

/// A register that is not there.
const ABSENT: u8 = 0xff;

/// A disk.
pub struct Disk<R> {
    transport: PciTransport<R>,
    identity: Identity,
    requests: Requests<R>,
    ages: Ages<ENTRIES>,
    /// The last command that failed: what it was, its first sector, the device's status.
    error: Option<(Action, u64, u8)>,
    /// The device has broken the rules: nothing that it says counts any more.
    broken: bool,
}

impl<R: Registers + Clone> Disk<R> {
    /// Brings the device up; the reset ends what a predecessor began.
    pub fn new(mut transport: PciTransport<R>) -> Result<Self, Error> {
        let identity = Identity::of(&mut transport)?;
        let requests = Requests::new(&mut transport, &identity)?;
        transport.finish()?;
        Ok(Self { transport, identity, requests, ages: Ages::default(), error: None, broken: false })
    }
}

impl<R> Disk<R> {
    /// What the device says it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The last command that failed since the last question: what it was, its first sector, the device's status
    /// (5.2.6). Status 0: the device did not write all of it.
    pub fn take_error(&mut self) -> Option<(Action, u64, u8)> {
        self.error.take()
    }

    /// Whether the device has kept the rules so far.
    pub fn rules(&self) -> Result<(), Failure> {
        if self.broken { Err(Failure::Misbehaviour) } else { Ok(()) }
    }
}

impl<R: Registers> Device for Disk<R> {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: self.identity.sectors,
            block: self.identity.block,
            transfer: self.identity.transfer,
            depth: DEPTH,
            read_only: self.identity.read_only,
            volatile_cache: self.identity.volatile_cache,
            force_unit_access: false,
        }
    }

    fn submit(&mut self, id: u16, command: &Command) {
        self.ages.start(id);
        self.requests.push(id, command);
    }

    fn start(&mut self) {
        self.requests.ring();
    }

    fn poll(&mut self) -> Option<(u16, Outcome)> {
        if self.broken {
            return None;
        }
        let ended = match self.requests.pop() {
            Ok(ended) => ended?,
            Err(Misbehaviour) => {
                self.broken = true;
                return None;
            }
        };
        self.ages.end(ended.id);
        if ended.status == 0 && ended.whole {
            return Some((ended.id, Outcome::Done));
        }
        self.error = Some((ended.command.action, ended.command.sector, ended.status));
        Some((ended.id, Outcome::Failed))
    }

    fn check(&mut self) -> Result<(), Failure> {
        self.rules()?;
        let status = self.transport.get_status();
        let works = status.contains(DeviceStatus::DRIVER_OK) && !status.contains(DeviceStatus::DEVICE_NEEDS_RESET);
        match status.bits() as u8 {
            ABSENT => Err(Failure::Absent),
            status if !works => Err(Failure::Fatal(status.into())),
            _ => self.ages.look().map_or(Ok(()), |id| Err(Failure::TimeOut(id))),
        }
    }
}
