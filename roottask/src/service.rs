//! What the root task answers: faults and starts of its children, their messages, and its own faults.
#![allow(unsafe_code)]

use crate::authority::selector;
use crate::watchdog::Watched;
use crate::{console, observe, passthrough, power};
use abi::utcb::gpr;
use abi::{Mtd, Selector, Status};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use roottask::image::Image;
use roottask::report;
use runtime::log;
use runtime::parent::{Ended, TEXT_MAX, operation};
use runtime::pulse::{Pulse, SLOTS};
use runtime::sync::{Mutex, Semaphore};
use runtime::text::Line;
use runtime::thread::{self, Server};
use runtime::utcb::Utcb;

/// Portal identifiers: the child's instance, its number, and one of these; below them exceptions.
const STARTUP: u64 = 0x80;
const RECALL: u64 = 0x81;
const PARENT: u64 = 0x82;
const CHILD_SHIFT: u32 = 8;
const INSTANCE_SHIFT: u32 = 32;
/// Number of exception portals of an EC.
const EXCEPTIONS: u64 = 32;

/// What the report on an exception needs.
const FAULT_STATE: Mtd = Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RFLAGS).union(Mtd::RIP).union(Mtd::QUAL);

/// What a new EC begins with.
const STARTUP_STATE: Mtd = Mtd::GPR_0_7.union(Mtd::RIP);

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A serial program: without it nothing can be said, so the system ends with it.
    Serial,
    /// The monitor of a virtual machine.
    Monitor,
    /// A driver or a switch.
    Driver,
}

/// A program that the root task started.
pub struct Child {
    /// Name in the log: of the program or of the virtual machine.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its ELF file, for symbols.
    pub image: &'static [u8],
    /// First instruction of all its ECs, initial stack pointer and manifest address of its main EC.
    pub entry: u64,
    /// See `entry`.
    pub stack: u64,
    /// See `entry`.
    pub manifest: u64,
    /// Its object space, in the root object space.
    pub objects: Selector,
    /// Its signs of life.
    pub pulses: &'static [Pulse; SLOTS],
    /// Which of the children that had its number, one after the other, this is.
    pub instance: u32,
    /// Set once it has ended, or its virtual machine has.
    pub ended: Option<Ended>,
    /// Set when the kernel was asked to take it back: whether it did.
    pub settled: Option<bool>,
}

/// A child, and which of those that had its number.
#[derive(Clone, Copy)]
struct Who {
    id: usize,
    instance: u32,
}

static CHILDREN: Mutex<Vec<Child>> = Mutex::new(Vec::new(), selector::LOCK_CHILDREN);
/// Bit N: the watchdog recalls child N.
static SUSPECTS: AtomicU64 = AtomicU64::new(0);
/// The ECs that answer, one on each CPU; 0: none there yet.
static SERVERS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// CPUs that programs may run on, by their numbers.
const CPUS: usize = plan::CPUS_MAX as usize;

/// Adds child `id`, or puts it in the place of its predecessor; its instance.
pub fn register(id: usize, mut child: Child) -> u32 {
    SUSPECTS.fetch_and(!(1 << (id & 63)), Ordering::Relaxed);
    let mut children = CHILDREN.lock();
    child.instance = children.get(id).map_or(0, |old| old.instance.wrapping_add(1));
    let instance = child.instance;
    match children.get_mut(id) {
        Some(place) => *place = child,
        None => children.push(child),
    }
    instance
}

/// Whether a serial program has died.
pub fn serial_died() -> bool {
    CHILDREN.lock().iter().any(|child| child.purpose == Purpose::Serial && child.ended.is_some())
}

/// Number of a child that has ended and is not settled, and what it is.
pub fn unsettled() -> Option<(usize, String)> {
    let children = CHILDREN.lock();
    let ended = |child: &Child| child.purpose != Purpose::Serial && child.ended.is_some() && child.settled.is_none();
    let id = children.iter().position(ended)?;
    children.get(id).map(|child| match child.purpose {
        Purpose::Monitor => (id, format!("vm {}", child.name)),
        Purpose::Serial | Purpose::Driver => (id, format!("program {}", child.name)),
    })
}

