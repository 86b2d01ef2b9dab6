//! From the manifest to running vCPUs.
//!
//! Unsafe: grants guest memory to the guest space, and asks the processor for its identification.
#![allow(unsafe_code)]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::x86_64::__cpuid_count;

use abi::capability::{MEMORY_ALL, Permissions};
use abi::event::GUEST_ARCH;
use abi::extension::FEATURE_NEUTRAL_EVENTS;
use abi::hypercall::CreatePd;
use abi::scd::Scd;
use abi::{Mtd, Selector, Status};
use alloc::boxed::Box;
use alloc::sync::Arc;
use machine::backplane::Backplane;
use machine::board::{Board, Config};
use machine::clock::WallClock;
use machine::cpuid::Vendor;
use machine::event_name::event_name;
use machine::memory::{GuestMemory, HIGH_RAM_BASE};
use machine::vcpu::{Hardware, PriorityExit, Setup, Vcpu};
use plan::{Console, VmConfig};
use runtime::channel::Receiver;
use runtime::manifest::selector;
use runtime::parent::{self, Ended};
use runtime::syscall::{self, EcKind, Span};
use runtime::thread::{self, Server};
use runtime::{log, manifest, time};

use crate::console::Line;
use crate::image::Files;
use crate::memory::HostMemory;
use crate::monitor::{self, EVENTS, Monitor, portal_offset};
use crate::output::{self, Output};
use crate::vm::{self, Devices, Machine, Parts, Spaces};
use crate::{devices, input};

/// Scheduling of the vCPU: below all host threads, so that drivers and consoles go first; equal among machines.
const PRIORITY: u8 = 30;
/// Scheduling of the threads that interrupt vCPUs.
const THREADS: Scd = Scd { budget: 10, priority: 80, cos: 0 };

/// Builds the machine and starts it. A machine that cannot be built is reported, not a fault of this program.
pub fn run() {
    match build() {
        // The main thread is the input's: each thread costs the kernel memory.
        Ok(machine) => {
            if let Some(ring) = Receiver::open("input") {
                input::pass(ring, |bytes| machine.give_input(bytes));
            }
            runtime::sync::park()
        }
        Err(error) => {
            log!("{error}");
            parent::vm_ended(Ended::BadConfig, &error);
            runtime::sync::park()
        }
    }
}

fn kernel(what: &'static str) -> impl Fn(Status) -> String {
    move |status| format!("the kernel refuses {what}: {status:?}")
}

fn build() -> Result<&'static Machine, String> {
    let config = monitor::configuration()?;
    let files = Files::find()?;
    let region = manifest().region("guest-ram").ok_or("there is no guest memory")?;
    if u32::from(manifest().extensions) & FEATURE_NEUTRAL_EVENTS == 0 {
        return Err("the kernel does not announce neutral guest events".into());
    }
    let memory = HostMemory::new(region.memory);
    let board_config = board_config(&config, &memory);
    let now = time::now();
    let backplane = Arc::new(Backplane::new(config.vcpus as usize));
    let spaces = create_spaces(&memory)?;
    let console = Arc::new(vm::mutex(output::Console::open()).map_err(kernel("a semaphore"))?);
    let line = match config.console {
        Console::Virtio => Some(Arc::new(Line::new(console.clone()).map_err(kernel("a semaphore"))?)),
        Console::None | Console::Serial => None,
    };
    let bus = Arc::new(devices::bus(&config, memory, spaces.guest, &backplane, line.as_ref())?);
    let board = Board::new(&board_config, backplane.clone(), bus.clone(), now);
    let parts = Parts {
        memory,
        files,
        spaces,
        devices: Devices { board, output: Output::open(console.clone()) },
        console,
        line,
        backplane,
        bus,
        vcpus: (0..config.vcpus)
            .map(|_| thread::selectors(1))
            .collect::<Result<_, _>>()
            .map_err(kernel("a selector"))?,
        config,
        now,
    };
    let machine: &'static Machine = Box::leak(Box::new(Machine::new(parts).map_err(kernel("a semaphore"))?));
    for index in 0..machine.seats.len() {
        create_vcpu(machine, index, &board_config)?;
    }
    devices::serve(machine, THREADS).map_err(kernel("a thread"))?;
    let scd = Scd { budget: machine.config.slice, priority: PRIORITY, cos: 0 };
    for seat in &machine.seats {
        let time = thread::selectors(1).map_err(kernel("a selector"))?;
        syscall::create_sc(time, selector::PROTECTION_DOMAIN, seat.vcpu(), scd)
            .map_err(kernel("a virtual CPU's scheduling context"))?;
    }
    Ok(machine)
}

