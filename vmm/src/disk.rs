//! A disk's service: a driver behind two rings and a data window, by the protocol `runtime::block`.

use alloc::format;
use alloc::string::String;

use machine::virtio::block::{self, Backend, Request};
use machine::virtio::queue::Segment;
use plan::DiskConfig;
use runtime::block::{Client, Event, Operation, Status};
use runtime::channel::{Receiver, Sender};
use runtime::{log, manifest, time};

use crate::memory::{HostMemory, Window};

/// How long a machine waits at its start for the driver to say what the disk is, in milliseconds.
const PATIENCE_MS: u64 = 10_000;

/// One disk.
pub struct Disk {
    name: String,
    read_only: bool,
    client: Client,
    rings: (Sender, Receiver),
    window: Window,
    /// Completions up to here have been looked at.
    seen: u32,
}

impl Disk {
    /// The disk of this configuration, and what it is; with no sectors if the driver does not say so in time.
    pub fn open(config: &DiskConfig) -> Result<(Self, block::Disk), String> {
        let name = &config.name;
        let missing = |what: &str| format!("disk {name} has no {what}");
        let sender = Sender::open(&format!("disk.{name}.requests")).ok_or_else(|| missing("requests"))?;
        let receiver = Receiver::open(&format!("disk.{name}.completions")).ok_or_else(|| missing("completions"))?;
        let region = manifest().region(&format!("disk.{name}.data")).ok_or_else(|| missing("data window"))?;
        let mut disk = Self {
            name: name.clone(),
            read_only: config.read_only,
            client: Client::new(),
            seen: receiver.position(),
            rings: (sender, receiver),
            window: Window::new(region.memory),
        };
        let what = disk.attach(time::now() + time::ticks_from_ms(PATIENCE_MS));
        match what {
            Some(what) => log!("disk {name}: {} sectors", what.sectors),
            None => log!("disk {name}: no driver has come, the machine starts without its content"),
        }
        // Without a word it is taken for one that needs everything.
        Ok((disk, what.unwrap_or(block::Disk { sectors: 0, read_only: config.read_only, cached: true })))
    }

    /// What the guest is told as identification.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attach(&mut self, deadline: u64) -> Option<block::Disk> {
        loop {
            self.push();
            match self.next() {
                Some(block::Event::Ready(disk)) => return Some(disk),
                Some(_) => {}
                None if self.rings.1.wait(deadline) == Ok(false) => return None,
                None => {}
            }
        }
    }

    /// Sends what waits, and wakes the driver.
    fn push(&mut self) {
        self.client.send(&mut self.rings);
        self.rings.0.notify();
    }

    fn next(&mut self) -> Option<block::Event> {
        let event = match self.client.poll(&mut self.rings)? {
            Event::Hello(hello) => block::Event::Ready(block::Disk {
                sectors: hello.sectors,
                read_only: hello.read_only || self.read_only,
                cached: hello.volatile_cache,
            }),
            Event::Done { tag, status } => block::Event::Done { tag, ok: status == Status::Ok },
        };
        Some(event)
    }
}

impl Backend<HostMemory> for Disk {
    fn window(&self) -> u64 {
        self.window.length()
    }

    fn copy_in(&mut self, at: u64, memory: &HostMemory, segment: Segment) {
        self.window.fill(at, memory, segment.offset, segment.length.into());
    }

    fn copy_out(&mut self, at: u64, memory: &HostMemory, segment: Segment) {
        self.window.empty(at, memory, segment.offset, segment.length.into());
    }

    fn submit(&mut self, request: Request) -> Option<u32> {
        let (operation, durable) = match request.operation {
            block::Operation::Read => (Operation::Read, false),
            block::Operation::Write { durable } => (Operation::Write, durable),
            block::Operation::Flush => (Operation::Flush, false),
        };
        self.client.submit(operation, durable, request.sector, request.offset, request.length)
    }

    fn send(&mut self) {
        self.push();
    }

    fn poll(&mut self) -> Option<block::Event> {
        // Before the look, so that what comes meanwhile is not overlooked.
        self.seen = self.rings.1.position();
        let event = self.next();
        if event.is_none() {
            self.rings.1.notify();
        }
        event
    }

    fn idle(&mut self) -> bool {
        self.rings.1.prepare_wait_since(self.seen)
    }
}