/// Notes that the kernel took back what child `id` used, or did not.
pub fn settle(id: usize, taken_back: bool) {
    if let Some(child) = CHILDREN.lock().get_mut(id) {
        child.ended.get_or_insert(Ended::Crashed);
        child.settled = Some(taken_back);
    }
}

/// How child `id` ended and what [`settle`] was told, once that is so.
pub fn settled(id: usize) -> Option<(Ended, bool)> {
    let children = CHILDREN.lock();
    let child = children.get(id)?;
    child.ended.zip(child.settled)
}

/// Child `id` for the watchdog, unless it has ended.
pub fn watched(id: usize) -> Option<Watched> {
    let children = CHILDREN.lock();
    let child = children.get(id).filter(|child| child.ended.is_none())?;
    Some(Watched { id, instance: child.instance, objects: child.objects, pulses: child.pulses })
}

/// How many children there are.
pub fn count() -> usize {
    CHILDREN.lock().len()
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

/// Which of the children that had the number `id` is there now.
pub fn instance(id: usize) -> Option<u32> {
    CHILDREN.lock().get(id).filter(|child| child.ended.is_none()).map(|child| child.instance)
}

/// Ends child `id`, whatever it does.
pub fn kill(id: usize, why: &str) {
    let instance = CHILDREN.lock().get(id).map(|child| child.instance);
    if let Some(instance) = instance {
        end(Who { id, instance }, Ended::Crashed, why);
    }
}

/// Ends a child which is stuck where it cannot be recalled.
pub fn end_stuck(child: &Watched) {
    end(Who { id: child.id, instance: child.instance }, Ended::Crashed, "its program makes no progress");
}

/// Makes the execution contexts on `cpu` that answer, and the root task's own exception portals there, unless they exist.
pub fn start(cpu: u32) -> Result<(), Status> {
    let slot = SERVERS.get(cpu as usize).ok_or(Status::BadCpu)?;
    if slot.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    let (events, _) = runtime::manifest().portals_on(cpu).ok_or(Status::BadCpu)?;
    let server = Server::new(cpu, serve)?;
    slot.store(server.ec(), Ordering::Relaxed);
    let own_faults = Server::new(cpu, own_fault)?;
    for number in 0..EXCEPTIONS {
        own_faults.portal(events + number, number, FAULT_STATE)?;
    }
    own_faults.portal(events + EXCEPTIONS, STARTUP, STARTUP_STATE)
}

/// Makes the portals of an instance of child `id` for its ECs on `cpu`, at `base`, which its protection domain `owner` pays
/// for and takes with it: [`EXCEPTIONS`] for exceptions, then STARTUP, RECALL, parent.
pub fn make_portals((id, instance): (usize, u32), cpu: u32, base: Selector, owner: Selector) -> Result<(), Status> {
    let ec = SERVERS.get(cpu as usize).ok_or(Status::BadCpu)?.load(Ordering::Relaxed);
    let whose = u64::from(instance) << INSTANCE_SHIFT | (id as u64) << CHILD_SHIFT;
    let portal = |offset: u64, pid: u64, mtd: Mtd| {
        runtime::syscall::create_pt(base + offset, owner, ec, thread::portal_address())?;
        runtime::syscall::ctrl_pt(base + offset, whose | pid, mtd.bits())
    };
    for number in 0..EXCEPTIONS {
        portal(number, number, FAULT_STATE)?;
    }
    portal(EXCEPTIONS, STARTUP, STARTUP_STATE)?;
    portal(EXCEPTIONS + 1, RECALL, FAULT_STATE.difference(Mtd::QUAL))?;
    portal(EXCEPTIONS + 2, PARENT, Mtd::empty())
}

fn serve(pid: u64, mtd: u32, mut utcb: Utcb) -> u32 {
    let who = Who { id: (pid >> CHILD_SHIFT) as usize & 0xff_ffff, instance: (pid >> INSTANCE_SHIFT) as u32 };
    match pid & 0xff {
        STARTUP => startup(who, &mut utcb),
        RECALL if convicted(who.id) => {
            fault(who, RECALL, &mut utcb);
            Mtd::POISON.bits()
        }
        RECALL => 0,
        PARENT => {
            let answer = message(who, mtd, &utcb);
            utcb.set_word(0, answer);
            Mtd::regular(1)
        }
        number => {
            fault(who, number, &mut utcb);
            Mtd::POISON.bits()
        }
    }
}

impl Who {
    /// Its record, unless it is that of a successor already.
    fn of(self, children: &mut [Child]) -> Option<&mut Child> {
        children.get_mut(self.id).filter(|child| child.instance == self.instance)
    }
}

fn startup(who: Who, utcb: &mut Utcb) -> u32 {
    let beginner = observe::beginner();
    let mut children = CHILDREN.lock();
    let Some(child) = who.of(&mut children) else { return Mtd::POISON.bits() };
    let state = utcb.architectural();
    let main = state.gpr[gpr::RSP] == child.stack;
    if main {
        observe::name(beginner, &child.name);
    }
    // A thread finds on its stack what it does.
    state.gpr[gpr::RDI] = if main { child.manifest } else { 0 };
    state.rip = child.entry;
    STARTUP_STATE.bits()
}

fn fault(who: Who, number: u64, utcb: &mut Utcb) {
    let state = *utcb.architectural();
    // What a child still does that has ended is nobody's concern: its memory is being taken away.
    let (name, purpose, bytes) = match who.of(&mut CHILDREN.lock()).filter(|child| child.ended.is_none()) {
        Some(child) => (child.name.clone(), child.purpose, child.image),
        None => return,
    };
    let program = match purpose {
        Purpose::Serial | Purpose::Driver => Line::<64>::format(format_args!("program {name}")),
        Purpose::Monitor => Line::<64>::format(format_args!("vmm {name}")),
    };
    let image = Image::new(bytes).ok();
    match number {
        RECALL => report::stuck(program.as_str(), &state, image.as_ref(), log::write),
        _ => report::exception(program.as_str(), number, &state, image.as_ref(), log::write),
    }
    end(who, Ended::Crashed, "its program died");
}

/// Records and reports the end of a child; only the first end counts.
fn end(who: Who, how: Ended, explanation: &str) {
    {
        let mut children = CHILDREN.lock();
        let Some(child) = who.of(&mut children).filter(|c| c.ended.is_none()) else { return };
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
            Purpose::Serial | Purpose::Driver => {
                runtime::log!("root: program {}: {what}{colon}{explanation}", child.name)
            }
        }
    }
    Semaphore::from_selector(selector::EVENTS).up();
}

