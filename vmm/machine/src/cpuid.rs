//! CPUID as the guest sees it: the host's answers through a policy, plus the hypervisor's leaves.
//!
//! The policy is the table in [`policy`]: a feature bit that it does not name is hidden. Everything is computed once;
//! only what depends on the guest's state (OSXSAVE, XSAVE area size) is filled in at the exit.
//! Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst`.

pub mod policy;

use alloc::vec::Vec;

use policy::{FEATURES, Register, Rule};

/// EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

/// Where the host's answers come from.
pub trait HostCpuid {
    /// The host's CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Registers;
}

impl<F: Fn(u32, u32) -> Registers> HostCpuid for F {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Registers {
        self(leaf, subleaf)
    }
}

/// Clocks that CPUID tells the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// TSC in hertz.
    pub tsc: u64,
    /// LAPIC timer before its divider in hertz; the TSC is this shifted left by `crystal_shift`.
    pub crystal: u64,
    /// See `crystal`.
    pub crystal_shift: u32,
}

/// Where a vCPU is among those of its machine: all are cores of one package, one thread each, and share the last cache.
/// Their APIC ids are their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl Place {
    /// Bits of an APIC id that tell cores apart.
    const fn core_bits(self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }
}

/// Whose CPU this is, as far as the policy differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// "GenuineIntel".
    Intel,
    /// "AuthenticAMD", "HygonGenuine".
    Amd,
    /// Anything else.
    Other,
}

/// First hypervisor leaf.
pub const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Last hypervisor leaf: TSC and bus frequency in kilohertz.
pub const HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;
/// Hypervisor features (leaf 0x40000001 EAX): port 0x80 is no delay.
const KVM_NOP_IO_DELAY: u32 = 1 << 1;
/// kvmclock with MSRs 0x4b564d00 and 0x4b564d01.
const KVM_CLOCKSOURCE2: u32 = 1 << 3;
/// kvmclock is the same on all vCPUs and never jumps.
const KVM_CLOCKSOURCE_STABLE: u32 = 1 << 24;

const EXTENDED_BASE: u32 = 0x8000_0000;
const EXTENDED_MAX: u32 = 0x8000_0008;
/// AMD's leaf of caches, and of node and core (APM vol. 3, E.4.15, E.4.16).
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// Leaf 1, EDX: the package has several logical processors.
const SEVERAL: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: several logical processors are several cores; topology extensions.
const AMD_SEVERAL: u32 = 1 << 1 | 1 << 22;
/// Most caches that are shown.
const CACHES_MAX: u32 = 8;
/// XCR0 components that a guest may use: x87, SSE, AVX, AVX-512. Not PKRU (protection keys are hidden), not AMX
/// (eight more KiB of state per vCPU).
const XCR0_OFFERED: u64 = 0xe7;
const OSXSAVE: u32 = 1 << 27;

/// One size and place of an XSAVE component.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    size: u32,
    offset: u32,
}

/// A leaf and its answer. Its size is a power of two, for it is looked for at every exit.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Leaf {
    number: u32,
    answer: Registers,
    /// Bits that are clear in the number of the subleaf that the answer is for.
    subleaf: u32,
    /// What CR4.OSXSAVE adds to its ECX.
    osxsave: u32,
}

/// An answer that was given, of a leaf that has subleaves or is not in the table.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Given {
    leaf: u32,
    subleaf: u32,
    answer: Registers,
}

/// Answers that are kept.
const GIVEN: usize = 16;

/// The guest's CPUID.
#[derive(Clone, Debug)]
pub struct Cpuid {
    /// Each leaf with its answer, at its [`slot`].
    leaves: [Leaf; SLOTS],
    /// Answers as they were given of late, until [`Cpuid::forget`]. One of leaf 0, which is in the table, is none.
    given: [Given; GIVEN],
    vendor: Vendor,
    place: Place,
    xcr0: u64,
    xsave_features: u32,
    components: [Component; 8],
    caches: Vec<Registers>,
    extended_max: u32,
    basic_max: u32,
}

/// Places for leaves: 32 of the processor's, the hypervisor's and the extended ones each.
const SLOTS: usize = 128;

/// The place of a leaf; those with answers have one each.
const fn slot(leaf: u32) -> usize {
    (leaf.rotate_left(2) & 0x7f) as usize
}

/// The place of an answer that is kept.
const fn given_slot(leaf: u32, subleaf: u32) -> usize {
    (leaf ^ subleaf) as usize % GIVEN
}

