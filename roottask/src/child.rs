//! Builds a program's protection domain: memory, image, rings, manifest, portals, execution and scheduling context.
#![allow(unsafe_code)]

use crate::authority::{self, selector};
use crate::rings::SharedRing;
use crate::service::{self, Child, Purpose};
use crate::start::layout;
use crate::window;
use abi::capability::{MEMORY_ALL, Permissions, SELECTOR_COUNT, nova};
use abi::hypercall::{CreatePd, flag};
use abi::scd::Scd;
use abi::{Selector, Status};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use roottask::acpi::Wire;
use roottask::frames::{FreeMemory, PAGE, PhysRange};
use roottask::image::{Image, ImageError};
use runtime::manifest::{
    InterruptEntry, Manifest, Name, PortEntry, Range, RegionEntry, RingEntry, Role, selector as own,
};
use runtime::pulse::{self, Pulse, SLOTS};
use runtime::syscall::{self, EcKind, Span};
use runtime::{STACK_RESERVE, STACK_SIZE, STACK_SLOT};

/// Addresses in a child beside those of [`layout`].
const MANIFEST: u64 = 0x1000_0000;
const CONFIG: u64 = MANIFEST + 0x1_0000;
const PULSES: u64 = 0x1100_0000;
const RINGS: u64 = 0x3000_0000;
/// Files, each in a slot of its own.
const FILES: u64 = 0x10_0000_0000;
const FILE_SLOT: u64 = 1 << 32;
/// Registers of a device, and what is shared with other programs, each in 2 MiB of its own.
const SHARED: u64 = 0x80_0000_0000;
const GUEST_RAM: u64 = 0x100_0000_0000;
/// Alignment of guest memory: large pages in every table.
const LARGE: u64 = 2 << 20;

/// Selectors of a child in the root object space, from its base.
const PD: Selector = 0;
const OBJECT_SPACE: Selector = 1;
const HOST_SPACE: Selector = 2;
const PIO_SPACE: Selector = 3;
const EC: Selector = 4;
const SC: Selector = 5;
const DMA_SPACE: Selector = 6;
/// Portals: 32 exceptions, STARTUP, RECALL, parent.
const PORTALS: Selector = 0x40;

static NO_PULSES: [Pulse; SLOTS] = [const { Pulse::new() }; SLOTS];

/// The protection domain of child number `id`, in the root object space.
pub fn protection_domain(id: usize) -> Selector {
    selector::CHILDREN + id as u64 * selector::PER_CHILD + PD
}

/// Its object space and its host space, there.
pub fn spaces(id: usize) -> (Selector, Selector) {
    let base = protection_domain(id) - PD;
    (base + OBJECT_SPACE, base + HOST_SPACE)
}

/// A place for a child and, when that is gone, for its successor.
pub struct Place {
    /// Its number.
    pub id: usize,
    memory: Vec<PhysRange>,
    /// Its page of signs of life. It stays, as the watchdog looks there.
    pulses: Option<(PhysRange, &'static [Pulse; SLOTS])>,
}

impl Place {
    /// Place number `id`, empty.
    pub fn new(id: usize) -> Self {
        Self { id, memory: Vec::new(), pulses: None }
    }

