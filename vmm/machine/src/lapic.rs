//! The local APIC of one vCPU: xAPIC registers in memory and x2APIC registers as MSRs.
//!
//! Intel SDM vol. 3A, chapter 11 (Advanced Programmable Interrupt Controller): 11.4 (registers), 11.5 (local
//! interrupts), 11.6 (IPIs), 11.8 (priorities, acceptance, EOI), 11.9 (spurious vector), 11.12 (x2APIC).
//!
//! A LAPIC belongs to its vCPU alone. Whatever concerns others leaves it as an [`Outcome`] and reaches it as [`Mail`]
//! from the backplane, so that with several vCPUs only messages cross between their owners.

mod access;
pub mod registers;
pub mod timer;
pub mod vectors;

pub use access::{MSR_EOI, MSR_TSC_DEADLINE};

use crate::backplane::{Mail, Route};
use crate::interrupt::{Delivery, Destination, Message};
use registers::*;
use timer::{CrystalClock, Mode, Timer};
use vectors::Vectors;

/// What a register access asks of the rest of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// Nothing.
    Done,
    /// A level-triggered interrupt with this vector ended: tell the IOAPICs.
    EndOfInterrupt(u8),
    /// Send a message to LAPICs, this one perhaps among them.
    Send(Message),
}

/// An access that the architecture answers with #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// The mode that IA32_APIC_BASE selects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicMode {
    /// As if there were none: INTR goes to the processor directly.
    Disabled,
    /// Registers in memory.
    Xapic,
    /// Registers as MSRs.
    X2apic,
}

impl ApicMode {
    const fn of(base: u64) -> Self {
        match (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::Xapic,
            (true, true) => ApicMode::X2apic,
        }
    }
}

/// What the LAPIC tells its processor besides interrupts (SDM vol. 3A, 11.5.1 and 8.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// An NMI is pending.
    pub nmi: bool,
    /// INIT arrived.
    pub init: bool,
    /// A start-up IPI arrived; it starts at this page.
    pub startup: Option<u8>,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    base: u64,
    tpr: u32,
    ldr: u32,
    dfr: u32,
    svr: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    esr: u32,
    esr_pending: u32,
    icr: u64,
    lvt: [u32; 6],
    timer: Timer,
    signals: Signals,
}

const TIMER: usize = 0;
const LINT0: usize = (LVT_LINT0 - LVT_TIMER) as usize;
const LINT1: usize = (LVT_LINT1 - LVT_TIMER) as usize;
const ERROR: usize = (LVT_ERROR - LVT_TIMER) as usize;

impl Lapic {
    /// The LAPIC with `id` after power-on.
    pub fn new(id: u32, bootstrap: bool, crystal: CrystalClock) -> Self {
        let base = BASE_DEFAULT | BASE_ENABLE | if bootstrap { BASE_BOOTSTRAP } else { 0 };
        let mut lapic = Self {
            id,
            base,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [0; 6],
            timer: Timer::new(crystal),
            signals: Signals::default(),
        };
        lapic.init();
        lapic
    }

    /// The state after INIT (SDM vol. 3A, 11.4.7.3): everything but id and mode.
    pub fn init(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.svr = 0xff;
        self.irr = Vectors::default();
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.esr = 0;
        self.esr_pending = 0;
        self.icr = 0;
        self.lvt = [LVT_MASKED; 6];
        self.timer.reset();
        self.signals = Signals::default();
    }

    /// The state after power-on or RESET.
    pub fn reset(&mut self) {
        self.init();
        self.base = BASE_DEFAULT | BASE_ENABLE | self.base & BASE_BOOTSTRAP;
    }

    /// As firmware leaves it for an operating system: enabled, LINT0 passes the 8259A's interrupts (virtual wire
    /// mode, MultiProcessor Specification 1.4, 3.6.2.2), LINT1 is NMI.
    pub fn set_virtual_wire(&mut self) {
        self.svr |= SVR_ENABLE;
        self.lvt[LINT0] = 7 << 8;
        self.lvt[LINT1] = 4 << 8;
    }

    /// The mode.
    pub fn mode(&self) -> ApicMode {
        ApicMode::of(self.base)
    }

