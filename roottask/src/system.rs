//! Carries out the plan: archive, programs, virtual machines, and the wait for their end.

use crate::authority::selector;
use crate::child::{Builder, Failure, Shape};
use crate::rings::{Semaphores, SharedRing};
use crate::service::{self, Purpose};
use crate::start::Boot;
use crate::{console, kernel_log, power, watchdog, window};
use abi::hip::{FEATURE_SVM, FEATURE_VMX, Hip};
use abi::{Selector, Status, extension};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use plan::{SystemPlan, VmPlan};
use roottask::acpi::{self, Wire};
use roottask::archive::Archive;
use roottask::frames::{FreeMemory, PAGE, PhysRange};
use roottask::image::Image;
use runtime::channel::Sender;
use runtime::log;
use runtime::manifest::Role;
use runtime::sync::Semaphore;
use runtime::{syscall, time};

/// Bytes in a ring for a console or a log.
const CONSOLE_RING: usize = 16 << 10;
/// Bytes in a ring for keys.
const INPUT_RING: usize = 4 << 10;
/// Bytes in a ring of the exec channel.
const EXEC_RING: usize = 64 << 10;
/// How long the programs get to take what is in their rings, without any progress, before the machine goes off.
const DRAIN_MS: u64 = 5000;

const SERIAL: Shape =
    Shape { purpose: Purpose::Serial, heap: 256 << 10, stacks: 4, spaces: false, kernel_frames: 512, priority: 100 };

/// A virtual machine's monitor: kernel frames for its objects, and for page tables as its memory needs them.
fn monitor(memory: u64) -> Shape {
    Shape {
        purpose: Purpose::Monitor,
        heap: 8 << 20,
        stacks: 8,
        spaces: true,
        kernel_frames: 512 + memory / PAGE / 256,
        priority: 60,
    }
}

/// What building needs throughout.
struct Workshop {
    archive: Archive<'static>,
    free: FreeMemory,
    semaphores: Semaphores,
    /// Rings that serial programs consume.
    outgoing: Vec<SharedRing>,
    children: usize,
    bounded: bool,
    madt: Option<&'static [u8]>,
}

/// The rings of one virtual machine.
struct VmRings {
    log: SharedRing,
    console: Option<(SharedRing, SharedRing)>,
    exec: Option<(SharedRing, SharedRing)>,
}

/// Says what `result` failed with, for whom, and ends.
fn must<T>(who: &str, result: Result<T, Failure>) -> T {
    match result {
        Ok(value) => value,
        Err(failure) => power::fatal(format_args!("{who}: {failure}")),
    }
}

fn must_kernel<T>(result: Result<T, Status>) -> T {
    match result {
        Ok(value) => value,
        Err(status) => power::fatal(format_args!("the kernel refuses what the root task needs: {status:?}")),
    }
}

/// Runs the system to its end.
pub fn run(boot: Boot) -> ! {
    let Boot { hip, module, free, total, .. } = boot;
    announce(&hip, total, free.total());
    must_kernel(syscall::create_sm(selector::EVENTS, runtime::manifest::selector::PROTECTION_DOMAIN, 0));
    for lock in [selector::LOCK_CONSOLE, selector::LOCK_CHILDREN] {
        must_kernel(syscall::create_sm(lock, runtime::manifest::selector::PROTECTION_DOMAIN, 0));
    }
    must_kernel(service::start(hip.cpu_bsp as u32));
    must_kernel(kernel_log::start(PhysRange::new(hip.mbuf_start, hip.mbuf_end)));
    let archive = archive(module);
    let plan = read_plan(&archive);
    if hip.platform_features & (FEATURE_VMX | FEATURE_SVM) == 0 {
        power::fatal(format_args!("this CPU offers neither VMX nor SVM: virtual machines are impossible"));
    }
    let madt = (hip.acpi_rsdp != abi::hip::NOT_PRESENT)
        .then(|| acpi::find(&mut window::Tables, hip.acpi_rsdp, b"APIC"))
        .flatten();
    let bounded = hip.extension.features & extension::FEATURE_ALLOWANCE != 0;
    let semaphores = Semaphores::new();
    let mut workshop = Workshop { archive, free, semaphores, outgoing: Vec::new(), children: 0, bounded, madt };
    workshop.build(&plan);
    must_kernel(watchdog::start(service::watched()));
    wait(&workshop.outgoing)
}

