//! Guests: a virtual CPU in long mode with a little memory, whose events a test handles.
//!
//! Guest-physical memory: page tables, descriptor tables, a stack and data below [`CODE`], where the code of
//! [`crate::guest_code`] is. Linear addresses are the same up to 1 GiB.
#![allow(unsafe_code)] // Addresses of the code.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::capability::space;
use crate::entry::hip;
use crate::event::{Event, Seen, Then};
use crate::hypercall::{self, NewEc, create, flag};
use crate::memory::{self, PAGE, delegate};
use crate::portal::Local;
use crate::report::{Stop, failed, must};
use crate::semaphore::Semaphore;
use crate::spec::{Field, Selector, event, feature, field, hip as page, mtd, perm, scd};
use crate::utcb::Utcb;
use crate::{root, selector, selectors};

/// Where the code is.
pub const CODE: u64 = 0x10000;
/// The top of the stack.
pub const STACK: u64 = 0x9000;
/// A page for data.
pub const DATA: u64 = 0x7000;
/// A linear and guest-physical address without memory.
pub const NOTHING: u64 = 0x40_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const ORDER: u32 = 4;

/// What a virtual CPU begins with.
const BEGIN: u32 = mtd::GPR_0_7
    | mtd::GPR_8_15
    | mtd::RFLAGS
    | mtd::RIP
    | mtd::STA
    | mtd::CS_SS
    | mtd::DS_ES
    | mtd::FS_GS
    | mtd::TR
    | mtd::LDTR
    | mtd::GDTR
    | mtd::IDTR
    | mtd::CR
    | mtd::DR
    | mtd::EFER
    | mtd::SPACES;

/// Whether guests run by VMX, rather than SVM.
pub fn vmx() -> bool {
    hip(page::PLATFORM_FEATURES) & feature::VMX != 0
}

/// Stops a test where no guest can run.
pub fn needed() -> Result<(), Stop> {
    if crate::capability::guests() { Ok(()) } else { Err(Stop::Skipped("no virtualization")) }
}

/// Number of STARTUP and RECALL of guests.
pub fn startup() -> u16 {
    hip(page::SEL_GST_ARCH) as u16 + event::STARTUP
}

/// See [`startup`].
pub fn recall() -> u16 {
    hip(page::SEL_GST_ARCH) as u16 + event::RECALL
}

/// A virtual CPU.
#[derive(Clone)]
pub struct Guest {
    /// Its capability.
    pub ec: Selector,
    /// Selector for its scheduling context.
    pub sc: Selector,
    /// Its event base.
    pub events: Selector,
    /// Its guest space.
    pub gst: Selector,
    /// Its PIO space.
    pub pio: Selector,
    /// Its MSR space.
    pub msr: Selector,
    /// Where its memory below [`CODE`] is in this program.
    pub memory: u64,
    seen: Rc<RefCell<Vec<Seen>>>,
    finished: Semaphore,
}

/// Parameters of a virtual CPU.
#[derive(Clone, Copy)]
pub struct Parameters {
    /// CPU.
    pub cpu: u64,
    /// Where it begins.
    pub rip: u64,
    /// What its events carry.
    pub mtd: u32,
    /// Further flags of create_ec.
    pub flags: u8,
}

impl Guest {
    /// One whose STARTUP `prepare` completes, with a further descriptor; other events go to `handler`.
    #[track_caller]
    pub fn new(
        parameters: Parameters,
        prepare: impl Fn(&Utcb) -> u32 + 'static,
        handler: impl Fn(&Event) -> Then + 'static,
    ) -> Result<Self, Stop> {
        needed()?;
        let count = hip(page::SEL_GST_ARCH) + hip(page::SEL_GST_NOVA);
        let guest = Self {
            ec: selector(),
            sc: selector(),
            events: selectors(count),
            gst: space(root::pd(), create::GST)?,
            pio: space(root::pd(), create::PIO)?,
            msr: space(root::pd(), create::MSR)?,
            memory: all_memory(),
            seen: Rc::default(),
            finished: Semaphore::new(0)?,
        };
        guest.build()?;
        let local = Local::on(parameters.cpu)?;
        let handler: Rc<dyn Fn(&Event) -> Then> = Rc::new(handler);
        for number in 0..count as u16 {
            if number == startup() {
                continue;
            }
            let (handler, seen, finished) = (handler.clone(), guest.seen.clone(), guest.finished);
            local.portal_at(guest.events + u64::from(number), parameters.mtd, move |message| {
                let event = Event { number, mtd: message.mtd, utcb: message.utcb };
                seen.borrow_mut().push(Seen { number, mtd: message.mtd, state: message.utcb.snapshot() });
                match handler(&event) {
                    Then::Reply(mtd) => mtd,
                    Then::End => {
                        finished.up();
                        mtd::POISON
                    }
                }
            })?;
        }
        let spaces = [guest.gst, guest.pio, guest.msr];
        local.portal_at(guest.events + u64::from(startup()), mtd::GPR_0_7, move |message| {
            begin(&message.utcb, parameters.rip, spaces);
            BEGIN | prepare(&message.utcb)
        })?;
        let (page, flags) = (memory::page_address(), parameters.flags | flag::EC_GUEST);
        let new = NewEc { pd: root::pd(), page, cpu: parameters.cpu, sp: STACK, events: guest.events, flags };
        must(hypercall::create_ec(guest.ec, &new))?;
        Ok(guest)
    }

