//! Calls to make: anything at all, and calls that know what the hostile program probably holds.

use lab::hypercall::{create, flag};
use lab::memory::PAGE;
use lab::spec::{Selector, call, perm, scd};
use lab::{entry, time};

use crate::cage::{PORTS, held};
use crate::hostile::{self, Kind as RecordKind, NEW_UTCB_PAGES, Outcome, Record, WINDOW_PAGES, place};
use crate::random::Random;

/// Selectors whose content is guessed.
pub const KNOWN: u64 = 128;
/// Where portals for the events of its threads and vCPUs are put.
const EVENT_BASES: [Selector; 4] = [0x400, 0x500, 0x600, 0x700];
/// Most priority of its threads: whoever watches has more.
const PRIORITY: u64 = 20;

/// What a selector probably holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Holds {
    Nothing,
    Pd,
    Obj,
    Hst,
    Gst,
    Pio,
    Msr,
    Local,
    Global,
    Vcpu,
    Sc,
    Pt,
    Sm,
}

/// Makes calls.
pub struct Caller {
    /// Where chance comes from.
    pub random: Random,
    holds: [Holds; KNOWN as usize],
    cpus: u64,
}

impl Caller {
    /// One for an episode.
    pub fn new(seed: u64, cpus: u64) -> Self {
        let mut caller = Self { random: Random::new(seed), holds: [Holds::Nothing; KNOWN as usize], cpus };
        caller.begin();
        caller
    }

    fn begin(&mut self) {
        use Holds::{Global, Gst, Hst, Msr, Obj, Pd, Pio, Pt, Sm};
        let own = [Pd, Obj, Hst, Pio, Pio, Gst, Msr];
        let foreign = [Sm, Sm, Pt, Global, Pd, Obj, Obj, Hst, Hst];
        self.holds[..own.len()].copy_from_slice(&own);
        self.holds[held::FOREIGN as usize..held::END as usize].copy_from_slice(&foreign);
    }

    /// A CPU, nearly always one that exists.
    pub fn cpu(&mut self) -> u64 {
        if self.random.chance(3) { self.random.below(0x1000) } else { self.random.below(self.cpus) }
    }

    /// A selector that probably holds that.
    pub fn holding(&mut self, what: &[Holds]) -> Selector {
        match self.random.below(100) {
            0..4 => self.random.odd(),
            4..14 => self.random.below(KNOWN),
            _ => {
                let start = self.random.below(KNOWN);
                let around = (0..KNOWN).map(|index| (start + index) % KNOWN);
                around.into_iter().find(|index| what.contains(&self.holds[*index as usize])).unwrap_or(start)
            }
        }
    }

    /// A selector that probably holds nothing.
    pub fn free(&mut self) -> Selector {
        match self.random.below(100) {
            0..85 => self.holding(&[Holds::Nothing]),
            85..97 => self.event_base() + self.random.below(0xa0),
            _ => self.random.below(1 << 18),
        }
    }

    /// First selector of events.
    pub fn event_base(&mut self) -> Selector {
        self.random.pick(&EVENT_BASES)
    }

    /// Address of a page for a UTCB.
    pub fn utcb(&mut self) -> u64 {
        let page = self.random.below(NEW_UTCB_PAGES);
        if self.random.chance(5) { self.address() & !0xfff } else { place::NEW_UTCBS + page * PAGE }
    }

    fn address(&mut self) -> u64 {
        match self.random.below(10) {
            0..7 => place::WINDOW + self.random.below(WINDOW_PAGES) * PAGE + (self.random.below(512) & !31) * 8,
            // Not the words of EFER and what follows: see `recipes::replies`.
            7 => place::NEW_UTCBS + self.random.below(NEW_UTCB_PAGES) * PAGE + self.random.below(64) * 8,
            _ => self.random.odd(),
        }
    }

    fn page(&mut self) -> u64 {
        match self.random.below(10) {
            0..8 => (place::WINDOW >> 12) + self.random.below(WINDOW_PAGES),
            8 => (place::NEW_UTCBS >> 12) + self.random.below(NEW_UTCB_PAGES),
            _ => self.random.odd() >> 12,
        }
    }

    /// A timeout: mostly past or near.
    fn timeout(&mut self) -> u64 {
        match self.random.below(100) {
            0..60 => 1 + self.random.below(1000),
            60..96 => time::now() + self.random.below(time::ms(1) / 20),
            96 => 0,
            _ => self.random.odd(),
        }
    }

    /// Descriptor of a message or an event.
    pub fn mtd(&mut self) -> u64 {
        const RIP: u64 = 1 << 4;
        match self.random.below(10) {
            0..5 => RIP | 1 << 31 | self.random.bits() & 0xffff_fffe,
            5 => RIP,
            6 => RIP | 1 << 1,
            7 => self.random.below(512),
            8 => self.random.bits() & 0xffff_ffff,
            _ => 1 << self.random.below(32),
        }
    }

