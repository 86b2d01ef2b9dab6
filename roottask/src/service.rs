//! What the root task answers: faults and starts of its children, their messages, and its own faults.
#![allow(unsafe_code)]

use crate::authority::selector;
use crate::watchdog::Watched;
use crate::{console, power};
use abi::{Mtd, Selector, Status};
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use roottask::image::Image;
use roottask::report;
use runtime::log;
use runtime::manifest::selector as own;
use runtime::parent::{Ended, TEXT_MAX, operation};
use runtime::pulse::{Pulse, SLOTS};
use runtime::sync::{Mutex, Semaphore};
use runtime::text::Line;
use runtime::thread::{self, Server};
use runtime::utcb::Utcb;

/// Portal identifiers: child number and one of these; below them exceptions.
const STARTUP: u64 = 0x80;
const RECALL: u64 = 0x81;
const PARENT: u64 = 0x82;
const CHILD_SHIFT: u32 = 8;
/// Number of exception portals of an EC.
const EXCEPTIONS: u64 = 32;

/// What the report on an exception needs.
const FAULT_STATE: Mtd = Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RFLAGS).union(Mtd::RIP).union(Mtd::QUAL);

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A serial program: without it nothing can be said, so the system ends with it.
    Serial,
    /// The monitor of a virtual machine.
    Monitor,
}

/// A program that the root task started.
pub struct Child {
    /// Name in the log: of the program or of the virtual machine.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its ELF file, for symbols.
    pub image: &'static [u8],
    /// First instruction, initial stack pointer and manifest address of its main EC.
    pub entry: u64,
    /// See `entry`.
    pub stack: u64,
    /// See `entry`.
    pub manifest: u64,
    /// Its object space, in the root object space.
    pub objects: Selector,
    /// Its signs of life.
    pub pulses: &'static [Pulse; SLOTS],
    /// Set once it has ended, or its virtual machine has.
    pub ended: Option<Ended>,
}

static CHILDREN: Mutex<Vec<Child>> = Mutex::new(Vec::new(), selector::LOCK_CHILDREN);
/// Bit N: the watchdog recalls child N.
static SUSPECTS: AtomicU64 = AtomicU64::new(0);
static SERVER: AtomicU64 = AtomicU64::new(0);

/// Adds a child; its number.
pub fn register(child: Child) -> usize {
    let mut children = CHILDREN.lock();
    children.push(child);
    children.len() - 1
}

/// Whether a serial program has died, and whether all virtual machines have ended.
pub fn progress() -> (bool, bool) {
    let children = CHILDREN.lock();
    let of = |purpose| children.iter().filter(move |c| c.purpose == purpose);
    (of(Purpose::Serial).any(|c| c.ended.is_some()), of(Purpose::Monitor).all(|c| c.ended.is_some()))
}

/// All children, for the watchdog.
pub fn watched() -> Vec<Watched> {
    let children = CHILDREN.lock();
    let watched = |(id, child): (usize, &Child)| Watched { id, objects: child.objects, pulses: child.pulses };
    children.iter().enumerate().map(watched).collect()
}

/// Whether child `id` has not ended.
pub fn alive(id: usize) -> bool {
    CHILDREN.lock().get(id).is_some_and(|child| child.ended.is_none())
}

/// Recalls of child `id` are the watchdog's.
pub fn suspect(id: usize) {
    SUSPECTS.fetch_or(1 << (id & 63), Ordering::Relaxed);
}

/// Whether the watchdog suspects child `id`. The first suspect that answers is the one that runs, so it is the guilty
/// one; it may have kept the others from running, who are no longer suspected.
fn convicted(id: usize) -> bool {
    let guilty = SUSPECTS.load(Ordering::Relaxed) >> (id & 63) & 1 != 0;
    if guilty {
        SUSPECTS.store(0, Ordering::Relaxed);
    }
    guilty
}

/// Whether nobody is suspected.
pub fn nobody_suspected() -> bool {
    SUSPECTS.load(Ordering::Relaxed) == 0
}

/// Ends child `id`, which is stuck where it cannot be recalled.
pub fn end_stuck(id: usize) {
    end(id, Ended::Crashed, "its program makes no progress");
}

/// Makes the execution contexts that answer, and the root task's own exception portals.
pub fn start(cpu: u32) -> Result<(), Status> {
    let server = Server::new(cpu, serve)?;
    SERVER.store(server.ec(), Ordering::Relaxed);
    let own_faults = Server::new(cpu, own_fault)?;
    for number in 0..EXCEPTIONS {
        own_faults.portal(own::EVENTS + number, number, FAULT_STATE)?;
    }
    Ok(())
}

/// Makes the portals of child `id` at `base`: [`EXCEPTIONS`] for exceptions, then STARTUP, RECALL, parent.
pub fn make_portals(id: usize, base: Selector) -> Result<(), Status> {
    let ec = SERVER.load(Ordering::Relaxed);
    let portal = |offset: u64, pid: u64, mtd: Mtd| {
        runtime::syscall::create_pt(base + offset, own::PROTECTION_DOMAIN, ec, thread::portal_address())?;
        runtime::syscall::ctrl_pt(base + offset, (id as u64) << CHILD_SHIFT | pid, mtd.bits())
    };
    for number in 0..EXCEPTIONS {
        portal(number, number, FAULT_STATE)?;
    }
    portal(EXCEPTIONS, STARTUP, Mtd::GPR_0_7 | Mtd::RIP)?;
    portal(EXCEPTIONS + 1, RECALL, FAULT_STATE.difference(Mtd::QUAL))?;
    portal(EXCEPTIONS + 2, PARENT, Mtd::empty())
}

