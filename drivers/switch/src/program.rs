//! The program around the logic: configuration, rings, the main loop and its log.
#![allow(unsafe_code)]

use alloc::format;
use alloc::vec::Vec;
use plan::{PortConfig, SwitchConfig};
use runtime::channel::{Receiver, Sender};
use runtime::manifest::{Manifest, Role};
use runtime::sync::Semaphore;
use runtime::{log, time};
use switch::address::Mac;
use switch::forward::Forwarding;
use switch::service::{Counters, Port, Service};

/// Seconds between two lines about what was lost.
const REPORT_PERIOD: u32 = 10;
/// Seconds between two looks for old addresses.
const SWEEP_PERIOD: u32 = 30;

struct Program {
    service: Service<Receiver, Sender>,
    /// Where the producers were before the last look.
    positions: Vec<u32>,
    /// The counters that the log knows of.
    reported: Vec<Counters>,
    next_report: u32,
    next_sweep: u32,
}

/// The program.
pub fn run() {
    let manifest = runtime::manifest();
    let config = match SwitchConfig::decode(config(manifest)) {
        Ok(config) => config,
        Err(error) => panic!("the configuration {error}"),
    };
    let fixed = config.ports.iter().map(|port| port.mac.map(Mac)).collect();
    let forwarding = match Forwarding::new(fixed, time::now()) {
        Ok(forwarding) => forwarding,
        Err(error) => panic!("impossible ports: {error}"),
    };
    let ports: Vec<_> = config.ports.iter().map(|port| attach(manifest, port)).collect();
    // All rings that a program reads share a semaphore.
    let Some(work) = manifest.rings.iter().find(|ring| ring.role == Role::Consumer as u32) else { panic!("no ports") };
    let work = Semaphore::from_selector(work.sel_data);
    log!("{} ports: {}", ports.len(), names(&config));
    let (positions, reported) = (alloc::vec![0; ports.len()], alloc::vec![Counters::default(); ports.len()]);
    let service = Service::new(forwarding, ports);
    Program { service, positions, reported, next_report: 0, next_sweep: 0 }.serve(work)
}

fn config(manifest: &Manifest) -> &'static [u8] {
    let config = manifest.config;
    if config.length == 0 {
        return &[];
    }
    // SAFETY: the manifest says that this memory is mapped read-only, for ever.
    unsafe { core::slice::from_raw_parts(config.address as *const u8, config.length as usize) }
}

fn names(config: &SwitchConfig) -> alloc::string::String {
    let name = |port: &PortConfig| match port.mac {
        Some(mac) => format!("{} ({})", port.name, Mac(mac)),
        None => port.name.clone(),
    };
    config.ports.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn attach(manifest: &'static Manifest, config: &PortConfig) -> Port<Receiver, Sender> {
    let ring = |end: &str, role| manifest.ring(&format!("{}.{end}", config.name), role);
    let input = ring("out", Role::Consumer).and_then(Receiver::from_entry);
    let output = ring("in", Role::Producer).and_then(Sender::from_entry);
    let (Some(input), Some(output)) = (input, output) else { panic!("no rings of the port {}", config.name) };
    Port { name: config.name.clone(), input, output, counters: Counters::default() }
}

/// Seconds since the system time counter was 0.
fn now() -> u32 {
    (time::now() / time::frequency()) as u32
}

impl Program {
    fn serve(mut self, work: Semaphore) -> ! {
        loop {
            for (port, position) in self.service.ports().iter().zip(&mut self.positions) {
                *position = port.input.position();
            }
            let now = now();
            if now >= self.next_sweep {
                self.next_sweep = now + SWEEP_PERIOD;
                self.service.forwarding().sweep(now);
            }
            let busy = self.service.turn(now);
            let untold = self.report(now);
            if !busy && self.idle() {
                let deadline = if untold { (u64::from(self.next_report) + 1) * time::frequency() } else { 0 };
                if let Err(status) = work.wait(deadline) {
                    panic!("cannot wait: {status:?}");
                }
            }
        }
    }

    /// Announces on every ring that this thread will wait; false if something has come since the last look.
    fn idle(&mut self) -> bool {
        let mut idle = true;
        for (port, position) in self.service.ports().iter().zip(&self.positions) {
            idle &= port.input.prepare_wait_since(*position);
        }
        idle
    }

    /// Tells of ports that lost frames; whether something is left to tell.
    fn report(&mut self, now: u32) -> bool {
        let ports = self.service.ports();
        let news = |(port, known): (&Port<_, _>, &Counters)| port.counters.notable_since(known);
        if !ports.iter().zip(&self.reported).any(news) {
            return false;
        }
        if now < self.next_report {
            return true;
        }
        self.next_report = now + REPORT_PERIOD;
        for (port, known) in ports.iter().zip(&mut self.reported) {
            if port.counters.notable_since(known) {
                log!("port {}: {}", port.name, port.counters);
                *known = port.counters;
            }
        }
        false
    }
}
