//! The manifest: read-only pages that tell a program what the root task gave it.
//!
//! Its address is in RDI at the program's entry. It names shared-memory rings, memory regions, interrupts and I/O
//! ports by short strings, so that programs and root task agree on words, not on numbers. Selectors that every
//! program has are constants in [`selector`].

use abi::Selector;

/// Value of [`Manifest::magic`].
pub const MAGIC: u32 = u32::from_le_bytes(*b"KNMF");
/// Value of [`Manifest::version`].
pub const VERSION: u32 = 5;
/// Bytes in a name, padded with zeros.
pub const NAME_LENGTH: usize = 52;
/// Most rings of a program.
pub const RINGS: usize = 200;
/// Most memory regions of a program.
pub const REGIONS: usize = 40;
/// Most CPUs of a program beside the one that its main EC runs on.
pub const FURTHER_CPUS: usize = 16;
/// In [`Manifest::further_cpus`]: no CPU.
pub const NO_CPU: u16 = u16::MAX;
/// Most interrupts of a program.
pub const INTERRUPTS: usize = 32;
/// Most port ranges of a program.
pub const PORTS: usize = 4;

/// Selectors in the object space of every program started by the root task, and of the root task itself.
pub mod selector {
    use abi::Selector;

    /// Portals for the events of the main EC and of all threads on its CPU: exceptions from 0, then STARTUP and RECALL.
    /// STARTUP has an EC begin at the program's entry, with the stack pointer of its creation: RDI is the manifest's
    /// address if that is the main stack's, else 0.
    pub const EVENTS: Selector = 0;
    /// The program's protection domain, with the permissions that it needs.
    pub const PROTECTION_DOMAIN: Selector = 0x30;
    /// Its object space (TAKE, GRANT).
    pub const OBJECT_SPACE: Selector = 0x31;
    /// Its host space (TAKE, GRANT).
    pub const HOST_SPACE: Selector = 0x32;
    /// Its PIO space (TAKE, GRANT, ASSIGN).
    pub const PIO_SPACE: Selector = 0x33;
    /// Its main execution context.
    pub const MAIN_EC: Selector = 0x34;
    /// The scheduling context of that.
    pub const MAIN_SC: Selector = 0x35;
    /// The kernel's MSR space (TAKE): a monitor passes registers through to its guest from here.
    pub const MSR_SPACE: Selector = 0x36;
    /// Portal to the root task, see [`crate::parent`].
    pub const PARENT: Selector = 0x37;
    /// A monitor's guest space, made by the monitor: the root task looks for it here when the monitor has ended.
    pub const GUEST_SPACE: Selector = 0x38;
    /// Semaphore that nobody ups: for sleeping. Made by the runtime.
    pub const SLEEP: Selector = 0x39;
    /// Semaphore of the heap's lock; made by the runtime.
    pub const HEAP_LOCK: Selector = 0x3a;
    /// Semaphore of the log's lock; made by the runtime.
    pub const LOG_LOCK: Selector = 0x3b;
    /// First of the semaphores that the manifest names.
    pub const NAMED: Selector = 0x40;
    /// Portals for the events of ECs on further CPUs, as at [`EVENTS`]: a block for each entry of
    /// [`super::Manifest::further_cpus`] that the program may use.
    pub const FURTHER_EVENTS: Selector = 0x400;
    /// Selectors in such a block.
    pub const FURTHER_STRIDE: Selector = 0x40;
    /// Place of the portal to the root task in such a block.
    pub const FURTHER_PARENT: Selector = 0x3f;
    /// First selector behind these blocks.
    pub const FURTHER_END: Selector = FURTHER_EVENTS + FURTHER_STRIDE * super::FURTHER_CPUS as Selector;
}

/// A short name, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Name([u8; NAME_LENGTH]);

impl Name {
    /// No name.
    pub const EMPTY: Self = Self([0; NAME_LENGTH]);

    /// `name`, cut to [`NAME_LENGTH`] bytes.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; NAME_LENGTH];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self(bytes)
    }

    /// The name as text; empty if it is not UTF-8.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(NAME_LENGTH);
        core::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A range of host-virtual addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Which end of a ring a program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// It writes.
    Producer = 1,
    /// It reads.
    Consumer = 2,
}

/// One shared-memory ring.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RingEntry {
    /// What flows through it.
    pub name: Name,
    /// [`Role`] as a number; anything else: no ring.
    pub role: u32,
    /// The shared pages.
    pub memory: Range,
    /// Semaphore that the producer ups when the consumer waits for data.
    pub sel_data: u64,
    /// Semaphore that the consumer ups when the producer waits for space.
    pub sel_space: u64,
}

/// One memory region.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RegionEntry {
    /// What it holds.
    pub name: Name,
    /// 1 if the program may write it.
    pub writable: u32,
    /// Where it is mapped.
    pub memory: Range,
    /// Its address for the program's device; 0 if it has none.
    pub device: u64,
}

