//! The server with real rings and real clients around a model of a disk.

use super::*;
use crate::device::{Action, Command, Failure, Outcome};
use runtime::block::{COMPLETION_LENGTH, CompletionRecord, Request, RequestRecord};
use runtime::block::{Client, Event, Link, Operation, Status};
use runtime::ring::{Consumer, Header, Producer, Ring, Violation};
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::AtomicU8;
use std::vec;
use std::vec::Vec;

mod hostile;
mod lives;
mod order;

/// Sectors of each client's region and window.
const SECTORS: u64 = 64;
const WINDOW: u64 = 32;

/// One ring, for ever: who uses it comes and goes.
#[derive(Clone, Copy)]
struct Shared {
    header: &'static Header,
    data: &'static [AtomicU8],
}

impl Shared {
    fn new(capacity: usize) -> Self {
        let data: Vec<_> = (0..capacity).map(|_| AtomicU8::new(0)).collect();
        Self { header: Box::leak(Box::new(Header::new(capacity))), data: Box::leak(data.into()) }
    }
    fn ring(self) -> Ring<'static> {
        Ring::new(self.header, self.data).expect("a ring")
    }
}

struct Ends {
    requests: Consumer<'static>,
    completions: Producer<'static>,
    position: u32,
}

impl Port for Ends {
    fn receive(&mut self) -> Result<Option<RequestRecord>, Violation> {
        self.position = self.requests.position();
        self.requests.read_record()
    }
    fn send(&mut self, record: &CompletionRecord) -> Result<bool, Violation> {
        self.completions.write_record(record)
    }
    fn notify(&mut self) {}
    fn await_request(&mut self) -> bool {
        self.requests.prepare_wait_since(self.position)
    }
    fn await_space(&mut self) -> bool {
        self.completions.prepare_wait() || !matches!(self.completions.space(), Ok(space) if space >= COMPLETION_LENGTH)
    }
}

struct ClientEnds(Producer<'static>, Consumer<'static>);

impl Link for ClientEnds {
    fn send(&mut self, record: &RequestRecord) -> Result<bool, Violation> {
        self.0.write_record(record)
    }
    fn receive(&mut self) -> Result<Option<CompletionRecord>, Violation> {
        self.1.read_record()
    }
}

/// A client's rings.
#[derive(Clone, Copy)]
struct Wires {
    requests: Shared,
    completions: Shared,
}

impl Wires {
    fn new(request_bytes: usize, completion_bytes: usize) -> Self {
        Self { requests: Shared::new(request_bytes), completions: Shared::new(completion_bytes) }
    }
    fn driver(self) -> Ends {
        let (requests, completions) = (Consumer::new(self.requests.ring()), Producer::new(self.completions.ring()));
        Ends { requests, completions, position: 0 }
    }
    fn client(self) -> ClientEnds {
        ClientEnds(Producer::new(self.requests.ring()), Consumer::new(self.completions.ring()))
    }
}

/// Memory and disk, with one number for each 512 bytes. Every number that is written to a sector is larger than all before.
#[derive(Default)]
struct World {
    windows: Vec<Vec<u64>>,
    /// What a read gives.
    current: Vec<u64>,
    /// What a flush that is sent now makes durable.
    ended: Vec<u64>,
    durable: Vec<u64>,
    running: Vec<(u16, Command, Vec<u64>)>,
    done: VecDeque<(u16, Command, Outcome)>,
    /// Commands that fail.
    failing: usize,
    log: Vec<Command>,
}

impl World {
    fn new(clients: usize) -> Rc<RefCell<Self>> {
        let image = || vec![0; clients * SECTORS as usize];
        let windows = vec![vec![0; WINDOW as usize]; clients];
        let world = Self { windows, current: image(), ended: image(), durable: image(), ..Self::default() };
        Rc::new(RefCell::new(world))
    }

