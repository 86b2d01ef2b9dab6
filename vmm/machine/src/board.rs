//! The board: every device of one virtual machine, wired together.
//!
//! The vCPU's handler owns the board outright; there is no lock. Time enters as the absolute STC value `now` of the
//! exit; [`Board::next_deadline`] says when the board needs service next and [`Board::advance`] gives it.

use crate::bus::{Unclaimed, Width};
use crate::clock::WallClock;

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

/// An access to a model-specific register that the architecture answers with #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// All devices of one virtual machine with one vCPU.
#[derive(Debug)]
pub struct Board {
    unclaimed_ports: Unclaimed,
    unclaimed_memory: Unclaimed,
}

impl Board {
    /// A board just powered on at STC value `now`.
    pub fn new(_config: &Config, _now: u64) -> Self {
        Self { unclaimed_ports: Unclaimed::default(), unclaimed_memory: Unclaimed::default() }
    }

    /// Resets every device as the RESET line does. Queued output, the time of day and the counters stay.
    pub fn reset(&mut self, _now: u64) {}

    /// IN: the value in the low bits, ones where nobody answers. `width` is at most a double word.
    pub fn io_read(&mut self, port: u16, width: Width, _now: u64) -> u32 {
        self.unclaimed_ports.count(port.into(), false);
        width.ones() as u32
    }

    /// OUT.
    pub fn io_write(&mut self, port: u16, _width: Width, _value: u32, _now: u64) -> Effect {
        self.unclaimed_ports.count(port.into(), true);
        Effect::None
    }

    /// Whether a device (LAPIC or IOAPIC) answers at a guest-physical address.
    pub fn claims(&self, _gpa: u64) -> bool {
        false
    }

    /// A read of guest-physical memory outside RAM.
    pub fn mmio_read(&mut self, gpa: u64, width: Width, _now: u64) -> u64 {
        self.unclaimed_memory.count(gpa, false);
        width.ones()
    }

    /// A write of guest-physical memory outside RAM.
    pub fn mmio_write(&mut self, gpa: u64, _width: Width, _value: u64, _now: u64) -> Effect {
        self.unclaimed_memory.count(gpa, true);
        Effect::None
    }

    /// Whether [`Board::read_msr`] and [`Board::write_msr`] answer for a register: IA32_APIC_BASE (0x1b),
    /// IA32_TSC_DEADLINE (0x6e0), the x2APIC range 0x800 to 0x8ff.
    pub const fn claims_msr(index: u32) -> bool {
        matches!(index, 0x1b | 0x6e0 | 0x800..=0x8ff)
    }

    /// RDMSR of a register in [`Board::claims_msr`].
    pub fn read_msr(&mut self, _index: u32, _now: u64) -> Result<u64, GeneralProtection> {
        Err(GeneralProtection)
    }

    /// WRMSR of a register in [`Board::claims_msr`].
    pub fn write_msr(&mut self, _index: u32, _value: u64, _now: u64) -> Result<Effect, GeneralProtection> {
        Err(GeneralProtection)
    }

    /// CR8: bits 7:4 of the task priority.
    pub fn cr8(&self) -> u8 {
        0
    }

    /// Sets CR8, on an intercepted MOV or from the value that the hardware kept.
    pub fn set_cr8(&mut self, _priority: u8) {}

    /// The frequency at which the LAPIC timer counts before its divider, in hertz: what CPUID 0x15 ECX shows.
    /// The STC's frequency is this shifted left by [`Board::crystal_shift`]. Fits 32 bits.
    pub fn crystal_frequency(&self) -> u64 {
        0
    }

    /// CPUID 0x15 shows EAX = 1, EBX = 1 << shift; 0 below 4.29 GHz.
    pub fn crystal_shift(&self) -> u32 {
        0
    }

    /// The earliest STC value at which a device needs service; `Some(now)` or less when one already does.
    pub fn next_deadline(&self, _now: u64) -> Option<u64> {
        None
    }

    /// Fires what is due at `now`. Call it before asking for interrupts, after a sleep or whenever the cached
    /// deadline has passed.
    pub fn advance(&mut self, _now: u64) {}

    /// The vector of the interrupt that the vCPU would take now if it accepts interrupts. Changes nothing.
    pub fn pending_interrupt(&self) -> Option<u8> {
        None
    }

    /// The interrupt-acknowledge cycle: the vector to inject, moved from requested to in service. Call it only when
    /// the vCPU can take the interrupt at the next entry (IF set, no blocking, no other event in flight).
    pub fn acknowledge(&mut self) -> Option<u8> {
        None
    }

    /// Whether an NMI is pending; taking it clears it.
    pub fn take_nmi(&mut self) -> bool {
        false
    }

    /// Whether an NMI is pending.
    pub fn nmi_pending(&self) -> bool {
        false
    }

    /// Copies serial output to `out`, oldest first, and returns how many bytes. Frees room: may raise an interrupt.
    pub fn drain_serial(&mut self, _out: &mut [u8]) -> usize {
        0
    }

    /// Bytes of serial output that wait.
    pub fn serial_output_len(&self) -> usize {
        0
    }

    /// Gives received bytes to the serial port; returns how many it took (the rest is to be offered again later).
    pub fn serial_input(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    /// A break condition on the serial line (Linux: SysRq follows).
    pub fn serial_break(&mut self) {}

    /// Room in the execution channel's queue. A guest write to port 0x0e90 may be carried out only while this is not
    /// zero; otherwise drain first.
    pub fn exec_room(&self) -> usize {
        0
    }

    /// Appends what REP OUTSB sent to port 0x0e90; returns how many bytes found room.
    pub fn exec_output(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    /// Copies execution-channel bytes to `out`, oldest first, and returns how many.
    pub fn drain_exec(&mut self, _out: &mut [u8]) -> usize {
        0
    }

    /// Copies debug-console bytes (port 0x402) to `out`.
    pub fn drain_debug(&mut self, _out: &mut [u8]) -> usize {
        0
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&mut self) {}

    /// Ports that nobody answered at.
    pub fn unclaimed_ports(&self) -> &Unclaimed {
        &self.unclaimed_ports
    }

    /// Guest-physical addresses that nobody answered at.
    pub fn unclaimed_memory(&self) -> &Unclaimed {
        &self.unclaimed_memory
    }
}