    /// Gives all memory that was the child's own to `free`; how many bytes that was. The child must be gone.
    pub fn vacate(&mut self, free: &mut FreeMemory) -> u64 {
        let bytes = self.memory.iter().map(PhysRange::length).sum();
        self.memory.drain(..).for_each(|range| free.add(range));
        bytes
    }
}

/// Why a child could not be built.
pub enum Failure {
    /// Not enough memory for this.
    Memory {
        /// For what.
        what: &'static str,
        /// Bytes needed in one piece.
        need: u64,
        /// Bytes free.
        free: u64,
        /// Bytes in the largest suitable piece.
        largest: u64,
    },
    /// The program's image cannot be used.
    Image(ImageError),
    /// A hypercall failed.
    Kernel(&'static str, Status),
    /// The manifest has no room for another entry of this kind.
    Manifest(&'static str),
    /// The device is not there, or cannot be used.
    Device(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        match self {
            Self::Memory { what, need, free, largest } => write!(
                f,
                "not enough memory: {what} needs {} MiB in one piece, {} MiB are free, {} MiB of them in one piece",
                mib(*need),
                free >> 20,
                largest >> 20
            ),
            Self::Image(error) => write!(f, "its program {error}"),
            Self::Kernel(what, status) => write!(f, "the kernel refuses {what}: {status:?}"),
            Self::Manifest(what) => write!(f, "too many {what}"),
            Self::Device(reason) => f.write_str(reason),
        }
    }
}

/// Names the hypercall that failed.
pub fn kernel(what: &'static str) -> impl Fn(Status) -> Failure {
    move |status| Failure::Kernel(what, status)
}

/// What a kind of program gets.
pub struct Shape {
    /// What it is for.
    pub purpose: Purpose,
    /// Bytes of heap.
    pub heap: u64,
    /// Number of stacks, the main one included.
    pub stacks: u64,
    /// Whether it may create protection domains and spaces.
    pub spaces: bool,
    /// Frames of kernel memory that it can use, where the kernel bounds that.
    pub kernel_frames: u64,
    /// Priority of its main EC.
    pub priority: u8,
}

/// A child under construction.
pub struct Builder<'a> {
    free: &'a mut FreeMemory,
    place: &'a mut Place,
    base: Selector,
    name: String,
    shape: Shape,
    manifest: Box<Manifest>,
    named: Selector,
    ring_address: u64,
    shared_address: u64,
    files: u64,
    pulses: &'static [Pulse; SLOTS],
    image: &'static [u8],
    entry: u64,
    further_cpus: Vec<u32>,
}

impl<'a> Builder<'a> {
    /// Makes the protection domain of the child at `place`, with its spaces, heap and stacks. `bounded`: the kernel
    /// knows allowances.
    pub fn new(
        place: &'a mut Place,
        name: &str,
        shape: Shape,
        bounded: bool,
        free: &'a mut FreeMemory,
    ) -> Result<Self, Failure> {
        let base = protection_domain(place.id) - PD;
        let make = |sel, what, pd| syscall::create_pd(base + sel, what, pd).map_err(kernel("a protection domain"));
        make(PD, CreatePd::ProtectionDomain, own::PROTECTION_DOMAIN)?;
        if bounded {
            syscall::move_allowance(base + PD, shape.kernel_frames).map_err(kernel("an allowance"))?;
        }
        make(OBJECT_SPACE, CreatePd::ObjectSpace, base + PD)?;
        make(HOST_SPACE, CreatePd::HostSpace, base + PD)?;
        make(PIO_SPACE, CreatePd::PioSpace, base + PD)?;
        let mut manifest = Box::new(*runtime::manifest());
        manifest.name = Name::new(name);
        manifest.main_utcb = layout::UTCBS;
        manifest.utcbs = Range { address: layout::UTCBS + PAGE, length: (layout::UTCB_PAGES - 1) * PAGE };
        manifest.heap = Range { address: layout::HEAP, length: shape.heap };
        manifest.stacks = Range { address: layout::STACKS, length: shape.stacks * STACK_SLOT as u64 };
        let mut builder = Self {
            free,
            place,
            base,
            name: name.into(),
            manifest,
            named: own::NAMED,
            ring_address: RINGS,
            shared_address: SHARED,
            files: 0,
            pulses: &NO_PULSES,
            image: &[],
            entry: 0,
            further_cpus: Vec::new(),
            shape,
        };
        builder.memory("the heap", layout::HEAP, builder.shape.heap)?;
        builder.pulse_page()?;
        for slot in 0..builder.shape.stacks {
            let address = layout::STACKS + slot * STACK_SLOT as u64 + (STACK_SLOT - STACK_SIZE) as u64;
            builder.memory("a stack", address, STACK_SIZE as u64)?;
        }
        Ok(builder)
    }

