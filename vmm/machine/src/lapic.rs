//! The local APIC of one vCPU: xAPIC registers in memory and x2APIC registers as MSRs.
//!
//! Intel SDM vol. 3A, chapter 11 (Advanced Programmable Interrupt Controller): 11.4 (registers), 11.5 (local
//! interrupts), 11.6 (IPIs), 11.8 (priorities, acceptance, EOI), 11.9 (spurious vector), 11.12 (x2APIC).
//!
//! A LAPIC belongs to its vCPU alone. Whatever concerns others leaves it as an [`Outcome`] and reaches it as [`Mail`]
//! from the backplane, so that with several vCPUs only messages cross between their owners.

pub mod registers;
pub mod timer;
pub mod vectors;

use crate::backplane::{Mail, Route, logical_x2};
use crate::bus::Width;
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

/// IA32_APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First of the x2APIC registers.
const MSR_X2APIC: u32 = 0x800;

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

    fn ldr(&self) -> u32 {
        match self.mode() {
            ApicMode::X2apic => logical_x2(self.id),
            _ => self.ldr,
        }
    }

    /// Reads a register of the page in memory. Only aligned double words are defined; narrower reads get their part.
    pub fn read_memory(&mut self, offset: u32, width: Width, now: u64) -> u64 {
        let byte = offset & 0xf;
        if byte >= 4 {
            return 0;
        }
        let value = self.read(offset >> 4, now).unwrap_or_else(|| {
            self.raise_error(ESR_ILLEGAL_REGISTER);
            0
        });
        u64::from(value >> (8 * byte)) & width.ones()
    }

    /// Writes a register of the page in memory. Other than aligned double words vanish.
    pub fn write_memory(&mut self, offset: u32, width: Width, value: u64, now: u64) -> Outcome {
        if offset & 0xf != 0 || width < Width::Dword {
            return Outcome::Done;
        }
        let value = value as u32;
        match offset >> 4 {
            ID => {}
            LDR => self.ldr = value & 0xff00_0000,
            DFR => self.dfr = value | 0x0fff_ffff,
            ICR_HIGH => self.icr = u64::from(value & 0xff00_0000) << 32 | self.icr & 0xffff_ffff,
            ICR => {
                self.icr = self.icr & 0xff00_0000_0000_0000 | u64::from(value) & ICR_WRITABLE;
                let destination = Destination::from_byte(value & 1 << 11 != 0, (self.icr >> 56) as u8);
                return self.send(destination);
            }
            index => match self.write(index, value, now) {
                Some(outcome) => return outcome,
                None => self.raise_error(ESR_ILLEGAL_REGISTER),
            },
        }
        Outcome::Done
    }

    /// Whether [`Lapic::rdmsr`] and [`Lapic::wrmsr`] answer for a register: IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE
    /// (0x6e0), the x2APIC range 0x800 to 0x8ff.
    pub const fn claims_msr(index: u32) -> bool {
        matches!(index, MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..=0x8ff)
    }

    /// RDMSR of a register in [`Lapic::claims_msr`].
    pub fn rdmsr(&mut self, index: u32, now: u64) -> Result<u64, GeneralProtection> {
        match index {
            MSR_APIC_BASE => Ok(self.base()),
            MSR_TSC_DEADLINE => Ok(self.tsc_deadline(now)),
            MSR_X2APIC..=0x8ff => self.read_msr(index - MSR_X2APIC, now),
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of a register in [`Lapic::claims_msr`].
    pub fn wrmsr(&mut self, index: u32, value: u64, now: u64) -> Result<Outcome, GeneralProtection> {
        match index {
            MSR_APIC_BASE => self.set_base(value).map(|()| Outcome::Done),
            MSR_TSC_DEADLINE => {
                self.set_tsc_deadline(value, now);
                Ok(Outcome::Done)
            }
            MSR_X2APIC..=0x8ff => self.write_msr(index - MSR_X2APIC, value, now),
            _ => Err(GeneralProtection),
        }
    }

    /// RDMSR of x2APIC register `index` (the MSR less 0x800).
    pub fn read_msr(&mut self, index: u32, now: u64) -> Result<u64, GeneralProtection> {
        if self.mode() != ApicMode::X2apic {
            return Err(GeneralProtection);
        }
        match index {
            ID => Ok(self.id.into()),
            ICR => Ok(self.icr),
            EOI | DFR | ICR_HIGH | SELF_IPI => Err(GeneralProtection),
            index => self.read(index, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// WRMSR of x2APIC register `index` (the MSR less 0x800).
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Outcome, GeneralProtection> {
        let writable = match index {
            TPR => 0xff,
            SVR => SVR_WRITABLE.into(),
            EOI | ESR => 0,
            ICR => ICR_X2APIC,
            LVT_TIMER..=LVT_ERROR => u64::from(LVT_WRITABLE[(index - LVT_TIMER) as usize] | 0x5000),
            INITIAL_COUNT => u32::MAX.into(),
            DIVIDE => 0xb,
            SELF_IPI => 0xff,
            _ => return Err(GeneralProtection),
        };
        if self.mode() != ApicMode::X2apic || value & !writable != 0 {
            return Err(GeneralProtection);
        }
        match index {
            ICR => {
                self.icr = value;
                let id = (value >> 32) as u32;
                Ok(self.send(match (value & 1 << 11 != 0, id) {
                    (false, u32::MAX) => Destination::All,
                    (false, id) => Destination::Physical(id),
                    (true, id) => Destination::Logical(id),
                }))
            }
            SELF_IPI => {
                self.accept(Delivery::Fixed, value as u8, false);
                Ok(Outcome::Done)
            }
            index => self.write(index, value as u32, now).ok_or(GeneralProtection),
        }
    }

    /// The registers that both modes share; `None` where there is none.
    fn read(&mut self, index: u32, now: u64) -> Option<u32> {
        Some(match index {
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr,
            PPR => self.ppr(),
            // Write-only, but reading it is no error in xAPIC mode.
            EOI => 0,
            LDR => self.ldr(),
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.register((index - ISR) as usize),
            TMR..IRR => self.tmr.register((index - TMR) as usize),
            IRR..ESR => {
                self.advance(now);
                self.irr.register((index - IRR) as usize)
            }
            ESR => self.esr,
            ICR => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt[(index - LVT_TIMER) as usize],
            INITIAL_COUNT => self.timer.initial(),
            CURRENT_COUNT => {
                self.advance(now);
                self.timer.current(now)
            }
            DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    fn write(&mut self, index: u32, value: u32, now: u64) -> Option<Outcome> {
        match index {
            TPR => self.tpr = value & 0xff,
            EOI => return Some(self.end_of_interrupt()),
            SVR => {
                self.svr = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.advance(now);
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            ESR => self.esr = core::mem::take(&mut self.esr_pending),
            LVT_TIMER..=LVT_ERROR => self.write_lvt((index - LVT_TIMER) as usize, value, now),
            INITIAL_COUNT => {
                self.advance(now);
                self.timer.set_initial(value, self.timer_mode(), now);
            }
            DIVIDE => {
                self.advance(now);
                self.timer.set_divide(value, now);
            }
            // Read-only registers.
            VERSION | PPR | CURRENT_COUNT | ISR..ESR => {}
            _ => return None,
        }
        Some(Outcome::Done)
    }

    fn write_lvt(&mut self, entry: usize, value: u32, now: u64) {
        // What fell due under the old entry belongs to the old entry.
        self.advance(now);
        let before = self.timer_mode();
        let enforced = if self.software_enabled() { 0 } else { LVT_MASKED };
        self.lvt[entry] = value & LVT_WRITABLE[entry] | enforced;
        if entry == TIMER {
            self.timer.change_mode(before, self.timer_mode());
        }
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
