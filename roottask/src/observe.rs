//! Tells the host, over a serial line of its own, what the kernel counts and records; see `plan::observation`.
//!
//! A thread of the lowest priority fetches and sends, so it takes time from nobody but its like. What a CPU records
//! while none is left is lost but for the last records, and the host is told how many. As it may be kept from running
//! for ever, it holds no lock and allocates no memory.
#![allow(unsafe_code)]

use crate::authority::{self, selector};
use crate::window;
use abi::Status;
use abi::capability::Permissions;
use abi::event::{HOST_ARCH, STARTUP};
use abi::extension::FEATURE_OBSERVATION;
use abi::hip::Hip;
use abi::observation::COUNTERS;
use abi::scd::Scd;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use plan::observation::{LONGEST, Message, Record, VERSION, Wanted};
use roottask::frames::{PAGE, PhysRange};
use roottask::observation::{BATCH, Frames, Reader, records_in};
use runtime::manifest::{NAME_LENGTH, selector as own};
use runtime::sync::{Mutex, Semaphore};
use runtime::{log, port, syscall, thread, time};

/// First port of COM3.
const COM3: u16 = 0x3e8;
const PORTS: u16 = 8;
const DATA: u16 = 0;
const INTERRUPTS: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
const FIFO_ON: u8 = 1;
const DIVISOR: u8 = 1 << 7;
const EIGHT_BITS: u8 = 3;
/// Line status: the FIFO is empty.
const EMPTY: u8 = 1 << 5;
/// Line status: everything has left the transmitter.
const SENT: u8 = 1 << 6;
/// Line status of a port that is not there.
const ABSENT: u8 = 0xff;
/// Bytes that the FIFO takes.
const FIFO: usize = 16;

const SCD: Scd = Scd { budget: 10, priority: 1, cos: 0 };
/// Milliseconds between looks at the trace.
const LOOK_MS: u64 = 10;
/// Milliseconds between two tellings of the counters.
const COUNTERS_MS: u64 = 1000;
/// How long a UART may be busy with a FIFO's bytes, in milliseconds, before nobody is believed to listen.
const PATIENCE_MS: u64 = 5000;
/// How long the last messages may take, in milliseconds: a whole trace at 115200 baud.
const LAST_MS: u64 = 120_000;

static TRACING: AtomicBool = AtomicBool::new(false);
static RUNNING: AtomicBool = AtomicBool::new(false);
static ENDING: AtomicBool = AtomicBool::new(false);
/// What [`beginner`] looks at. Only [`start`] and then the handler of first events use it.
static CPUS: Mutex<Vec<Frames<'static>>> = Mutex::new(Vec::new(), selector::LOCK_OBSERVE);

/// A name that is to be told.
struct NameSlot {
    time: AtomicU64,
    ec: AtomicU64,
    name: [AtomicU8; NAME_LENGTH],
}

/// The last names, which the handler of first events writes and the thread reads.
static NAMES: [NameSlot; NAME_SLOTS] = [const {
    NameSlot { time: AtomicU64::new(0), ec: AtomicU64::new(0), name: [const { AtomicU8::new(0) }; NAME_LENGTH] }
}; NAME_SLOTS];
/// Names that were written.
static NAMES_WRITTEN: AtomicUsize = AtomicUsize::new(0);
/// More names than that, unread, overwrite each other.
const NAME_SLOTS: usize = 64;

/// Starts observing, if that is wanted and possible; before the first child.
pub fn start(hip: &Hip, wanted: Wanted) -> Result<(), Status> {
    if !wanted.any() {
        return Ok(());
    }
    for semaphore in [selector::OBSERVE, selector::OBSERVED, selector::LOCK_OBSERVE] {
        syscall::create_sm(semaphore, own::PROTECTION_DOMAIN, 0)?;
    }
    let Some(line) = Line::open()? else {
        log!("root: nobody can be told what the kernel counts: there is no UART at {COM3:#x}");
        return Ok(());
    };
    let cpus = frames(hip)?;
    if cpus.is_empty() {
        log!("root: this kernel has neither counters nor a trace");
    }
    let begin = Message::Begin { version: VERSION, frequency: time::frequency(), cpus: cpus.len() as u32 };
    *CPUS.lock() = cpus.clone();
    let mut teller = Teller {
        line,
        wanted,
        readers: cpus.iter().map(|_| Reader::default()).collect(),
        cpus,
        records: Vec::with_capacity(BATCH),
        values: Vec::with_capacity(COUNTERS),
        name: String::with_capacity(NAME_LENGTH),
        names_told: 0,
    };
    if wanted.trace && !teller.cpus.is_empty() {
        syscall::trace(selector::NOVA_HOST_SPACE, true)?;
        TRACING.store(true, Ordering::Relaxed);
    }
    RUNNING.store(true, Ordering::Relaxed);
    thread::spawn(SCD, move || {
        teller.line.send(&begin);
        teller.run();
        Semaphore::from_selector(selector::OBSERVED).up();
    })?;
    Ok(())
}