/// Makes a vCPU on its CPU, with handler, event portals and alarm clock.
fn create_vcpu(machine: &'static Machine, index: usize, board: &Config) -> Result<(), String> {
    let cpu = machine.config.cpus.get(index).copied().unwrap_or(manifest().cpu);
    let hardware = hardware();
    let (backplane, bus, now) = (machine.backplane.clone(), machine.bus.clone(), machine.started());
    let setup = Setup { config: board, host: &host_cpuid, hardware, backplane, bus, index, now };
    let vcpu = Vcpu::new(&setup, machine);
    if index == 0 {
        announce(machine, vcpu.vendor(), hardware);
    }
    let mtds: Vec<(u16, Mtd)> = (0..EVENTS).map(|number| (number, vcpu.portal_mtd(number))).collect();
    let selectors = |count| thread::selectors(count).map_err(kernel("a selector"));
    let portals = selectors(portal_offset(EVENTS - 1).map_or(0, |last| last + 1))?;
    let monitor = Monitor::new(machine, index, vcpu, portals);
    let server = Server::of_guest(selectors(1)?, cpu, monitor).map_err(kernel("a handler"))?;
    for (number, mtd) in mtds {
        // Only events that exist: the others would cost the kernel memory.
        if (0x40..GUEST_ARCH).contains(&number) && event_name(number).is_empty() {
            continue;
        }
        if let Some(offset) = portal_offset(number) {
            server.portal(portals + offset, number.into(), mtd).map_err(kernel("an event portal"))?;
        }
    }
    let seat = &machine.seats[index];
    thread::spawn_on(cpu, THREADS, move || seat.keep_time()).map_err(kernel("a thread"))?;
    let page = thread::utcb_address().map_err(kernel("an address for a vCPU's page"))?;
    let pd = selector::PROTECTION_DOMAIN;
    syscall::create_ec(seat.vcpu(), pd, EcKind::Guest, page, cpu, 0, portals).map_err(kernel("a virtual CPU"))
}

fn board_config(config: &VmConfig, memory: &HostMemory) -> Config {
    Config {
        stc_frequency: time::frequency(),
        wall_clock: WallClock { unix_ns: manifest().wall_clock, stc: manifest().wall_clock_stc },
        memory_below_4g: memory.ram().below_4g(),
        memory_above_4g: memory.ram().above_4g(),
        exec_channel: config.exec,
    }
}

fn host_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

fn is_svm() -> bool {
    manifest().platform_features & abi::hip::FEATURE_SVM != 0
}

fn hardware() -> Hardware {
    // AMD tells the next instruction's address only with the next-RIP feature (APM vol. 2, 15.7.1).
    const SVM_FEATURES: u32 = 0x8000_000a;
    const NEXT_RIP: u32 = 1 << 3;
    let lengths_told = !is_svm() || host_cpuid(SVM_FEATURES, 0)[3] & NEXT_RIP != 0;
    let priority_exit = if is_svm() { PriorityExit::Write } else { PriorityExit::Threshold };
    Hardware { lengths_told, priority_exit }
}

fn announce(machine: &Machine, vendor: Vendor, hardware: Hardware) {
    let vendor = match vendor {
        Vendor::Intel => "Intel",
        Vendor::Amd => "AMD",
        Vendor::Other => "unknown",
    };
    let cpus = match &machine.config.cpus[..] {
        [_] => String::from("1 CPU"),
        places => format!("{} CPUs on {places:?}", places.len()),
    };
    log!(
        "{} MiB, {cpus} ({vendor}, {}), instruction lengths {}",
        machine.config.memory >> 20,
        if is_svm() { "SVM" } else { "VMX" },
        if hardware.lengths_told { "told" } else { "decoded" }
    );
}

fn create_spaces(memory: &HostMemory) -> Result<Spaces, String> {
    let msr = thread::selectors(1).map_err(kernel("a selector"))?;
    // This program has no ports, so that its own space serves the guest.
    let spaces = Spaces { guest: selector::GUEST_SPACE, pio: selector::PIO_SPACE, msr };
    if manifest().ports.iter().any(|range| range.count != 0) {
        return Err("a monitor has no ports".into());
    }
    let pd = selector::PROTECTION_DOMAIN;
    syscall::create_pd(spaces.guest, CreatePd::GuestSpace, pd).map_err(kernel("a guest space"))?;
    syscall::create_pd(spaces.msr, CreatePd::MsrSpace, pd).map_err(kernel("an MSR space"))?;

    let ram = memory.ram();
    for (offset, gpa, length) in [(0, 0, ram.below_4g()), (ram.below_4g(), HIGH_RAM_BASE, ram.above_4g())] {
        grant(spaces.guest, memory.base() + offset, gpa, length)?;
    }
    for &msr in machine::msr::PASS_THROUGH {
        let span = Span { source: msr as u64, destination: msr as u64, order: 0 };
        let rights = Permissions::READ | Permissions::WRITE;
        // SAFETY: between MSR spaces. A register that the kernel keeps to itself exits, and is emulated.
        let _ = unsafe { syscall::delegate(selector::MSR_SPACE, spaces.msr, span, rights, 0) };
    }
    Ok(spaces)
}

/// Maps `length` bytes of this program at `address` to guest-physical `gpa`, in as large pieces as possible.
fn grant(space: Selector, address: u64, gpa: u64, length: u64) -> Result<(), String> {
    let (source, destination) = ((selector::HOST_SPACE, address >> 12), (space, gpa >> 12));
    // SAFETY: only guest memory, to which this program has no reference, is shared with the guest.
    unsafe { syscall::delegate_range(source, destination, length >> 12, MEMORY_ALL, 0) }.map_err(kernel("guest memory"))
}
