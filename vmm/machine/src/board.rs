//! The board: every device of one virtual machine, wired together.
//!
//! All vCPUs share the board, behind a lock that is held for one access; LAPICs are not on it. Time enters as the
//! absolute STC value `now` of the exit; [`Board::next_deadline`] says when the board needs service next and
//! [`Board::advance`] gives it.
//!
//! Interrupt wiring is the PC's: ISA lines go to the 8259A pair and to the I/O APIC pin of the same number, but the
//! timer (IRQ 0) to pin 2; the 8259A's output goes to I/O APIC pin 0 and to LINT0 of the first vCPU's LAPIC. What the
//! interrupt controllers say leaves through the backplane; [`Board::take_wakes`] tells who has to look.

mod ports;

use alloc::sync::Arc;

use crate::backplane::{Backplane, VcpuSet};
use crate::bus::{Unclaimed, Width};
use crate::clock::{Clock, WallClock};
use crate::debug_port::DebugPort;
use crate::exec_port::ExecPort;
use crate::i8042::I8042;
use crate::interrupt::Message;
use crate::ioapic::{self, Ioapic};
use crate::pci::Pci;
use crate::pci::bus::Bus;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::pm::{self, Pm, Request};
use crate::rtc::{self, Rtc};
use crate::serial::{self, Serial};

/// The timer's ISA line.
const IRQ_TIMER: u8 = 0;

/// What the board is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// STC ticks a second.
    pub stc_frequency: u64,
    /// Time of day at one value of the STC.
    pub wall_clock: WallClock,
    /// Bytes of RAM below 4 GiB (for the CMOS size bytes).
    pub memory_below_4g: u64,
    /// Bytes of RAM above 4 GiB.
    pub memory_above_4g: u64,
    /// Whether the execution channel's ports exist.
    pub exec_channel: bool,
}

/// What the VMM has to do after a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Bytes wait in the serial port's transmit queue: [`Board::drain_serial`].
    SerialOutput,
    /// Bytes wait in the execution channel's queue: [`Board::drain_exec`].
    ExecOutput,
    /// A byte came to the debug console: [`Board::drain_debug`].
    DebugOutput,
    /// The guest marked a milestone.
    Mark(u32),
    /// The guest asked for soft-off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
}

impl From<Request> for Effect {
    fn from(request: Request) -> Self {
        match request {
            Request::None => Effect::None,
            Request::PowerOff => Effect::PowerOff,
            Request::Reset => Effect::Reset,
        }
    }
}

/// All devices of one virtual machine but the LAPICs.
#[derive(Clone, Debug)]
pub struct Board {
    clock: Clock,
    backplane: Arc<Backplane>,
    wakes: VcpuSet,
    ioapic: Ioapic,
    pic: Pic,
    pit: Pit,
    serial: Serial,
    rtc: Rtc,
    pm: Pm,
    i8042: I8042,
    pci: Pci,
    exec: ExecPort,
    debug: DebugPort,
    /// Levels of the ISA lines.
    lines: u16,
    /// Level of the 8259A's output.
    external: bool,
    /// Something happened that [`Board::next_deadline`] may depend on, since it was published.
    timing: bool,
    unclaimed_ports: Unclaimed,
    unclaimed_memory: Unclaimed,
}

impl Board {
    /// A board just powered on at STC value `now`, with a PCI bus.
    pub fn new(config: &Config, backplane: Arc<Backplane>, bus: Arc<Bus>, now: u64) -> Self {
        let clock = Clock::new(config.stc_frequency);
        let mut rtc = Rtc::new(clock, config.wall_clock, now);
        rtc.set_memory(config.memory_below_4g, config.memory_above_4g);
        Self {
            clock,
            backplane,
            wakes: VcpuSet::EMPTY,
            ioapic: Ioapic::default(),
            pic: Pic::default(),
            pit: Pit::new(clock),
            serial: Serial::default(),
            rtc,
            pm: Pm::new(clock, now),
            i8042: I8042::default(),
            pci: Pci::new(bus),
            exec: ExecPort::new(config.exec_channel),
            debug: DebugPort::default(),
            lines: 0,
            external: false,
            timing: true,
            unclaimed_ports: Unclaimed::default(),
            unclaimed_memory: Unclaimed::default(),
        }
    }

    /// Resets every device as the RESET line does. Queued output, the time of day and the counters stay.
    pub fn reset(&mut self, now: u64) {
        self.ioapic = Ioapic::default();
        self.pic = Pic::default();
        self.pit = Pit::new(self.clock);
        self.serial.reset();
        self.rtc.reset();
        self.pm.reset(now);
        self.i8042.reset();
        self.pci.reset();
        self.lines = 0;
        self.external = false;
        self.timing = true;
    }