    /// Fills its memory and maps it.
    fn build(&self) -> Result<(), Stop> {
        const TABLE: u64 = 7;
        const LARGE: u64 = 0x87;
        self.poke(PML4, PDPT | TABLE);
        self.poke(PDPT, PD | TABLE);
        (0..512).for_each(|index| self.poke(PD + 8 * index, index << 21 | LARGE));
        // Null, code of 64 bits, data, task state.
        for (index, descriptor) in
            [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_6000_0067, 0].iter().enumerate()
        {
            self.poke(GDT + 8 * index as u64, *descriptor);
        }
        for vector in 0..crate::guest_code::VECTORS {
            let at = crate::guest_code::vector(vector);
            self.poke(IDT + 16 * vector, at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48);
            self.poke(IDT + 16 * vector + 8, 0);
        }
        delegate(self.memory, self.gst, 0, u64::from(ORDER), perm::R | perm::W | perm::XU | perm::XS)?;
        let (start, end) = crate::guest_code::range();
        for offset in (0..end - start).step_by(PAGE as usize) {
            delegate(start + offset, self.gst, CODE + offset, 0, perm::R | perm::XU | perm::XS)?;
        }
        Ok(())
    }

    /// Writes its memory below [`CODE`].
    pub fn poke(&self, address: u64, value: u64) {
        memory::poke(self.memory + address, value);
    }

    /// Reads its memory below [`CODE`].
    pub fn peek(&self, address: u64) -> u64 {
        memory::peek(self.memory + address)
    }

    /// Gives it a scheduling context.
    #[track_caller]
    pub fn start(&self) -> Result<(), Stop> {
        must(hypercall::create_sc(self.sc, root::pd(), self.ec, scd(100, 50, 0)))
    }

    /// Waits until its handler has ended it; all its events but STARTUP.
    #[track_caller]
    pub fn wait(&self) -> Result<Vec<Seen>, Stop> {
        let waited = self.finished.wait();
        let seen = self.seen.borrow().clone();
        waited.map_err(|_| {
            let numbers: Vec<u16> = seen.iter().map(|seen| seen.number).collect();
            failed(alloc::format!("the last event does not come; before it came {numbers:x?}"))
        })?;
        Ok(seen)
    }
}

/// Zeroed memory, the same for all guests: there is one at a time.
fn all_memory() -> u64 {
    static MEMORY: AtomicU64 = AtomicU64::new(0);
    if MEMORY.load(Relaxed) == 0 {
        MEMORY.store(memory::pages(1 << ORDER), Relaxed);
    }
    let start = MEMORY.load(Relaxed);
    (start..start + (PAGE << ORDER)).step_by(8).for_each(|word| memory::poke(word, 0));
    start
}

/// Sets a segment.
pub fn set_segment(utcb: &Utcb, fields: [Field; 4], values: [u64; 4]) {
    fields.into_iter().zip(values).for_each(|(field, value)| utcb.set(field, value));
}

/// Sets all that a guest begins with but its spaces; the descriptor.
pub fn reset(utcb: &Utcb, rip: u64) -> u32 {
    begin(utcb, rip, [0; 3]);
    BEGIN & !mtd::SPACES
}

/// Long mode, flat.
fn begin(utcb: &Utcb, rip: u64, spaces: [Selector; 3]) {
    const DATA_SEGMENT: [u64; 4] = [0x10, 0xc93, 0xffff_ffff, 0];
    (0..16).for_each(|register| utcb.set(field::gpr(register), 0));
    for (field, value) in [
        (field::RSP, STACK),
        (field::RIP, rip),
        (field::RFLAGS, 2),
        (field::INTERRUPTIBILITY, 0),
        (field::ACTIVITY, 0),
        (field::GDTR_BASE, GDT),
        (field::GDTR_LIMIT, 0x27),
        (field::IDTR_BASE, IDT),
        (field::IDTR_LIMIT, 16 * crate::guest_code::VECTORS - 1),
        // PE, ET, NE, WP, PG; PAE, OSFXSR; LME, LMA.
        (field::CR0, 0x8001_0031),
        (field::CR2, 0),
        (field::CR3, PML4),
        (field::CR4, 0x220),
        (field::CR8, 0),
        (field::DR7, 0x400),
        (field::EFER, 0x500),
        (field::SEL_GST, spaces[0]),
        (field::SEL_PIO, spaces[1]),
        (field::SEL_MSR, spaces[2]),
    ] {
        utcb.set(field, value);
    }
    set_segment(utcb, field::CS, [8, 0xa9b, 0xffff_ffff, 0]);
    for segment in [field::SS, field::DS, field::ES, field::FS, field::GS] {
        set_segment(utcb, segment, DATA_SEGMENT);
    }
    set_segment(utcb, field::TR, [0x18, 0x8b, 0x67, TSS]);
    set_segment(utcb, field::LDTR, [0, 0x1000, 0, 0]);
}

/// Runs a guest on this CPU from `rip` until `handler` ends it; all its events but STARTUP.
#[track_caller]
pub fn run(
    rip: u64,
    mtd: u32,
    prepare: impl Fn(&Utcb) -> u32 + 'static,
    handler: impl Fn(&Event) -> Then + 'static,
) -> Result<(Guest, Vec<Seen>), Stop> {
    let guest = Guest::new(Parameters { cpu: root::cpu(), rip, mtd, flags: 0 }, prepare, handler)?;
    guest.start()?;
    let seen = guest.wait()?;
    Ok((guest, seen))
}
