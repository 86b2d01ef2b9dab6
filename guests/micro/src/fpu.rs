//! Floating-point state: a pattern in every register must survive whatever happens to this vCPU meanwhile.
//!
//! Unsafe: the instructions. The guest is compiled without floating point, so that nothing else touches the state.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::cpu::{cpuid, rdtsc};
use crate::println;
use crate::start::{Parameters, number};
use crate::verdict::{Check, check};

/// Rounds between two checks of the whole state are this many TSC ticks long, so that preemptions fall into them.
const TICKS: u64 = 20_000;

#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq)]
struct Vectors([[u64; 4]; 16]);

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct X87([u8; 512]);

/// Enables AVX if there is any. Returns whether there is.
fn enable() -> bool {
    let features = cpuid(1, 0)[2];
    if features & 1 << 26 == 0 || features & 1 << 28 == 0 {
        return false;
    }
    // SAFETY: CPUID offers XSAVE and AVX.
    unsafe {
        asm!("mov {t}, cr4", "or {t}, {bit}", "mov cr4, {t}", t = out(reg) _, bit = const 1 << 18);
        asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0, options(nostack, preserves_flags));
    }
    true
}

/// Next pseudo-random number (xorshift).
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Loads all vector registers.
fn load(vectors: &Vectors, wide: bool) {
    let at = vectors.0.as_ptr();
    // SAFETY: reads `vectors`; nothing else uses these registers.
    unsafe {
        if wide {
            asm!(
                "vmovdqa ymm0, [{0}]", "vmovdqa ymm1, [{0}+32]", "vmovdqa ymm2, [{0}+64]", "vmovdqa ymm3, [{0}+96]",
                "vmovdqa ymm4, [{0}+128]", "vmovdqa ymm5, [{0}+160]", "vmovdqa ymm6, [{0}+192]", "vmovdqa ymm7, [{0}+224]",
                "vmovdqa ymm8, [{0}+256]", "vmovdqa ymm9, [{0}+288]", "vmovdqa ymm10, [{0}+320]", "vmovdqa ymm11, [{0}+352]",
                "vmovdqa ymm12, [{0}+384]", "vmovdqa ymm13, [{0}+416]", "vmovdqa ymm14, [{0}+448]", "vmovdqa ymm15, [{0}+480]",
                in(reg) at, options(nostack, readonly, preserves_flags));
        } else {
            asm!(
                "movdqa xmm0, [{0}]", "movdqa xmm1, [{0}+32]", "movdqa xmm2, [{0}+64]", "movdqa xmm3, [{0}+96]",
                "movdqa xmm4, [{0}+128]", "movdqa xmm5, [{0}+160]", "movdqa xmm6, [{0}+192]", "movdqa xmm7, [{0}+224]",
                "movdqa xmm8, [{0}+256]", "movdqa xmm9, [{0}+288]", "movdqa xmm10, [{0}+320]", "movdqa xmm11, [{0}+352]",
                "movdqa xmm12, [{0}+384]", "movdqa xmm13, [{0}+416]", "movdqa xmm14, [{0}+448]", "movdqa xmm15, [{0}+480]",
                in(reg) at, options(nostack, readonly, preserves_flags));
        }
    }
}