    fn allocate(&mut self, what: &'static str, length: u64, align: u64) -> Result<PhysRange, Failure> {
        let (free, largest) = (self.free.total(), self.free.largest(align));
        let memory = self.free.allocate(length, align).ok_or(Failure::Memory { what, need: length, free, largest })?;
        self.place.memory.push(memory);
        Ok(memory)
    }

    fn grant(&self, memory: PhysRange, address: u64, mask: Permissions) -> Result<(), Failure> {
        // SAFETY: the child's host space, not the root task's.
        unsafe { window::grant(self.base + HOST_SPACE, memory, address, mask) }.map_err(kernel("memory"))
    }

    /// Fresh memory, cleared, then `content` at offset `at`; mapped at `address`.
    fn place(
        &mut self,
        what: &'static str,
        address: u64,
        length: u64,
        (content, at): (&[u8], usize),
        mask: Permissions,
    ) -> Result<PhysRange, Failure> {
        let memory = self.allocate(what, length, PAGE)?;
        window::fill(memory, content, at).map_err(kernel("memory"))?;
        self.grant(memory, address, mask)?;
        Ok(memory)
    }

    fn memory(&mut self, what: &'static str, address: u64, length: u64) -> Result<(), Failure> {
        let mask = Permissions::READ | Permissions::WRITE;
        self.place(what, address, length, (&[], 0), mask).map(drop)
    }

    /// The page of signs of life, which the root task keeps seeing.
    fn pulse_page(&mut self) -> Result<(), Failure> {
        let mask = Permissions::READ | Permissions::WRITE;
        let (memory, pulses) = match self.place.pulses {
            Some((memory, pulses)) => {
                pulses.iter().for_each(Pulse::reset);
                (memory, pulses)
            }
            None => {
                let memory = self.allocate("a page", PAGE, PAGE)?;
                self.place.memory.pop();
                window::fill(memory, &[], 0).map_err(kernel("memory"))?;
                let address = window::map(memory, mask).map_err(kernel("memory"))?;
                // SAFETY: mapped for ever; program and root task access it by atomics only, and zeros are a valid value.
                (memory, unsafe { &*address.cast() })
            }
        };
        self.place.pulses = Some((memory, pulses));
        self.pulses = pulses;
        self.grant(memory, PULSES, mask)?;
        self.region(pulse::REGION, true, Range { address: PULSES, length: PAGE }, 0)
    }

    /// Loads the program.
    pub fn program(&mut self, bytes: &'static [u8]) -> Result<(), Failure> {
        let image = Image::new(bytes).map_err(Failure::Image)?;
        for segment in image.segments() {
            let segment = segment.map_err(Failure::Image)?;
            let mut mask = Permissions::READ;
            mask.set(Permissions::WRITE, segment.writable);
            mask.set(Permissions::EXECUTE_USER, segment.executable);
            let at = segment.address % PAGE;
            let content = (segment.data, at as usize);
            self.place("the program", segment.address - at, segment.length + at, content, mask)?;
        }
        (self.image, self.entry) = (bytes, image.entry());
        Ok(())
    }

    /// Gives the capability `sel` of the root task; the selector in the child.
    fn object(&mut self, sel: Selector, mask: Permissions) -> Result<Selector, Failure> {
        let to = self.named;
        self.named += 1;
        self.object_at(sel, to, mask)?;
        Ok(to)
    }

    fn object_at(&self, sel: Selector, to: Selector, mask: Permissions) -> Result<(), Failure> {
        syscall::delegate_object(own::OBJECT_SPACE, sel, self.base + OBJECT_SPACE, to, mask)
            .map_err(kernel("a capability"))
    }