    fn deliver(&mut self, message: &Message) {
        self.wakes = self.wakes.union(self.backplane.send(message, None));
    }

    /// The vCPUs that have to look because of what happened on the board. Whoever has the board sees to that, best after
    /// it gave the board back.
    pub fn take_wakes(&mut self) -> VcpuSet {
        core::mem::take(&mut self.wakes)
    }

    /// Tells vCPU 0 when the board needs service, if that may have changed; returns whether. Whoever did anything to the
    /// board calls this.
    #[inline]
    pub fn publish_deadline(&mut self, now: u64) -> bool {
        let changed = core::mem::take(&mut self.timing);
        if changed {
            self.publish_changed_deadline(now);
        }
        changed
    }

    /// vCPU 0's LAPIC takes the 8259A's interrupts from now on, or no longer.
    pub fn external_wanted_changed(&mut self) {
        self.timing = true;
    }

    fn publish_changed_deadline(&mut self, now: u64) {
        let deadline = self.next_deadline(now).unwrap_or(u64::MAX);
        self.wakes = self.wakes.union(self.backplane.set_board_deadline(deadline));
    }

    /// Sets an ISA line's level at both interrupt controllers.
    #[inline]
    fn wire(&mut self, irq: u8, asserted: bool) {
        if (self.lines & 1 << irq != 0) != asserted {
            self.toggle(irq, asserted);
        }
    }

    fn toggle(&mut self, irq: u8, asserted: bool) {
        self.lines ^= 1 << irq;
        self.pic.set_line(irq, asserted);
        self.wire_external();
        let pin = if irq == IRQ_TIMER { 2 } else { irq };
        if let Some(message) = self.ioapic.set_line(pin, asserted) {
            self.deliver(&message);
        }
    }

    /// Passes the level of the 8259A's output on.
    fn wire_external(&mut self) {
        let output = self.pic.output();
        if output == self.external {
            return;
        }
        self.external = output;
        self.wakes = self.wakes.union(self.backplane.set_external(output));
        if let Some(message) = self.ioapic.set_line(0, output) {
            self.deliver(&message);
        }
    }

    /// Passes channel 0's ticks on. Done before masks change, so that a tick meets the mask of its time.
    fn service_pit(&mut self, now: u64) {
        if self.pit.take_tick(now) {
            self.wire(IRQ_TIMER, false);
            self.wire(IRQ_TIMER, true);
        }
    }

    #[inline]
    fn wire_serial(&mut self) {
        self.wire(serial::IRQ, self.serial.interrupt());
    }

    /// A read of guest-physical memory outside RAM.
    pub fn mmio_read(&mut self, gpa: u64, width: Width) -> u64 {
        match gpa.wrapping_sub(ioapic::BASE) {
            offset @ 0..ioapic::SIZE => self.ioapic.read(offset, width),
            _ => {
                self.unclaimed_memory.count(gpa, false);
                width.ones()
            }
        }
    }

    /// As [`Board::mmio_read`], if nothing follows from it.
    #[inline]
    pub fn quiet_mmio_read(&self, gpa: u64, width: Width) -> Option<u64> {
        let offset = gpa.wrapping_sub(ioapic::BASE);
        (offset < ioapic::SIZE).then(|| self.ioapic.read(offset, width))
    }

    /// As [`Board::mmio_write`], if nothing follows from it; false, and nothing is done, otherwise.
    #[inline]
    pub fn quiet_mmio_write(&mut self, gpa: u64, value: u64) -> bool {
        let quiet = gpa == ioapic::BASE + ioapic::REGISTER_SELECT;
        if quiet {
            self.ioapic.select(value);
        }
        quiet
    }

    /// A write of guest-physical memory outside RAM.
    pub fn mmio_write(&mut self, gpa: u64, width: Width, value: u64, now: u64) {
        match gpa.wrapping_sub(ioapic::BASE) {
            offset @ 0..ioapic::SIZE => {
                self.timing = true;
                self.service_pit(now);
                let Self { ioapic, backplane, wakes, .. } = self;
                ioapic.write(offset, width, value, |message| *wakes = wakes.union(backplane.send(&message, None)));
            }
            _ => self.unclaimed_memory.count(gpa, true),
        }
    }

