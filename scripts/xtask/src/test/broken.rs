//! What ends the kernel itself: hardware that reports an error, and a stack that is gone. QEMU only: it can be debugged.

use anyhow::{Context, Result};

use super::debugger::{Debugger, RSP, Symbols, debugged};
use super::{Lab, QEMU, Test};

pub const TESTS: &[Test] = &[
    Test::new("fault::a machine check in the kernel", machine_check).only(QEMU),
    Test::new("fault::a double fault in the kernel", double_fault).only(QEMU),
];

/// In bank 0: valid, uncorrected, enabled; the interrupted program cannot go on (Intel SDM vol. 3B, 16.3.2.2, 16.3.1.2).
const UNCORRECTED: &str = "mce 0 0 0xb000000000000000 0x4 0 0";

fn machine_check(lab: &Lab) -> Result<()> {
    in_a_hypercall(lab, |debugger| debugger.monitor(UNCORRECTED), "kilonova: fatal: exception 0x12 in the kernel: ")
}

/// The stack pointer points to nothing: the next push faults, and so does the delivery of that fault.
fn double_fault(lab: &Lab) -> Result<()> {
    in_a_hypercall(lab, |debugger| debugger.set_register(RSP, 8), "kilonova: fatal: exception 0x8 in the kernel: ")
}

/// Does something to the machine at the start of a hypercall's slow path, and expects that the kernel says this.
fn in_a_hypercall(lab: &Lab, act: fn(&mut Debugger) -> Result<()>, line: &str) -> Result<()> {
    let place = Symbols::read(&lab.programs.file("microhypervisor"))?.find(&["hypercall", "9hypercall17h"])?;
    let (outcome, acted) = debugged(lab.boot("micro"), move |debugger| {
        debugger.run_to(place)?;
        act(debugger)?;
        debugger.send("D")
    })?;
    acted.with_context(|| outcome.failure("the debugger failed"))?;
    outcome.fatal(line)
}
