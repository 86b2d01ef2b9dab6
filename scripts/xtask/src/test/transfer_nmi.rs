//! Non-maskable interrupts where they hurt most: on the first and last instructions of the kernel, and around a guest's run,
//! where the stack is an execution context's, or a program's, and registers are somebody else's.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::debugger::{Debugger, RIP, RSP, Symbols, debugged};
use super::{Lab, QEMU, Test};

pub const TESTS: &[Test] = &[
    // Only QEMU can be told to raise one.
    Test::new("nmi::on every instruction that enters or leaves the kernel", everywhere).only(QEMU),
];

/// Bytes from an interrupt stub to the next.
const STUB: u64 = 4;
/// STGI.
const STGI: [u8; 3] = [0x0f, 0x01, 0xdc];
/// Bytes of a CPU's block; its interrupt stacks are in the upper half.
const BLOCK: u64 = 1 << 16;
const KERNEL_CS: u64 = 8;

fn everywhere(lab: &Lab) -> Result<()> {
    let places = Places::find(&lab.programs.file("microhypervisor"))?;
    let boot = lab.boot("micro").command_line("micro", "exits=3000").timeout(120);
    let (outcome, storm) = debugged(boot, move |debugger| storm(debugger, &places))?;
    storm.with_context(|| outcome.failure("a non-maskable interrupt went wrong"))?;
    outcome.status(0).map(|_| ())
}

/// One on each of the first instructions from each of the places on.
fn storm(debugger: &mut Debugger, places: &Places) -> Result<()> {
    let nmi = places.interrupt_stubs + 2 * STUB;
    for (name, place, steps) in [
        ("SYSCALL", places.syscall, 60),
        ("the return from a hypercall", places.return_from_hypercall, 17),
        ("the return from an interrupt", places.return_from_interrupt, 18),
        ("the entry into a guest", places.enter_guest, 20),
        ("the exit from a guest", places.exit_guest, 24),
    ] {
        for step in 0..=steps {
            debugger.run_to(place).with_context(|| format!("before {name}"))?;
            (0..step).try_for_each(|_| debugger.ask("s").map(|_| ()))?;
            let (at, stack) = (debugger.register(RIP)?, debugger.register(RSP)?);
            let told = || format!("{name}, {step} instructions on, at {at:#x}, RSP {stack:#x}");
            debugger.monitor("nmi").with_context(told)?;
            debugger.run_to(nmi).with_context(told)?;
            let top = debugger.register(RSP)?;
            let frame = debugger.memory(top)?;
            ensure!(top % BLOCK >= BLOCK / 2, "{}: the interrupt's frame is at {top:#x}", told());
            // STGI lets the interrupt come before the next instruction, all others have let it come before themselves.
            let expected = if at == places.exit_guest { at + STGI.len() as u64 } else { at };
            ensure!(frame[0] == expected, "{}: it comes at {:#x}", told(), frame[0]);
            ensure!((frame[1] == KERNEL_CS) == (at >> 63 != 0), "{}: CS is {:#x}", told(), frame[1]);
            ensure!(frame[3] == stack, "{}: RSP is {:#x}", told(), frame[3]);
        }
    }
    debugger.send("D")
}

/// Addresses in the kernel.
struct Places {
    syscall: u64,
    return_from_hypercall: u64,
    return_from_interrupt: u64,
    interrupt_stubs: u64,
    enter_guest: u64,
    exit_guest: u64,
}

impl Places {
    fn find(kernel: &Path) -> Result<Self> {
        let symbols = Symbols::read(kernel)?;
        let enter_guest = symbols.find(&["svm_resume"])?;
        let code = symbols.code(enter_guest)?;
        let stgi = code.windows(STGI.len()).position(|bytes| bytes == STGI).context("no STGI")?;
        Ok(Self {
            syscall: symbols.find(&["smp", "STUBS"])?,
            return_from_hypercall: symbols.find(&["return_from_hypercall"])?,
            return_from_interrupt: symbols.find(&["return_from_interrupt"])?,
            interrupt_stubs: symbols.find(&["interrupt_stubs"])?,
            enter_guest,
            exit_guest: enter_guest + stgi as u64,
        })
    }
}
