//! Measurements: cost of exits, shares of a CPU.

use crate::cpu::{cpuid, out8, rdmsr, rdtsc, read32};
use crate::println;
use crate::start::{Parameters, number};
use crate::verdict::Check;

/// TSC ticks per exit of several kinds.
pub fn exits(parameters: &mut Parameters<'_>) -> Check {
    let rounds = number(parameters, 1000).max(1);
    let kinds: [(&str, fn()); 4] = [
        ("CPUID", || {
            cpuid(0, 0);
        }),
        ("RDMSR", || {
            rdmsr(0x1b);
        }),
        ("OUT", || out8(0x80, 0)),
        ("MMIO read", || {
            read32(0xfee0_0030);
        }),
    ];
    for (name, operation) in kinds {
        operation();
        let start = rdtsc();
        for _ in 0..rounds {
            operation();
        }
        println!("{name}: {} ticks", (rdtsc() - start) / rounds);
    }
    Ok(())
}

/// Counts loop rounds in a time that the hypervisor's frequency leaf or a guess of 1 GHz measures.
pub fn work(parameters: &mut Parameters<'_>) -> Check {
    let ms = number(parameters, 1000);
    const FREQUENCIES: u32 = 0x4000_0010;
    let known = cpuid(0x4000_0000, 0)[0] >= FREQUENCIES;
    let khz = if known { cpuid(FREQUENCIES, 0)[0] as u64 } else { 1_000_000 };
    let end = rdtsc() + khz * ms;
    let mut rounds = 0u64;
    while rdtsc() < end {
        for _ in 0..1000 {
            rounds += 1;
            core::hint::black_box(rounds);
        }
    }
    println!("work: {rounds} rounds in {ms} ms");
    Ok(())
}
