//! The program around a server: rings of all clients, the interrupts, and the main loop.
//!
//! One thread does everything and waits on one semaphore, which all rings and a small thread for each interrupt up.
#![allow(unsafe_code)]

use crate::device::Device;
use crate::region::Region;
use crate::server::Server;
use crate::session::Port;
use abi::scd::Scd;
use alloc::format;
use device::dma;
use plan::{ClientConfig, DriverConfig};
use runtime::block::{COMPLETION_LENGTH, CompletionRecord, LIFE_MAX, RequestRecord};
use runtime::channel::{Receiver, Sender};
use runtime::manifest::{InterruptEntry, Manifest, Role};
use runtime::ring::Violation;
use runtime::sync::Semaphore;
use runtime::{log, thread, time};

/// Priority of the threads that wait for interrupts: they do nothing but wake the main thread.
const INTERRUPT: Scd = Scd { budget: 10, priority: 110, cos: 0 };
/// Milliseconds between looks at a busy device's health.
const LOOK_MS: u64 = 1000;
/// The same between looks for ended commands, of a device without interrupts.
const POLL_MS: u64 = 1;

/// A client's rings.
struct Rings {
    requests: Receiver,
    completions: Sender,
    /// Where the requests ended at the last look.
    position: u32,
}

impl Port for Rings {
    fn receive(&mut self) -> Result<Option<RequestRecord>, Violation> {
        self.position = self.requests.position();
        self.requests.take_record()
    }
    fn send(&mut self, record: &CompletionRecord) -> Result<bool, Violation> {
        self.completions.queue_record(record)
    }
    fn notify(&mut self) {
        self.completions.notify();
        self.requests.notify();
    }
    fn await_request(&mut self) -> bool {
        self.requests.prepare_wait_since(self.position)
    }
    fn await_space(&mut self) -> bool {
        let space = |ring: &Sender| ring.space().is_ok_and(|space| space >= COMPLETION_LENGTH);
        self.completions.prepare_wait() || !space(&self.completions)
    }
}

/// Serves the clients of the program's configuration, for ever; after each turn `report` may log what the device has to
/// say. A device that fails ends the program.
pub fn serve<D: Device>(device: D, mut report: impl FnMut(&mut D)) -> ! {
    let manifest = runtime::manifest();
    let geometry = device.geometry();
    let Some(mut server) = Server::new(device) else { panic!("a disk that cannot be: {geometry:?}") };
    let config = match DriverConfig::decode(config(manifest)) {
        Ok(config) => config,
        Err(error) => panic!("cannot read the configuration: {error:?}"),
    };
    let mut work = None;
    for client in &config.clients {
        let semaphore = add(manifest, &mut server, client);
        // The root task gives all rings of a driver the same one, under several selectors.
        work = Some(semaphore);
    }
    let Some(work) = work else {
        log!("no clients");
        runtime::sync::park()
    };
    let interrupts = manifest.interrupts.iter().filter(|interrupt| interrupt.used != 0);
    let works = interrupts.filter(|interrupt| listen(interrupt, work)).count() != 0;
    if !works {
        log!("no interrupts: looks at the device every millisecond");
    }
    let (second, poll) = (time::ticks_from_ms(LOOK_MS), time::ticks_from_ms(POLL_MS));
    let mut look = time::now() + second;
    loop {
        server.turn();
        report(server.device());
        let deadline = match (server.is_busy(), works) {
            (false, _) => 0,
            (true, true) => look,
            (true, false) => time::now() + poll,
        };
        if server.idle()
            && let Err(status) = work.wait(deadline)
        {
            panic!("cannot wait: {status:?}");
        }
        if time::now() >= look {
            look = time::now() + second;
            let failure = if server.is_busy() { server.device().check().err() } else { None };
            if let Some(failure) = failure {
                panic!("{failure}: a successor begins anew");
            }
        }
    }
}

/// Adds a client; the semaphore of its rings.
fn add<D: Device>(manifest: &Manifest, server: &mut Server<D, Rings>, client: &ClientConfig) -> Semaphore {
    let name = &client.name;
    let requests = manifest.ring(&format!("{name}.requests"), Role::Consumer);
    let completions = manifest.ring(&format!("{name}.completions"), Role::Producer);
    let window = manifest.region(&format!("{name}.data"));
    let (Some(requests), Some(completions), Some(window)) = (requests, completions, window) else {
        panic!("client {name} has no rings or no window")
    };
    // SAFETY: the manifest says that program and device share this memory for ever.
    unsafe { dma::add_window(window.memory.address as usize, window.memory.length as usize, window.device) };
    let region = Region {
        first: client.first,
        sectors: client.sectors,
        read_only: client.read_only,
        window: window.device,
        window_length: window.memory.length,
    };
    let region = match region.on(&server.device().geometry()) {
        Ok(region) => {
            let access = if region.read_only { ", read only" } else { "" };
            log!("client {name}: {} sectors from {}{access}", region.sectors, region.first);
            region
        }
        Err(misfit) => {
            log!("client {name} gets nothing: {misfit}");
            Region { first: 0, sectors: 0, window_length: 0, ..region }
        }
    };
    // A number that the lives before this one had not, but by a very rare chance.
    let life = (time::now() >> 8) as u32 & LIFE_MAX;
    let rings = (Receiver::from_entry(requests), Sender::from_entry(completions));
    let (Some(requests_end), Some(completions)) = rings else { panic!("client {name}: these are no rings") };
    server.add(Rings { requests: requests_end, completions, position: 0 }, region, life);
    Semaphore::from_selector(requests.sel_data)
}

fn config(manifest: &Manifest) -> &'static [u8] {
    let config = manifest.config;
    if config.length == 0 {
        return &[];
    }
    // SAFETY: the manifest says that this memory is mapped read-only, for ever.
    unsafe { core::slice::from_raw_parts(config.address as *const u8, config.length as usize) }
}

/// Starts a thread that turns interrupts into work; whether it could.
fn listen(interrupt: &InterruptEntry, work: Semaphore) -> bool {
    let name = interrupt.name;
    let interrupt = Semaphore::from_selector(interrupt.selector);
    let started = thread::spawn(INTERRUPT, move || {
        while interrupt.wait(0).is_ok() {
            work.up();
        }
    });
    if let Err(status) = &started {
        log!("no interrupt {name}: {status:?}");
    }
    started.is_ok()
}