    /// A call or access.
    pub fn next(&mut self) -> Record {
        let mut record = match self.random.below(100) {
            0..8 => self.access(),
            8..16 => self.anything(),
            16..24 => self.portals(),
            24..52 => self.creation(),
            52..76 => self.delegation(),
            76..92 => self.semaphore(),
            _ => self.control(),
        };
        tame(&mut record);
        record
    }

    fn access(&mut self) -> Record {
        let address = self.address();
        match self.random.below(5) {
            0..2 => Record { kind: RecordKind::Read, registers: [0, address, 0, 0, 0] },
            2..4 => Record { kind: RecordKind::Write, registers: [0, address, self.random.odd(), 0, 0] },
            _ => {
                let near = PORTS.start + self.random.below(32);
                let port = self.random.pick(&[near, near, 0xcf9, 0x64, 0xffff, 0]);
                Record { kind: RecordKind::Input, registers: [0, port, 0, 0, 0] }
            }
        }
    }

    fn anything(&mut self) -> Record {
        let registers = core::array::from_fn(|_| self.random.odd());
        let mut record = Record { kind: RecordKind::Call, registers };
        // Any selector, but each number equally often.
        record.registers[0] = record.registers[0] & !0xff | self.random.below(256);
        if record.number() == u64::from(call::IPC_REPLY) && self.random.chance(95) {
            // It ends a thread that nobody calls.
            record.registers[0] += 1;
        }
        record
    }

    fn portals(&mut self) -> Record {
        let pt = self.holding(&[Holds::Pt]);
        match self.random.below(8) {
            0..4 => Record::call(0, self.random.pick(&[0, 1, 1]), pt, [self.random.bits() & 0x3ff, 0, 0, 0]),
            4 if self.random.chance(10) => Record::call(1, 0, self.random.odd(), [self.random.bits(), 0, 0, 0]),
            _ => {
                let (identifier, mtd) = (self.random.odd(), self.mtd());
                Record::call(0xa, 0, pt, [identifier, mtd, 0, 0])
            }
        }
    }

    fn creation(&mut self) -> Record {
        let (new, pd) = (self.free(), self.holding(&[Holds::Pd]));
        match self.random.below(5) {
            0 => Record::call(u64::from(call::CREATE_PD), self.random.below(9), new, [pd, 0, 0, 0]),
            1 => {
                let flags = self.random.pick(&[0, 0, 1, 2, 2, 4, 6, 15]);
                self.new_ec(new, pd, flags)
            }
            2 => {
                let ec = self.holding(&[Holds::Global, Holds::Vcpu]);
                let descriptor = if self.random.chance(10) { self.random.odd() } else { scd(2, 10, 0) };
                Record::call(u64::from(call::CREATE_SC), 0, new, [pd, ec, descriptor, 0])
            }
            3 => {
                let ec = self.holding(&[Holds::Local]);
                let ip = self.random.pick(&[hostile::portal(), hostile::portal(), hostile::portal(), place::WINDOW, 0]);
                let ip = if self.random.chance(10) { self.random.odd() } else { ip };
                Record::call(u64::from(call::CREATE_PT), 0, new, [pd, ec, ip, 0])
            }
            _ => Record::call(u64::from(call::CREATE_SM), 0, new, [pd, self.random.odd(), 0, 0]),
        }
    }

    /// A new EC with its stack pointer where its UTCB is, as its code wants it.
    pub fn new_ec(&mut self, new: Selector, pd: Selector, flags: u64) -> Record {
        let (page, events) = (self.utcb(), self.event_base());
        let (cpu, sp) = (self.cpu(), if self.random.chance(95) { page } else { self.random.odd() });
        Record::call(u64::from(call::CREATE_EC), flags, new, [pd, page & !0xfff | cpu, sp, events])
    }

    fn delegation(&mut self) -> Record {
        let order = match self.random.below(20) {
            0 => self.random.below(32),
            1..4 => self.random.below(10),
            _ => self.random.below(3),
        };
        let aligned = |number: u64, odd: bool| if odd { number } else { number >> order << order };
        let odd = self.random.chance(4);
        let (kinds, ssb, dsb): (_, u64, u64) = match self.random.below(10) {
            0..4 => {
                let destination = self.free();
                ([Holds::Obj, Holds::Obj], self.random.below(KNOWN), destination)
            }
            4..7 => ([Holds::Hst, Holds::Hst], self.page(), self.page()),
            7..9 => {
                let reset = self.random.pick(&[0xf_ffff, 0xf, 0, 1]);
                ([Holds::Hst, Holds::Gst], self.page(), reset)
            }
            _ => {
                let number = PORTS.start + self.random.below(16);
                let kind = self.random.pick(&[Holds::Pio, Holds::Msr]);
                ([kind, kind], number, if self.random.chance(90) { number } else { self.random.odd() })
            }
        };
        let (src, dst) = (self.holding(&kinds[..1]), self.holding(&kinds[1..]));
        let mask = if self.random.chance(60) { perm::ALL } else { self.random.below(32) };
        let attributes = if self.random.chance(90) { 0 } else { self.random.odd() };
        let (rdx, rax) = (aligned(ssb, odd) << 12 | order, aligned(dsb, odd) << 12 | mask);
        Record::call(u64::from(call::CTRL_PD), 0, src, [dst, rdx, rax, attributes])
    }

