//! Micro guests: each exercises one mechanism and tells its verdict as an exit status.

use anyhow::{Result, ensure};

use super::{Lab, QEMU, Test, dialogue};
use crate::bundle;
use crate::emulator::Boot;
use crate::system::Size;

pub const TESTS: &[Test] = &[
    Test::new("micro::hello", hello),
    Test::new("micro::everything that is quick", quick),
    Test::new("micro::random accesses do no harm", hostile),
    Test::new("micro::no interrupt is lost in 300000 random accesses", lasting).only(QEMU).long(),
    Test::new("micro::several CPUs", several),
    Test::new("micro::several virtual CPUs on one CPU", crowded),
    Test::new("micro::a reset stops all virtual CPUs and starts the first", resets),
    Test::new("micro::a reset is told", reset),
];

/// Port output, CPUID and HLT in a 64-bit guest.
fn hello(lab: &Lab) -> Result<()> {
    let outcome = lab.boot("micro").run()?;
    outcome.status(0)?;
    outcome.says("vm micro: powered off")?;
    // Whatever came before, from whomever, has arrived, too.
    let last = outcome.lines.last().map(String::as_str);
    ensure!(last == Some("root: all VMs ended"), outcome.failure("the console ends with another line"));
    Ok(())
}

fn quick(lab: &Lab) -> Result<()> {
    lab.boot("micro").command_line("micro", "basic mmio badmmio").run()?.status(0).map(|_| ())
}

fn hostile(lab: &Lab) -> Result<()> {
    lab.boot("micro").command_line("micro", "hostile rounds=2000").run()?.status(0).map(|_| ())
}

/// The end of a run needs the timer. QEMU loses interrupts that come during an exit (`docs/emulators.md`): where the kernel
/// does not make up for that, one run in three does not end.
fn lasting(lab: &Lab) -> Result<()> {
    let trial = lab.boot("micro").command_line("micro", "hostile rounds=300000").timeout(600);
    trial.run()?.status(0).map(|_| ())
}

/// Start-up, interrupts, HLT, NMI and INIT between virtual CPUs that have a CPU each.
fn several(lab: &Lab) -> Result<()> {
    lab.boot("micro").cpus(4, 4).command_line("micro", "smp rounds=200").run()?.status(0).map(|_| ())
}

fn crowded(lab: &Lab) -> Result<()> {
    lab.boot("micro").cpus(1, 3).command_line("micro", "smp rounds=200").run()?.status(0).map(|_| ())
}

/// The further ones wait to be started again, each time.
fn resets(lab: &Lab) -> Result<()> {
    let mut system = bundle::load("micro", None)?;
    system.plan.name.clone_from(&lab.name);
    system.plan.vms[0].config.cmdline = "smp rounds=20 reset".into();
    system.resize(Size { cpus: Some(2), vcpus: Some(3) })?;
    let module = Some(bundle::write(&mut system, lab.programs, "")?);
    let boot = Boot { kernel: lab.programs.file("microhypervisor"), module, linux: None };
    let mut session = lab.start_with(boot, system.memory, system.cpus, Vec::new())?;
    let round = [("micro: ok smp", ""), ("the guest reset its machine: starting it again", "")];
    let (_, lines) = dialogue::hold(&mut session, lab.boot_time(), &[round, round, round].concat())?;
    ensure!(!lines.iter().any(|line| line.starts_with("micro: failed")), "{}", session.tail());
    Ok(())
}

fn reset(lab: &Lab) -> Result<()> {
    let outcome = lab.boot("two-micro").command_line("first", "reset").run()?;
    outcome.ended()?;
    outcome.says("vm first: reset")?;
    outcome.says("vm second: powered off").map(|_| ())
}
