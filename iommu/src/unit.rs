//! A remapping unit: its abilities, how it is taken over and turned on, its queue of invalidations, its faults.

use crate::Problem;
use crate::dmar::UnitAt;
use crate::entry::{self, Entry, FORGET_CONTEXTS, FORGET_INTERRUPTS, FORGET_TRANSLATIONS};

/// A unit's registers (11.4), and the tables that it reads.
pub trait Hardware {
    /// Register at `offset`.
    fn read(&self, offset: u32) -> u32;
    /// Writes a register.
    fn write(&self, offset: u32, value: u32);
    /// Word `index`, below 512, of the table at physical address `table`.
    fn word(&self, table: u64, index: usize) -> u64;
    /// Sets it.
    fn set_word(&self, table: u64, index: usize, value: u64);
    /// Waits until `done`, but not for ever; whether it came about.
    fn wait(&self, done: &dyn Fn() -> bool) -> bool;
}

const CAPABILITY: u32 = 0x08;
const EXTENDED_CAPABILITY: u32 = 0x10;
const COMMAND: u32 = 0x18;
const STATUS: u32 = 0x1c;
const ROOT_TABLE: u32 = 0x20;
const FAULT_STATUS: u32 = 0x34;
const FAULT_CONTROL: u32 = 0x38;
const FAULT_DATA: u32 = 0x3c;
const FAULT_ADDRESS: u32 = 0x40;
const PROTECTED_MEMORY: u32 = 0x64;
const QUEUE_HEAD: u32 = 0x80;
const QUEUE_TAIL: u32 = 0x88;
const QUEUE: u32 = 0x90;
const INTERRUPT_TABLE: u32 = 0xb8;

/// Bits of command and status (11.4.4).
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT_TABLE: u32 = 1 << 30;
const ADVANCED_FAULT_LOG: u32 = 1 << 28;
const QUEUED: u32 = 1 << 26;
const INTERRUPTS: u32 = 1 << 25;
const SET_INTERRUPT_TABLE: u32 = 1 << 24;
const COMPATIBILITY_FORMAT: u32 = 1 << 23;
/// Those that last: the others are done once.
const LASTING: u32 = TRANSLATION | ADVANCED_FAULT_LOG | QUEUED | INTERRUPTS | COMPATIBILITY_FORMAT;

/// [`FAULT_STATUS`]: overflow; errors of the queue.
const OVERFLOW: u32 = 1 << 0;
const QUEUE_ERRORS: u32 = 7 << 4;
/// [`FAULT_CONTROL`].
const MASK: u32 = 1 << 31;

/// Entries of the queue: a page.
const QUEUE_ENTRIES: usize = 256;
/// Size of the interrupt table in its register: a page, 2^(7 + 1) entries.
const INTERRUPT_TABLE_SIZE: u64 = 7;
/// The same register: local APICs are in x2APIC mode.
const WIDE: u64 = 1 << 11;

/// What a unit can do: capability and extended capability register (11.4.2, 11.4.3), every bit in the sense that a 1 is
/// more. What several can do is what they have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities(u64, u64);

/// Bits of the capability register whose 1 is less: buffered writes, caching mode.
const MUST_BE_TOLD: u64 = 1 << 4 | 1 << 7;

impl Abilities {
    /// Those of no unit.
    pub const ALL: Self = Self(!0, !0);

    /// By the registers.
    pub const fn of(capability: u64, extended: u64) -> Self {
        Self(capability ^ MUST_BE_TOLD, extended)
    }

    /// What both can. Of the numbers of domains this leaves at most the smaller one.
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0, self.1 & other.1)
    }

    /// The number of levels to use: 4, or 3 if that is all there is, or 0.
    pub const fn depth(self) -> u8 {
        [0, 3, 4, 4][(self.0 >> 9 & 3) as usize]
    }

    /// Largest leaf: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB.
    pub const fn leaf(self) -> u8 {
        [0, 1, 0, 2][(self.0 >> 34 & 3) as usize]
    }

    /// Number of domains.
    pub const fn domains(self) -> u32 {
        1 << (4 + 2 * (self.0 & 7))
    }

    /// It must be told of new entries, too: it keeps absent ones, or they wait in a buffer.
    pub const fn must_be_told(self) -> bool {
        self.0 & MUST_BE_TOLD != MUST_BE_TOLD
    }

    /// It sees what is in processors' caches when it reads tables.
    pub const fn coherent(self) -> bool {
        self.1 & 1 != 0
    }

    /// Interrupts can be remapped; `wide`: to local APICs in x2APIC mode.
    pub const fn interrupts(self, wide: bool) -> bool {
        self.1 & 1 << 3 != 0 && (self.1 & 1 << 4 != 0 || !wide)
    }
}

/// A unit.
pub struct Unit<H> {
    hardware: H,
    /// Where it is.
    pub at: UnitAt,
    /// What it can do.
    pub abilities: Abilities,
    /// First of the fault recording registers, and their end.
    records: (u32, u32),
    queue: u64,
    tail: usize,
    /// Its queue does not answer.
    dead: bool,
}

