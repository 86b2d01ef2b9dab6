//! Guests: a few instructions in long mode, with a script that tells what its handler replies to which event.
#![allow(unsafe_code)] // One station is made when it is first needed.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::capability::{guests, space};
use crate::entry::hip;
use crate::event::Seen;
use crate::hypercall::{self, NewEc, create, flag};
use crate::memory::{self, PAGE};
use crate::portal::{Local, Message};
use crate::report::{Stop, failed, must};
use crate::semaphore::Semaphore;
use crate::spec::{Selector, field, hip as page, mtd, perm, scd};
use crate::utcb::Utcb;
use crate::{root, selector, selectors, shared};

/// All state that events can carry.
pub const STATE: u32 = ((mtd::TSC << 1) - 1) & !(mtd::POISON | mtd::APIC);
/// Where the stub of vector 0 lies; the others follow, [`STUB`] bytes apart. Each is CPUID, so that RIP tells the vector.
pub const STUBS: u64 = 0x800;
/// Bytes of a stub.
pub const STUB: u64 = 8;
/// The top of the guest's stack.
pub const STACK: u64 = 0x7000;
/// Where there is no memory.
pub const NOWHERE: u64 = 0x10_0000;
/// Guest events (8.6.1), as far as the tests meet them.
pub mod event {
    #![allow(missing_docs)]
    pub const EXCEPTION: u16 = 0x00;
    pub const INTERRUPT_WINDOW: u16 = 0x07;
    pub const NMI_WINDOW: u16 = 0x08;
    pub const CPUID: u16 = 0x0a;
    pub const INVLPG: u16 = 0x0e;
    pub const RDTSC: u16 = 0x10;
    pub const CR_ACCESS: u16 = 0x1c;
    pub const DR_ACCESS: u16 = 0x1d;
    pub const INVALID_STATE: u16 = 0x21;
    pub const PAUSE: u16 = 0x28;
    pub const TPR_BELOW_THRESHOLD: u16 = 0x2b;
    pub const GDTR_IDTR_ACCESS: u16 = 0x2e;
    pub const LDTR_TR_ACCESS: u16 = 0x2f;
    pub const EPT_VIOLATION: u16 = 0x30;
}

const PAGES: u64 = 8;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;

/// What a handler does with the next event: changes the UTCB, and names what is to be taken from it.
pub type Step = Box<dyn Fn(Utcb) -> u32>;

/// A step.
pub fn step(reply: impl Fn(Utcb) -> u32 + 'static) -> Step {
    Box::new(reply)
}

/// Steps of a script.
#[macro_export]
macro_rules! steps {
    ($($step:expr),* $(,)?) => { alloc::vec![$($crate::transfer_guest::step($step)),*] };
}

/// Where the events of all guests go, which run one after the other.
struct Station {
    events: Selector,
    memory: u64,
    spaces: [Selector; 3],
    script: RefCell<Script>,
    finished: Semaphore,
}

#[derive(Default)]
struct Script {
    steps: Vec<Step>,
    seen: Vec<Seen>,
}

fn station() -> Result<&'static Station, Stop> {
    static STATION: AtomicPtr<Station> = AtomicPtr::new(core::ptr::null_mut());
    // SAFETY: null, or one that lives for ever.
    if let Some(known) = unsafe { STATION.load(Relaxed).as_ref() } {
        return Ok(known);
    }
    let count = hip(page::SEL_GST_ARCH) + hip(page::SEL_GST_NOVA);
    let pd = root::pd();
    let spaces = [space(pd, create::GST)?, space(pd, create::PIO)?, space(pd, create::MSR)?];
    let memory = memory::pages(PAGES);
    // The image's own mapping is not executable.
    let (mask, window) = (perm::R | perm::W | perm::XU | perm::XS, memory::address(PAGES.trailing_zeros()));
    for offset in (0..PAGES * PAGE).step_by(PAGE as usize) {
        memory::map_physical(memory::physical(memory + offset), window + offset, 0, mask, 0)?;
        memory::delegate(window + offset, spaces[0], offset, 0, mask)?;
    }
    let (script, finished) = (RefCell::default(), Semaphore::new(0)?);
    let new = Station { events: selectors(count), memory, spaces, script, finished };
    let (new, local) = (shared(new), Local::new()?);
    for number in 0..count as u16 {
        local.portal_at(new.events + u64::from(number), STATE, move |message| new.event(number, message))?;
    }
    STATION.store(core::ptr::from_ref(new).cast_mut(), Relaxed);
    Ok(new)
}

