//! From the manifest to a running vCPU.
//!
//! Unsafe: grants guest memory to the guest space, and asks the processor for its identification.
#![allow(unsafe_code)]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::x86_64::__cpuid_count;

use abi::capability::{MEMORY_ALL, Permissions};
use abi::event::GUEST_ARCH;
use abi::hypercall::CreatePd;
use abi::scd::Scd;
use abi::{Selector, Status};
use machine::board::Config;
use machine::clock::WallClock;
use machine::cpuid::Vendor;
use machine::event_name::event_name;
use machine::memory::{GuestMemory, HIGH_RAM_BASE};
use machine::vcpu::{Hardware, PriorityExit, Vcpu};
use plan::VmConfig;
use runtime::manifest::selector;
use runtime::parent::Ended;
use runtime::syscall::{self, EcKind, Span};
use runtime::thread::{self, Server};
use runtime::{log, manifest, time};

use crate::ending;
use crate::image::Files;
use crate::memory::HostMemory;
use crate::monitor::{self, EVENTS, Monitor, Spaces, portal_offset};
use crate::output::Output;
use crate::threads::{self, Shared};

/// This program's selectors.
mod layout {
    use super::{Selector, selector};
    /// Guest, PIO and MSR space.
    pub const SPACES: Selector = selector::FREE;
    /// The handler's EC.
    pub const HANDLER: Selector = selector::FREE + 8;
    /// The vCPU and its scheduling context.
    pub const VCPU: Selector = selector::FREE + 0x10;
    /// The vCPU's event portals.
    pub const PORTALS: Selector = selector::FREE + 0x100;
}

/// Scheduling of the vCPU: below all host threads, so that drivers and consoles go first; equal among machines.
const PRIORITY: u8 = 30;

/// Builds the machine and starts it. A machine that cannot be built is reported, not a fault of this program.
pub fn run() {
    if let Err(error) = build() {
        log!("{error}");
        ending::end(Ended::BadConfig, &error);
    }
}

fn kernel(what: &'static str) -> impl Fn(Status) -> String {
    move |status| format!("the kernel refuses {what}: {status:?}")
}

fn build() -> Result<(), String> {
    let config = monitor::configuration()?;
    let files = Files::find()?;
    let region = manifest().region("guest-ram").ok_or("there is no guest memory")?;
    if manifest().neutral_events == 0 {
        return Err("the kernel does not announce neutral guest events".into());
    }
    let memory = HostMemory::new(region.memory);

    let spaces = create_spaces(&memory)?;
    let shared = Shared::new(layout::VCPU).map_err(kernel("a semaphore"))?;
    let vcpu = create_machine(&config, &memory);
    let scd = Scd { budget: config.slice, priority: PRIORITY, cos: 0 };
    let mtds: Vec<_> = (0..EVENTS).map(|number| (number, vcpu.portal_mtd(number))).collect();
    let monitor = Monitor {
        vcpu,
        memory,
        files,
        config,
        output: Output::open(),
        shared: shared.clone(),
        spaces,
        portals: layout::PORTALS,
        widened: Vec::new(),
        started: time::now(),
    };

    let server = Server::at(layout::HANDLER, manifest().cpu, monitor).map_err(kernel("the handler"))?;
    for (number, mtd) in mtds {
        // Only events that exist: the others would cost the kernel memory.
        if (0x40..GUEST_ARCH).contains(&number) && event_name(number).is_empty() {
            continue;
        }
        if let Some(offset) = portal_offset(number) {
            server.portal(layout::PORTALS + offset, number.into(), mtd).map_err(kernel("an event portal"))?;
        }
    }
    let page = thread::utcb_address().map_err(kernel("an address for the vCPU's page"))?;
    let pd = selector::PROTECTION_DOMAIN;
    syscall::create_ec(layout::VCPU, pd, EcKind::Guest, page, manifest().cpu, 0, layout::PORTALS)
        .map_err(kernel("the virtual CPU"))?;
    threads::spawn(&shared).map_err(kernel("a thread"))?;
    syscall::create_sc(layout::VCPU + 1, pd, layout::VCPU, scd)
        .map_err(kernel("the virtual CPU's scheduling context"))?;
    runtime::sync::park()
}

fn create_machine(config: &VmConfig, memory: &HostMemory) -> Vcpu {
    let board = Config {
        stc_frequency: time::frequency(),
        wall_clock: WallClock { unix_ns: manifest().wall_clock, stc: manifest().wall_clock_stc },
        memory_below_4g: memory.ram().below_4g(),
        memory_above_4g: memory.ram().above_4g(),
        exec_channel: config.exec,
    };
    let host = |leaf: u32, subleaf: u32| {
        let answer = __cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    };
    // AMD tells the next instruction's address only with the next-RIP feature (APM vol. 2, 15.7.1).
    const SVM_FEATURES: u32 = 0x8000_000a;
    const NEXT_RIP: u32 = 1 << 3;
    let svm = manifest().platform_features & abi::hip::FEATURE_SVM != 0;
    let lengths_told = !svm || host(SVM_FEATURES, 0)[3] & NEXT_RIP != 0;
    let priority_exit = if svm { PriorityExit::Write } else { PriorityExit::Threshold };
    let hardware = Hardware { lengths_told, priority_exit };
    let vcpu = Vcpu::new(&board, &host, hardware, time::now());
    let vendor = match vcpu.vendor() {
        Vendor::Intel => "Intel",
        Vendor::Amd => "AMD",
        Vendor::Other => "unknown",
    };
    log!(
        "{} MiB, 1 CPU ({vendor}, {}), instruction lengths {}",
        config.memory >> 20,
        if svm { "SVM" } else { "VMX" },
        if lengths_told { "told" } else { "decoded" }
    );
    vcpu
}

fn create_spaces(memory: &HostMemory) -> Result<Spaces, String> {
    let spaces = Spaces { guest: layout::SPACES, pio: layout::SPACES + 1, msr: layout::SPACES + 2 };
    let pd = selector::PROTECTION_DOMAIN;
    syscall::create_pd(spaces.guest, CreatePd::GuestSpace, pd).map_err(kernel("a guest space"))?;
    syscall::create_pd(spaces.pio, CreatePd::PioSpace, pd).map_err(kernel("a PIO space"))?;
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
