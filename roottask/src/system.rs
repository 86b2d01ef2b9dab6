//! Carries out the plan: archive, programs, virtual machines, and the wait for their end.

use crate::authority::selector;
use crate::platform::{self, Platform};
use crate::rings::SharedRing;
use crate::start::Boot;
use crate::workshop::{Workshop, must_kernel};
use crate::{console, faults, keeper, kernel_log, observe, power, reclaim, service, watchdog, window};
use abi::extension;
use abi::hip::{FEATURE_IOMMU, FEATURE_SVM, FEATURE_VMX, Hip};
use alloc::format;
use alloc::vec::Vec;
use plan::{DriverPlan, Iommu, SystemPlan};
use roottask::acpi;
use roottask::archive::Archive;
use roottask::frames::{PAGE, PhysRange};
use roottask::image::Image;
use roottask::pci::Use;
use runtime::channel::Sender;
use runtime::log;
use runtime::manifest::Role;
use runtime::sync::Semaphore;
use runtime::{syscall, time};

/// How long the programs get to take what is in their rings, without any progress, before the machine goes off.
const DRAIN_MS: u64 = 5000;

/// Runs the system to its end.
pub fn run(boot: Boot) -> ! {
    let Boot { hip, module, free, total, .. } = boot;
    reclaim::learn(&hip);
    announce(&hip, total, free.total());
    must_kernel(syscall::create_sm(selector::EVENTS, runtime::manifest::selector::PROTECTION_DOMAIN, 0));
    for lock in [selector::LOCK_CONSOLE, selector::LOCK_CHILDREN, selector::LOCK_WISHES] {
        must_kernel(syscall::create_sm(lock, runtime::manifest::selector::PROTECTION_DOMAIN, 0));
    }
    must_kernel(service::start(hip.cpu_bsp as u32));
    must_kernel(kernel_log::start(PhysRange::new(hip.mbuf_start, hip.mbuf_end)));
    let archive = archive(module);
    let plan = read_plan(&archive);
    if plan.list_devices {
        list_devices(&hip, &plan);
    }
    if hip.platform_features & (FEATURE_VMX | FEATURE_SVM) == 0 {
        power::fatal(format_args!("this CPU offers neither VMX nor SVM: virtual machines are impossible"));
    }
    let madt = (hip.acpi_rsdp != abi::hip::NOT_PRESENT)
        .then(|| acpi::find(&mut window::Tables, hip.acpi_rsdp, b"APIC"))
        .flatten();
    let bounded = hip.extension.features & extension::FEATURE_ALLOWANCE != 0;
    must_kernel(observe::start(&hip, plan.observe));
    let platform = find_devices(&hip, &plan);
    let mut workshop = Workshop::new(archive, free, platform, bounded, madt, u32::from(hip.cpu_num));
    let (machines, servers) = workshop.build(plan);
    reclaim::report();
    let outgoing = workshop.outgoing.clone();
    must_kernel(watchdog::start());
    must_kernel(keeper::start(workshop, machines, servers));
    wait(&outgoing)
}

/// Lists the devices, with the owners that the plan gives them, and ends.
fn list_devices(hip: &Hip, plan: &SystemPlan) -> ! {
    let mut platform = Platform::new(hip);
    platform.find(hip.acpi_rsdp);
    if hip.platform_features & FEATURE_IOMMU != 0 {
        platform.find_iommus(hip.acpi_rsdp);
    }
    let mut choose = |driver: &DriverPlan| {
        let who = format!("driver {}", driver.name);
        platform.choose(driver.device, &who, Use::Driver).err().map(|why| format!("{who}: {why}"))
    };
    let mut refused: Vec<_> = plan.drivers.iter().filter_map(&mut choose).collect();
    refused.extend(plan.vms.iter().filter_map(|vm| {
        let claimed = platform.claim(vm);
        claimed.err().map(|why| format!("vm {}: {why}", vm.config.name))
    }));
    platform.list();
    refused.iter().for_each(|line| log!("root: devices: {line}"));
    // This line is the last one.
    log!("root: the devices are listed");
    power::off()
}

