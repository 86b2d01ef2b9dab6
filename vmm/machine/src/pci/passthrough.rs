//! Pass-through: a function of the machine that the guest has to itself.
//!
//! Its registers are mapped where the guest puts them, but for the pages with the table of messages and the pending bits,
//! whose accesses exit: a message that the function sends raises an interrupt of the monitor's, and the monitor sends the
//! guest's. The configuration space is this module's (module `capabilities`); of all that the guest writes there only three things
//! reach the function: whether it may send requests, its reset, and where its registers answer.

mod capabilities;
#[cfg(test)]
mod tests;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::bus::{BARS, ECAM, Function, HIGH_MEMORY, HIGH_MEMORY_SIZE, MEMORY};
use super::config::Config;
use crate::backplane::{Backplane, VcpuSet};
use crate::bus::Width;
use crate::virtio::interrupts::Interrupts;
use capabilities::{Place, Space};

const PAGE: u64 = 4096;

/// The function itself, as the monitor reaches it.
pub trait Hardware: Send {
    /// The double word at `offset` of its configuration space, a multiple of 4 below 256.
    fn config(&self, offset: u16) -> u32;
    /// Bytes of registers behind a base address register; 0: none.
    fn length(&self, bar: usize) -> u64;
    /// How many interrupts it has here.
    fn interrupts(&self) -> u16;
    /// Reads registers that are there.
    fn read(&self, bar: usize, offset: u64, width: Width) -> u64;
    /// Writes registers that are there; none in a page of the table of messages.
    fn write(&self, bar: usize, offset: u64, width: Width, value: u64);
    /// Lets the guest reach whole pages of registers at a guest-physical address.
    fn map(&mut self, bar: usize, pages: Range<u64>, gpa: u64);
    /// Takes what was mapped there away again.
    fn unmap(&mut self, pages: Range<u64>, gpa: u64);
    /// Whether it may send requests, which are DMA and messages.
    fn allow(&mut self, requests: bool);
    /// Resets it. It sends nothing then.
    fn reset(&mut self);
}

/// A function of the machine as one of the guest's bus.
pub struct Passthrough<H> {
    hardware: H,
    space: Space,
    interrupts: Interrupts,
    /// Where registers are mapped now.
    mapped: [Option<u64>; BARS],
    /// Whether it sends requests.
    sends: bool,
}

impl<H: Hardware> Passthrough<H> {
    /// The function `hardware`, which a reset has left as it is.
    pub fn new(hardware: H, backplane: Arc<Backplane>) -> Self {
        let mut interrupts = Interrupts::new(hardware.interrupts(), backplane);
        let space = Space::new(&hardware, &mut interrupts.msix);
        Self { hardware, space, interrupts, mapped: [None; BARS], sends: false }
    }

    fn config(&self) -> &Config {
        &self.space.config
    }