impl Cpuid {
    /// The guest's view of `host`, on the vCPU at `place`.
    pub fn new(host: &impl HostCpuid, clocks: Clocks, place: Place) -> Self {
        let top = host.cpuid(0, 0);
        let vendor = match &[top[1], top[3], top[2]].map(u32::to_le_bytes).concat()[..] {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        };
        // Leaf 0x1f is leaf 0xb again, and what software looks at first.
        let basic_max = if vendor == Vendor::Intel { 0x1f } else { top[0].min(0xd) };
        let extended_max = match vendor {
            Vendor::Amd if place.count > 1 => AMD_TOPOLOGY,
            _ => host.cpuid(EXTENDED_BASE, 0)[0].clamp(EXTENDED_BASE, EXTENDED_MAX),
        };

        let mut this = Self {
            // None of them is where it belongs: leaf 0 is at slot 0.
            leaves: [Leaf::default(); SLOTS],
            given: [Given::default(); GIVEN],
            vendor,
            place,
            xcr0: 1,
            xsave_features: 0,
            components: [Component::default(); 8],
            caches: Vec::new(),
            extended_max,
            basic_max,
        };
        this.put(0, [basic_max, top[1], top[2], top[3]]);
        let [version, misc, ..] = host.cpuid(1, 0);
        // Brand index and CLFLUSH size are the host's.
        let mut features = filtered(host, top[0], 1);
        features[3] |= if place.count > 1 { SEVERAL } else { 0 };
        this.put(1, [version, misc & 0xffff | place.count << 16 | place.index << 24, features[2], features[3]]);
        if top[0] >= 2 && vendor == Vendor::Intel {
            this.put(2, host.cpuid(2, 0));
        }
        // ARAT: the emulated LAPIC timer never stops.
        this.put(6, [1 << 2, 0, 0, 0]);
        this.put(7, filtered(host, top[0], 7));
        if vendor == Vendor::Intel {
            let mhz = (clocks.tsc / 1_000_000) as u32;
            this.put(0x15, [1, 1 << clocks.crystal_shift, clocks.crystal as u32, 0]);
            this.put(0x16, [mhz, mhz, 100, 0]);
            if top[0] >= 4 {
                this.caches = caches(host, 4, place);
            }
        }
        this.hypervisor_leaves(clocks);
        this.extended_leaves(host);
        if features[2] & policy::XSAVE != 0 {
            this.xsave_leaves(host);
        }
        this
    }

    fn put(&mut self, leaf: u32, registers: Registers) {
        let subleaf = if leaf == 7 { u32::MAX } else { 0 };
        let osxsave = if leaf == 1 { OSXSAVE } else { 0 };
        self.leaves[slot(leaf)] = Leaf { number: leaf, answer: registers, subleaf, osxsave };
    }

    fn leaf(&self, leaf: u32) -> Registers {
        let Leaf { number, answer, .. } = self.leaves[slot(leaf)];
        if number == leaf { answer } else { [0; 4] }
    }

    /// The answer where it depends on next to nothing but the leaf, or was given before, and bits that are to be added to
    /// its ECX; None where it depends on more, or nothing is known.
    #[inline(always)]
    pub fn plain(&self, leaf: u32, subleaf: u32, cr4: u64) -> Option<(&Registers, u32)> {
        let Leaf { number, answer, subleaf: clear, osxsave } = &self.leaves[slot(leaf)];
        if *number == leaf && subleaf & clear == 0 {
            return Some((answer, from_cr4(cr4) & osxsave));
        }
        let given = &self.given[given_slot(leaf, subleaf)];
        (given.leaf == leaf && given.subleaf == subleaf).then_some((&given.answer, 0))
    }

