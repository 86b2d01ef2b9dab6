//! Builds what the plan says: rings, serial programs, virtual machines' monitors.

use crate::authority::selector;
use crate::child::{Builder, Failure, Place, Shape};
use crate::drivers::Server;
use crate::keeper::Machine;
use crate::links::{End, Links};
use crate::platform::Platform;
use crate::rings::{Semaphores, SharedRing};
use crate::service::Purpose;
use crate::{console, power, window};
use abi::{Selector, Status};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use plan::{Console, SystemPlan, VmConfig, VmPlan};
use roottask::acpi::{self, Wire};
use roottask::archive::Archive;
use roottask::frames::{FreeMemory, PAGE, PhysRange};
use runtime::channel::Sender;
use runtime::log;
use runtime::manifest::Role;

/// Alignment of windows: one large page in every table.
const LARGE: u64 = 2 << 20;
/// Bytes in a ring for a console or a log.
const CONSOLE_RING: usize = 16 << 10;
/// Bytes in a ring for keys.
const INPUT_RING: usize = 4 << 10;
/// Bytes in a ring of the exec channel.
const EXEC_RING: usize = 64 << 10;
const SERIAL: Shape =
    Shape { purpose: Purpose::Serial, heap: 256 << 10, stacks: 4, spaces: false, kernel_frames: 512, priority: 100 };

/// Kernel frames for a virtual CPU, with its handler, its portals and its alarm clock.
const FRAMES_PER_VCPU: u64 = 64;

/// Kernel frames for a monitor itself: its objects, the tables of its address space.
const FRAMES_PER_MONITOR: u64 = 44;

/// Kernel frames for the rings and the window of a disk, the rings of a network device, or a virtio console: tables, and
/// threads.
const FRAMES_PER_DEVICE: u64 = 24;

/// A virtual machine's monitor: kernel frames for its objects, and for page tables as its memory and its `files` bytes of
/// files need them.
fn monitor(config: &VmConfig, files: u64) -> Shape {
    let virtio_consoles = u64::from(config.console == Console::Virtio);
    Shape {
        purpose: Purpose::Monitor,
        heap: 8 << 20,
        // Each virtual CPU has a handler and an alarm clock, which one more stack on each CPU starts.
        stacks: 4
            + 3 * u64::from(config.vcpus)
            + virtio_consoles
            + u64::from(plan::function_interrupts(config.vcpus)) * config.functions.len() as u64,
        spaces: true,
        kernel_frames: FRAMES_PER_MONITOR
            + FRAMES_PER_VCPU * u64::from(config.vcpus)
            + (config.memory + files) / PAGE / 256
            + FRAMES_PER_DEVICE * ((config.disks.len() + config.nics.len()) as u64 + virtio_consoles),
        priority: 60,
    }
}

/// What building needs throughout.
pub struct Workshop {
    archive: Archive<'static>,
    /// Memory that nobody has.
    pub free: FreeMemory,
    semaphores: Semaphores,
    /// Rings that serial programs consume.
    pub outgoing: Vec<SharedRing>,
    children: usize,
    pub bounded: bool,
    /// The devices.
    pub platform: Platform,
    madt: Option<&'static [u8]>,
    /// How many CPUs virtual machines can run on.
    cpus: u32,
    /// Virtual CPUs that were given a CPU in turn.
    placed: u32,
}

/// The rings of one virtual machine.
pub struct VmRings {
    log: SharedRing,
    console: Option<(SharedRing, SharedRing)>,
    exec: Option<(SharedRing, SharedRing)>,
    /// Its ends of the rings to drivers and switches.
    devices: Vec<End>,
}

impl VmRings {
    /// Makes all of them usable for the machine's next monitor.
    pub fn recover(&self) {
        self.log.recover(Role::Producer, true);
        self.devices.iter().for_each(End::recover);
        for (rings, text) in [(&self.console, true), (&self.exec, false)] {
            if let Some((out, input)) = rings {
                out.recover(Role::Producer, text);
                input.recover(Role::Consumer, text);
            }
        }
    }
}

/// Says what `result` failed with, for whom, and ends.
pub fn must<T>(who: &str, result: Result<T, Failure>) -> T {
    match result {
        Ok(value) => value,
        Err(failure) => power::fatal(format_args!("{who}: {failure}")),
    }
}

/// Ends if the kernel refuses what the root task itself needs.
pub fn must_kernel<T>(result: Result<T, Status>) -> T {
    match result {
        Ok(value) => value,
        Err(status) => power::fatal(format_args!("the kernel refuses what the root task needs: {status:?}")),
    }
}

impl Workshop {
    /// With nothing built yet, on a machine with `cpus` CPUs. `bounded`: the kernel knows allowances.
    pub fn new(
        archive: Archive<'static>,
        free: FreeMemory,
        platform: Platform,
        bounded: bool,
        madt: Option<&'static [u8]>,
        cpus: u32,
    ) -> Self {
        Self {
            archive,
            free,
            semaphores: Semaphores::new(),
            outgoing: Vec::new(),
            children: 0,
            bounded,
            platform,
            madt,
            cpus: cpus.clamp(1, plan::CPUS_MAX),
            placed: 0,
        }
    }

