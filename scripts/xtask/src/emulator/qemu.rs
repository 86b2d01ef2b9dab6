//! QEMU as the AMD machine: q35, with SVM and nested paging emulated instruction by instruction.

pub mod devices;

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::Result;

use super::{Machine, SerialPorts, multiboot, text};
use crate::system::devices::DeviceKind;
use crate::workspace;

/// How the instructions are executed.
pub struct Execution {
    accelerator: &'static str,
    cpu: &'static str,
}

/// By translation. `max` has SVM, nested paging and x2APIC, but neither next-RIP, decode assists nor TSC deadline.
pub const EMULATED: Execution = Execution { accelerator: "tcg", cpu: "max" };

impl Execution {
    /// By the host's own CPU.
    pub const fn native(accelerator: &'static str, cpu: &'static str) -> Self {
        Self { accelerator, cpu }
    }
}

/// Remapping of DMA and interrupts by VT-d, for [`Machine::further`]. Devices that shall be behind it come after it.
pub const IOMMU: [&str; 2] = ["-device", "intel-iommu,intremap=on,eim=on,aw-bits=48"];

/// The program and its arguments.
pub fn arguments(machine: &Machine, [com1, com2]: SerialPorts, execution: &Execution) -> Result<Vec<String>> {
    let cpu = machine.cpu_model.as_deref().unwrap_or(execution.cpu);
    let memory = machine.memory.to_string();
    let cpus = machine.cpus.to_string();
    let serial = |id: &str, port: u16| format!("socket,id={id},host=127.0.0.1,port={port},nodelay=on");
    let kernel = text(&startable(machine)?);
    // KVM's own interrupt controllers know nothing of remapping.
    let remaps = machine.devices.iter().any(|device| device.kind == DeviceKind::Iommu);
    let board = if remaps && execution.accelerator == "kvm" { "q35,kernel-irqchip=split" } else { "q35" };
    let mut arguments: Vec<String> = [
        "qemu-system-x86_64",
        "-machine",
        board,
        "-accel",
        execution.accelerator,
        "-cpu",
        cpu,
        "-smp",
        &cpus,
        "-m",
        &memory,
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-chardev",
        &serial("com1", com1),
        "-serial",
        "chardev:com1",
        "-chardev",
        &serial("com2", com2),
        "-serial",
        "chardev:com2",
        "-kernel",
        &kernel,
    ]
    .map(String::from)
    .into();
    if let Some(module) = &machine.boot.module {
        arguments.extend(["-initrd".into(), text(module)]);
    }
    if let Some(line) = &machine.boot.linux {
        arguments.extend(["-append".into(), line.clone()]);
    }
    if let Some(trace) = &machine.trace {
        arguments.extend(["-plugin".into(), format!("{},out={}", text(&crate::bench::plugin()), text(trace))]);
    }
    if !machine.devices.is_empty() {
        // Else the firmware looks for something to boot on all disks, and keeps memory where the root image is.
        arguments.extend(["-boot".into(), "strict=on".into()]);
    }
    arguments.extend(devices::arguments(&machine.devices, &machine.folder)?);
    arguments.extend(machine.further.iter().cloned());
    Ok(arguments)
}

/// The kernel's file, or one of the same content that QEMU's loader takes.
fn startable(machine: &Machine) -> Result<PathBuf> {
    let kernel = &machine.boot.kernel;
    let content = workspace::read(kernel)?;
    let Cow::Owned(content) = multiboot::startable(&content) else { return Ok(kernel.clone()) };
    let file = machine.folder.join("kernel-32");
    workspace::write(&file, &content)?;
    Ok(file)
}
