//! The board: every device of one virtual machine, wired together.
//!
//! The vCPU's handler owns the board outright; there is no lock. Time enters as the absolute STC value `now` of the
//! exit; [`Board::next_deadline`] says when the board needs service next and [`Board::advance`] gives it.
//!
//! Interrupt wiring is the PC's: ISA lines go to the 8259A pair and to the I/O APIC pin of the same number, but the
//! timer (IRQ 0) to pin 2; the 8259A's output goes to I/O APIC pin 0 and to the LAPIC's LINT0.
//!
//! The board has one vCPU. What a second one needs is separate already: a LAPIC touches nothing but itself, and
//! everything for others passes through [`Board::deliver`] as a message.

mod ports;

use crate::bus::{Unclaimed, Width};
use crate::clock::{Clock, WallClock};
use crate::debug_port::DebugPort;
use crate::exec_port::ExecPort;
use crate::i8042::I8042;
use crate::interrupt::Message;
use crate::ioapic::{self, Ioapic};
use crate::lapic::timer::CrystalClock;
use crate::lapic::{ApicMode, Lapic, Outcome};
use crate::pci::Pci;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::pm::{self, Pm, Request};
use crate::rtc::{self, Rtc};
use crate::serial::{self, Serial};

pub use crate::lapic::GeneralProtection;

/// IA32_APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First of the x2APIC registers.
const MSR_X2APIC: u32 = 0x800;

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

/// All devices of one virtual machine with one vCPU.
#[derive(Clone, Debug)]
pub struct Board {
    clock: Clock,
    crystal: CrystalClock,
    lapic: Lapic,
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
    unclaimed_ports: Unclaimed,
    unclaimed_memory: Unclaimed,
    undelivered: u64,
}

impl Board {
    /// A board just powered on at STC value `now`, with its LAPIC as firmware leaves it.
    pub fn new(config: &Config, now: u64) -> Self {
        let clock = Clock::new(config.stc_frequency);
        let crystal = CrystalClock::new(clock.frequency());
        let mut rtc = Rtc::new(clock, config.wall_clock, now);
        rtc.set_memory(config.memory_below_4g, config.memory_above_4g);
        let mut lapic = Lapic::new(0, true, crystal);
        lapic.set_virtual_wire();
        Self {
            clock,
            crystal,
            lapic,
            ioapic: Ioapic::default(),
            pic: Pic::default(),
            pit: Pit::new(clock),
            serial: Serial::default(),
            rtc,
            pm: Pm::new(clock, now),
            i8042: I8042::default(),
            pci: Pci::default(),
            exec: ExecPort::new(config.exec_channel),
            debug: DebugPort::default(),
            lines: 0,
            external: false,
            unclaimed_ports: Unclaimed::default(),
            unclaimed_memory: Unclaimed::default(),
            undelivered: 0,
        }
    }

    /// Resets every device as the RESET line does. Queued output, the time of day and the counters stay.
    pub fn reset(&mut self, now: u64) {
        self.lapic.reset();
        self.lapic.set_virtual_wire();
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
    }

    /// Gives a message to the LAPICs that it addresses; `sender` is the id of the LAPIC that sent it, if one did.
    pub fn deliver(&mut self, message: &Message, sender: Option<u32>) {
        if self.lapic.is_addressed(message.destination, sender) {
            self.lapic.deliver(message);
        } else {
            self.undelivered += 1;
        }
    }

    /// Sets an ISA line's level at both interrupt controllers.
    fn wire(&mut self, irq: u8, asserted: bool) {
        let bit = 1 << irq;
        if (self.lines & bit != 0) == asserted {
            return;
        }
        self.lines ^= bit;
        self.pic.set_line(irq, asserted);
        self.wire_external();
        let pin = if irq == IRQ_TIMER { 2 } else { irq };
        if let Some(message) = self.ioapic.set_line(pin, asserted) {
            self.deliver(&message, None);
        }
    }

    /// Passes the level of the 8259A's output on.
    fn wire_external(&mut self) {
        let output = self.pic.output();
        if output == self.external {
            return;
        }
        self.external = output;
        if output {
            self.lapic.raise_lint0();
        }
        if let Some(message) = self.ioapic.set_line(0, output) {
            self.deliver(&message, None);
        }
    }

    /// Passes channel 0's ticks on. Done before masks change, so that a tick meets the mask of its time.
    fn service_pit(&mut self, now: u64) {
        if self.pit.take_tick(now) {
            self.wire(IRQ_TIMER, false);
            self.wire(IRQ_TIMER, true);
        }
    }

    fn wire_serial(&mut self) {
        self.wire(serial::IRQ, self.serial.interrupt());
    }

    /// Whether a device (LAPIC or IOAPIC) answers at a guest-physical address.
    pub fn claims(&self, gpa: u64) -> bool {
        self.lapic.offset_of(gpa).is_some() || (ioapic::BASE..ioapic::BASE + ioapic::SIZE).contains(&gpa)
    }

    /// A read of guest-physical memory outside RAM.
    pub fn mmio_read(&mut self, gpa: u64, width: Width, now: u64) -> u64 {
        if let Some(offset) = self.lapic.offset_of(gpa) {
            return self.lapic.read_memory(offset, width, now);
        }
        match gpa.wrapping_sub(ioapic::BASE) {
            offset @ 0..ioapic::SIZE => self.ioapic.read(offset, width),
            _ => {
                self.unclaimed_memory.count(gpa, false);
                width.ones()
            }
        }
    }

