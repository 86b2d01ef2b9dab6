//! Interrupt delivery: when a vCPU can take one, and how it is told.
//!
//! Intel SDM vol. 3A, 6.8.3 (masking by STI and MOV SS), vol. 3C, 27.2.1.5 and 27.7.5 (injection, windows).

use abi::Mtd;
use abi::event::guest;
use abi::mtd::injection::{INTERRUPT_WINDOW, NMI_WINDOW, TYPE_EXTERNAL, TYPE_NMI, VALID};
use abi::utcb::Architectural;

use super::{BLOCKED_BY_INSTRUCTION, INTERRUPT_FLAG, Next, Platform, PriorityExit, Vcpu};
use crate::backplane::VcpuSet;
use crate::memory::GuestMemory;
use crate::report::Cause;

/// Primary execution controls: writes of CR8 exit (Intel SDM vol. 3C, table 25-6).
const CR8_LOAD_EXITING: u32 = 1 << 19;
/// Interruptibility: blocked until the end of an NMI's handler.
const BLOCKED_BY_NMI: u32 = 1 << 3;
/// Vector of the non-maskable interrupt.
const NMI: u32 = 2;

/// HLT, MWAIT, RDPMC, MONITOR exit (Intel SDM vol. 3C, table 25-6): what this monitor relies on. A kernel may have these
/// controls fixed.
const EXITS: u32 = 1 << 7 | 1 << 10 | 1 << 11 | 1 << 29;
/// RDTSCP and INVPCID exist, WBINVD exits (table 25-7).
const SECONDARY: u32 = 1 << 3 | 1 << 6 | 1 << 12;

/// States which instructions exit, `more` among them; goes with [`Mtd::CTRL`].
pub fn set_controls(state: &mut Architectural, more: u32) {
    state.exec_controls_1 = EXITS | more;
    (state.exec_controls_2, state.exec_controls_3) = (SECONDARY, 0);
    (state.cr0_intercepts, state.cr4_intercepts, state.exception_intercepts) = (0, 0, 0);
    (state.page_fault_mask, state.page_fault_match) = (0, 0);
}

/// Whether the vCPU can take an interrupt at the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Readiness {
    /// Yes.
    Open,
    /// No, or not known: ask for the window.
    Closed,
    /// An event is on its way already; it stays.
    Busy,
}

impl<P: Platform> Vcpu<P> {
    /// The task priority is the guest's to change without an exit: takes it over from the hardware. Needs CR.
    pub(super) fn sync_priority(&mut self, state: &Architectural) {
        let priority = state.cr8 as u8 & 15;
        // Bits 3:0 of the LAPIC's register are not in CR8.
        if self.lapic.cr8() != priority {
            self.lapic.set_cr8(priority);
        }
    }

    /// The guest wrote the task priority by an exit: gives it to the hardware. A threshold above it must not stay.
    pub(super) fn priority_written(&mut self, state: &mut Architectural) -> Mtd {
        state.cr8 = self.lapic.cr8().into();
        Mtd::CR | self.await_class(0, state)
    }

    /// Input or time came while the vCPU ran, or its task priority sank. Needs INJ, STA, RFLAGS, CR.
    pub(super) fn recalled(&mut self, state: &mut Architectural, now: u64) -> Next {
        self.advance(now);
        self.touched = true;
        self.sync_priority(state);
        let readiness = if state.interruption_info & VALID != 0 {
            Readiness::Busy
        } else if state.rflags & INTERRUPT_FLAG != 0 && state.interruptibility & BLOCKED_BY_INSTRUCTION == 0 {
            Readiness::Open
        } else {
            Readiness::Closed
        };
        let nmi =
            readiness != Readiness::Busy && state.interruptibility & (BLOCKED_BY_INSTRUCTION | BLOCKED_BY_NMI) == 0;
        Next::Resume(self.deliver(readiness, nmi, state))
    }

    /// The window that was asked for is open. Needs INJ, CR.
    pub(super) fn window_opened(&mut self, number: u16, state: &mut Architectural) -> Next {
        self.sync_priority(state);
        let busy = state.interruption_info & VALID != 0;
        let readiness = match number {
            _ if busy => Readiness::Busy,
            // Says nothing about interrupts.
            guest::NMI_WINDOW => Readiness::Closed,
            _ => Readiness::Open,
        };
        self.window_requested = true;
        Next::Resume(self.deliver(readiness, !busy && number == guest::NMI_WINDOW, state))
    }

    /// After an emulated instruction that may have raised an interrupt. No event can be on its way.
    #[inline]
    pub(super) fn resume_after_instruction(&mut self, state: &mut Architectural, reply: Mtd) -> Next {
        if self.touched { self.resume_after_change(state, reply) } else { Next::Resume(reply) }
    }

    #[inline(never)]
    fn resume_after_change(&mut self, state: &mut Architectural, reply: Mtd) -> Next {
        if self.lapic.signals().nmi {
            // Whether it can be taken is seen after another exit.
            self.platform.wake(VcpuSet::one(self.index));
        }
        if !self.wants_window() {
            return Next::Resume(reply);
        }
        state.interruption_info = 0;
        Next::Resume(reply | self.request_window(state))
    }