/// Finds the devices, if somebody is to have one.
fn find_devices(hip: &Hip, plan: &SystemPlan) -> Platform {
    let mut platform = Platform::new(hip);
    let passes = plan.vms.iter().any(|vm| !vm.functions.is_empty());
    if plan.drivers.is_empty() && !passes && plan.iommu != Iommu::Required {
        return platform;
    }
    platform.find(hip.acpi_rsdp);
    let remapped = hip.platform_features & FEATURE_IOMMU != 0;
    if remapped {
        platform.find_iommus(hip.acpi_rsdp);
        let told = hip.extension.features & extension::FEATURE_FAULTS != 0;
        if told && let Err(status) = faults::start() {
            log!("root: faults of devices are not told: {status:?}");
        }
    }
    match (plan.iommu, remapped) {
        (_, true) => log!("root: each driver's device reaches only what it is given"),
        (Iommu::Required, false) => {
            let why = if platform::names_iommus(hip.acpi_rsdp) {
                "the kernel uses none of those that the firmware names, see above"
            } else {
                "the firmware names none (no ACPI table DMAR): turn VT-d on in its set-up"
            };
            power::fatal(format_args!("the plan has iommu = \"required\", but there is no IOMMU: {why}"));
        }
        (_, false) => log!("root: warning: without an IOMMU the drivers' devices reach all memory"),
    }
    platform
}

fn announce(hip: &Hip, total: u64, free: u64) {
    let virtualization = match hip.platform_features {
        f if f & FEATURE_VMX != 0 => "VMX",
        f if f & FEATURE_SVM != 0 => "SVM",
        _ => "no virtualization",
    };
    let mhz = hip.stc_frequency / 1_000_000;
    let cpus = if hip.cpu_num == 1 { "CPU" } else { "CPUs" };
    log!("root: {} {cpus}, {virtualization}, time counter {mhz} MHz", hip.cpu_num);
    log!("root: {} MiB of memory, {} MiB free", total >> 20, free >> 20);
}

fn archive(module: PhysRange) -> Archive<'static> {
    let image = match window::bytes(module) {
        Ok(image) => image,
        Err(status) => power::fatal(format_args!("cannot map the root image: {status:?}")),
    };
    let behind = match Image::file_length(image) {
        Ok(length) => image.get(length.next_multiple_of(PAGE as usize)..).unwrap_or(&[]),
        Err(error) => power::fatal(format_args!("the root image {error}")),
    };
    match Archive::new(behind) {
        Ok(archive) => archive,
        Err(error) => power::fatal(format_args!("{error}")),
    }
}

fn read_plan(archive: &Archive<'static>) -> SystemPlan {
    let Some(file) = archive.find(plan::ARCHIVE_PATH) else {
        power::fatal(format_args!("no plan in the archive"));
    };
    let plan = match SystemPlan::decode(file.data) {
        Ok(plan) => plan,
        Err(error) => power::fatal(format_args!("the plan {error}")),
    };
    if let Err(error) = plan.validate() {
        power::fatal(format_args!("the plan cannot be carried out: {error}"));
    }
    log!("root: plan {}: {} virtual machine(s), {} files", plan.name, plan.vms.len(), archive.files().count());
    plan
}

/// Waits until all virtual machines have ended for good, then ends the system. What the kernel can take back of one that
/// has ended it takes back at once: its programs may be looping at any priority.
fn wait(rings: &[SharedRing]) -> ! {
    let events = Semaphore::from_selector(selector::EVENTS);
    loop {
        console::flush();
        if service::serial_died() {
            power::fatal(format_args!("a serial program died"));
        }
        while let Some((id, name)) = service::unsettled() {
            service::settle(id, reclaim::ended(id, &name));
            keeper::wake();
        }
        if keeper::over() {
            break;
        }
        if let Err(status) = events.wait(0) {
            power::fatal(format_args!("cannot wait for events: {status:?}"));
        }
    }
    observe::end();
    // This line is the last one.
    drain(rings);
    log!("root: all VMs ended");
    drain(rings);
    console::drain_uart(console::COM1, DRAIN_MS);
    power::off()
}

/// Waits until the serial programs have taken everything, or nothing has moved for [`DRAIN_MS`].
fn drain(rings: &[SharedRing]) {
    let ends: Vec<_> = rings.iter().filter_map(|r| Sender::from_entry(&r.entry(Role::Producer))).collect();
    let patience = time::ticks_from_ms(DRAIN_MS);
    let mut last = usize::MAX;
    let mut deadline = time::now() + patience;
    loop {
        console::flush();
        let waiting = ends.iter().map(Sender::backlog).sum::<usize>() + console::pending() as usize;
        if waiting == 0 || time::now() >= deadline {
            break;
        }
        if waiting != last {
            (last, deadline) = (waiting, time::now() + patience);
        }
        runtime::sync::sleep_until(time::now() + time::ticks_from_ms(5));
    }
    // What a serial program has taken but not yet handed to its UART.
    runtime::sync::sleep_until(time::now() + time::ticks_from_ms(20));
}
