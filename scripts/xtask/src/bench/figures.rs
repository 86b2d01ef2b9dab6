//! The figures: what each is called, what it may be at most, and how it is measured.

use anyhow::Result;
use serde::Serialize;

use super::count::Counts;
use super::io::{self, Window};
use super::listing::Symbols;
use super::runs::{self, Runs};
use super::window::Span;
use super::{boot, exits, linux, scale};
use crate::check;
use crate::emulator::Emulator;

/// A figure of the table.
pub struct Figure {
    /// `topic.what`.
    pub name: &'static str,
    /// What it may be at most, if that has been said.
    pub most: Option<f64>,
    /// What it is counted in.
    pub unit: &'static str,
    /// Where and how it is counted.
    pub method: &'static str,
    /// Where the machine runs that is measured; None if that makes no difference.
    pub on: Option<Emulator>,
    /// How it is measured.
    pub measure: Measure,
}

/// How a figure is measured.
pub enum Measure {
    /// The usual window of the bench root task with this name.
    Window(&'static str),
    /// The first window of the bench root task with this name.
    FirstWindow(&'static str),
    /// In its own way.
    By(fn(&mut Runs) -> Result<Measured>),
}

/// What came of a measurement.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Measured {
    /// The figure.
    pub ours: f64,
    /// What it is elsewhere.
    pub peer: Option<f64>,
    /// Where that is.
    pub peer_name: Option<&'static str>,
    /// What is to be known about it.
    pub note: Option<String>,
    /// All that was counted, where that is more than one number.
    pub counts: Option<Counts>,
}

impl Measured {
    /// A figure without a peer.
    pub fn alone(ours: f64) -> Self {
        Self { ours, ..Self::default() }
    }

    /// A figure beside that of a peer.
    pub fn beside(ours: f64, peer: f64, peer_name: &'static str) -> Self {
        Self { ours, peer: Some(peer), peer_name: Some(peer_name), ..Self::default() }
    }

    /// How many times as much it is here as elsewhere.
    pub fn ratio(&self) -> Option<f64> {
        self.peer.map(|peer| self.ours / peer)
    }
}

impl From<Counts> for Measured {
    /// The kernel's instructions.
    fn from(counts: Counts) -> Self {
        Self { ours: counts.kernel as f64, counts: Some(counts), ..Self::default() }
    }
}

impl Figure {
    /// Measures it.
    pub fn measure(&self, runs: &mut Runs) -> Result<Measured> {
        let on = self.on.unwrap_or(Emulator::Qemu);
        match self.measure {
            Measure::Window(name) => Ok(runs.usual(on, name)?.into()),
            Measure::FirstWindow(name) => Ok(runs.cold(on, name)?.into()),
            Measure::By(measure) => measure(runs),
        }
    }

    /// What else is more than it may be.
    pub fn over(&self, counts: &Counts) -> Vec<String> {
        let limits = LIMITS.iter().find(|(name, _)| *name == self.name).map_or(&[][..], |(_, limits)| limits);
        let over = limits.iter().filter(|(name, most)| counts.number(name) > *most);
        over.map(|(name, most)| format!("{name} {} of {most}", counts.number(name))).collect()
    }

    /// The window of the bench root task that it is, if it is one.
    pub fn window(&self) -> Option<&'static str> {
        match self.measure {
            Measure::Window(name) | Measure::FirstWindow(name) => Some(name),
            Measure::By(_) => None,
        }
    }
}

const KERNEL: &str = "kernel instructions";
const QEMU: &str = "between marks, QEMU -icount, plugin";
const BOCHS: &str = "between marks, Bochs sync=none, trace";

const fn operation(name: &'static str, most: Option<f64>) -> Figure {
    let on = Some(Emulator::Qemu);
    Figure { name, most, unit: KERNEL, method: QEMU, on, measure: Measure::Window(name) }
}

/// The first round of an operation.
const fn cold(name: &'static str, window: &'static str) -> Figure {
    let method = "the first time, between marks, QEMU -icount, plugin";
    Figure { method, measure: Measure::FirstWindow(window), ..operation(name, None) }
}

/// What an operation of the micro guest costs on the whole, and under KVM.
macro_rules! guest {
    ($name:literal, $on:expr, $operation:literal) => {
        Figure {
            name: $name,
            most: None,

            unit: "instructions",
            method: "guest's TSC, kernel + monitor + guest",
            on: Some($on),
            measure: Measure::By(|runs| exits::operation(runs, $on, $operation)),
        }
    };
}

