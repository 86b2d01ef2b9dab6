//! The program around the logic: ports, rings, the interrupt thread and the main loop.
#![allow(unsafe_code)]

use abi::scd::Scd;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use runtime::channel::{Receiver, Sender};
use runtime::manifest::{Manifest, Role};
use runtime::sync::{Semaphore, sleep_until};
use runtime::{port, thread, time};
use serial::multiplexer::{Input, Kind, Multiplexer, Source};
use serial::uart::{FIFO, Registers, Uart};

/// Key that brings the next console to the foreground: Ctrl-^.
const SWITCH: u8 = 0x1e;
/// Milliseconds between looks at the UART while interrupts have not shown that they work.
const POLL_IDLE: u64 = 10;
/// The same while the transmitter is busy: its FIFO lasts 1.4 ms.
const POLL_SENDING: u64 = 1;
/// Milliseconds after which an interrupt that should have come is not waited for any longer.
const PATIENCE: u64 = 50;
/// Waits after which a UART without interrupts is believed to have none.
const PROBES: u32 = 20;
/// Received bytes kept while the reader's ring is full.
const HELD: usize = 256;

struct Ports(u16);

impl Registers for Ports {
    fn read(&mut self, index: u16) -> u8 {
        // SAFETY: a UART touches no memory.
        unsafe { port::read(self.0 + index) }
    }
    fn write(&mut self, index: u16, value: u8) {
        // SAFETY: a UART touches no memory.
        unsafe { port::write(self.0 + index, value) }
    }
}

/// A ring and where its producer was before the last look.
struct Ring(Receiver, u32);

impl Source for Ring {
    fn peek(&mut self, buffer: &mut [u8]) -> usize {
        // After a violation the ring has been emptied; what its owner wrote is lost, to the owner alone.
        self.0.peek(buffer).unwrap_or(0)
    }
    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

/// What goes out and where input goes.
enum Mode {
    Console(Multiplexer<Ring>),
    Channel(Vec<Ring>),
}

struct Driver {
    uart: Uart<Ports>,
    mode: Mode,
    outputs: Vec<(&'static str, Sender)>,
    held: Vec<u8>,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The rings of `role` whose names begin with `prefix`, with the rest of the name.
fn rings(manifest: &'static Manifest, role: Role) -> impl Iterator<Item = (&'static str, &'static str, usize)> {
    manifest.rings.iter().enumerate().filter(move |(_, r)| r.role == role as u32).filter_map(|(i, r)| {
        let (kind, name) = r.name.as_str().split_once(':')?;
        Some((kind, name, i))
    })
}

/// The program.
pub fn run() {
    let manifest = runtime::manifest();
    let Some(ports) = manifest.port("uart") else { panic!("no UART in the manifest") };
    let Some(uart) = Uart::new(Ports(ports.base)) else { panic!("no UART at {:#x}", ports.base) };
    let channel = config(manifest) == b"channel";
    let mut inputs = Vec::new();
    let mut work = None;
    for (kind, name, index) in rings(manifest, Role::Consumer) {
        let Some(receiver) = Receiver::from_entry(&manifest.rings[index]) else { continue };
        let kind = match (kind, name) {
            ("log", "root") => Kind::System,
            ("log", _) => Kind::Log,
            _ => Kind::Console,
        };
        work = Some(Semaphore::from_selector(manifest.rings[index].sel_data));
        inputs.push(Input { name, kind, source: Ring(receiver, 0) });
    }
    let Some(work) = work else { panic!("no ring in the manifest") };
    let outputs = rings(manifest, Role::Producer)
        .filter_map(|(_, name, index)| Some((name, Sender::from_entry(&manifest.rings[index])?)))
        .collect();
    let mode = match channel {
        true => Mode::Channel(inputs.into_iter().map(|i| i.source).collect()),
        false => Mode::Console(Multiplexer::new(inputs)),
    };
    listen(manifest, work);
    let mut driver = Driver { uart, mode, outputs, held: Vec::with_capacity(HELD) };
    while !driver.uart.all_sent() {
        sleep_until(time::now() + time::ticks_from_ms(POLL_SENDING));
    }
    driver.uart.configure();
    driver.serve(work)
}

fn config(manifest: &Manifest) -> &'static [u8] {
    let config = manifest.config;
    if config.length == 0 {
        return &[];
    }
    // SAFETY: the manifest says that this memory is mapped read-only, for ever.
    unsafe { core::slice::from_raw_parts(config.address as *const u8, config.length as usize) }
}

/// Starts the thread that turns interrupts into work.
fn listen(manifest: &'static Manifest, work: Semaphore) {
    let Some(interrupt) = manifest.interrupt("uart") else { return };
    let interrupt = Semaphore::from_selector(interrupt.selector);
    let started = thread::spawn(Scd { budget: 10, priority: 110, cos: 0 }, move || {
        while interrupt.wait(0).is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            work.up();
        }
    });
    if let Err(status) = started {
        runtime::parent::log(runtime::text::Line::<80>::format(format_args!("no interrupts: {status:?}")).as_str());
    }
}

impl Driver {
    fn serve(&mut self, work: Semaphore) -> ! {
        let mut probes = PROBES;
        loop {
            self.look();
            let reading = self.receive();
            let works = INTERRUPTED.load(Ordering::Relaxed);
            // At first, the interrupt of the empty transmitter tells whether interrupts work at all.
            let probing = !works && probes != 0;
            probes -= probing as u32;
            let sending = self.send() || probing;
            if self.idle(sending) {
                self.uart.listen(reading, sending);
                let wait = match (sending, works) {
                    (true, true) => PATIENCE,
                    (true, false) => POLL_SENDING,
                    (false, false) => POLL_IDLE,
                    (false, true) => 0,
                };
                let deadline = if wait == 0 { 0 } else { time::now() + time::ticks_from_ms(wait) };
                if let Err(status) = work.wait(deadline) {
                    panic!("cannot wait: {status:?}");
                }
            }
        }
    }