    /// Whether an interrupt waits for which no window has been asked. The priority that the board knows may be old, so
    /// that only the window's exit can tell whether the vector passes; one that waits for the priority does not ask
    /// again.
    pub(super) fn wants_window(&self) -> bool {
        let requested = self.window_requested && self.awaited_class == 0;
        !requested && self.pending_at_any_priority().is_some_and(|vector| vector >> 4 > self.awaited_class)
    }

    /// Adds the request for a window, at any priority, to the interruption information.
    pub(super) fn request_window(&mut self, state: &mut Architectural) -> Mtd {
        state.interruption_info |= INTERRUPT_WINDOW;
        self.window_requested = true;
        Mtd::INJ
    }

    /// Output was taken from a device after the exit was handled, which may have raised an interrupt: adds what it needs
    /// to `reply`.
    pub fn recheck(&mut self, state: &mut Architectural, reply: Mtd, now: u64) -> Mtd {
        self.refresh_deadline(now);
        if !self.wants_window() {
            return reply;
        }
        if !reply.contains(Mtd::INJ) {
            state.interruption_info = 0;
        }
        reply | self.request_window(state)
    }

    /// HLT. Needs RFLAGS, STA, CR and what [`Vcpu::skip`] needs.
    pub(super) fn halt(&mut self, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory, now: u64) -> Next {
        let before = state.rip;
        self.skip(guest::HLT, have, state, memory);
        state.interruptibility &= !BLOCKED_BY_INSTRUCTION;
        state.interruption_info = 0;
        self.sync_priority(state);
        let next = self.wake(state, now);
        if matches!(next, Next::Crash(_)) {
            state.rip = before; // for the report
        }
        next
    }

    /// Whether a halted vCPU goes on: time has passed or input has come. `state` is that of its HLT.
    pub fn wake(&mut self, state: &mut Architectural, now: u64) -> Next {
        self.collect();
        self.advance(now);
        self.refresh_deadline(now);
        if self.lapic.signals().init {
            return Next::Init;
        }
        let nmi = self.lapic.signals().nmi && state.interruptibility & BLOCKED_BY_NMI == 0;
        let open = state.rflags & INTERRUPT_FLAG != 0;
        if nmi || (open && self.pending_interrupt().is_some()) {
            let readiness = if open { Readiness::Open } else { Readiness::Closed };
            let reply = self.deliver(readiness, nmi, state);
            self.refresh_deadline(now);
            return Next::Resume(reply | Mtd::RIP | Mtd::STA);
        }
        match open {
            true => Next::Halt,
            false if self.backplane.vcpus() == 1 => Next::Crash(Cause::HaltedForever),
            false => Next::HaltDisabled,
        }
    }

    /// Puts what is pending into the interruption information: an event, or a request for a window. `nmi`: an NMI can be
    /// taken. Returns the descriptor for it.
    fn deliver(&mut self, readiness: Readiness, nmi: bool, state: &mut Architectural) -> Mtd {
        let before = self.window_requested;
        let kept =
            if readiness == Readiness::Busy { state.interruption_info & !(INTERRUPT_WINDOW | NMI_WINDOW) } else { 0 };
        let mut info = kept;
        if self.lapic.signals().nmi {
            if nmi && self.lapic.take_nmi() {
                info = VALID | TYPE_NMI | NMI;
            } else {
                info |= NMI_WINDOW;
            }
        }
        if info & VALID == 0
            && readiness == Readiness::Open
            && let Some(vector) = self.acknowledge()
        {
            info |= VALID | TYPE_EXTERNAL | vector as u32;
            self.statistics.interrupt();
            self.touched = true;
        }
        // Another one waits behind it.
        self.window_requested = self.pending_interrupt().is_some();
        if self.window_requested {
            info |= INTERRUPT_WINDOW;
        }
        let priority = self.await_priority(state);
        if info == kept && !before && !self.window_requested {
            return priority;
        }
        state.interruption_info = info;
        priority | Mtd::INJ
    }

    /// A vector that only the task priority holds back waits for an exit when the priority sinks.
    fn await_priority(&mut self, state: &mut Architectural) -> Mtd {
        let held = self.pending_at_any_priority().filter(|_| self.pending_interrupt().is_none());
        self.await_class(held.map_or(0, |vector| vector >> 4), state)
    }

    fn await_class(&mut self, class: u8, state: &mut Architectural) -> Mtd {
        if class == self.awaited_class {
            return Mtd::empty();
        }
        self.awaited_class = class;
        self.touched = true;
        match self.priority_exit {
            PriorityExit::Threshold => {
                state.tpr_threshold = class.into();
                Mtd::TPR
            }
            PriorityExit::Write => {
                set_controls(state, if class == 0 { 0 } else { CR8_LOAD_EXITING });
                Mtd::CTRL
            }
        }
    }
}