    /// The id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The offset in the register page of a guest-physical address, if the registers are in memory there.
    pub fn offset_of(&self, gpa: u64) -> Option<u32> {
        let page = self.base & !0xfff;
        (self.mode() == ApicMode::Xapic && gpa & !0xfff == page).then_some(gpa as u32 & 0xfff)
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE; the transitions are those of SDM vol. 3A, 11.12.5.
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let next = ApicMode::of(value);
        let allowed = match (self.mode(), next) {
            (ApicMode::Disabled, ApicMode::X2apic) | (ApicMode::X2apic, ApicMode::Xapic) => false,
            (_, ApicMode::Disabled) => value & BASE_X2APIC == 0,
            _ => true,
        };
        if !allowed || value & !(BASE_ADDRESS | BASE_BOOTSTRAP | BASE_X2APIC | BASE_ENABLE) != 0 {
            return Err(GeneralProtection);
        }
        let previous = self.mode();
        self.base = value & !BASE_BOOTSTRAP | self.base & BASE_BOOTSTRAP;
        match (previous, next) {
            (ApicMode::Xapic | ApicMode::X2apic, ApicMode::Disabled) => self.init(),
            (ApicMode::Xapic, ApicMode::X2apic) => {
                // LDR follows from the id; the ICR's destination has another place (11.12.5.1).
                self.icr &= 0xffff_ffff;
            }
            _ => {}
        }
        Ok(())
    }