    /// Gives one end of a ring. `shared` semaphores serve several rings of this child: it may up and down them.
    pub fn ring(&mut self, ring: &SharedRing, name: &str, role: Role, shared: bool) -> Result<(), Failure> {
        let both = Permissions::UP | Permissions::DOWN;
        let (data, space) = match role {
            Role::Producer => (Permissions::UP, if shared { both } else { Permissions::DOWN }),
            Role::Consumer => (if shared { both } else { Permissions::DOWN }, Permissions::UP),
        };
        let (sel_data, sel_space) = (self.object(ring.data, data)?, self.object(ring.space, space)?);
        let memory = Range { address: self.ring_address, length: ring.memory.length() };
        self.grant(ring.memory, memory.address, Permissions::READ | Permissions::WRITE)?;
        self.ring_address += memory.length + PAGE;
        let entry = RingEntry { name: Name::new(name), role: role as u32, memory, sel_data, sel_space };
        self.manifest.add_ring(entry).then_some(()).ok_or(Failure::Manifest("rings"))
    }

    fn region(&mut self, name: &str, writable: bool, memory: Range, device: u64) -> Result<(), Failure> {
        let entry = RegionEntry { name: Name::new(name), writable: writable as u32, memory, device };
        self.manifest.add_region(entry).then_some(()).ok_or(Failure::Manifest("regions"))
    }

    /// Maps a file of the archive read-only: its own pages if it begins at a page, else a copy.
    pub fn file(&mut self, name: &str, data: &'static [u8]) -> Result<(), Failure> {
        let address = FILES + self.files * FILE_SLOT;
        self.files += 1;
        let start = window::physical(data);
        if start.is_multiple_of(PAGE) {
            let pages = PhysRange::new(start, start + data.len() as u64).pages_around();
            self.grant(pages, address, Permissions::READ)?;
        } else {
            self.place("a file", address, data.len() as u64, (data, 0), Permissions::READ)?;
        }
        self.region(name, false, Range { address, length: data.len() as u64 }, 0)
    }

    /// Gives contiguous, cleared memory for a guest; which it is.
    pub fn guest_memory(&mut self, length: u64) -> Result<PhysRange, Failure> {
        let memory = self.allocate("the guest", length, LARGE)?;
        window::fill(memory, &[], 0).map_err(kernel("memory"))?;
        self.grant(memory, GUEST_RAM, MEMORY_ALL)?;
        self.region("guest-ram", true, Range { address: GUEST_RAM, length }, 0)?;
        Ok(memory)
    }

    /// Addresses for `length` bytes of what other programs or a device have, too.
    fn shared(&mut self, length: u64) -> u64 {
        let address = self.shared_address;
        self.shared_address += length.next_multiple_of(LARGE) + LARGE;
        address
    }

    /// Gives memory that somebody else has, too; a device finds it at `device`, 0: none does.
    pub fn window(&mut self, name: &str, memory: PhysRange, device: u64) -> Result<(), Failure> {
        let address = self.shared(memory.length());
        self.grant(memory, address, Permissions::READ | Permissions::WRITE)?;
        self.region(name, true, Range { address, length: memory.length() }, device)
    }

    /// Gives contiguous, cleared memory that a device finds where `place` says.
    pub fn dma(
        &mut self,
        name: &str,
        length: u64,
        place: impl FnOnce(PhysRange) -> Result<u64, Failure>,
    ) -> Result<(), Failure> {
        let memory = self.allocate("memory for a device", length, PAGE)?;
        window::fill(memory, &[], 0).map_err(kernel("memory"))?;
        let device = place(memory)?;
        self.window(name, memory, device)
    }