const IO: &str = "4 KiB at random places of an NVMe disk, or 1500 bytes by virtio-net; whole machine, QEMU plugin";

/// What Linux' requests and frames cost.
const fn io(
    name: &'static str,
    most: Option<f64>,
    unit: &'static str,
    measure: fn(&mut Runs) -> Result<Measured>,
) -> Figure {
    by(name, most, unit, IO, measure)
}

const fn exit(name: &'static str, window: &'static str, on: Emulator, most: f64) -> Figure {
    let method = if matches!(on, Emulator::Bochs) { BOCHS } else { QEMU };
    Figure { name, most: Some(most), unit: KERNEL, method, on: Some(on), measure: Measure::Window(window) }
}

/// What else may be at most so many, by the names of [`Counts::number`].
type Limits = &'static [(&'static str, u64)];
const LIMITS: &[(&str, Limits)] = &[
    ("ipc.same_pd.0", &[("cr3", 0), ("locked", 0), ("lines", 12)]),
    ("ipc.cross_pd.0", &[("cr3", 2), ("locked", 0), ("lines", 14)]),
    // A world switch of a guest whose registers stay live.
    ("exit.vmx.cpuid", &[("wrmsr", 0), ("rdmsr", 0), ("xsetbv", 0), ("cr3", 0), ("vmread", 4), ("vmwrite", 2)]),
    ("exit.svm.cpuid", &[("cr3", 0), ("vmload_vmsave", 3)]),
];