    /// The pages of a register that the guest may reach without an exit.
    fn pieces(&self, bar: usize) -> Vec<Range<u64>> {
        let mut trapped: Vec<Range<u64>> =
            self.space.structures().filter(|place| place.bar == bar).map(pages).collect();
        trapped.sort_by_key(|range| range.start);
        let mut pieces = Vec::new();
        let mut from = 0;
        // Registers of less than a page share it with what is not the guest's.
        let end = self.hardware.length(bar) & !(PAGE - 1);
        for hole in trapped {
            pieces.push(from..hole.start.min(end));
            from = from.max(hole.end);
        }
        pieces.push(from..end);
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    /// Does what the configuration space says now.
    fn follow(&mut self) {
        for bar in 0..BARS {
            let wanted = self.config().base(bar).filter(|base| is_in_window(*base, self.config().sizes()[bar]));
            self.map(bar, wanted);
        }
        let sends = self.config().is_bus_master();
        self.interrupts.allowed = sends;
        if sends != self.sends {
            self.sends = sends;
            self.hardware.allow(sends);
        }
        if let Some(control) = self.space.message_control() {
            self.interrupts.write_control(control);
        }
    }

    fn map(&mut self, bar: usize, wanted: Option<u64>) {
        if self.mapped[bar] == wanted {
            return;
        }
        let pieces = self.pieces(bar);
        if let Some(base) = self.mapped[bar] {
            pieces.iter().for_each(|piece| self.hardware.unmap(piece.clone(), base + piece.start));
        }
        if let Some(base) = wanted {
            pieces.iter().for_each(|piece| self.hardware.map(bar, piece.clone(), base + piece.start));
        }
        self.mapped[bar] = wanted;
    }

    /// Function-level reset, and the machine's.
    fn start_anew(&mut self) {
        (0..BARS).for_each(|bar| self.map(bar, None));
        self.interrupts.msix.reset();
        self.interrupts.allowed = false;
        self.sends = false;
        self.space.config.reset();
        self.hardware.reset();
    }

    /// Whether a register is really there.
    fn exists(&self, bar: usize, offset: u64, width: Width) -> bool {
        offset.checked_add(width.bytes() as u64).is_some_and(|end| end <= self.hardware.length(bar))
    }
}

/// The pages that a structure touches.
fn pages(place: Place) -> Range<u64> {
    place.bytes.start & !(PAGE - 1)..place.bytes.end.next_multiple_of(PAGE)
}

/// Whether the guest may have registers there without exits: where nothing else is.
fn is_in_window(base: u64, size: u64) -> bool {
    let inside =
        |window: Range<u64>| base >= window.start && base.checked_add(size).is_some_and(|end| end <= window.end);
    inside(MEMORY..ECAM) || inside(HIGH_MEMORY..HIGH_MEMORY + HIGH_MEMORY_SIZE)
}

impl<H: Hardware> Function for Passthrough<H> {
    fn sizes(&self) -> [u64; BARS] {
        self.config().sizes()
    }

    fn is_wide(&self, bar: usize) -> bool {
        self.config().is_wide(bar)
    }

    fn place(&mut self, bar: usize, address: u64) {
        self.space.config.place(bar, address);
    }

    fn base(&self, bar: usize) -> Option<u64> {
        self.config().base(bar)
    }

    fn read_config(&mut self, register: u16, width: Width) -> u32 {
        self.config().read(register, width)
    }

    fn write_config(&mut self, register: u16, width: Width, value: u32) {
        if self.space.starts_reset(register, width, value) {
            return self.start_anew();
        }
        self.space.config.write(register, width, value);
        self.follow();
    }

    fn read(&mut self, bar: usize, offset: u64, width: Width) -> u64 {
        match (&self.space.table, &self.space.pending) {
            (Some(table), _) if table.has(bar, offset) => self.interrupts.msix.read(offset - table.bytes.start, width),
            (_, Some(pending)) if pending.has(bar, offset) => {
                self.interrupts.msix.read_pending(offset - pending.bytes.start, width)
            }
            _ if self.exists(bar, offset, width) => self.hardware.read(bar, offset, width),
            _ => width.ones(),
        }
    }

    fn write(&mut self, bar: usize, offset: u64, width: Width, value: u64) {
        match (&self.space.table, &self.space.pending) {
            (Some(table), _) if table.has(bar, offset) => {
                let within = offset - table.bytes.start;
                self.interrupts.write_table(within, width, value);
            }
            // The whole page is the root task's to write.
            (Some(table), _) if table.bar == bar && pages(table.clone()).contains(&offset) => {}
            (_, Some(pending)) if pending.has(bar, offset) => {}
            _ if self.exists(bar, offset, width) => self.hardware.write(bar, offset, width, value),
            _ => {}
        }
    }

    fn interrupt(&mut self, number: u16) {
        self.interrupts.fire(number);
    }

    fn take_wakes(&mut self) -> VcpuSet {
        self.interrupts.take_wakes()
    }

    fn reset(&mut self) {
        self.start_anew();
    }
}