    /// Gives registers of a device, uncacheable; the pages of `protected` only to read.
    pub fn registers(&mut self, name: &str, range: PhysRange, protected: Option<PhysRange>) -> Result<(), Failure> {
        let pages = range.pages_around();
        let base = self.shared(pages.length());
        let read_only = protected.map_or(PhysRange::default(), |range| range.pages_around());
        let cut = |at: u64| at.clamp(pages.start, pages.end);
        let (first, last) = (cut(read_only.start), cut(read_only.end));
        let both = Permissions::READ | Permissions::WRITE;
        for (part, mask) in [
            (PhysRange::new(pages.start, first), both),
            (PhysRange::new(first, last), Permissions::READ),
            (PhysRange::new(last, pages.end), both),
        ] {
            let address = base + (part.start - pages.start);
            if part.length() != 0 {
                // SAFETY: the child's host space, not the root task's.
                unsafe { window::grant_registers(self.base + HOST_SPACE, part, address, mask) }
                    .map_err(kernel("registers"))?;
            }
        }
        let writable = (first, last) != (pages.start, pages.end);
        self.region(name, writable, Range { address: base + range.start % PAGE, length: range.length() }, 0)
    }

    /// Gives the semaphore of a message-signalled interrupt, which is routed to [`Self::cpu_number`].
    pub fn message(&mut self, name: &str, semaphore: Selector) -> Result<(), Failure> {
        let selector = self.object(semaphore, Permissions::DOWN)?;
        let entry = InterruptEntry { name: Name::new(name), used: 1, selector };
        self.manifest.add_interrupt(entry).then_some(()).ok_or(Failure::Manifest("interrupts"))
    }

    /// Makes a DMA space, which goes with the program; its selector in the root object space.
    pub fn dma_space(&mut self) -> Result<Selector, Failure> {
        let space = self.base + DMA_SPACE;
        syscall::create_pd(space, CreatePd::DmaSpace, self.base + PD).map_err(kernel("a DMA space"))?;
        Ok(space)
    }

    /// The CPU of the main EC.
    pub fn cpu_number(&self) -> u32 {
        self.manifest.cpu
    }

    /// Gives I/O ports.
    pub fn ports(&mut self, name: &str, base: u16, count: u16) -> Result<(), Failure> {
        authority::give_ports(self.base + PIO_SPACE, base, count).map_err(kernel("ports"))?;
        let entry = PortEntry { name: Name::new(name), base, count };
        self.manifest.add_port(entry).then_some(()).ok_or(Failure::Manifest("ports"))
    }

    /// Routes an interrupt to the child's CPU and gives its semaphore.
    pub fn interrupt(&mut self, name: &str, wire: Wire) -> Result<(), Failure> {
        let copy = selector::INTERRUPTS + wire.gsi as u64;
        authority::take_from_kernel(nova::INTERRUPT_BASE + wire.gsi as u64, copy).map_err(kernel("an interrupt"))?;
        let flags = if wire.level { flag::INT_LEVEL } else { 0 } | if wire.low { flag::INT_LOW } else { 0 };
        syscall::assign_int(copy, flags, self.manifest.cpu, 0).map_err(kernel("an interrupt"))?;
        let selector = self.object(copy, Permissions::DOWN)?;
        let entry = InterruptEntry { name: Name::new(name), used: 1, selector };
        self.manifest.add_interrupt(entry).then_some(()).ok_or(Failure::Manifest("interrupts"))
    }

    /// Lets the program use `cpu`, too.
    pub fn cpu(&mut self, cpu: u32) {
        if cpu != self.manifest.cpu && !self.further_cpus.contains(&cpu) {
            self.further_cpus.push(cpu);
        }
    }

