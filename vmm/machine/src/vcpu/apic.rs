//! A vCPU's LAPIC, and its ways to the board and to other vCPUs.

use super::{Platform, Vcpu};
use crate::backplane::VcpuSet;
use crate::board::Board;
use crate::bus::Width;
use crate::lapic::Outcome;

impl<P: Platform> Vcpu<P> {
    /// One access to the board at STC value `now`: whoever has to look because of it does.
    #[inline]
    pub fn with_board<R>(&mut self, now: u64, access: impl FnOnce(&mut Board) -> R) -> R {
        let (result, wakes) = {
            let mut board = self.platform.board();
            let result = access(&mut board);
            self.touched |= board.publish_deadline(now);
            self.output_waits |= board.has_output();
            (result, board.take_wakes())
        };
        if wakes.is_empty() {
            self.collect();
        } else {
            self.notify(wakes);
        }
        result
    }

    /// Makes others look, and looks itself.
    pub fn notify(&mut self, wakes: VcpuSet) {
        let others = wakes.without(self.index);
        if !others.is_empty() {
            self.platform.wake(others);
        }
        self.collect();
        self.touched = true;
    }

    fn notify_some(&mut self, wakes: VcpuSet) {
        if !wakes.is_empty() {
            self.notify(wakes);
        }
    }

    /// Takes what others had for this vCPU.
    #[inline]
    pub(super) fn collect(&mut self) {
        if self.backplane.has_news(self.index) {
            self.open_mail();
        }
    }

    fn open_mail(&mut self) {
        if let Some(mail) = self.backplane.collect(self.index) {
            self.lapic.take(&mail);
            self.touched = true;
        }
    }

    /// Fires what is due; the first vCPU sees to the board.
    pub(super) fn advance(&mut self, now: u64) {
        self.touched = true;
        self.lapic.advance(now);
        if self.index == 0 && self.backplane.board_deadline() <= now {
            self.with_board(now, |board| board.advance(now));
        }
    }

    /// As firmware leaves the LAPIC for an operating system.
    pub(super) fn power_on(&mut self) {
        if self.index == 0 {
            self.lapic.set_virtual_wire();
        }
        self.fresh = true;
        self.publish();
    }

    /// Tells the others what they must know of the LAPIC.
    pub(super) fn publish(&self) {
        self.backplane.publish(self.index, self.lapic.route());
        self.backplane.publish_priority(self.index, self.lapic.ppr());
        if self.index == 0 {
            self.backplane.want_external(self.lapic.passes_external());
        }
    }

    /// A register of the LAPIC was written: carries out what that asks for.
    pub(super) fn carry_out(&mut self, outcome: Outcome, now: u64) {
        self.touched = true;
        match outcome {
            Outcome::Done => {}
            Outcome::EndOfInterrupt(vector) => self.with_board(now, |board| board.end_of_interrupt(vector)),
            Outcome::Send(message) => {
                let wakes = self.backplane.send(&message, Some(self.lapic.id()));
                self.notify(wakes);
            }
        }
        let wanted = self.backplane.external_wanted();
        self.publish();
        if self.index == 0 && self.backplane.external_wanted() != wanted {
            // The interval timer's ticks are wanted from now on, or no longer.
            self.with_board(now, Board::external_wanted_changed);
        }
    }

    /// A read of guest-physical memory outside RAM.
    pub(super) fn mmio_read(&mut self, gpa: u64, width: Width, now: u64) -> u64 {
        if let Some(offset) = self.lapic.offset_of(gpa) {
            return self.lapic.read_memory(offset, width, now);
        }
        match self.bus.find(gpa) {
            Some(target) => {
                let (value, wakes) = self.bus.read(target, width);
                self.notify_some(wakes);
                value
            }
            None => self.with_board(now, |board| board.mmio_read(gpa, width)),
        }
    }

    /// A write of guest-physical memory outside RAM.
    pub(super) fn mmio_write(&mut self, gpa: u64, width: Width, value: u64, now: u64) {
        if let Some(offset) = self.lapic.offset_of(gpa) {
            let outcome = self.lapic.write_memory(offset, width, value, now);
            return self.carry_out(outcome, now);
        }
        match self.bus.find(gpa) {
            Some(target) => {
                let wakes = self.bus.write(target, width, value);
                self.notify_some(wakes);
            }
            None => self.with_board(now, |board| board.mmio_write(gpa, width, value, now)),
        }
    }

    /// Whether the 8259A may have something for this vCPU.
    pub(super) fn external(&self) -> bool {
        self.index == 0 && self.backplane.external()
    }

    /// The vector of the interrupt that the vCPU would take now if it accepts interrupts. Changes nothing.
    pub fn pending_interrupt(&self) -> Option<u8> {
        let external = if self.external() { self.platform.board().pending_external() } else { None };
        external.or_else(|| self.lapic.pending())
    }

    /// The vector that would be taken if the task priority were zero.
    pub(super) fn pending_at_any_priority(&self) -> Option<u8> {
        let external = if self.external() { self.platform.board().pending_external() } else { None };
        external.or_else(|| self.lapic.pending_at_any_priority())
    }

    /// The interrupt-acknowledge cycle: the vector to inject, moved from requested to in service. Only when the vCPU can
    /// take the interrupt at the next entry (IF set, no blocking, no other event in flight).
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let mut external = None;
        if self.external() {
            let wakes = {
                let mut board = self.platform.board();
                external = board.acknowledge_external();
                board.take_wakes()
            };
            self.notify(wakes);
        }
        let vector = external.or_else(|| self.lapic.acknowledge());
        self.backplane.publish_priority(self.index, self.lapic.ppr());
        vector
    }

    /// The LAPIC, for reports.
    pub fn lapic(&self) -> &crate::lapic::Lapic {
        &self.lapic
    }
}