    /// A write of guest-physical memory outside RAM.
    pub fn mmio_write(&mut self, gpa: u64, width: Width, value: u64, now: u64) -> Effect {
        if let Some(offset) = self.lapic.offset_of(gpa) {
            let outcome = self.lapic.write_memory(offset, width, value, now);
            self.carry_out(outcome);
            return Effect::None;
        }
        match gpa.wrapping_sub(ioapic::BASE) {
            offset @ 0..ioapic::SIZE => {
                self.service_pit(now);
                let Self { ioapic, lapic, undelivered, .. } = self;
                ioapic.write(offset, width, value, |message| deliver_to(lapic, undelivered, &message));
            }
            _ => self.unclaimed_memory.count(gpa, true),
        }
        Effect::None
    }

    fn carry_out(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done => {}
            Outcome::EndOfInterrupt(vector) => {
                let Self { ioapic, lapic, undelivered, .. } = self;
                ioapic.end_of_interrupt(vector, |message| deliver_to(lapic, undelivered, &message));
            }
            Outcome::Send(message) => self.deliver(&message, Some(self.lapic.id())),
        }
    }

    /// Whether [`Board::read_msr`] and [`Board::write_msr`] answer for a register: IA32_APIC_BASE (0x1b),
    /// IA32_TSC_DEADLINE (0x6e0), the x2APIC range 0x800 to 0x8ff.
    pub const fn claims_msr(index: u32) -> bool {
        matches!(index, MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..=0x8ff)
    }

    /// RDMSR of a register in [`Board::claims_msr`].
    pub fn read_msr(&mut self, index: u32, now: u64) -> Result<u64, GeneralProtection> {
        match index {
            MSR_APIC_BASE => Ok(self.lapic.base()),
            MSR_TSC_DEADLINE => Ok(self.lapic.tsc_deadline(now)),
            MSR_X2APIC..=0x8ff => self.lapic.read_msr(index - MSR_X2APIC, now),
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of a register in [`Board::claims_msr`].
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Effect, GeneralProtection> {
        match index {
            MSR_APIC_BASE => self.lapic.set_base(value)?,
            MSR_TSC_DEADLINE => self.lapic.set_tsc_deadline(value, now),
            MSR_X2APIC..=0x8ff => {
                let outcome = self.lapic.write_msr(index - MSR_X2APIC, value, now)?;
                self.carry_out(outcome);
            }
            _ => return Err(GeneralProtection),
        }
        Ok(Effect::None)
    }

    /// CR8: bits 7:4 of the task priority.
    pub fn cr8(&self) -> u8 {
        self.lapic.cr8()
    }

    /// Sets CR8, on an intercepted MOV or from the value that the hardware kept.
    pub fn set_cr8(&mut self, priority: u8) {
        self.lapic.set_cr8(priority);
    }

    /// The vCPU's LAPIC, for reports.
    pub fn lapic(&self) -> &Lapic {
        &self.lapic
    }

    /// The frequency at which the LAPIC timer counts before its divider, in hertz: what CPUID 0x15 ECX shows.
    /// The STC's frequency is this shifted left by [`Board::crystal_shift`]. Fits 32 bits.
    pub fn crystal_frequency(&self) -> u64 {
        self.crystal.frequency
    }

    /// CPUID 0x15 shows EAX = 1, EBX = 1 << shift; 0 below 4.29 GHz.
    pub fn crystal_shift(&self) -> u32 {
        self.crystal.shift
    }

    /// The earliest STC value at which a device needs service; `Some(now)` or less when one already does.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let tick_wanted = !self.ioapic.is_masked(2) || !self.pic.is_masked(IRQ_TIMER) && self.passes_external();
        let tick = if tick_wanted { self.pit.next_tick() } else { None };
        let sources = [self.lapic.next_deadline(), tick, self.rtc.next_deadline(now), self.pm.next_deadline()];
        sources.into_iter().flatten().min()
    }

    /// Fires what is due at `now`. Call it before asking for interrupts, after a sleep or whenever the cached
    /// deadline has passed.
    pub fn advance(&mut self, now: u64) {
        self.lapic.advance(now);
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

    /// Whether the 8259A's requests reach the processor, past the LAPIC's priorities.
    fn passes_external(&self) -> bool {
        self.lapic.passes_external() || self.lapic.mode() != ApicMode::Disabled && self.ioapic.passes_external(0)
    }

    /// The vector of the interrupt that the vCPU would take now if it accepts interrupts. Changes nothing.
    pub fn pending_interrupt(&self) -> Option<u8> {
        if self.external && self.passes_external() { self.pic.pending() } else { self.lapic.pending() }
    }

    /// The interrupt-acknowledge cycle: the vector to inject, moved from requested to in service. Call it only when
    /// the vCPU can take the interrupt at the next entry (IF set, no blocking, no other event in flight).
    pub fn acknowledge(&mut self) -> Option<u8> {
        if !(self.external && self.passes_external()) {
            return self.lapic.acknowledge();
        }
        let vector = self.pic.acknowledge();
        self.wire_external();
        Some(vector)
    }

    /// Takes a pending NMI; whether there was one.
    pub fn take_nmi(&mut self) -> bool {
        self.lapic.take_nmi()
    }

    /// Whether an NMI is pending.
    pub fn nmi_pending(&self) -> bool {
        self.lapic.signals().nmi
    }

    /// Copies serial output to `out`, oldest first, and returns how many bytes. Frees room: may raise an interrupt.
    pub fn drain_serial(&mut self, out: &mut [u8]) -> usize {
        let taken = self.serial.drain(out);
        self.wire_serial();
        taken
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

    /// Messages that addressed no LAPIC.
    pub fn undelivered(&self) -> u64 {
        self.undelivered
    }
}

fn deliver_to(lapic: &mut Lapic, undelivered: &mut u64, message: &Message) {
    if lapic.is_addressed(message.destination, None) {
        lapic.deliver(message);
    } else {
        *undelivered += 1;
    }
}

#[cfg(test)]
mod tests;
