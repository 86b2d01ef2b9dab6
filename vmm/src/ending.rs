//! The end of a virtual machine: statistics, report, word to the root task.

use abi::utcb::Architectural;
use machine::report::{self, Cause};
use machine::vcpu::Vcpu;
use runtime::log;
use runtime::parent::{self, Ended};

use crate::memory::HostMemory;
use crate::output::Output;

/// Lines of console output in a crash report.
const TAIL_LINES: usize = 12;

/// Logs the exits so far, and what the guest asked for in vain.
pub fn statistics(vcpu: &Vcpu, when: &str) {
    log!("{when}: {}", vcpu.statistics.lines().next().map_or("", |_| "exits by reason follow"));
    for line in vcpu.statistics.lines() {
        log!("{line}");
    }
    for (what, unclaimed) in [
        ("ports", vcpu.board.unclaimed_ports()),
        ("addresses", vcpu.board.unclaimed_memory()),
        ("registers", vcpu.unknown_msrs()),
    ] {
        if unclaimed.reads + unclaimed.writes == 0 {
            continue;
        }
        log!("nobody at these {what}: {} reads, {} writes:", unclaimed.reads, unclaimed.writes);
        for addresses in unclaimed.addresses().chunks(8) {
            let mut text = alloc::string::String::new();
            for (address, count) in addresses {
                let _ = core::fmt::write(&mut text, format_args!(" {address:#x} ({count})"));
            }
            log!(" {text}");
        }
    }
}

/// Logs why the guest cannot go on.
pub fn crash(cause: Cause, vcpu: &Vcpu, state: &Architectural, memory: &HostMemory, output: &Output) {
    log!("the guest crashed");
    for line in report::lines(cause, state, &vcpu.history, memory) {
        log!("{line}");
    }
    let tail = alloc::string::String::from_utf8_lossy(output.tail());
    let lines: alloc::vec::Vec<&str> = tail.lines().filter(|line| !line.trim().is_empty()).collect();
    if !lines.is_empty() {
        log!("last lines on its console:");
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            log!("  {line}");
        }
    }
}

/// Tells the root task and stops the thread.
pub fn end(how: Ended, explanation: &str) -> ! {
    parent::vm_ended(how, explanation);
    runtime::sync::park()
}
