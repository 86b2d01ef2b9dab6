//! Resetting one function, and keeping it quiet. PCI Express Base Specification 6.6.2, 7.5.3.4; Advanced Capabilities for
//! Conventional PCI; PCI Power Management 5.4.1.

use super::{Config, Function, MsiX, change_command, command, register};
use plan::PciAddress;

/// How a function can be reset without its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// PCI Express' function-level reset: offset of the capability.
    Function(u16),
    /// That of conventional PCI: offset of the capability.
    Conventional(u16),
    /// To D3hot and back: offset of the power management capability.
    Power(u16),
}

impl Reset {
    /// The best way that `function` offers.
    pub fn of(function: &Function) -> Option<Self> {
        let capabilities = &function.capabilities;
        let express = capabilities.express.filter(|express| express.flr).map(|express| Self::Function(express.offset));
        let conventional = capabilities.conventional_flr.map(Self::Conventional);
        express.or(conventional).or(capabilities.power_reset.map(Self::Power))
    }

    /// Its name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Function(_) | Self::Conventional(_) => "FLR",
            Self::Power(_) => "power",
        }
    }
}

/// How long requests that a function has sent may take before it is reset nevertheless, in milliseconds.
const PENDING_MS: u64 = 100;
/// How long the function may need after a reset, in milliseconds.
const SETTLE_MS: u64 = 100;
/// The same after a change of its power state.
const POWER_MS: u64 = 10;
/// How long it may then say that it is not there yet.
const RETURN_MS: u64 = 1000;

/// Keeps the function from sending anything: no DMA, no interrupts. Waits, by `wait` for milliseconds, for requests that it
/// has sent already.
pub fn quiet(config: &mut impl Config, function: &Function, mut wait: impl FnMut(u64)) {
    change_command(config, function.address, command::NO_PIN, command::MASTER);
    if let Some(msix) = function.capabilities.msix {
        let control = config.read(function.address, msix.offset);
        config.write(function.address, msix.offset, control & !MsiX::ENABLE);
    }
    if let Some(msi) = function.capabilities.msi {
        let control = config.read(function.address, msi.offset);
        config.write(function.address, msi.offset, control & !(1 << 16));
    }
    let capabilities = &function.capabilities;
    if let Some(express) = capabilities.express {
        settle(config, function.address, express.offset + 8, 1 << 21, &mut wait);
    } else if let Some(offset) = capabilities.conventional_flr {
        settle(config, function.address, offset + 4, 1 << 8, &mut wait);
    }
}

/// Quiets the function, resets it if it can be, and gives it back the addresses of its registers, which it decodes then.
/// `wait` waits for milliseconds. How it was reset; `None` if it cannot be, or does not come back.
pub fn reset(config: &mut impl Config, function: &Function, mut wait: impl FnMut(u64)) -> Option<Reset> {
    let at = function.address;
    quiet(config, function, &mut wait);
    let how = Reset::of(function)?;
    let header: [u32; 16] = core::array::from_fn(|word| config.read(at, 4 * word as u16));
    match how {
        Reset::Function(offset) => {
            const START: u32 = 1 << 15;
            // The upper half is status, whose bits are cleared by ones.
            let control = config.read(at, offset + 8) & 0xffff;
            config.write(at, offset + 8, control | START);
            wait(SETTLE_MS);
        }
        Reset::Conventional(offset) => {
            config.write(at, offset + 4, 1);
            wait(SETTLE_MS);
        }
        Reset::Power(offset) => {
            const D3HOT: u32 = 3;
            let state = config.read(at, offset + 4) & 0xffff;
            for next in [state & !3 | D3HOT, state & !3] {
                config.write(at, offset + 4, next);
                wait(POWER_MS);
            }
        }
    }
    for _ in 0..RETURN_MS {
        if config.read(at, register::ID) == header[0] {
            restore(config, at, &header);
            return Some(how);
        }
        wait(1);
    }
    None
}

/// Waits until none of `bits` is set in a word, or [`PENDING_MS`] have passed.
fn settle(config: &mut impl Config, at: PciAddress, offset: u16, bits: u32, wait: &mut impl FnMut(u64)) {
    for _ in 0..PENDING_MS {
        if config.read(at, offset) & bits == 0 {
            return;
        }
        wait(1);
    }
}

/// Writes what firmware had written: addresses, the interrupt line, and the command register behind them.
fn restore(config: &mut impl Config, at: PciAddress, header: &[u32; 16]) {
    const ROM: u16 = 0x30;
    let bars = (0..6).map(|number| register::BARS + 4 * number);
    for offset in bars.chain([ROM, register::INTERRUPT, register::HEADER]) {
        config.write(at, offset, header[usize::from(offset) / 4]);
    }
    change_command(config, at, header[1] & 0xffff, 0);
}
