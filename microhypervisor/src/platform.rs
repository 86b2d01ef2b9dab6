#![allow(unsafe_code)]
//! The machine: what of it the kernel protects (NOVA 8.2), and sleep states and reset (NOVA 5.5.1).
//!
//! Unsafe: writes the power-management registers that the firmware's tables name.

use ::iommu::dmar::Dmar;
use abi::Status;
use kernel_core::boot::acpi::Fadt;
use spin::Once;
use x86_64::instructions::port::Port;

use crate::cpu::Cpu;
use crate::ec::Ec;
use crate::hypercall::Call;

/// Most ranges of protected physical memory.
pub const RANGES: usize = 64;

/// What the kernel knows of the machine after boot.
pub struct Platform {
    /// Ranges of page numbers that nobody can be granted; behind them, empty ones.
    pub protected: [(u64, u64); RANGES],
    /// Number of physical pages that addresses can name.
    pub physical_pages: u64,
    /// Largest page size of host and nested tables as a level: 0 = 4 KiB, 1 = 2 MiB, 2 = 1 GiB.
    pub largest_page: u8,
    /// ACPI fixed hardware. Ports that do not exist are 0.
    pub fadt: Option<Fadt>,
    /// Remapping units, and what their table says besides.
    pub dmar: Option<Dmar>,
}

/// What boot found, from then on.
pub static PLATFORM: Once<Platform> = Once::new();

/// I/O ports that the kernel protects, or 0: power management and system management (NOVA 8.2.2).
pub fn protected_ports() -> [u16; 7] {
    let Fadt { pm1a_control: a, pm1b_control: b, pm2_control: c, smi_command, .. } =
        PLATFORM.get().and_then(|platform| platform.fadt).unwrap_or_default();
    let second = |port: u16| port.saturating_add(u16::from(port != 0));
    [smi_command, a, second(a), b, second(b), c, second(c)]
}

/// ctrl_hw.
pub fn control(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    if !ec.pd.root {
        return Err(Status::BadHyp);
    }
    match call.flags {
        0 => sleep(call.selector),
        // Cache allocation is not offered.
        4..=7 => Err(Status::BadFtr),
        _ => Err(Status::BadPar),
    }
}

fn sleep(descriptor: u64) -> Result<(), Status> {
    if descriptor >> 9 != 0 {
        return Err(Status::BadPar);
    }
    let (state, a, b) = (descriptor & 7, (descriptor >> 3 & 7) as u16, (descriptor >> 6 & 7) as u16);
    let fadt = PLATFORM.get().and_then(|platform| platform.fadt.as_ref()).ok_or(Status::BadFtr)?;
    match state {
        5 if fadt.pm1a_control != 0 => {
            crate::console::drain();
            let registers = [(fadt.pm1a_control, a), (fadt.pm1b_control, b)].into_iter();
            registers.filter(|(port, _)| *port != 0).for_each(|(port, kind)| enter_sleep(port, kind));
        }
        7 => {
            crate::console::drain();
            reset(fadt);
        }
        1..=5 => return Err(Status::BadFtr),
        _ => return Err(Status::BadPar),
    }
    // The machine takes a moment to go.
    loop {
        x86_64::instructions::hlt();
    }
}

/// Writes sleep type and enable to a PM1 control register (ACPI 6.5, 4.8.3.2.1).
fn enter_sleep(port: u16, kind: u16) {
    let mut port = Port::<u16>::new(port);
    // SAFETY: the register that the firmware names; nobody but the root protection domain can ask for this.
    unsafe {
        let value = port.read() & !(7 << 10 | 1 << 13);
        port.write(value | kind << 10);
        port.write(value | kind << 10 | 1 << 13);
    }
}

/// Resets by the firmware's register if there is one, then by the ways that PCs have.
fn reset(fadt: &Fadt) {
    // SAFETY: these writes reset the machine, as asked.
    unsafe {
        if let Some((port, value)) = fadt.reset {
            Port::<u8>::new(port).write(value);
        }
        Port::<u8>::new(0xcf9).write(0x02);
        Port::<u8>::new(0xcf9).write(0x06);
        Port::<u8>::new(0x64).write(0xfe);
    }
}