/// Maps the frames of all CPUs.
fn frames(hip: &Hip) -> Result<Vec<Frames<'static>>, Status> {
    let extension = &hip.extension;
    let pages = u64::from(extension.observation_frames);
    if extension.features & FEATURE_OBSERVATION == 0 || extension.observation == 0 || pages < 2 {
        return Ok(Vec::new());
    }
    let frames_of = |cpu: u64| {
        let start = extension.observation + cpu * pages * PAGE;
        let address = window::map(PhysRange::new(start, start + pages * PAGE), Permissions::READ)?;
        // SAFETY: mapped for ever; the kernel writes, and this program reads, words by atomics only.
        Ok(unsafe {
            Frames {
                counters: &*address.cast(),
                records: core::slice::from_raw_parts(address.add(PAGE as usize).cast(), records_in(pages - 1)),
            }
        })
    };
    (0..u64::from(hip.cpu_num)).map(frames_of).collect()
}

/// In the handler of an execution context's first event, before it waits for anything (the trace forgets): who has it, for
/// [`name`].
pub fn beginner() -> Option<u64> {
    if !TRACING.load(Ordering::Relaxed) {
        return None;
    }
    let cpu = runtime::manifest().cpu as usize;
    let frames = CPUS.lock().get(cpu).copied();
    frames?.beginner(HOST_ARCH + STARTUP)
}

/// In the same handler, if it is a program's main execution context: its name, for the trace.
pub fn name(beginner: Option<u64>, name: &str) {
    let Some(ec) = beginner else { return };
    let number = NAMES_WRITTEN.load(Ordering::Relaxed);
    let slot = &NAMES[number % NAME_SLOTS];
    let numbers = [(&slot.time, time::now()), (&slot.ec, ec)];
    numbers.into_iter().for_each(|(to, value)| to.store(value, Ordering::Relaxed));
    let bytes = name.bytes().chain(core::iter::repeat(0));
    slot.name.iter().zip(bytes).for_each(|(to, byte)| to.store(byte, Ordering::Relaxed));
    NAMES_WRITTEN.store(number + 1, Ordering::Release);
}

/// Tells what is left to tell.
pub fn end() {
    if !RUNNING.load(Ordering::Relaxed) {
        return;
    }
    if TRACING.swap(false, Ordering::Relaxed) {
        let _ = syscall::trace(selector::NOVA_HOST_SPACE, false);
    }
    ENDING.store(true, Ordering::Release);
    Semaphore::from_selector(selector::OBSERVE).up();
    let _ = Semaphore::from_selector(selector::OBSERVED).wait(time::now() + time::ticks_from_ms(LAST_MS));
}

/// The thread's data.
struct Teller {
    line: Line,
    wanted: Wanted,
    cpus: Vec<Frames<'static>>,
    readers: Vec<Reader>,
    names_told: usize,
    /// Memory for messages.
    records: Vec<Record>,
    values: Vec<(u16, u64)>,
    name: String,
}

impl Teller {
    fn run(&mut self) {
        let mut counters_due = 0;
        loop {
            // Looked at first, so that what was recorded before the end is told.
            let ending = ENDING.load(Ordering::Acquire);
            self.names();
            self.records();
            if self.wanted.counters && (ending || time::now() >= counters_due) {
                self.counters();
                counters_due = time::now() + time::ticks_from_ms(COUNTERS_MS);
            }
            if ending {
                return self.line.send_last(&Message::End);
            }
            let look = if self.wanted.trace { LOOK_MS } else { COUNTERS_MS };
            let _ = Semaphore::from_selector(selector::OBSERVE).wait(time::now() + time::ticks_from_ms(look));
        }
    }