impl<H: Hardware> Unit<H> {
    /// Looks at a unit. Its first `size` bytes of registers are mapped.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn find(hardware: H, at: UnitAt, size: u32) -> Result<Self, Problem> {
        let wide = |offset| u64::from(hardware.read(offset)) | u64::from(hardware.read(offset + 4)) << 32;
        let (capability, extended) = (wide(CAPABILITY), wide(EXTENDED_CAPABILITY));
        let (first, more) = ((capability >> 20) as u32 & 0x3ff0, (capability >> 36) as u32 & 0xff0);
        let records = (first, first + more + 16);
        if hardware.read(0) == u32::MAX || capability == u64::MAX {
            return Err("its registers read all ones");
        }
        if extended & 1 << 1 == 0 || records.1 > size {
            return Err("it has no queue of invalidations, or its records of faults are too far away");
        }
        let abilities = Abilities::of(capability, extended);
        Ok(Self { hardware, at, abilities, records, queue: 0, tail: 0, dead: false })
    }

    /// Turns translation on, with the root table at `root`, the page at `queue` for invalidations, and if given the
    /// interrupt table there (`true`: local APICs are in x2APIC mode), whatever the firmware left (11.4.4, 6.5.2, 5.1.4).
    /// Translation that is on stays on, unless it goes by tables of another kind.
    ///
    /// # Errors
    /// What it did not do in time.
    pub fn start(&mut self, root: u64, queue: u64, interrupts: Option<(u64, bool)>) -> Result<(), Problem> {
        let place = |register| self.hardware.read(register) & 0x7_fff0;
        let ended = || self.hardware.read(STATUS) & QUEUED == 0 || place(QUEUE_HEAD) == place(QUEUE_TAIL);
        self.until(&ended, "its queue of before does not end")?;
        for bit in [COMPATIBILITY_FORMAT, INTERRUPTS, QUEUED, ADVANCED_FAULT_LOG] {
            self.command(bit, false)?;
        }
        if self.hardware.read(ROOT_TABLE) & 3 << 10 != 0 {
            self.command(TRANSLATION, false)?;
        }
        self.write_wide(ROOT_TABLE, root);
        self.command(SET_ROOT_TABLE, true)?;
        self.hardware.write(FAULT_STATUS, QUEUE_ERRORS);
        self.hardware.write(QUEUE_TAIL, 0);
        self.write_wide(QUEUE, queue);
        self.queue = queue;
        self.command(QUEUED, true)?;
        self.forget(&[FORGET_CONTEXTS, FORGET_TRANSLATIONS])?;
        if let Some((table, wide)) = interrupts {
            self.write_wide(INTERRUPT_TABLE, table | INTERRUPT_TABLE_SIZE | if wide { WIDE } else { 0 });
            self.command(SET_INTERRUPT_TABLE, true)?;
            self.forget(&[FORGET_INTERRUPTS])?;
            self.command(INTERRUPTS, true)?;
        }
        self.command(TRANSLATION, true)?;
        // Nothing is left for the firmware's protected ranges to protect.
        self.hardware.write(PROTECTED_MEMORY, 0);
        self.until(&|| self.hardware.read(PROTECTED_MEMORY) & 1 == 0, "its protected memory stays protected")
    }

    fn write_wide(&self, offset: u32, value: u64) {
        self.hardware.write(offset, value as u32);
        self.hardware.write(offset + 4, (value >> 32) as u32);
    }

    fn until(&self, done: &dyn Fn() -> bool, problem: Problem) -> Result<(), Problem> {
        self.hardware.wait(done).then_some(()).ok_or(problem)
    }

    /// Sets or clears a bit of the command register, and waits for the status.
    fn command(&self, bit: u32, on: bool) -> Result<(), Problem> {
        let lasting = self.hardware.read(STATUS) & LASTING & !bit;
        self.hardware.write(COMMAND, lasting | if on { bit } else { 0 });
        self.until(&|| (self.hardware.read(STATUS) & bit != 0) == on, "it does not take commands")
    }

    /// Carries out descriptors, and waits until all is done. A unit that was not started keeps nothing to forget.
    ///
    /// # Errors
    /// It did not in time: from then on it is dead.
    pub fn forget(&mut self, what: &[Entry]) -> Result<(), Problem> {
        if self.queue != 0 && !self.dead {
            // The answer goes where the first descriptor stood, whose type is not 0 and which is long read then.
            let first = self.tail;
            let end = entry::wait(self.queue + first as u64 * 16);
            what.iter().chain([&end]).for_each(|descriptor| self.enqueue(descriptor));
            self.hardware.write(QUEUE_TAIL, (self.tail * 16) as u32);
            let answered = || self.hardware.word(self.queue, first * 2) as u32 == 0;
            let stuck = || self.hardware.read(FAULT_STATUS) & QUEUE_ERRORS != 0;
            self.dead = !(self.hardware.wait(&|| answered() || stuck()) && answered());
        }
        if self.dead { Err("its queue does not answer") } else { Ok(()) }
    }

    fn enqueue(&mut self, descriptor: &Entry) {
        self.hardware.set_word(self.queue, self.tail * 2, descriptor[0]);
        self.hardware.set_word(self.queue, self.tail * 2 + 1, descriptor[1]);
        self.tail = (self.tail + 1) % QUEUE_ENTRIES;
    }

    /// Has faults announced by the message `data` to `address`, which no unit remaps.
    pub fn announce_faults(&self, address: u64, data: u32) {
        self.hardware.write(FAULT_DATA, data);
        self.write_wide(FAULT_ADDRESS, address);
        while self.next_fault().is_some() {}
    }

    /// Announces no further fault before the next [`Unit::next_fault`] that finds none.
    pub fn mask_faults(&self) {
        self.hardware.write(FAULT_CONTROL, MASK);
    }

    /// Takes a recorded fault (7.2.1), see [`entry::fault`]. If there is none, faults that come are announced again.
    pub fn next_fault(&self) -> Option<(u64, u64)> {
        for record in (self.records.0..self.records.1).step_by(16) {
            let found = entry::fault([0, 4, 8, 12].map(|word| self.hardware.read(record + word)));
            if found.is_some() {
                self.hardware.write(record + 12, 1 << 31);
                return found;
            }
        }
        self.hardware.write(FAULT_STATUS, OVERFLOW);
        self.hardware.write(FAULT_CONTROL, 0);
        None
    }
}