    /// The `pick`th running command does its work.
    fn execute(&mut self, pick: usize) {
        let (id, command, snapshot) = self.running.swap_remove(pick % self.running.len());
        if self.failing != 0 {
            self.failing -= 1;
            return self.done.push_back((id, command, Outcome::Failed));
        }
        let durable = &mut self.durable;
        for i in 0..u64::from(command.length) / 512 {
            let (client, at) = ((command.address >> 32) as usize - 1, (command.address as u32 / 512) as usize);
            let memory = &mut self.windows[client][at + i as usize];
            let sector = (command.sector + i) as usize;
            assert_eq!(sector / SECTORS as usize, client, "a client reaches its own region only");
            match command.action {
                Action::Read => *memory = self.current[sector],
                _ => self.current[sector] = *memory,
            }
            if command.force_unit_access {
                durable[sector] = durable[sector].max(self.current[sector]);
            }
        }
        if command.action == Action::Flush {
            durable.iter_mut().zip(&snapshot).for_each(|(old, &new)| *old = new.max(*old));
        }
        self.done.push_back((id, command, Outcome::Done));
    }

    fn run(&mut self) {
        while !self.running.is_empty() {
            self.execute(0);
        }
    }
}

struct Disk(Rc<RefCell<World>>, Geometry);

impl Device for Disk {
    fn geometry(&self) -> Geometry {
        self.1
    }
    fn submit(&mut self, id: u16, command: &Command) {
        let mut world = self.0.borrow_mut();
        assert!(id < self.1.depth && command.length <= self.1.transfer);
        assert!(world.running.iter().all(|(other, ..)| *other != id), "one command under a name");
        assert!(self.1.force_unit_access || !command.force_unit_access);
        let snapshot = world.ended.clone();
        world.log.push(*command);
        world.running.push((id, *command, snapshot));
    }
    fn start(&mut self) {}
    fn poll(&mut self) -> Option<(u16, Outcome)> {
        let mut world = self.0.borrow_mut();
        let (id, command, outcome) = world.done.pop_front()?;
        if command.action == Action::Write && outcome == Outcome::Done {
            for sector in command.sector..command.sector + u64::from(command.length) / 512 {
                world.ended[sector as usize] = world.current[sector as usize];
            }
        }
        Some((id, outcome))
    }
    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

const GEOMETRY: Geometry = Geometry {
    sectors: 4 * SECTORS,
    block: 512,
    transfer: 2048,
    depth: 3,
    read_only: false,
    volatile_cache: true,
    force_unit_access: true,
};

fn region(client: usize) -> Region {
    Region {
        first: client as u64 * SECTORS,
        sectors: SECTORS,
        read_only: false,
        window: (client as u64 + 1) << 32,
        window_length: WINDOW * 512,
    }
}

fn server(world: &Rc<RefCell<World>>, wires: &[Wires], geometry: Geometry, life: u32) -> Server<Disk, Ends> {
    let mut server = Server::new(Disk(world.clone(), geometry)).expect("a valid geometry");
    for (client, wires) in wires.iter().enumerate() {
        server.add(wires.driver(), region(client), life);
    }
    server
}

type Met = (Rc<RefCell<World>>, Server<Disk, Ends>, Vec<(Client, ClientEnds)>);

/// A server, and clients that have met it.
fn met(clients: usize, completion_bytes: usize) -> Met {
    let world = World::new(clients);
    let wires: Vec<_> = (0..clients).map(|_| Wires::new(4096, completion_bytes)).collect();
    let mut server = server(&world, &wires, GEOMETRY, 1);
    server.turn();
    let ends = wires.iter().map(|wires| {
        let (mut client, mut ends) = (Client::new(), wires.client());
        assert!(matches!(client.poll(&mut ends), Some(Event::Hello(hello)) if hello.sectors == SECTORS));
        assert!(client.send(&mut ends));
        (client, ends)
    });
    let ends = ends.collect();
    server.turn();
    (world, server, ends)
}

fn tags((client, ends): &mut (Client, ClientEnds)) -> Vec<(u32, Status)> {
    let events = core::iter::from_fn(|| client.poll(ends));
    let done = events.map(|event| match event {
        Event::Done { tag, status } => (tag, status),
        Event::Hello(hello) => panic!("unexpected: {hello:?}"),
    });
    done.collect()
}