/// All figures, in the order of the table.
pub const FIGURES: &[Figure] = &[
    operation("ipc.same_pd.0", Some(70.0)),
    operation("ipc.cross_pd.0", Some(80.0)),
    operation("ipc.cross_pd.32", None),
    operation("ipc.cross_pd.512", None),
    Figure {
        name: "ipc.per_word",
        most: Some(2.0),
        unit: "instructions a word",
        method: "(ipc.cross_pd.32 - ipc.cross_pd.0) / 31",
        on: Some(Emulator::Qemu),
        measure: Measure::By(per_word),
    },
    operation("hypercall.invalid", None),
    operation("sm.up", Some(75.0)),
    operation("sm.down", Some(75.0)),
    operation("sm.pingpong", Some(600.0)),
    operation("create.sm", Some(200.0)),
    operation("create.pt", Some(200.0)),
    operation("create.pd", Some(200.0)),
    operation("create.ec", Some(4000.0)),
    cold("create.ec.cold", "create.ec"),
    operation("create.ec.second", None),
    operation("create.sc", None),
    operation("destroy.sm", None),
    operation("destroy.pt", None),
    operation("destroy.pd", None),
    operation("destroy.ec", None),
    operation("map.4k", Some(400.0)),
    cold("map.4k.cold", "map.4k"),
    operation("unmap.4k", Some(400.0)),
    operation("map.4k.own", None),
    operation("unmap.4k.own", None),
    operation("map.64_pages", None),
    operation("unmap.64_pages", None),
    operation("delegate.cap", None),
    operation("recall", None),
    operation("recall.event", None),
    operation("irq.user", Some(250.0)),
    exit("exit.vmx.cpuid", "exit.cpuid", Emulator::Bochs, 120.0),
    exit("exit.vmx.cpuid.syscall", "exit.cpuid.syscall", Emulator::Bochs, 260.0),
    exit("exit.svm.cpuid", "exit.cpuid", Emulator::Qemu, 120.0),
    exit("exit.vmx.out", "exit.out", Emulator::Bochs, 170.0),
    exit("exit.svm.out", "exit.out", Emulator::Qemu, 170.0),
    guest!("guest.svm.cpuid", Emulator::Qemu, "cpuid"),
    guest!("guest.svm.vmcall", Emulator::Qemu, "vmcall"),
    guest!("guest.svm.out", Emulator::Qemu, "out"),
    guest!("guest.svm.in", Emulator::Qemu, "in"),
    guest!("guest.svm.mmio.read", Emulator::Qemu, "mmio.read"),
    guest!("guest.svm.mmio.write", Emulator::Qemu, "mmio.write"),
    guest!("guest.svm.lapic.read", Emulator::Qemu, "lapic.read"),
    guest!("guest.svm.rdmsr", Emulator::Qemu, "rdmsr"),
    guest!("guest.svm.wrmsr", Emulator::Qemu, "wrmsr"),
    guest!("guest.svm.cr0", Emulator::Qemu, "cr0"),
    guest!("guest.svm.cr4", Emulator::Qemu, "cr4"),
    guest!("guest.svm.page", Emulator::Qemu, "page"),
    guest!("guest.svm.ipi.self", Emulator::Qemu, "ipi.self"),
    guest!("guest.svm.ipi.halted", Emulator::Qemu, "ipi.halted"),
    guest!("guest.svm.deadline", Emulator::Qemu, "deadline"),
    guest!("guest.svm.ipi.wake", Emulator::Qemu, "ipi.wake"),
    guest!("guest.vmx.cpuid", Emulator::Bochs, "cpuid"),
    guest!("guest.vmx.vmcall", Emulator::Bochs, "vmcall"),
    guest!("guest.vmx.out", Emulator::Bochs, "out"),
    guest!("guest.vmx.in", Emulator::Bochs, "in"),
    guest!("guest.vmx.mmio.read", Emulator::Bochs, "mmio.read"),
    guest!("guest.vmx.mmio.write", Emulator::Bochs, "mmio.write"),
    guest!("guest.vmx.lapic.read", Emulator::Bochs, "lapic.read"),
    guest!("guest.vmx.rdmsr", Emulator::Bochs, "rdmsr"),
    guest!("guest.vmx.wrmsr", Emulator::Bochs, "wrmsr"),
    guest!("guest.vmx.cr0", Emulator::Bochs, "cr0"),
    guest!("guest.vmx.cr4", Emulator::Bochs, "cr4"),
    guest!("guest.vmx.page", Emulator::Bochs, "page"),
    guest!("guest.vmx.ipi.self", Emulator::Bochs, "ipi.self"),
    guest!("guest.vmx.ipi.halted", Emulator::Bochs, "ipi.halted"),
    guest!("guest.vmx.deadline", Emulator::Bochs, "deadline"),
    guest!("guest.vmx.ipi.wake", Emulator::Bochs, "ipi.wake"),
    Figure {
        name: "exit.vs_kvm",
        most: None,
        unit: "times ours, at least 8",
        method: "guest.svm.out: an exit to user space, all instructions",
        on: Some(Emulator::Qemu),
        measure: Measure::By(|runs| exits::times(runs, Emulator::Qemu)),
    },
    Figure {
        name: "exit.vs_kvm.vmx",
        most: None,
        unit: "times ours, at least 8",
        method: "guest.vmx.out: an exit to user space, all instructions",
        on: Some(Emulator::Bochs),
        measure: Measure::By(|runs| exits::times(runs, Emulator::Bochs)),
    },
    by(
        "cli.max",
        Some(4000.0),
        "instructions with interrupts off",
        "the longest span of the bench root task's run",
        off,
    ),
    by(
        "cli.max.conformance",
        Some(4000.0),
        "instructions with interrupts off",
        "the longest span of the specification's tests",
        off_in_conformance,
    ),
    by("size.text", Some(98304.0), "bytes of code and constants", "the kernel's file", size_of_text),
    by(
        "size.lines",
        Some(9500.0),
        "lines of privileged source",
        "without VT-d, blank lines and comments",
        size_of_source,
    ),
    Figure {
        name: "linux.boot.ratio",
        most: Some(1.05),
        unit: "times the instructions of a bare boot",
        method: "QEMU plugin, -icount shift=0 (1 ns for each)",
        on: Some(Emulator::Qemu),
        measure: Measure::By(boot::boot),
    },
    Figure {
        name: "linux.boot.cheap_waits",
        most: None,
        unit: "times the instructions of a bare boot",
        method: "QEMU plugin, -icount shift=4 (16 ns for each)",
        on: Some(Emulator::Qemu),
        measure: Measure::By(boot::boot_with_short_waits),
    },
    Figure {
        name: "linux.boot.exits",
        most: Some(10_000.0),
        unit: "exits beside timer and console",
        method: "the monitor's account when init runs",
        on: Some(Emulator::Qemu),
        measure: Measure::By(linux::exits),
    },
    Figure {
        name: "linux.fork.ratio",
        most: Some(1.02),
        unit: "times the instructions of bare Linux",
        method: "fork and exec of busybox x100; guest's TSC, QEMU -icount",
        on: Some(Emulator::Qemu),
        measure: Measure::By(linux::fork),
    },
    Figure {
        name: "linux.loop.ratio",
        most: None,
        unit: "times the instructions of bare Linux",
        method: "a loop of 20 million rounds; guest's TSC, QEMU -icount",
        on: Some(Emulator::Qemu),
        measure: Measure::By(linux::busy),
    },
    io("io.read.1", None, "instructions a request", |runs| io::instructions(runs, Window::ReadAlone)),
    io("io.read.1.times", None, "times the instructions of bare Linux", |runs| io::ratio(runs, Window::ReadAlone)),
    io("io.read.1.exits", None, "exits a request", |runs| io::exits(runs, Window::ReadAlone)),
    io("io.read.32", None, "instructions a request", |runs| io::instructions(runs, Window::ReadMany)),
    io("io.read.32.times", Some(2.5), "times the instructions of bare Linux", |runs| io::ratio(runs, Window::ReadMany)),
    io("io.read.32.exits", Some(0.2), "exits a request", |runs| io::exits(runs, Window::ReadMany)),
    io("io.write.1", None, "instructions a request", |runs| io::instructions(runs, Window::WriteAlone)),
    io("io.write.1.times", None, "times the instructions of bare Linux", |runs| io::ratio(runs, Window::WriteAlone)),
    io("io.write.1.exits", None, "exits a request", |runs| io::exits(runs, Window::WriteAlone)),
    io("io.write.32", None, "instructions a request", |runs| io::instructions(runs, Window::WriteMany)),
    io("io.write.32.times", Some(2.5), "times the instructions of bare Linux", |runs| {
        io::ratio(runs, Window::WriteMany)
    }),
    io("io.write.32.exits", Some(0.2), "exits a request", |runs| io::exits(runs, Window::WriteMany)),
    io("io.net.rx", None, "instructions a frame", |runs| io::instructions(runs, Window::FramesReceived)),
    io("io.net.rx.exits", None, "exits a frame", |runs| io::exits(runs, Window::FramesReceived)),
    io("io.net.tx", None, "instructions a frame", |runs| io::instructions(runs, Window::FramesSent)),
    io("io.net.tx.exits", None, "exits a frame", |runs| io::exits(runs, Window::FramesSent)),
    Figure {
        name: "scale.exit",
        most: Some(1.02),
        unit: "times an exit with one machine",
        method: "64 machines, 63 of them idle; port output, guest's TSC, QEMU -icount",
        on: Some(Emulator::Qemu),
        measure: Measure::By(scale::exit),
    },
    Figure {
        name: "scale.kernel_bytes",
        most: Some(98_304.0),
        unit: "bytes of kernel memory",
        method: "what came back at the end of a machine with one CPU among 64, beside page tables",
        on: Some(Emulator::Qemu),
        measure: Measure::By(scale::kernel_bytes),
    },
];