/// Stores all vector registers.
fn store(vectors: &mut Vectors, wide: bool) {
    let at = vectors.0.as_mut_ptr();
    // SAFETY: writes `vectors`.
    unsafe {
        if wide {
            asm!(
                "vmovdqa [{0}], ymm0", "vmovdqa [{0}+32], ymm1", "vmovdqa [{0}+64], ymm2", "vmovdqa [{0}+96], ymm3",
                "vmovdqa [{0}+128], ymm4", "vmovdqa [{0}+160], ymm5", "vmovdqa [{0}+192], ymm6", "vmovdqa [{0}+224], ymm7",
                "vmovdqa [{0}+256], ymm8", "vmovdqa [{0}+288], ymm9", "vmovdqa [{0}+320], ymm10", "vmovdqa [{0}+352], ymm11",
                "vmovdqa [{0}+384], ymm12", "vmovdqa [{0}+416], ymm13", "vmovdqa [{0}+448], ymm14", "vmovdqa [{0}+480], ymm15",
                in(reg) at, options(nostack, preserves_flags));
        } else {
            asm!(
                "movdqa [{0}], xmm0", "movdqa [{0}+32], xmm1", "movdqa [{0}+64], xmm2", "movdqa [{0}+96], xmm3",
                "movdqa [{0}+128], xmm4", "movdqa [{0}+160], xmm5", "movdqa [{0}+192], xmm6", "movdqa [{0}+224], xmm7",
                "movdqa [{0}+256], xmm8", "movdqa [{0}+288], xmm9", "movdqa [{0}+320], xmm10", "movdqa [{0}+352], xmm11",
                "movdqa [{0}+384], xmm12", "movdqa [{0}+416], xmm13", "movdqa [{0}+448], xmm14", "movdqa [{0}+480], xmm15",
                in(reg) at, options(nostack, preserves_flags));
        }
    }
}

/// Loads the x87 stack with eight numbers and the control words with values that are not the initial ones.
fn load_x87(numbers: &[u64; 8], control: u16, mxcsr: u32) {
    // SAFETY: reads its operands; nothing else uses the x87 unit.
    unsafe {
        asm!(
            "fninit", "fldcw [{c}]", "ldmxcsr [{m}]",
            "fild qword ptr [{n}]", "fild qword ptr [{n}+8]", "fild qword ptr [{n}+16]", "fild qword ptr [{n}+24]",
            "fild qword ptr [{n}+32]", "fild qword ptr [{n}+40]", "fild qword ptr [{n}+48]", "fild qword ptr [{n}+56]",
            n = in(reg) numbers.as_ptr(), c = in(reg) &control, m = in(reg) &mxcsr,
            options(nostack, readonly, preserves_flags));
    }
}

/// The x87 and SSE control state as FXSAVE shows it.
fn save_x87() -> X87 {
    let mut area = X87([0; 512]);
    // SAFETY: 512 aligned bytes.
    unsafe { asm!("fxsave64 [{}]", in(reg) area.0.as_mut_ptr(), options(nostack, preserves_flags)) };
    area
}

/// Parts of the FXSAVE area that stay: control, status and tag words, MXCSR, the eight x87 registers (80 bits each).
fn same(a: &X87, b: &X87) -> bool {
    let words = a.0[..6] == b.0[..6] && a.0[24..28] == b.0[24..28];
    words && (0..8).all(|i| a.0[32 + 16 * i..42 + 16 * i] == b.0[32 + 16 * i..42 + 16 * i])
}

/// Loads random state, waits, compares, many times.
pub fn run(parameters: &mut Parameters<'_>) -> Check {
    let rounds = number(parameters, 10_000);
    let mut seed = number(parameters, rdtsc() | 1) | 1;
    let wide = enable();
    let mut longest = 0;
    for _ in 0..rounds {
        let mut vectors = Vectors([[0; 4]; 16]);
        vectors.0.as_flattened_mut().iter_mut().for_each(|word| *word = next(&mut seed));
        let numbers = [(); 8].map(|()| next(&mut seed));
        let control = 0x037f & !(0xc00 * (seed as u16 & 1));
        let mxcsr = 0x1f80 | (seed as u32 & 3) << 13;
        load_x87(&numbers, control, mxcsr);
        let before = save_x87();
        load(&vectors, wide);
        let start = rdtsc();
        let mut last = start;
        while last - start < TICKS {
            let now = rdtsc();
            longest = longest.max(now - last);
            last = now;
        }
        let mut after = Vectors([[0; 4]; 16]);
        store(&mut after, wide);
        let width = if wide { 4 } else { 2 };
        let kept = vectors.0.iter().zip(&after.0).all(|(a, b)| a[..width] == b[..width]);
        check(kept, "a vector register changed")?;
        check(same(&before, &save_x87()), "the x87 or SSE control state changed")?;
    }
    println!("fpu: {rounds} rounds, {}, longest pause {longest} ticks", if wide { "AVX" } else { "SSE" });
    Ok(())
}