    fn semaphore(&mut self) -> Record {
        let sm = self.holding(&[Holds::Sm]);
        let flags = self.random.pick(&[0, flag::SM_DOWN, flag::SM_DOWN | flag::SM_ZERO, 15]);
        let timeout = self.timeout();
        Record::call(u64::from(call::CTRL_SM), u64::from(flags), sm, [timeout, 0, 0, 0])
    }

    fn control(&mut self) -> Record {
        match self.random.below(10) {
            0..2 => {
                let ec = self.holding(&[Holds::Global, Holds::Vcpu, Holds::Local]);
                Record::call(u64::from(call::CTRL_EC), self.random.below(2), ec, [0; 4])
            }
            2 => Record::call(u64::from(call::CTRL_SC), 0, self.holding(&[Holds::Sc]), [0; 4]),
            3 => {
                let number = self.random.pick(&[call::CTRL_HW, call::ASSIGN_INT, call::ASSIGN_DEV]);
                let (sm, cpu) = (self.holding(&[Holds::Sm]), self.cpu());
                Record::call(u64::from(number), self.random.below(16), sm, [cpu, self.random.odd(), 0, 0])
            }
            4..9 => {
                let target = self.random.below(KNOWN);
                Record::call(0xf, 1, target, [self.holding(&[Holds::Pd]), 0, 0, 0])
            }
            _ => {
                let frames = if self.random.chance(20) { self.random.odd() } else { self.random.below(20) };
                let operation = self.random.pick(&[0, 0, 2, 3, 15]);
                Record::call(0xf, operation, self.holding(&[Holds::Pd]), [frames, 0, 0, 0])
            }
        }
    }

    /// Learns from what came of `record`.
    pub fn learn(&mut self, record: &Record, outcome: Outcome) {
        let (RecordKind::Call, Outcome::Done([0, ..])) = (record.kind, outcome) else { return };
        let (selector, flags) = (record.registers[0] >> 8, (record.registers[0] >> 4 & 15) as u8);
        let number = record.number() as u8;
        let created = match number {
            call::CREATE_PD => match flags {
                create::PD => Holds::Pd,
                create::OBJ => Holds::Obj,
                create::HST => Holds::Hst,
                create::GST => Holds::Gst,
                create::PIO => Holds::Pio,
                _ => Holds::Msr,
            },
            call::CREATE_EC if flags & flag::EC_GUEST != 0 => Holds::Vcpu,
            call::CREATE_EC if flags & flag::EC_GLOBAL != 0 => Holds::Global,
            call::CREATE_EC => Holds::Local,
            call::CREATE_SC => Holds::Sc,
            call::CREATE_PT => Holds::Pt,
            call::CREATE_SM => Holds::Sm,
            0xf if flags == 1 => Holds::Nothing,
            call::CTRL_PD => return self.copied(selector, record.registers),
            _ => return,
        };
        if let Some(place) = self.holds.get_mut(selector as usize) {
            *place = created;
        }
    }

    fn copied(&mut self, src: Selector, [_, dst, rdx, rax, _]: [u64; 5]) {
        if (src, dst) != (held::OBJ, held::OBJ) {
            return;
        }
        let count = 1u64 << (rdx & 31);
        for index in 0..count.min(KNOWN) {
            let from = if rax & 31 == 0 {
                Some(Holds::Nothing)
            } else {
                self.holds.get(((rdx >> 12) + index) as usize).copied()
            };
            if let (Some(from), Some(to)) = (from, self.holds.get_mut(((rax >> 12) + index) as usize)) {
                *to = from;
            }
        }
    }
}

/// Time is not a right that the kernel withholds: what is created must leave some to whoever watches.
pub fn tame(record: &mut Record) {
    if record.kind == RecordKind::Call && record.number() == u64::from(call::CREATE_SC) {
        let descriptor = record.registers[3];
        let (budget, priority) = (descriptor & 0xffff, descriptor >> 16 & 0x7f);
        if priority != 0 && budget != 0 {
            record.registers[3] = descriptor & !0x7f_ffff | PRIORITY << 16 | (budget % 3 + 1);
        }
    }
}

/// Whether a call may well never end.
pub fn may_block(record: &Record) -> bool {
    let down = u64::from(flag::SM_DOWN) << 4;
    match record.number() as u8 {
        _ if record.kind != RecordKind::Call => true,
        call::IPC_CALL | call::IPC_REPLY => true,
        call::CTRL_SM => record.registers[0] & down != 0,
        _ => false,
    }
}

/// Whether what was read says that a right was gained.
pub fn is_breach(record: &Record, outcome: Outcome) -> bool {
    let Outcome::Done([_, _, word]) = outcome else { return false };
    match record.kind {
        RecordKind::Read => record.registers[1] >= entry::user_end() || crate::foreign::is_secret(word),
        RecordKind::Write => record.registers[1] >= entry::user_end(),
        RecordKind::Input => !PORTS.contains(&(record.registers[1] & 0xffff)),
        RecordKind::Call => false,
    }
}