/// A figure that is measured in its own way, on QEMU.
const fn by(
    name: &'static str,
    most: Option<f64>,
    unit: &'static str,
    method: &'static str,
    measure: fn(&mut Runs) -> Result<Measured>,
) -> Figure {
    Figure { name, most, unit, method, on: Some(Emulator::Qemu), measure: Measure::By(measure) }
}

fn off(runs: &mut Runs) -> Result<Measured> {
    span(runs.off()?, runs)
}

fn off_in_conformance(runs: &mut Runs) -> Result<Measured> {
    span(runs::off_in_conformance(runs.kernel.as_deref())?, runs)
}

fn span(span: Span, runs: &Runs) -> Result<Measured> {
    let symbols = Symbols::of_kernel(runs)?;
    let place = |address| {
        let (name, offset) = symbols.find(address);
        format!("{name}+{offset:x}")
    };
    let note = format!("from {} to {}", place(span.begin), place(span.end));
    Ok(Measured { note: Some(note), ..Measured::alone(span.length as f64) })
}

fn size_of_text(_: &mut Runs) -> Result<Measured> {
    Ok(Measured::alone(check::kernel_text()? as f64))
}

fn size_of_source(_: &mut Runs) -> Result<Measured> {
    Ok(Measured::alone(check::privileged_lines()?.1 as f64))
}

/// What a word of a message costs. The smallest message has one word.
fn per_word(runs: &mut Runs) -> Result<Measured> {
    let long = runs.usual(Emulator::Qemu, "ipc.cross_pd.32")?.kernel as f64;
    let short = runs.usual(Emulator::Qemu, "ipc.cross_pd.0")?.kernel as f64;
    Ok(Measured::alone((long - short) / 31.0))
}
