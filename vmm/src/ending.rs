//! What is told about a virtual machine: what it did, and why it cannot go on.

use alloc::string::String;
use alloc::vec::Vec;

use abi::utcb::Architectural;
use machine::report::{self, Cause, History};
use runtime::log;

use crate::vm::{Machine, Totals};

/// Lines of console output in a crash report.
const TAIL_LINES: usize = 12;

/// Logs the exits so far, and what the guest asked for in vain.
pub fn statistics(machine: &Machine, totals: &Totals, when: &str) {
    log!("{when}: exits by reason follow");
    for line in totals.statistics.lines() {
        log!("{line}");
    }
    let (ports, memory) = {
        let devices = machine.devices.lock();
        (devices.board.unclaimed_ports().clone(), devices.board.unclaimed_memory().clone())
    };
    for (what, unclaimed) in [("ports", &ports), ("addresses", &memory), ("registers", &totals.unknown_msrs)] {
        if unclaimed.reads + unclaimed.writes == 0 {
            continue;
        }
        log!("nobody at these {what}: {} reads, {} writes:", unclaimed.reads, unclaimed.writes);
        for addresses in unclaimed.addresses().chunks(8) {
            let mut text = String::new();
            for (address, count) in addresses {
                let _ = core::fmt::write(&mut text, format_args!(" {address:#x} ({count})"));
            }
            log!(" {text}");
        }
    }
}

/// Logs why the guest cannot go on; `vcpu` is the number of the one that found out.
pub fn crash(machine: &Machine, cause: Cause, vcpu: usize, history: &History, state: &Architectural) {
    match machine.seats.len() {
        1 => log!("the guest crashed"),
        _ => log!("the guest crashed, on vCPU {vcpu}"),
    }
    for line in report::lines(cause, state, history, &machine.memory) {
        log!("{line}");
    }
    let tail = String::from_utf8_lossy(machine.console.lock().tail()).into_owned();
    let lines: Vec<&str> = tail.lines().filter(|line| !line.trim().is_empty()).collect();
    if !lines.is_empty() {
        log!("last lines on its console:");
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            log!("  {line}");
        }
    }
}