/// One interrupt semaphore, already routed to the program's CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct InterruptEntry {
    /// Whose interrupt it is.
    pub name: Name,
    /// Nonzero if the entry is used.
    pub used: u32,
    /// The semaphore (DOWN).
    pub selector: u64,
}

/// One range of I/O ports.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PortEntry {
    /// Which device.
    pub name: Name,
    /// First port.
    pub base: u16,
    /// Number of ports.
    pub count: u16,
}

/// The manifest. Absent entries have an empty name.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
    /// The program's name in reports and in the log.
    pub name: Name,
    /// The CPU that the main EC runs on.
    pub cpu: u32,
    /// Other CPUs that the program may use; [`NO_CPU`]: none.
    pub further_cpus: [u16; FURTHER_CPUS],
    /// Ticks of the system time counter (RDTSC) per second.
    pub stc_frequency: u64,
    /// Number of architectural host events: offset of STARTUP from an EC's event base.
    pub sel_hst_arch: u16,
    /// Number of architectural guest events: offset of STARTUP from a vCPU's event base.
    pub sel_gst_arch: u16,
    /// Number of microhypervisor guest events.
    pub sel_gst_nova: u16,
    /// FEATURE_* of `abi::extension`; on VMX the specification's own guest events are the neutral ones.
    pub extensions: u16,
    /// FEATURE_* of `abi::hip`.
    pub platform_features: u64,
    /// Wall-clock time in nanoseconds since 1970 UTC when the system time counter was `wall_clock_stc`.
    pub wall_clock: u64,
    /// See `wall_clock`.
    pub wall_clock_stc: u64,
    /// Address of the main EC's UTCB.
    pub main_utcb: u64,
    /// Zeroed writable memory for the heap.
    pub heap: Range,
    /// Addresses for UTCBs of further ECs: nothing is mapped there.
    pub utcbs: Range,
    /// Stacks: slots of [`crate::STACK_SLOT`] bytes, whose upper [`crate::STACK_SIZE`] bytes are mapped. The main EC has
    /// the first slot.
    pub stacks: Range,
    /// Selectors that the program may use as it likes, from the first up to the second, but for those of further CPUs.
    pub selectors: [Selector; 2],
    /// Addresses free for the program's own mappings.
    pub free: Range,
    /// Read-only configuration, e.g. a `plan::VmConfig`; empty if there is none.
    pub config: Range,
    /// Rings.
    pub rings: [RingEntry; RINGS],
    /// Memory regions.
    pub regions: [RegionEntry; REGIONS],
    /// Interrupts.
    pub interrupts: [InterruptEntry; INTERRUPTS],
    /// I/O ports.
    pub ports: [PortEntry; PORTS],
}

const _: () = assert!(core::mem::size_of::<Manifest>() <= 6 * abi::PAGE_SIZE);

impl Manifest {
    /// A manifest that gives nothing.
    pub const EMPTY: Self = {
        const RANGE: Range = Range { address: 0, length: 0 };
        Self {
            magic: MAGIC,
            version: VERSION,
            name: Name::EMPTY,
            cpu: 0,
            further_cpus: [NO_CPU; FURTHER_CPUS],
            stc_frequency: 0,
            sel_hst_arch: abi::event::HOST_ARCH,
            sel_gst_arch: abi::event::GUEST_ARCH,
            sel_gst_nova: abi::event::GUEST_NOVA,
            extensions: 0,
            platform_features: 0,
            wall_clock: 0,
            wall_clock_stc: 0,
            main_utcb: 0,
            heap: RANGE,
            utcbs: RANGE,
            stacks: RANGE,
            selectors: [0; 2],
            free: RANGE,
            config: RANGE,
            rings: [RingEntry { name: Name::EMPTY, role: 0, memory: RANGE, sel_data: 0, sel_space: 0 }; RINGS],
            regions: [RegionEntry { name: Name::EMPTY, writable: 0, memory: RANGE, device: 0 }; REGIONS],
            interrupts: [InterruptEntry { name: Name::EMPTY, used: 0, selector: 0 }; INTERRUPTS],
            ports: [PortEntry { name: Name::EMPTY, base: 0, count: 0 }; PORTS],
        }
    };

    /// Whether magic and version are this crate's.
    pub fn is_valid(&self) -> bool {
        self.magic == MAGIC && self.version == VERSION
    }

    /// Portals for the events of ECs on `cpu`, and the portal to the root task there; `None` if the program cannot use
    /// that CPU.
    pub fn portals_on(&self, cpu: u32) -> Option<(Selector, Selector)> {
        if cpu == self.cpu {
            return Some((selector::EVENTS, selector::PARENT));
        }
        let slot = self.further_cpus.iter().position(|&further| further != NO_CPU && u32::from(further) == cpu)?;
        let events = selector::FURTHER_EVENTS + selector::FURTHER_STRIDE * slot as Selector;
        Some((events, events + selector::FURTHER_PARENT))
    }