fn announce(hip: &Hip, total: u64, free: u64) {
    let virtualization = match hip.platform_features {
        f if f & FEATURE_VMX != 0 => "VMX",
        f if f & FEATURE_SVM != 0 => "SVM",
        _ => "no virtualization",
    };
    let mhz = hip.stc_frequency / 1_000_000;
    log!("root: {} CPU, {virtualization}, time counter {mhz} MHz", hip.cpu_num);
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

impl Workshop {
    fn file(&self, path: &str) -> &'static [u8] {
        match self.archive.find(path) {
            Some(file) => file.data,
            None => power::fatal(format_args!("{path} is missing in the archive")),
        }
    }

    fn semaphore(&mut self) -> Selector {
        must_kernel(self.semaphores.make())
    }

    fn ring(&mut self, capacity: usize, data: Selector, space: Selector) -> SharedRing {
        match must_kernel(SharedRing::make(&mut self.free, capacity, data, space)) {
            Some(ring) => ring,
            None => power::fatal(format_args!("not enough memory for a ring of {} KiB", capacity >> 10)),
        }
    }

    fn build(&mut self, plan: &SystemPlan) {
        let serial = self.file(&plan::program_path("serial"));
        // Each serial program waits on one semaphore for everything.
        let work = self.semaphore();
        let channel_work = self.semaphore();
        let root_log = self.ring(CONSOLE_RING, work, selector::EVENTS);
        self.outgoing.push(root_log);
        let rings: Vec<VmRings> = plan
            .vms
            .iter()
            .map(|vm| VmRings {
                log: self.ring_to_serial(CONSOLE_RING, work),
                console: vm
                    .config
                    .console
                    .then(|| (self.ring_to_serial(CONSOLE_RING, work), self.ring_of_keys(INPUT_RING, work))),
                exec: vm.config.exec.then(|| {
                    (self.ring_to_serial(EXEC_RING, channel_work), self.ring_of_keys(EXEC_RING, channel_work))
                }),
            })
            .collect();
        let mut ends = Vec::new();
        ends.push((root_log, String::from("log:root"), Role::Consumer));
        for (vm, rings) in plan.vms.iter().zip(&rings) {
            ends.push((rings.log, format!("log:{}", vm.config.name), Role::Consumer));
            if let Some((out, input)) = rings.console {
                ends.push((out, format!("out:{}", vm.config.name), Role::Consumer));
                ends.push((input, format!("in:{}", vm.config.name), Role::Producer));
            }
        }
        must("program serial", self.serial("serial", serial, console::COM1, 4, b"console", &ends));
        if let Some(log) = Sender::from_entry(&root_log.entry(Role::Producer)) {
            console::use_ring(log);
        }
        for (vm, rings) in plan.vms.iter().zip(&rings) {
            if let Some((out, input)) = rings.exec {
                let name = &vm.config.name;
                let ends =
                    [(out, format!("out:{name}"), Role::Consumer), (input, format!("in:{name}"), Role::Producer)];
                must("program exec", self.serial("exec", serial, console::COM2, 3, b"channel", &ends));
            }
        }
        for (vm, rings) in plan.vms.iter().zip(&rings) {
            let who = format!("vm {}", vm.config.name);
            must(&who, self.monitor(vm, rings));
        }
    }

    fn ring_to_serial(&mut self, capacity: usize, work: Selector) -> SharedRing {
        let space = self.semaphore();
        let ring = self.ring(capacity, work, space);
        self.outgoing.push(ring);
        ring
    }

    fn ring_of_keys(&mut self, capacity: usize, work: Selector) -> SharedRing {
        let data = self.semaphore();
        self.ring(capacity, data, work)
    }

    fn next_child(&mut self) -> usize {
        self.children += 1;
        self.children - 1
    }

    fn serial(
        &mut self,
        name: &str,
        program: &'static [u8],
        base: u16,
        irq: u8,
        mode: &[u8],
        ends: &[(SharedRing, String, Role)],
    ) -> Result<(), Failure> {
        let wire: Wire = acpi::isa_wire(self.madt, irq);
        let id = self.next_child();
        let mut builder = Builder::new(id, name, SERIAL, self.bounded, &mut self.free)?;
        builder.program(program)?;
        builder.ports("uart", base, console::PORTS)?;
        builder.interrupt("uart", wire)?;
        builder.config(mode)?;
        for (ring, name, role) in ends {
            builder.ring(ring, name, *role, true)?;
        }
        builder.start()?;
        log!("root: started program {name} on ports {base:#x} and interrupt {}", wire.gsi);
        Ok(())
    }

    fn monitor(&mut self, vm: &VmPlan, rings: &VmRings) -> Result<(), Failure> {
        let config = &vm.config;
        let program = self.file(&plan::program_path(&vm.monitor));
        let kernel = self.file(&vm.kernel);
        let initrds: Vec<_> = vm.initrd.iter().map(|path| self.file(path)).collect();
        let id = self.next_child();
        let mut builder = Builder::new(id, &config.name, monitor(config.memory), self.bounded, &mut self.free)?;
        builder.guest_memory(config.memory)?;
        builder.program(program)?;
        builder.file("kernel", kernel)?;
        for (i, initrd) in initrds.into_iter().enumerate() {
            builder.file(&format!("initrd{i}"), initrd)?;
        }
        builder.config(&config.encode())?;
        builder.ring(&rings.log, "log", Role::Producer, false)?;
        if let Some((out, input)) = &rings.console {
            builder.ring(out, "console", Role::Producer, false)?;
            builder.ring(input, "input", Role::Consumer, false)?;
        }
        if let Some((out, input)) = &rings.exec {
            builder.ring(out, "exec", Role::Producer, false)?;
            builder.ring(input, "exec-input", Role::Consumer, false)?;
        }
        builder.start()?;
        log!("root: started vm {} with {} MiB", config.name, config.memory >> 20);
        Ok(())
    }
}

/// Waits until all virtual machines have ended, then ends the system.
fn wait(rings: &[SharedRing]) -> ! {
    let events = Semaphore::from_selector(selector::EVENTS);
    loop {
        console::flush();
        let (serial_died, all_ended) = service::progress();
        if serial_died {
            power::fatal(format_args!("a serial program died"));
        }
        if all_ended {
            break;
        }
        if let Err(status) = events.wait(0) {
            power::fatal(format_args!("cannot wait for events: {status:?}"));
        }
    }
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
