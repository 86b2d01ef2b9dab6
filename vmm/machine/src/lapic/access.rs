//! The registers as software reaches them: a page in memory in xAPIC mode, MSRs in x2APIC mode.
//!
//! Intel SDM vol. 3A, 11.4.1 (the page), 11.12.1 (the MSRs and their reserved bits).

use super::registers::*;
use super::timer::Mode;
use super::{ApicMode, GeneralProtection, Lapic, Outcome, TIMER};
use crate::backplane::logical_x2;
use crate::bus::Width;
use crate::interrupt::{Delivery, Destination};

/// IA32_APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First of the x2APIC registers.
const MSR_X2APIC: u32 = 0x800;
/// The x2APIC's end of interrupt.
pub const MSR_EOI: u32 = MSR_X2APIC + EOI;

impl Lapic {
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

    /// As [`Lapic::read_memory`] of a register whose value depends neither on time nor on the processor's task priority.
    #[inline]
    pub fn quiet_read(&self, offset: u32, width: Width) -> Option<u64> {
        if offset & 0xf != 0 || width != Width::Dword {
            return None;
        }
        let value = match offset >> 4 {
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            SVR => self.svr,
            ICR => self.icr as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt[((offset >> 4) - LVT_TIMER) as usize],
            _ => return None,
        };
        Some(value.into())
    }

    /// As WRMSR of [`MSR_EOI`] or [`MSR_TSC_DEADLINE`], if no interrupt waits, and none comes of it at once: the end of one
    /// that is nobody else's, a deadline to come behind one that had not. Else false, and nothing has happened.
    pub fn quiet_wrmsr(&mut self, index: u32, value: u64, now: u64) -> bool {
        self.irr.is_empty()
            && match index {
                MSR_EOI => self.quiet_end_of_interrupt(value),
                MSR_TSC_DEADLINE => self.quiet_deadline(value, now),
                _ => false,
            }
    }

    fn quiet_end_of_interrupt(&mut self, value: u64) -> bool {
        let ended = self.isr.highest();
        if self.mode() != ApicMode::X2apic || value != 0 || ended.is_some_and(|vector| self.tmr.contains(vector)) {
            return false;
        }
        if let Some(vector) = ended {
            self.isr.set(vector, false);
        }
        true
    }

    fn quiet_deadline(&mut self, value: u64, now: u64) -> bool {
        let due = |deadline: u64| deadline != 0 && deadline <= now;
        let counts = self.lvt[TIMER] & LVT_MASKED == 0 && self.timer_mode() == Mode::Deadline;
        if !counts || due(value) || due(self.timer.deadline()) {
            return false;
        }
        self.timer.set_deadline(value, Mode::Deadline);
        true
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
}