    /// Hands bytes to the transmitter until it is busy; whether it still is or bytes wait for it.
    fn send(&mut self) -> bool {
        let mut chunk = [0; FIFO];
        loop {
            if !self.uart.can_send() {
                return true;
            }
            let count = match &mut self.mode {
                Mode::Console(terminal) => terminal.fill(&mut chunk),
                Mode::Channel(sources) => {
                    let full = sources.iter_mut().map(|s| (s.peek(&mut chunk), s)).find(|(count, _)| *count != 0);
                    full.map_or(0, |(count, source)| {
                        source.consume(count);
                        count
                    })
                }
            };
            if count == 0 {
                return false;
            }
            self.uart.send(&chunk[..count]);
        }
    }

    /// Takes received bytes and passes them on; false if the reader's ring is full and no more can be taken.
    fn receive(&mut self) -> bool {
        while self.held.len() < HELD
            && let Some(byte) = self.uart.receive()
        {
            match &mut self.mode {
                Mode::Console(terminal) if byte == SWITCH => {
                    pass(&mut self.held, &mut self.outputs, terminal.foreground());
                    terminal.switch();
                }
                _ => self.held.push(byte),
            }
        }
        let target = match &self.mode {
            Mode::Console(terminal) => terminal.foreground(),
            Mode::Channel(_) => self.outputs.first().map(|(name, _)| *name),
        };
        pass(&mut self.held, &mut self.outputs, target);
        self.held.len() < HELD
    }

    /// Remembers where all producers are, before looking at what they wrote.
    fn look(&mut self) {
        self.each(|ring| ring.1 = ring.0.position());
    }

    /// Announces on every ring that this thread will wait; false if something has come since [`Self::look`]. While the
    /// transmitter is busy new output would have to wait anyway.
    fn idle(&mut self, sending: bool) -> bool {
        let mut idle = true;
        if !sending {
            self.each(|ring| idle &= ring.0.prepare_wait_since(ring.1));
        }
        if !self.held.is_empty() {
            // Only a reader that makes space changes anything; one that misbehaves must not keep this thread busy.
            for (_, output) in &self.outputs {
                output.prepare_wait();
            }
        }
        idle
    }

    fn each(&mut self, mut f: impl FnMut(&mut Ring)) {
        match &mut self.mode {
            Mode::Console(terminal) => terminal.inputs().iter_mut().for_each(|input| f(&mut input.source)),
            Mode::Channel(sources) => sources.iter_mut().for_each(f),
        }
    }
}

/// Passes held bytes to the reader `target`; bytes for nobody are dropped, and those for a reader that breaks the protocol.
fn pass(held: &mut Vec<u8>, outputs: &mut [(&'static str, Sender)], target: Option<&'static str>) {
    let output = outputs.iter_mut().find(|(name, _)| Some(*name) == target);
    match output.map(|(_, output)| output.send(held)) {
        Some(Ok(count)) => drop(held.drain(..count)),
        Some(Err(_)) | None => held.clear(),
    }
}