    /// A CPU for each virtual CPU: those that the plan names in turn, else all of the machine, going on where the last
    /// virtual machine ended.
    fn place(&mut self, config: &VmConfig) -> Vec<u32> {
        if let Some(cpu) = config.cpus.iter().find(|&&cpu| cpu >= self.cpus) {
            let (name, cpus) = (&config.name, self.cpus);
            power::fatal(format_args!("vm {name} is to run on CPU {cpu}, but this machine's are 0 to {}", cpus - 1));
        }
        let named: Vec<u32> = config.cpus.iter().copied().cycle().take(config.vcpus as usize).collect();
        if !named.is_empty() {
            return named;
        }
        let start = self.placed;
        self.placed += config.vcpus;
        (start..self.placed).map(|turn| turn % self.cpus).collect()
    }

    /// A file of the archive.
    pub fn file(&self, path: &str) -> &'static [u8] {
        match self.archive.find(path) {
            Some(file) => file.data,
            None => power::fatal(format_args!("{path} is missing in the archive")),
        }
    }

    /// A new semaphore.
    pub fn semaphore(&mut self) -> Selector {
        must_kernel(self.semaphores.make())
    }

    /// A new ring with the semaphores that its consumer and its producer wait on.
    pub fn ring(&mut self, capacity: usize, data: Selector, space: Selector) -> SharedRing {
        match must_kernel(SharedRing::make(&mut self.free, capacity, data, space)) {
            Some(ring) => ring,
            None => power::fatal(format_args!("not enough memory for a ring of {} KiB", capacity >> 10)),
        }
    }

    /// Cleared memory that programs share for ever.
    pub fn shared_memory(&mut self, length: u64) -> PhysRange {
        let Some(memory) = self.free.allocate(length, LARGE) else {
            power::fatal(format_args!("not enough memory for a window of {} MiB", length >> 20));
        };
        must_kernel(window::fill(memory, &[], 0));
        memory
    }

    /// Builds and starts everything; the virtual machines, and what serves them.
    pub fn build(&mut self, mut plan: SystemPlan) -> (Vec<Machine>, Vec<Server>) {
        plan.vms.iter_mut().for_each(|vm| vm.config.cpus = self.place(&vm.config));
        let serial = self.file(&plan::program_path("serial"));
        // Each serial program waits on one semaphore for everything.
        let work = self.semaphore();
        let channel_work = self.semaphore();
        let root_log = self.ring(CONSOLE_RING, work, selector::EVENTS);
        self.outgoing.push(root_log);
        let mut links = Links::make(&plan, self);
        let rings: Vec<VmRings> = plan
            .vms
            .iter()
            .zip(core::mem::take(&mut links.vms))
            .map(|(vm, devices)| VmRings {
                devices,
                log: self.ring_to_serial(CONSOLE_RING, work),
                console: (vm.config.console != Console::None)
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
        let servers = self.start_servers(&plan, links);
        let start = |(vm, rings): (VmPlan, VmRings)| {
            let who = format!("vm {}", vm.config.name);
            let mut place = self.next_place();
            let functions = must(&who, self.platform.claim(&vm).map_err(Failure::Device));
            must(&who, self.monitor(&mut place, &vm, &rings, &functions));
            log!("root: started {who} with {} MiB", vm.config.memory >> 20);
            Machine::new(place, vm, rings, functions)
        };
        (plan.vms.into_iter().zip(rings).map(start).collect(), servers)
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

    /// A place for a child.
    pub fn next_place(&mut self) -> Place {
        self.children += 1;
        Place::new(self.children - 1)
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
        // It is never given back: the system ends with a serial program.
        let mut place = self.next_place();
        let mut builder = Builder::new(&mut place, name, SERIAL, self.bounded, &mut self.free)?;
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

    /// Builds and starts the monitor of a virtual machine, which has the functions with these numbers to itself.
    pub fn monitor(
        &mut self,
        place: &mut Place,
        vm: &VmPlan,
        rings: &VmRings,
        functions: &[usize],
    ) -> Result<(), Failure> {
        let config = &vm.config;
        let program = self.file(&plan::program_path(&vm.monitor));
        let kernel = self.file(&vm.kernel);
        let initrds: Vec<_> = vm.initrd.iter().map(|path| self.file(path)).collect();
        let files: u64 = initrds.iter().chain([&program, &kernel]).map(|file| file.len() as u64).sum();
        let mut shape = monitor(config, files);
        shape.kernel_frames += self.platform.kernel_frames(functions, config.memory);
        let mut builder = Builder::new(place, &config.name, shape, self.bounded, &mut self.free)?;
        config.cpus.iter().for_each(|&cpu| builder.cpu(cpu));
        let memory = builder.guest_memory(config.memory)?;
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
        rings.devices.iter().try_for_each(|end| end.give(&mut builder, None))?;
        self.platform.pass(functions, config, memory, &mut builder)?;
        builder.start()
    }
}