    /// As [`Cpuid::query`], for what [`Cpuid::plain`] does not tell: it will, until XCR0 changes.
    pub fn give(&mut self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> Registers {
        let answer = self.query(leaf, subleaf, cr4, xcr0);
        self.given[given_slot(leaf, subleaf)] = Given { leaf, subleaf, answer };
        answer
    }

    /// XCR0 has changed, on which answers depend.
    pub fn forget(&mut self) {
        self.given = [Given::default(); GIVEN];
    }

    fn hypervisor_leaves(&mut self, clocks: Clocks) {
        let signature = b"KVMKVMKVM\0\0\0";
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| signature[at + byte]));
        self.put(HYPERVISOR_BASE, [HYPERVISOR_FREQUENCIES, word(0), word(4), word(8)]);
        self.put(HYPERVISOR_BASE + 1, [KVM_NOP_IO_DELAY | KVM_CLOCKSOURCE2 | KVM_CLOCKSOURCE_STABLE, 0, 0, 0]);
        let khz = |hertz: u64| (hertz / 1000) as u32;
        self.put(HYPERVISOR_FREQUENCIES, [khz(clocks.tsc), khz(clocks.crystal), 0, 0]);
    }

    fn extended_leaves(&mut self, host: &impl HostCpuid) {
        let max = self.extended_max;
        let top = host.cpuid(EXTENDED_BASE, 0);
        self.put(EXTENDED_BASE, [max, top[1], top[2], top[3]]);
        let [version, brand, ..] = host.cpuid(EXTENDED_BASE + 1, 0);
        let host_max = top[0];
        let mut features = filtered(host, max, EXTENDED_BASE + 1);
        let several = self.vendor == Vendor::Amd && self.place.count > 1;
        features[2] |= if several { AMD_SEVERAL } else { 0 };
        self.put(EXTENDED_BASE + 1, [version, brand, features[2], features[3]]);
        for leaf in EXTENDED_BASE + 2..=(EXTENDED_BASE + 6).min(max) {
            self.put(leaf, host.cpuid(leaf, 0));
        }
        if max >= EXTENDED_BASE + 7 {
            self.put(EXTENDED_BASE + 7, [0, 0, 0, 1 << 8]); // invariant TSC
        }
        if max >= EXTENDED_BASE + 8 {
            let [sizes, ..] = host.cpuid(EXTENDED_BASE + 8, 0);
            let features = filtered(host, max, EXTENDED_BASE + 8);
            // Physical and linear address bits; 57 linear bits are hidden.
            let linear = (sizes >> 8 & 0xff).min(48);
            let cores = if several { self.place.core_bits() << 12 | (self.place.count - 1) } else { 0 };
            self.put(EXTENDED_BASE + 8, [sizes & 0xff | linear << 8, features[1], cores, 0]);
        }
        if several {
            if host_max >= AMD_CACHES {
                self.caches = caches(host, AMD_CACHES, self.place);
            }
            // Its APIC id, its core (one thread each), its node (one in all).
            self.put(AMD_TOPOLOGY, [self.place.index, self.place.index, 0, 0]);
        }
    }

    fn xsave_leaves(&mut self, host: &impl HostCpuid) {
        let main = host.cpuid(0xd, 0);
        self.xcr0 = (main[0] as u64 & XCR0_OFFERED) | 1;
        if self.xcr0 & 0b110 != 0b110 {
            self.xcr0 &= 0b011; // no AVX: nothing above it either
        }
        if self.xcr0 & 0xe0 != 0xe0 {
            self.xcr0 &= !0xe0; // AVX-512 in one piece only
        }
        // XSAVEOPT, XGETBV with ECX = 1. Not XSAVES: no supervisor state is offered. Not XSAVEC, either: Bochs 2.7 saves AVX
        // elsewhere in the compacted format than where XRSTOR looks for it, and a guest would lose its registers.
        self.xsave_features = host.cpuid(0xd, 1)[0] & 0b101;
        for index in 2..8 {
            if self.xcr0 >> index & 1 != 0 {
                let [size, offset, ..] = host.cpuid(0xd, index);
                self.components[index as usize] = Component { size, offset };
            }
        }
    }

    /// Bytes of a standard-format XSAVE area for `xcr0`.
    fn standard_size(&self, xcr0: u64) -> u32 {
        (2..8).filter(|i| xcr0 >> i & 1 != 0).map(|i| self.components[i]).fold(576, |end, c| end.max(c.offset + c.size))
    }

    /// The guest's CPU vendor.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether a feature bit is offered.
    pub fn has(&self, leaf: u32, register: Register, bit: u32) -> bool {
        self.query(leaf, 0, 0, 1)[register as usize] >> bit & 1 != 0
    }

    /// Whether XSETBV may set XCR0 to `value`: only offered components, x87 always, AVX only with SSE, AVX-512 only
    /// whole and with AVX (SDM vol. 1, 13.3).
    pub fn accepts_xcr0(&self, value: u64) -> bool {
        value & !self.xcr0 == 0
            && value & 1 != 0
            && (value & 4 == 0 || value & 2 != 0)
            && matches!(value & 0xe0, 0 | 0xe0)
            && (value & 0xe0 == 0 || value & 4 != 0)
    }

    /// The answer to CPUID in a guest with these control registers.
    pub fn query(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> Registers {
        let leaf = match leaf {
            0xd => return self.xsave(subleaf, xcr0),
            0xb | 0x1f if self.basic_max >= leaf => return topology(self.place, subleaf),
            4 if self.vendor == Vendor::Intel => return self.cache(subleaf),
            AMD_CACHES if self.extended_max >= AMD_CACHES => return self.cache(subleaf),
            7 if subleaf != 0 => return [0; 4],
            // Beyond the last leaf Intel answers as for the last basic one, AMD with zeros.
            leaf if self.vendor == Vendor::Intel
                && (self.basic_max < leaf && leaf < HYPERVISOR_BASE || leaf > self.extended_max) =>
            {
                self.basic_max
            }
            leaf => leaf,
        };
        let mut registers = self.leaf(leaf);
        if leaf == 1 {
            registers[2] |= osxsave(cr4);
        }
        registers
    }

    fn cache(&self, subleaf: u32) -> Registers {
        self.caches.get(subleaf as usize).copied().unwrap_or([0; 4])
    }

    fn xsave(&self, subleaf: u32, xcr0: u64) -> Registers {
        if self.basic_max < 0xd || self.xcr0 == 1 {
            return [0; 4];
        }
        match subleaf {
            0 => [self.xcr0 as u32, self.standard_size(xcr0), self.standard_size(self.xcr0), 0],
            // No size: there is no compacted format.
            1 => [self.xsave_features, 0, 0, 0],
            2..8 if self.xcr0 >> subleaf & 1 != 0 => {
                let component = self.components[subleaf as usize];
                [component.size, component.offset, 0, 0]
            }
            _ => [0; 4],
        }
    }
}