    fn names(&mut self) {
        while self.names_told < NAMES_WRITTEN.load(Ordering::Acquire) {
            let slot = &NAMES[self.names_told % NAME_SLOTS];
            self.names_told += 1;
            let bytes = slot.name.each_ref().map(|byte| byte.load(Ordering::Relaxed));
            let text = bytes.split(|byte| *byte == 0).next().and_then(|name| core::str::from_utf8(name).ok());
            let mut name = core::mem::take(&mut self.name);
            name.clear();
            name.push_str(text.unwrap_or_default());
            let [time, ec] = [&slot.time, &slot.ec].map(|number| number.load(Ordering::Relaxed));
            let message = Message::Name { time, ec, name };
            self.line.send(&message);
            if let Message::Name { name, .. } = message {
                self.name = name;
            }
        }
    }

    /// Sends what has been recorded up to now, at most as much as there is room for: it may become more meanwhile.
    fn records(&mut self) {
        if !self.wanted.trace {
            return;
        }
        for (cpu, (frames, reader)) in self.cpus.iter().zip(&mut self.readers).enumerate() {
            let mut left = frames.records.len();
            while left != 0 {
                let message = match reader.read(cpu as u32, frames, core::mem::take(&mut self.records)) {
                    Ok(message) => message,
                    Err(records) => {
                        self.records = records;
                        break;
                    }
                };
                self.line.send(&message);
                if let Message::Records { records, .. } = message {
                    left = left.saturating_sub(records.len());
                    self.records = records;
                }
            }
        }
    }

    fn counters(&mut self) {
        for (cpu, frames) in self.cpus.iter().enumerate() {
            let mut values = core::mem::take(&mut self.values);
            frames.values(&mut values);
            let message = Message::Counters { cpu: cpu as u32, time: time::now(), values };
            self.line.send(&message);
            if let Message::Counters { values, .. } = message {
                self.values = values;
            }
        }
    }
}

/// The UART, whose other end takes what comes.
struct Line {
    deaf: bool,
    buffer: Vec<u8>,
}

impl Line {
    /// `None` if there is none.
    fn open() -> Result<Option<Self>, Status> {
        authority::give_ports(own::PIO_SPACE, COM3, PORTS)?;
        let line = Self { deaf: false, buffer: Vec::with_capacity(LONGEST) };
        if line.status() == ABSENT {
            return Ok(None);
        }
        let settings = [
            (INTERRUPTS, 0),
            (LINE_CONTROL, DIVISOR),
            (DATA, 1),
            (INTERRUPTS, 0),
            (LINE_CONTROL, EIGHT_BITS),
            (FIFO_CONTROL, FIFO_ON),
        ];
        for (register, value) in settings {
            // SAFETY: the UART touches no memory.
            unsafe { port::write(COM3 + register, value) };
        }
        Ok(Some(line))
    }

    fn status(&self) -> u8 {
        // SAFETY: the UART touches no memory.
        unsafe { port::read(COM3 + LINE_STATUS) }
    }

    /// Waits until the status has one of these bits. It spins: every other way of waiting would be recorded, and so
    /// there would never be an end of records.
    fn wait(&mut self, bits: u8) {
        let deadline = time::now() + time::ticks_from_ms(PATIENCE_MS);
        while !self.deaf && self.status() & bits == 0 {
            self.deaf = time::now() >= deadline;
            core::hint::spin_loop();
        }
    }

    fn send(&mut self, message: &Message) {
        self.buffer = message.encode(core::mem::take(&mut self.buffer));
        for at in (0..self.buffer.len()).step_by(FIFO) {
            self.wait(EMPTY);
            if self.deaf {
                return;
            }
            for byte in self.buffer[at..].iter().take(FIFO) {
                // SAFETY: the UART touches no memory.
                unsafe { port::write(COM3 + DATA, *byte) };
            }
        }
    }

    fn send_last(&mut self, message: &Message) {
        self.send(message);
        self.wait(SENT);
    }
}