fn serve(pid: u64, mtd: u32, mut utcb: Utcb) -> u32 {
    let id = (pid >> CHILD_SHIFT) as usize;
    match pid & 0xff {
        STARTUP => startup(id, &mut utcb),
        RECALL if convicted(id) => {
            fault(id, RECALL, &mut utcb);
            Mtd::POISON.bits()
        }
        RECALL => 0,
        PARENT => {
            message(id, mtd, &utcb);
            Mtd::regular(1)
        }
        number => {
            fault(id, number, &mut utcb);
            Mtd::POISON.bits()
        }
    }
}

fn startup(id: usize, utcb: &mut Utcb) -> u32 {
    let children = CHILDREN.lock();
    let Some(child) = children.get(id) else { return Mtd::POISON.bits() };
    let state = utcb.architectural();
    state.gpr[abi::utcb::gpr::RSP] = child.stack;
    state.gpr[abi::utcb::gpr::RDI] = child.manifest;
    state.rip = child.entry;
    (Mtd::GPR_0_7 | Mtd::RIP).bits()
}

fn fault(id: usize, number: u64, utcb: &mut Utcb) {
    let state = *utcb.architectural();
    let (name, purpose, bytes) = match CHILDREN.lock().get(id) {
        Some(child) => (child.name.clone(), child.purpose, child.image),
        None => return,
    };
    let program = match purpose {
        Purpose::Serial => Line::<64>::format(format_args!("program {name}")),
        Purpose::Monitor => Line::<64>::format(format_args!("vmm {name}")),
    };
    let image = Image::new(bytes).ok();
    match number {
        RECALL => report::stuck(program.as_str(), &state, image.as_ref(), log::write),
        _ => report::exception(program.as_str(), number, &state, image.as_ref(), log::write),
    }
    end(id, Ended::Crashed, "its program died");
}

/// Records and reports the end of child `id`; only the first end counts.
fn end(id: usize, how: Ended, explanation: &str) {
    {
        let mut children = CHILDREN.lock();
        let Some(child) = children.get_mut(id).filter(|c| c.ended.is_none()) else { return };
        child.ended = Some(how);
        let what = match how {
            Ended::PoweredOff => "powered off",
            Ended::Reset => "reset",
            Ended::Crashed => "crashed",
            Ended::BadConfig => "bad configuration",
        };
        let colon = if explanation.is_empty() { "" } else { ": " };
        match child.purpose {
            Purpose::Monitor => runtime::log!("vm {}: {what}{colon}{explanation}", child.name),
            Purpose::Serial => runtime::log!("root: program {}: {what}{colon}{explanation}", child.name),
        }
    }
    Semaphore::from_selector(selector::EVENTS).up();
}

fn message(id: usize, mtd: u32, utcb: &Utcb) {
    let words = (mtd & 0x1ff) as usize + 1;
    let mut buffer = [0; TEXT_MAX];
    // A text may be at most as long as the message that carried it.
    let carried = words.saturating_sub(3) * 8;
    let length = (utcb.word(2) as usize).min(carried).min(TEXT_MAX);
    let length = if words >= 3 { utcb.get_bytes(3, &mut buffer[..length]) } else { 0 };
    let text = core::str::from_utf8(&buffer[..length]).unwrap_or("(not text)");
    let name = match CHILDREN.lock().get(id) {
        Some(child) => child.name.clone(),
        None => return,
    };
    match utcb.word(0) {
        operation::VM_ENDED => {
            let how = (words >= 2).then(|| Ended::from_number(utcb.word(1))).flatten();
            end(id, how.unwrap_or(Ended::Crashed), text);
        }
        operation::LOG => text.lines().for_each(|line| runtime::log!("[{name}] {line}")),
        operation::EXIT => end(id, Ended::Crashed, "its program has finished"),
        operation::PANIC => text.lines().for_each(|line| runtime::log!("[{name}] {line}")),
        other => runtime::log!("root: {name} asked for unknown operation {other}"),
    }
}

/// What the serial program has may go out before the root task's last words, if that does not take longer.
const LAST_LINES_MS: u64 = 1000;

/// The root task's own exceptions: report on COM1 without locks, then the end.
fn own_fault(pid: u64, _: u32, mut utcb: Utcb) -> u32 {
    let state = *utcb.architectural();
    console::drain_uart(console::COM1, LAST_LINES_MS);
    report::exception("root: fatal: the root task", pid, &state, None, |line| {
        console::write_regardless(Line::<200>::format(line).as_str());
    });
    power::off()
}

/// The root task's own panics.
pub fn own_panic(message: &str) {
    console::drain_uart(console::COM1, LAST_LINES_MS);
    for line in message.lines() {
        console::write_regardless(Line::<200>::format(format_args!("root: fatal: {line}")).as_str());
    }
    power::off()
}