    /// Processor priority (SDM vol. 3A, 11.8.3.1).
    pub fn ppr(&self) -> u32 {
        let in_service = u32::from(self.isr.highest().unwrap_or(0));
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 }
    }

    /// CR8: bits 7:4 of the task priority.
    pub fn cr8(&self) -> u8 {
        (self.tpr >> 4) as u8
    }

    /// Sets bits 7:4 of the task priority and clears the others.
    pub fn set_cr8(&mut self, priority: u8) {
        self.tpr = u32::from(priority & 0xf) << 4;
    }

    /// The vector that the processor would take, if any has priority enough.
    pub fn pending(&self) -> Option<u8> {
        if self.mode() == ApicMode::Disabled {
            return None;
        }
        self.irr.highest().filter(|&vector| u32::from(vector >> 4) > self.ppr() >> 4)
    }

    /// The vector that the processor would take if the task priority were zero.
    pub fn pending_at_any_priority(&self) -> Option<u8> {
        if self.mode() == ApicMode::Disabled {
            return None;
        }
        let in_service = self.isr.highest().unwrap_or(0);
        self.irr.highest().filter(|&vector| vector >> 4 > in_service >> 4)
    }

    /// Acknowledge: the pending vector goes from requested to in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    /// Whether INTR from the 8259A reaches the processor: through LINT0 as ExtINT, or past a disabled LAPIC.
    pub fn passes_external(&self) -> bool {
        match self.mode() {
            ApicMode::Disabled => true,
            _ => self.lvt[LINT0] & (LVT_MASKED | 0x700) == 0x700,
        }
    }

    /// The LINT0 pin rises: in delivery modes other than ExtINT it is an interrupt like others.
    pub fn raise_lint0(&mut self) {
        if self.lvt[LINT0] & 0x700 != 0x700 {
            self.raise_local(LINT0);
        }
    }

    /// The LINT1 pin rises.
    pub fn raise_lint1(&mut self) {
        self.raise_local(LINT1);
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    fn raise_local(&mut self, entry: usize) {
        let lvt = self.lvt[entry];
        if self.mode() != ApicMode::Disabled && lvt & LVT_MASKED == 0 {
            let delivery =
                if entry == TIMER || entry == ERROR { Delivery::Fixed } else { Delivery::from_bits(lvt >> 8) };
            self.accept(delivery, lvt as u8, false);
        }
    }

    fn raise_error(&mut self, error: u32) {
        self.esr_pending |= error;
        // An illegal vector in the error entry itself must not raise a second error.
        if self.lvt[ERROR] & 0xf0 != 0 {
            self.raise_local(ERROR);
        }
    }

    /// Where and how messages find this LAPIC.
    pub fn route(&self) -> Route {
        Route {
            mode: self.mode(),
            takes_vectors: self.software_enabled(),
            clustered: self.dfr >> 28 != 0xf,
            logical: (self.ldr >> 24) as u8,
        }
    }

    /// Takes what others had for this LAPIC.
    pub fn take(&mut self, mail: &Mail) {
        if self.mode() == ApicMode::Disabled {
            return;
        }
        if self.software_enabled() {
            self.irr.add(&mail.vectors);
            self.tmr.replace(&mail.vectors, &mail.levels);
        }
        if mail.illegal_vector {
            self.raise_error(ESR_RECEIVE_ILLEGAL_VECTOR);
        }
        self.signals.nmi |= mail.nmi;
        self.signals.init |= mail.init;
        if mail.init || mail.startup.is_some() {
            self.signals.startup = mail.startup;
        }
        if mail.lint0 {
            self.raise_lint0();
        }
    }

    fn accept(&mut self, delivery: Delivery, vector: u8, level: bool) {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < 16 => self.raise_error(ESR_RECEIVE_ILLEGAL_VECTOR),
            Delivery::Fixed | Delivery::LowestPriority => {
                if self.software_enabled() {
                    self.irr.set(vector, true);
                    self.tmr.set(vector, level);
                }
            }
            Delivery::Nmi => self.signals.nmi = true,
            Delivery::Init => self.signals.init = true,
            Delivery::Startup => self.signals.startup = Some(vector),
            // There is no SMM; an ExtINT request is served by the 8259A's own line.
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => {}
        }
    }

    /// NMI, INIT and start-up requests.
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// Takes a start-up request.
    pub fn take_startup(&mut self) -> Option<u8> {
        self.signals.startup.take()
    }

    /// Puts a start-up request back.
    pub fn restore_startup(&mut self, startup: Option<u8>) {
        self.signals.startup = startup;
    }

    /// Takes a pending NMI.
    pub fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.signals.nmi)
    }

    fn timer_mode(&self) -> Mode {
        match self.lvt[TIMER] >> 17 & 3 {
            1 => Mode::Periodic,
            2 => Mode::Deadline,
            _ => Mode::OneShot,
        }
    }

    /// When the timer interrupts next. A masked timer needs no service: its registers follow when they are read.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.lvt[TIMER] & LVT_MASKED != 0 { None } else { self.timer.next(self.timer_mode()) }
    }

    /// Fires the timer if it is due.
    pub fn advance(&mut self, now: u64) {
        if self.timer.fire(self.timer_mode(), now) {
            self.raise_local(TIMER);
        }
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        self.advance(now);
        self.timer.deadline()
    }

    /// Writes IA32_TSC_DEADLINE. A value that has passed fires at once.
    pub fn set_tsc_deadline(&mut self, value: u64, now: u64) {
        self.advance(now);
        self.timer.set_deadline(value, self.timer_mode());
        self.advance(now);
    }

    fn end_of_interrupt(&mut self) -> Outcome {
        let Some(vector) = self.isr.highest() else { return Outcome::Done };
        self.isr.set(vector, false);
        let broadcast = self.svr & SVR_SUPPRESS_BROADCAST == 0;
        if self.tmr.contains(vector) && broadcast { Outcome::EndOfInterrupt(vector) } else { Outcome::Done }
    }

    /// Sends what the ICR says, to `destination` unless there is a shorthand.
    fn send(&mut self, destination: Destination) -> Outcome {
        let command = self.icr as u32;
        let destination = match command >> 18 & 3 {
            0 => destination,
            1 => Destination::Own,
            2 => Destination::All,
            _ => Destination::Others,
        };
        let delivery = Delivery::from_bits(command >> 8);
        let vector = command as u8;
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < 16 => {
                self.raise_error(ESR_SEND_ILLEGAL_VECTOR);
                Outcome::Done
            }
            // INIT level de-assert: synchronizes arbitration ids, which nothing has any more.
            Delivery::Init if command & 1 << 14 == 0 && command & 1 << 15 != 0 => Outcome::Done,
            Delivery::ExtInt | Delivery::Reserved => Outcome::Done,
            // IPIs are edge-triggered, whatever bit 15 says (SDM vol. 3A, 11.6.1).
            _ => Outcome::Send(Message { destination, delivery, vector, level: false }),
        }
    }
}

#[cfg(test)]
mod tests;
