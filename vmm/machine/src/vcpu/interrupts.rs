//! Interrupt delivery: when a vCPU can take one, and how it is told.
//!
//! Intel SDM vol. 3A, 6.8.3 (masking by STI and MOV SS), vol. 3C, 27.2.1.5 and 27.7.5 (injection, windows).

use abi::Mtd;
use abi::event::guest;
use abi::mtd::injection::{INTERRUPT_WINDOW, NMI_WINDOW, TYPE_EXTERNAL, TYPE_NMI, VALID};
use abi::utcb::Architectural;

use super::{BLOCKED_BY_INSTRUCTION, INTERRUPT_FLAG, Next, Vcpu};
use crate::memory::GuestMemory;
use crate::report::Cause;

/// Vector of the non-maskable interrupt.
const NMI: u32 = 2;

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

impl Vcpu {
    /// Input or time came while the vCPU ran. Needs INJ, STA, RFLAGS, CR.
    pub(super) fn recalled(&mut self, state: &mut Architectural, now: u64) -> Next {
        self.board.advance(now);
        self.touched = true;
        self.board.set_cr8(state.cr8 as u8);
        let readiness = if state.interruption_info & VALID != 0 {
            Readiness::Busy
        } else if state.rflags & INTERRUPT_FLAG != 0 && state.interruptibility & BLOCKED_BY_INSTRUCTION == 0 {
            Readiness::Open
        } else {
            Readiness::Closed
        };
        Next::Resume(self.deliver(readiness, state))
    }

    /// The window that was asked for is open. Needs INJ, CR.
    pub(super) fn window_opened(&mut self, state: &mut Architectural) -> Next {
        self.board.set_cr8(state.cr8 as u8);
        self.window_requested = true;
        let readiness = if state.interruption_info & VALID != 0 { Readiness::Busy } else { Readiness::Open };
        Next::Resume(self.deliver(readiness, state))
    }

    /// After an emulated instruction that may have raised an interrupt. No event can be on its way.
    pub(super) fn resume_after_instruction(&mut self, state: &mut Architectural, reply: Mtd) -> Next {
        if !self.touched {
            return Next::Resume(reply);
        }
        let wanted = self.board.pending_interrupt().is_some() || self.board.nmi_pending();
        if !wanted || self.window_requested {
            return Next::Resume(reply);
        }
        state.interruption_info = 0;
        Next::Resume(reply | self.deliver(Readiness::Closed, state))
    }

    /// Output was taken from a device after the exit was handled, which may have raised an interrupt: adds what it needs
    /// to `reply`.
    pub fn recheck(&mut self, state: &mut Architectural, reply: Mtd, now: u64) -> Mtd {
        self.refresh_deadline(now);
        if self.window_requested || self.board.pending_interrupt().is_none() {
            return reply;
        }
        self.window_requested = true;
        let info = if reply.contains(Mtd::INJ) { state.interruption_info } else { 0 };
        state.interruption_info = info | INTERRUPT_WINDOW;
        reply | Mtd::INJ
    }

    /// HLT. Needs RFLAGS, STA, CR and what [`Vcpu::skip`] needs.
    pub(super) fn halt(&mut self, have: Mtd, state: &mut Architectural, memory: &impl GuestMemory, now: u64) -> Next {
        self.skip(guest::HLT, have, state, memory);
        state.interruptibility &= !BLOCKED_BY_INSTRUCTION;
        state.interruption_info = 0;
        self.board.set_cr8(state.cr8 as u8);
        self.wake(state, now)
    }

    /// Whether a halted vCPU goes on: time has passed or input has come. `state` is that of its HLT.
    pub fn wake(&mut self, state: &mut Architectural, now: u64) -> Next {
        self.board.advance(now);
        self.refresh_deadline(now);
        let open = state.rflags & INTERRUPT_FLAG != 0;
        if self.board.nmi_pending() || (open && self.board.pending_interrupt().is_some()) {
            let readiness = if open { Readiness::Open } else { Readiness::Closed };
            let reply = self.deliver(readiness, state);
            self.refresh_deadline(now);
            return Next::Resume(reply | Mtd::RIP | Mtd::STA);
        }
        if open { Next::Halt } else { Next::Crash(Cause::HaltedForever) }
    }

    /// Puts what is pending into the interruption information: an event, or a request for a window. Returns the
    /// descriptor for it.
    fn deliver(&mut self, readiness: Readiness, state: &mut Architectural) -> Mtd {
        let before = self.window_requested;
        let kept =
            if readiness == Readiness::Busy { state.interruption_info & !(INTERRUPT_WINDOW | NMI_WINDOW) } else { 0 };
        let mut info = kept;
        if self.board.nmi_pending() {
            if readiness == Readiness::Open && self.board.take_nmi() {
                info = VALID | TYPE_NMI | NMI;
            } else {
                info |= NMI_WINDOW;
            }
        }
        if info & VALID == 0
            && readiness == Readiness::Open
            && let Some(vector) = self.board.acknowledge()
        {
            info |= VALID | TYPE_EXTERNAL | vector as u32;
            self.statistics.interrupt();
            self.touched = true;
        }
        // Another one waits behind it.
        self.window_requested = self.board.pending_interrupt().is_some();
        if self.window_requested {
            info |= INTERRUPT_WINDOW;
        }
        if info == kept && !before && !self.window_requested {
            return Mtd::empty();
        }
        state.interruption_info = info;
        Mtd::INJ
    }
}
