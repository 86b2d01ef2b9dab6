//! Several CPUs: start-up, interrupts between them, HLT, NMI and INIT.

use super::{Outcome, verdict};
use crate::further::{self, ALL, Job, MOST, PONG, ping};
use crate::interrupts::count;
use crate::words::Words;
use crate::{clock, cpu, ensure, lapic, say, skip};

/// Rounds of ping-pong with each CPU, unless the command line says otherwise.
const ROUNDS: u64 = 500;
/// Vector of the non-maskable interrupt.
const NMI: u8 = 2;

/// All checks: in xAPIC mode, then in x2APIC mode. `rounds=N`: of ping-pong.
pub fn check(words: Words) -> Outcome {
    let cpus = further::cpus();
    skip!(cpus < 2, "there is one CPU");
    ensure!(cpus <= MOST, "{cpus} CPUs are too many");
    let rounds = words.number("rounds").unwrap_or(ROUNDS);
    lapic::enable();
    lapic::set_logical(1);
    let mut failed = round(cpus, rounds, "xapic");
    if lapic::has_x2() {
        lapic::enter_x2();
        failed += round(cpus, rounds, "x2apic");
    }
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

fn round(cpus: usize, rounds: u64, mode: &str) -> u32 {
    say!("{cpus} CPUs, {mode}");
    let checks: [(&str, &dyn Fn() -> Outcome); 6] = [
        ("start-up", &|| start(cpus)),
        ("ping-pong", &|| ping_pong(cpus, rounds)),
        ("to all", &|| to_all(cpus)),
        ("lowest priority", &lowest_priority),
        ("nmi", &|| nmi(cpus)),
        ("init", &|| init(cpus)),
    ];
    checks.iter().map(|(name, check)| verdict(name, check())).sum()
}

/// INIT and two start-up IPIs, as an operating system sends them: each CPU starts once.
fn start(cpus: usize) -> Outcome {
    for id in 1..cpus {
        let before = further::starts(id);
        further::tell(id, Job::Answer);
        further::init(id);
        further::start_up(id);
        ensure!(further::wait(|| further::starts(id) == before + 1), "CPU {id} does not start");
        further::start_up(id);
        ensure!(further::identifier(id) == id as u32, "CPU {id} has identifier {:#x}", further::identifier(id));
    }
    Ok(())
}

/// Both sides wait in HLT: a wake-up that is lost ends it.
fn ping_pong(cpus: usize, rounds: u64) -> Outcome {
    let start = cpu::tsc();
    for id in 1..cpus {
        for round in 0..rounds {
            let (asked, answered) = (count(ping(id)), count(PONG));
            further::note_time();
            lapic::send(id as u32, u32::from(ping(id)) | 1 << 14);
            while count(PONG) == answered {
                cpu::halt();
            }
            let (asked, answered) = (count(ping(id)) - asked, count(PONG) - answered);
            ensure!((asked, answered) == (1, 1), "CPU {id}, round {round}: asked {asked}, answered {answered} times");
        }
    }
    let each = clock::microseconds(cpu::tsc() - start) / (rounds * (cpus as u64 - 1)).max(1);
    say!("{rounds} rounds with each, {each} us a round");
    ensure!(further::backwards() == 0, "the TSC went backwards {} times", further::backwards());
    Ok(())
}

/// By shorthand and by logical destination: exactly those that are meant take it.
fn to_all(cpus: usize) -> Outcome {
    const SHORTHAND_ALL: u32 = 2 << 18;
    const SHORTHAND_OTHERS: u32 = 3 << 18;
    const LOGICAL: u32 = 1 << 11;
    let others = cpus as u32 - 1;
    for round in 0..50 {
        for (what, expected, command) in
            [("others", others, SHORTHAND_OTHERS), ("all", others + 1, SHORTHAND_ALL), ("CPUs 0 and 1", 2, LOGICAL)]
        {
            let before = count(ALL);
            lapic::send(if command == LOGICAL { 0b11 } else { 0 }, command | 1 << 14 | u32::from(ALL));
            cpu::take_interrupts();
            let came = further::wait(|| {
                cpu::take_interrupts();
                count(ALL) - before >= expected
            });
            ensure!(came, "round {round}, to {what}: {} of {expected} took it", count(ALL) - before);
        }
    }
    let before = count(ALL);
    further::wait_a_while();
    ensure!(count(ALL) == before, "{} came too late or twice", count(ALL) - before);
    Ok(())
}

/// One takes it.
fn lowest_priority() -> Outcome {
    const LOWEST_TO_ALL: u32 = 1 << 8 | 2 << 18;
    for _ in 0..20 {
        let before = count(ALL);
        lapic::send(0, LOWEST_TO_ALL | 1 << 14 | u32::from(ALL));
        let came = further::wait(|| {
            cpu::take_interrupts();
            count(ALL) != before
        });
        further::wait_a_while();
        ensure!(came && count(ALL) == before + 1, "{} took it", count(ALL) - before);
    }
    Ok(())
}

/// An NMI comes although interrupts are off.
fn nmi(cpus: usize) -> Outcome {
    for id in 1..cpus {
        spin(id)?;
        let before = count(NMI);
        lapic::send(id as u32, 4 << 8 | 1 << 14);
        ensure!(further::wait(|| count(NMI) != before), "CPU {id} takes no NMI");
        further::wait_a_while();
        ensure!(count(NMI) == before + 1, "CPU {id} took {} NMIs", count(NMI) - before);
        further::tell(id, Job::Answer);
    }
    Ok(())
}

/// Has a CPU count with interrupts off.
fn spin(id: usize) -> Outcome {
    further::tell(id, Job::Spin);
    lapic::send(id as u32, u32::from(ALL) | 1 << 14);
    let before = further::spins(id);
    ensure!(further::wait(|| further::spins(id) > before + 100), "CPU {id} does not count");
    Ok(())
}

/// INIT stops a CPU that runs; it starts again when it is told.
fn init(cpus: usize) -> Outcome {
    for id in 1..cpus {
        spin(id)?;
        further::init(id);
        // It may still be on its way.
        let mut before = further::spins(id);
        let stands = further::wait(|| {
            further::wait_a_while();
            let now = further::spins(id);
            core::mem::replace(&mut before, now) == now
        });
        ensure!(stands, "CPU {id} goes on after INIT");
    }
    start(cpus)
}