    /// A LAPIC says that a level-triggered interrupt ended.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        self.timing = true;
        let Self { ioapic, backplane, wakes, .. } = self;
        ioapic.end_of_interrupt(vector, |message| *wakes = wakes.union(backplane.send(&message, None)));
    }

    /// The earliest STC value at which a device needs service; `Some(now)` or less when one already does.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let tick_wanted = !self.ioapic.is_masked(2) || !self.pic.is_masked(IRQ_TIMER) && self.passes_external();
        let tick = if tick_wanted { self.pit.next_tick() } else { None };
        let sources = [tick, self.rtc.next_deadline(now), self.pm.next_deadline()];
        sources.into_iter().flatten().min()
    }

    /// Fires what is due at `now`. Call it after a sleep or whenever the published deadline has passed.
    pub fn advance(&mut self, now: u64) {
        self.timing = true;
        self.service_pit(now);
        if self.rtc.next_deadline(now).is_some_and(|due| due <= now) {
            self.rtc.advance(now);
            self.wire(rtc::IRQ, self.rtc.interrupt());
        }
        if self.pm.next_deadline().is_some_and(|due| due <= now) {
            self.pm.advance(now);
            self.wire(pm::SCI, self.pm.interrupt());
        }
    }

    /// Whether the 8259A's requests reach vCPU 0: past its LAPIC, through LINT0 or through the I/O APIC.
    fn passes_external(&self) -> bool {
        self.backplane.external_wanted() || self.backplane.has_lapic() && self.ioapic.passes_external(0)
    }

    /// The vector that the 8259A asks vCPU 0 to take, past its LAPIC's priorities. Changes nothing.
    pub fn pending_external(&self) -> Option<u8> {
        if self.external && self.passes_external() { self.pic.pending() } else { None }
    }

    /// The interrupt-acknowledge cycle of the 8259A: the vector to inject, if it asks for one.
    pub fn acknowledge_external(&mut self) -> Option<u8> {
        if !(self.external && self.passes_external()) {
            return None;
        }
        let vector = self.pic.acknowledge();
        self.timing = true;
        self.wire_external();
        Some(vector)
    }

    /// Copies serial output to `out`, oldest first, and returns how many bytes. Frees room: may raise an interrupt.
    pub fn drain_serial(&mut self, out: &mut [u8]) -> usize {
        let taken = self.serial.drain(out);
        self.wire_serial();
        taken
    }

    /// Whether output of any kind waits.
    #[inline]
    pub fn has_output(&self) -> bool {
        self.serial.output_len() != 0 || !self.exec.is_empty() || self.debug.has_output()
    }

    /// Bytes of serial output that wait.
    pub fn serial_output_len(&self) -> usize {
        self.serial.output_len()
    }

    /// Gives received bytes to the serial port; returns how many it took (the rest is to be offered again later).
    pub fn serial_input(&mut self, bytes: &[u8]) -> usize {
        let taken = self.serial.receive(bytes);
        self.wire_serial();
        taken
    }

    /// A break condition on the serial line (Linux: SysRq follows).
    pub fn serial_break(&mut self) {
        self.serial.receive_break();
        self.wire_serial();
    }

    /// Room in the execution channel's queue. A guest write to port 0x0e90 may be carried out only while this is not
    /// zero; otherwise drain first. Without a channel there is always room: the bytes vanish.
    pub fn exec_room(&self) -> usize {
        self.exec.room()
    }

    /// Appends what REP OUTSB sent to port 0x0e90; returns how many bytes found room.
    pub fn exec_output(&mut self, bytes: &[u8]) -> usize {
        self.exec.send(bytes)
    }

    /// Bytes of the execution channel that wait.
    pub fn exec_len(&self) -> usize {
        self.exec.len()
    }

    /// Copies execution-channel bytes to `out`, oldest first, and returns how many.
    pub fn drain_exec(&mut self, out: &mut [u8]) -> usize {
        self.exec.drain(out)
    }

    /// Copies debug-console bytes (port 0x402) to `out`.
    pub fn drain_debug(&mut self, out: &mut [u8]) -> usize {
        self.debug.drain(out)
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&mut self) {
        self.timing = true;
        self.pm.press_power_button();
        self.wire(pm::SCI, self.pm.interrupt());
    }

    /// Ports that nobody answered at.
    pub fn unclaimed_ports(&self) -> &Unclaimed {
        &self.unclaimed_ports
    }

    /// Guest-physical addresses that nobody answered at.
    pub fn unclaimed_memory(&self) -> &Unclaimed {
        &self.unclaimed_memory
    }
}

#[cfg(test)]
mod tests;