    /// Gives the portals for events, and the portal to the root task, on each CPU.
    fn portals(&self, instance: u32) -> Result<(), Failure> {
        let arch = self.manifest.sel_hst_arch as u64;
        let further = selector::FURTHER_PORTALS + self.place.id as u64 * selector::FURTHER_PER_CHILD;
        for cpu in core::iter::once(self.manifest.cpu).chain(self.further_cpus.iter().copied()) {
            let (events, parent) =
                self.manifest.portals_on(cpu).ok_or(Failure::Kernel("portals on a CPU", Status::BadCpu))?;
            let base = match events.checked_sub(own::FURTHER_EVENTS) {
                Some(block) => further + block,
                None => self.base + PORTALS,
            };
            service::start(cpu).map_err(kernel("the root task on a CPU"))?;
            let whose = (self.place.id, instance);
            service::make_portals(whose, cpu, base, self.base + PD).map_err(kernel("portals"))?;
            let exceptions = Span { source: base, destination: events, order: 5 };
            // SAFETY: between object spaces.
            unsafe {
                syscall::delegate(own::OBJECT_SPACE, self.base + OBJECT_SPACE, exceptions, Permissions::EVENT, 0)
                    .map_err(kernel("portals"))?;
            }
            self.object_at(base + 32, events + arch, Permissions::EVENT)?;
            self.object_at(base + 33, events + arch + 1, Permissions::EVENT)?;
            self.object_at(base + 34, parent, Permissions::CALL)?;
        }
        Ok(())
    }

    /// Gives configuration bytes.
    pub fn config(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.place("the configuration", CONFIG, bytes.len() as u64, (bytes, 0), Permissions::READ)?;
        self.manifest.config = Range { address: CONFIG, length: bytes.len() as u64 };
        Ok(())
    }

    /// Gives the manifest and the portals, and starts the program.
    pub fn start(mut self) -> Result<(), Failure> {
        self.manifest.selectors = [self.named, SELECTOR_COUNT];
        // SAFETY: the manifest is plain data without padding that matters; it is copied as it lies.
        let bytes = unsafe {
            core::slice::from_raw_parts(core::ptr::from_ref(&*self.manifest).cast::<u8>(), size_of::<Manifest>())
        };
        let memory = self.allocate("the manifest", (bytes.len() as u64).next_multiple_of(PAGE), PAGE)?;
        window::fill(memory, bytes, 0).map_err(kernel("memory"))?;
        self.grant(memory, MANIFEST, Permissions::READ)?;
        let base = self.base;
        let id = self.place.id;
        let instance = service::register(
            id,
            Child {
                name: self.name.clone(),
                purpose: self.shape.purpose,
                image: self.image,
                entry: self.entry,
                stack: layout::STACKS + (STACK_SLOT - STACK_RESERVE) as u64,
                manifest: MANIFEST,
                objects: base + OBJECT_SPACE,
                pulses: self.pulses,
                instance: 0,
                ended: None,
                settled: None,
            },
        );
        self.portals(instance)?;
        let mut rights = Permissions::EC | Permissions::SC | Permissions::PT | Permissions::SM;
        rights.set(Permissions::PD, self.shape.spaces);
        self.object_at(base + PD, own::PROTECTION_DOMAIN, rights)?;
        self.object_at(base + OBJECT_SPACE, own::OBJECT_SPACE, Permissions::TAKE | Permissions::GRANT)?;
        self.object_at(base + HOST_SPACE, own::HOST_SPACE, Permissions::TAKE | Permissions::GRANT)?;
        self.object_at(base + PIO_SPACE, own::PIO_SPACE, Permissions::all())?;
        if self.shape.spaces {
            self.object_at(own::MSR_SPACE, own::MSR_SPACE, Permissions::TAKE)?;
        }
        let (cpu, stack) = (self.manifest.cpu, layout::STACKS + (STACK_SLOT - STACK_RESERVE) as u64);
        syscall::create_ec(base + EC, base + PD, EcKind::Global, layout::UTCBS, cpu, stack, own::EVENTS)
            .map_err(kernel("an execution context"))?;
        self.object_at(base + EC, own::MAIN_EC, Permissions::all())?;
        let scd = Scd { budget: 10, priority: self.shape.priority, cos: 0 };
        syscall::create_sc(base + SC, base + PD, base + EC, scd).map_err(kernel("a scheduling context"))?;
        self.object_at(base + SC, own::MAIN_SC, Permissions::all())
    }
}