impl Station {
    fn event(&self, number: u16, message: &Message) -> u32 {
        let mut script = self.script.borrow_mut();
        script.seen.push(Seen { number, mtd: message.mtd, state: message.utcb.snapshot() });
        let index = script.seen.len() - 1;
        let Some(step) = script.steps.get(index) else {
            drop(script);
            self.finished.up();
            return mtd::POISON;
        };
        if index > 0 {
            return step(message.utcb);
        }
        let prepared = prepare(message.utcb, self.spaces);
        prepared | step(message.utcb)
    }
}

/// Whether events come as VMX's own.
pub fn is_vmx() -> bool {
    hip(page::PLATFORM_FEATURES) & crate::spec::feature::VMX != 0
}

/// Runs a guest with `code` at address 0 until there are no more steps. Step 0 follows what [`prepare`] does in STARTUP. All
/// events, beginning with STARTUP.
#[track_caller]
pub fn run(code: &[u8], steps: Vec<Step>) -> Result<Vec<Seen>, Stop> {
    if !guests() {
        return Err(Stop::Skipped("there are no guests"));
    }
    let station = station()?;
    let pd = root::pd();
    fill(station.memory, code);
    *station.script.borrow_mut() = Script { steps, seen: Vec::new() };
    let (ec, page) = (selector(), memory::page_address());
    let new = NewEc { pd, page, cpu: root::cpu(), sp: 0, events: station.events, flags: flag::EC_GUEST };
    must(hypercall::create_ec(ec, &new))?;
    must(hypercall::create_sc(selector(), pd, ec, scd(100, 50, 0)))?;
    let waited = station.finished.wait();
    let seen = core::mem::take(&mut *station.script.borrow_mut()).seen;
    waited.map_err(|_| {
        let places: Vec<(u16, u64)> = seen.iter().map(|seen| (seen.number, seen.state.get(field::RIP))).collect();
        failed(alloc::format!("the last event does not come; before it came {places:x?}"))
    })?;
    Ok(seen)
}

fn fill(memory: u64, code: &[u8]) {
    let bytes = |at: u64, bytes: &[u8]| {
        let mut words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        (at..).step_by(8).zip(&mut words).for_each(|(at, word)| memory::poke(memory + at, word));
    };
    (0..PAGES * PAGE).step_by(8).for_each(|at| memory::poke(memory + at, 0));
    bytes(0, code);
    bytes(PML4, &(PDPT | 7).to_le_bytes());
    bytes(PDPT, &(PD | 7).to_le_bytes());
    bytes(PD, &0x87u64.to_le_bytes());
    bytes(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    bytes(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    for vector in 0..256 {
        let stub = STUBS + STUB * vector;
        bytes(stub, &[0x0f, 0xa2, 0xf4]); // CPUID; HLT.
        // Interrupt gate, present, for all levels.
        memory::poke(memory + IDT + 16 * vector, stub | 0x8 << 16 | 0xee << 40);
    }
}

/// Selector, access rights, limit, base.
fn segment(utcb: Utcb, fields: [crate::spec::Field; 4], values: [u64; 4]) {
    fields.into_iter().zip(values).for_each(|(field, value)| utcb.set(field, value));
}

/// Long mode with interrupts off, identity-mapped, at address 0.
pub fn prepare(utcb: Utcb, [gst, pio, msr]: [Selector; 3]) -> u32 {
    const FLAT: u64 = 0xffff_ffff;
    segment(utcb, field::CS, [0x8, 0xa9b, FLAT, 0]);
    for data in [field::SS, field::DS, field::ES, field::FS, field::GS] {
        segment(utcb, data, [0x10, 0xc93, FLAT, 0]);
    }
    segment(utcb, field::TR, [0x18, 0x8b, 0x67, 0x9000]);
    segment(utcb, field::LDTR, [0, 0x1000, 0, 0]);
    for (field, value) in [
        (field::RIP, 0),
        (field::RSP, STACK),
        (field::RFLAGS, 2),
        (field::GDTR_LIMIT, 0x17),
        (field::GDTR_BASE, GDT),
        (field::IDTR_LIMIT, 0xfff),
        (field::IDTR_BASE, IDT),
        (field::CR0, 0x8000_0031),
        (field::CR3, PML4),
        (field::CR4, 0x20),
        (field::EFER, 0xd01),
        (field::SEL_GST, gst),
        (field::SEL_PIO, pio),
        (field::SEL_MSR, msr),
    ] {
        utcb.set(field, value);
    }
    let segments = mtd::CS_SS | mtd::DS_ES | mtd::FS_GS | mtd::TR | mtd::LDTR | mtd::GDTR | mtd::IDTR;
    segments | mtd::RIP | mtd::GPR_0_7 | mtd::RFLAGS | mtd::CR | mtd::EFER | mtd::SPACES
}