    /// The first of `count` free selectors from `next` on, aligned to `align`, a power of two; `None` if there are not so many.
    pub fn free_selectors(&self, next: Selector, count: u64, align: u64) -> Option<Selector> {
        let [first, end] = self.selectors;
        let mut start = next.max(first).next_multiple_of(align);
        if start < selector::FURTHER_END && start + count > selector::FURTHER_EVENTS {
            start = selector::FURTHER_END.next_multiple_of(align);
        }
        (start + count <= end).then_some(start)
    }

    /// The entry of the ring `name` in which the program has `role`.
    pub fn ring(&self, name: &str, role: Role) -> Option<&RingEntry> {
        self.rings.iter().find(|r| r.role == role as u32 && r.name.as_str() == name)
    }

    /// The region `name`.
    pub fn region(&self, name: &str) -> Option<&RegionEntry> {
        self.regions.iter().find(|r| r.memory.length != 0 && r.name.as_str() == name)
    }

    /// The interrupt `name`.
    pub fn interrupt(&self, name: &str) -> Option<&InterruptEntry> {
        self.interrupts.iter().find(|i| i.used != 0 && i.name.as_str() == name)
    }

    /// The port range `name`.
    pub fn port(&self, name: &str) -> Option<&PortEntry> {
        self.ports.iter().find(|p| p.count != 0 && p.name.as_str() == name)
    }

    /// Adds a ring; false if there is no room.
    pub fn add_ring(&mut self, entry: RingEntry) -> bool {
        Self::put(&mut self.rings, |r| r.role == 0, entry)
    }

    /// Adds a region; false if there is no room.
    pub fn add_region(&mut self, entry: RegionEntry) -> bool {
        Self::put(&mut self.regions, |r| r.memory.length == 0, entry)
    }

    /// Adds an interrupt; false if there is no room.
    pub fn add_interrupt(&mut self, entry: InterruptEntry) -> bool {
        Self::put(&mut self.interrupts, |i| i.used == 0, entry)
    }

    /// Adds a port range; false if there is no room.
    pub fn add_port(&mut self, entry: PortEntry) -> bool {
        Self::put(&mut self.ports, |p| p.count == 0, entry)
    }

    fn put<T>(list: &mut [T], vacant: impl Fn(&T) -> bool, entry: T) -> bool {
        match list.iter_mut().find(|slot| vacant(slot)) {
            Some(slot) => {
                *slot = entry;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_selectors_leave_those_of_further_cpus_out() {
        let manifest = Manifest { selectors: [0x42, 0x900], ..Manifest::EMPTY };
        assert_eq!(manifest.free_selectors(0x42, 1, 1), Some(0x42));
        assert_eq!(manifest.free_selectors(0x43, 64, 64), Some(0x80));
        assert_eq!(manifest.free_selectors(0x3f0, 16, 1), Some(0x3f0));
        assert_eq!(manifest.free_selectors(0x3f1, 16, 1), Some(0x800));
        assert_eq!(manifest.free_selectors(0x3f1, 2, 64), Some(0x800));
        assert_eq!(manifest.free_selectors(0x8ff, 1, 1), Some(0x8ff));
        assert_eq!(manifest.free_selectors(0x900, 1, 1), None);
        assert_eq!(Manifest::EMPTY.free_selectors(0, 1, 1), None);
    }

    #[test]
    fn entries_are_found_by_name_and_role() {
        let mut manifest = Manifest::EMPTY;
        let memory = Range { address: 0x1000, length: 0x2000 };
        let ring = |name, role: Role| RingEntry {
            name: Name::new(name),
            role: role as u32,
            memory,
            sel_data: 0x40,
            sel_space: 0x41,
        };
        assert!(manifest.is_valid());
        assert!(manifest.add_ring(ring("console", Role::Producer)));
        assert!(manifest.add_ring(ring("console", Role::Consumer)));
        assert!(manifest.ring("console", Role::Consumer).is_some());
        assert!(manifest.ring("log", Role::Producer).is_none());
        for _ in 2..RINGS {
            assert!(manifest.add_ring(ring("x", Role::Producer)));
        }
        assert!(!manifest.add_ring(ring("y", Role::Producer)));
        assert!(manifest.region("").is_none());
        assert!(manifest.add_region(RegionEntry { name: Name::new("kernel"), writable: 0, memory, device: 0 }));
        assert_eq!(manifest.region("kernel").map(|r| r.memory), Some(memory));
    }

    #[test]
    fn each_cpu_has_portals_of_its_own() {
        let mut manifest = Manifest { cpu: 1, ..Manifest::EMPTY };
        (manifest.further_cpus[0], manifest.further_cpus[1]) = (0, 2);
        assert_eq!(manifest.portals_on(1), Some((selector::EVENTS, selector::PARENT)));
        assert_eq!(manifest.portals_on(2), Some((0x440, 0x47f)));
        assert_eq!(manifest.portals_on(NO_CPU.into()), None);
    }

    #[test]
    fn names_are_cut_and_padded() {
        assert_eq!(Name::new("abc").as_str(), "abc");
        assert_eq!(
            Name::new("a name that is very much longer than the field that it should go into").as_str().len(),
            NAME_LENGTH
        );
        assert_eq!(Name::EMPTY.as_str(), "");
    }
}