/// What leaf 1 tells in ECX of CR4.
#[inline]
const fn osxsave(cr4: u64) -> u32 {
    from_cr4(cr4) & OSXSAVE
}

/// CR4's bits, OSXSAVE among them, where ECX of leaf 1 has that.
#[inline(always)]
const fn from_cr4(cr4: u64) -> u32 {
    const { assert!(crate::walk::cr4::OSXSAVE << 9 == OSXSAVE as u64) };
    (cr4 << 9) as u32
}

/// Leaves 0xb and 0x1f: one thread to a core, all cores in one package.
fn topology(place: Place, subleaf: u32) -> Registers {
    match subleaf {
        0 => [0, 1, 1 << 8, place.index],
        1 => [place.core_bits(), place.count, 2 << 8 | 1, place.index],
        _ => [0, 0, subleaf & 0xff, place.index],
    }
}

/// The host's caches, in leaf 4's format, which AMD's has too: the first levels belong to one core, the last is shared by
/// all. Bits 25:14 of EAX are the number of threads that share a cache, less one; bits 31:26, on Intel, of cores in the
/// package.
fn caches(host: &impl HostCpuid, leaf: u32, place: Place) -> Vec<Registers> {
    const LEVEL_SHARED: u32 = 3;
    let cores = (1 << place.core_bits()) - 1;
    let on_package = if leaf == 4 { cores << 26 } else { 0 };
    let found = (0..CACHES_MAX).map(|subleaf| host.cpuid(leaf, subleaf)).take_while(|cache| cache[0] & 0x1f != 0);
    let placed = found.map(|[eax, ebx, ecx, edx]| {
        let sharing = if eax >> 5 & 7 >= LEVEL_SHARED { cores << 14 } else { 0 };
        [eax & 0x3fff | sharing | on_package, ebx, ecx, edx]
    });
    placed.collect()
}

/// The features of one leaf: what the host has and the policy passes, and what the policy sets.
fn filtered(host: &impl HostCpuid, max: u32, leaf: u32) -> Registers {
    let have = if leaf <= max { host.cpuid(leaf, 0) } else { [0; 4] };
    let mut registers = [0; 4];
    for feature in FEATURES.iter().filter(|feature| feature.leaf == leaf) {
        registers[feature.register as usize] |= match feature.rule {
            Rule::Pass => have[feature.register as usize] & feature.bits,
            Rule::Set => feature.bits,
            Rule::Hide => 0,
        };
    }
    registers
}

#[cfg(test)]
mod tests;
