//! x87, SSE and AVX registers keep their values while the machine does other things.
//!
//! Each round fills all registers with random values, loops until the CPU was away for a while or a time is over, and
//! compares every bit.
#![allow(unsafe_code)] // The registers are used by assembly code only: this program is compiled without them.

use core::arch::global_asm;

use super::measure::GAP;
use super::{Check, Outcome, Stop};
use crate::console::Text;
use crate::random::Random;
use crate::words::Words;
use crate::{clock, cpu, ensure, say, skip};

global_asm!(include_str!("fpu.S"), options(att_syntax));

unsafe extern "C" {
    fn fpu_round(values: *const Values, seen: *mut Values, until: u64, gap: u64, avx: bool) -> bool;
    fn fpu_saved(values: *const Values, seen: *mut Values, area: *mut Area, how: u64, avx: bool);
}

/// What is quick.
pub const CHECKS: &[Check] = &[("saved state", saved)];

/// Where XSAVE puts x87, SSE and AVX.
#[repr(C, align(64))]
struct Area([u64; 104]);

/// All registers.
#[repr(C, align(32))]
#[derive(Clone, PartialEq, Eq)]
struct Values {
    vector: [[u64; 4]; 16],
    x87: [[u8; 10]; 8],
    x87_control: u16,
    reserved: u16,
    sse_control: u32,
}

impl Values {
    const fn zero() -> Self {
        Self { vector: [[0; 4]; 16], x87: [[0; 10]; 8], x87_control: 0, reserved: 0, sse_control: 0 }
    }

    fn random(random: &mut Random, avx: bool) -> Self {
        let mut values = Self::zero();
        for register in &mut values.vector {
            let used = if avx { 4 } else { 2 };
            register[..used].fill_with(|| random.next());
        }
        for register in &mut values.x87 {
            // Normal numbers: the highest bit of the fraction set, an exponent between the special ones.
            register[..8].copy_from_slice(&(random.next() | 1 << 63).to_le_bytes());
            let exponent = 1 + random.below(0x7ffe) as u16;
            register[8..].copy_from_slice(&(exponent | (random.next() as u16 & 0x8000)).to_le_bytes());
        }
        // Exceptions stay masked; rounding (and precision) as it comes.
        values.x87_control = 0x037f ^ (random.next() as u16 & 0x0c00);
        values.sse_control = 0x1f80 | random.next() as u32 & 0x603f;
        values
    }
}

const MONITOR_COPROCESSOR: u64 = 1 << 1;
const EMULATION: u64 = 1 << 2;
const TASK_SWITCHED: u64 = 1 << 3;
const FXSAVE_AND_EXCEPTIONS: u64 = 3 << 9;
const OSXSAVE: u64 = 1 << 18;

/// Switches the units on; tells whether there is AVX.
fn enable() -> bool {
    let features = cpu::cpuid(1, 0).ecx;
    let avx = features & 1 << 26 != 0 && features & 1 << 28 != 0;
    // SAFETY: these bits change no mapping.
    unsafe {
        cpu::write_cr0(cpu::cr0() & !(EMULATION | TASK_SWITCHED) | MONITOR_COPROCESSOR);
        cpu::write_cr4(cpu::cr4() | FXSAVE_AND_EXCEPTIONS | if avx { OSXSAVE } else { 0 });
        if avx {
            cpu::xsetbv(0, 7);
        }
    }
    avx
}

/// Every bit.
fn compare(round: u64, seen: &Values, values: &Values) -> Outcome {
    for (index, (seen, value)) in seen.vector.iter().zip(&values.vector).enumerate() {
        ensure!(seen == value, "round {round}: vector register {index} has {seen:x?}, not {value:x?}");
    }
    for (index, (seen, value)) in seen.x87.iter().zip(&values.x87).enumerate() {
        ensure!(seen == value, "round {round}: ST{index} has {seen:x?}, not {value:x?}");
    }
    let control = (seen.x87_control, seen.sse_control);
    let wanted = (values.x87_control, values.sse_control);
    ensure!(control == wanted, "round {round}: control registers {control:x?}, not {wanted:x?}");
    Ok(())
}

/// What each instruction saves, of those that there are, XRSTOR restores (Intel SDM vol. 1, 13.7 to 13.10).
fn saved() -> Outcome {
    let offered = if cpu::cpuid(0, 0).eax >= 0xd { cpu::cpuid(0xd, 1).eax } else { 0 };
    skip!(!enable(), "there is no AVX");
    let mut random = Random(1);
    for (how, name) in [(0, "XSAVE"), (1, "XSAVEOPT"), (2, "XSAVEC")] {
        if how != 0 && offered & how == 0 {
            continue;
        }
        for round in 0..20 {
            let (values, mut seen, mut area) = (Values::random(&mut random, true), Values::zero(), Area([0; 104]));
            // SAFETY: as below; the area is as large as three components need.
            unsafe { fpu_saved(&values, &mut seen, &mut area, how.into(), true) };
            compare(round, &seen, &values).map_err(|stop| match stop {
                Stop::Failed(text) => Stop::Failed(Text::of(format_args!("{name}: {text}"))),
                stop => stop,
            })?;
        }
    }
    Ok(())
}

/// Checks for a number of rounds, or until the CPU was away in a number of rounds, which must be less than 20 times as
/// many as all.
pub fn check(words: Words) -> Outcome {
    let preemptions = words.number("preemptions");
    let rounds = words.number("rounds").unwrap_or(preemptions.map_or(100, |wanted| wanted * 20));
    let limit = clock::ticks(words.number("limit").unwrap_or(20));
    let gap = clock::ticks(words.number("gap").unwrap_or(GAP)) / 1000;
    let seed = words.number("seed").unwrap_or(1);
    let mut random = Random(seed);
    let avx = enable();
    let (mut away, mut round) = (0, 0);
    while round < rounds && preemptions.is_none_or(|wanted| away < wanted) {
        let values = Values::random(&mut random, avx);
        let mut seen = Values::zero();
        // SAFETY: the code reads and writes these values and no register that Rust uses; the units are on.
        away += u64::from(unsafe { fpu_round(&values, &mut seen, cpu::tsc() + limit, gap, avx) });
        round += 1;
        compare(round, &seen, &values)?;
    }
    let units = if avx { "x87, SSE, AVX" } else { "x87, SSE" };
    say!("fpu {round} rounds, away in {away}, {units}, seed {seed}");
    let wanted = preemptions.unwrap_or(0);
    ensure!(away >= wanted, "the CPU was away in {away} rounds, not {wanted}");
    Ok(())
}