/// Does what a child asks for; the answer.
fn message(who: Who, mtd: u32, utcb: &Utcb) -> u64 {
    let words = (mtd & 0x1ff) as usize + 1;
    let mut buffer = [0; TEXT_MAX];
    // A text may be at most as long as the message that carried it.
    let carried = words.saturating_sub(3) * 8;
    let length = (utcb.word(2) as usize).min(carried).min(TEXT_MAX);
    let length = if words >= 3 { utcb.get_bytes(3, &mut buffer[..length]) } else { 0 };
    let text = core::str::from_utf8(&buffer[..length]).unwrap_or("(not text)");
    let name = match who.of(&mut CHILDREN.lock()) {
        Some(child) => child.name.clone(),
        None => return 0,
    };
    match utcb.word(0) {
        operation::FUNCTION if words >= 3 => {
            return passthrough::ask((who.id, who.instance), utcb.word(1), utcb.word(2)).into();
        }
        operation::VM_ENDED => {
            let how = (words >= 2).then(|| Ended::from_number(utcb.word(1))).flatten();
            end(who, how.unwrap_or(Ended::Crashed), text);
        }
        operation::LOG => text.lines().for_each(|line| runtime::log!("[{name}] {line}")),
        operation::EXIT => end(who, Ended::Crashed, "its program has finished"),
        operation::PANIC => text.lines().for_each(|line| runtime::log!("[{name}] {line}")),
        other => runtime::log!("root: {name} asked for unknown operation {other}"),
    }
    0
}

/// What the serial program has may go out before the root task's last words, if that does not take longer.
const LAST_LINES_MS: u64 = 1000;

/// The root task's own threads begin; its own exceptions: report on COM1 without locks, then the end.
fn own_fault(pid: u64, _: u32, mut utcb: Utcb) -> u32 {
    if pid == STARTUP {
        thread::startup(utcb.architectural());
        return STARTUP_STATE.bits();
    }
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
