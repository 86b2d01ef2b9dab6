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
/// XCR0 components that a guest may use: x87, SSE, AVX, AVX-512. Not PKRU (protection keys are hidden), not AMX
/// (eight more KiB of state per vCPU).
const XCR0_OFFERED: u64 = 0xe7;
const OSXSAVE: u32 = 1 << 27;

/// One size and place of an XSAVE component.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    size: u32,
    offset: u32,
    aligned: bool,
}

/// The guest's CPUID.
#[derive(Clone, Debug)]
pub struct Cpuid {
    leaves: Vec<(u32, Registers)>,
    vendor: Vendor,
    xcr0: u64,
    xsave_features: u32,
    components: [Component; 8],
    caches: Vec<Registers>,
    extended_max: u32,
    basic_max: u32,
}

impl Cpuid {
    /// The guest's view of `host`.
    pub fn new(host: &impl HostCpuid, clocks: Clocks) -> Self {
        let top = host.cpuid(0, 0);
        let vendor = match &[top[1], top[3], top[2]].map(u32::to_le_bytes).concat()[..] {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        };
        let basic_max = if vendor == Vendor::Intel { 0x16 } else { top[0].min(0xd) };
        let extended_max = host.cpuid(EXTENDED_BASE, 0)[0].clamp(EXTENDED_BASE, EXTENDED_MAX);

        let mut this = Self {
            leaves: Vec::new(),
            vendor,
            xcr0: 1,
            xsave_features: 0,
            components: [Component::default(); 8],
            caches: Vec::new(),
            extended_max,
            basic_max,
        };
        this.put(0, [basic_max, top[1], top[2], top[3]]);
        let [version, misc, ..] = host.cpuid(1, 0);
        // One logical processor with APIC id 0; brand index and CLFLUSH size are the host's.
        let features = filtered(host, top[0], 1);
        this.put(1, [version, misc & 0xffff | 1 << 16, features[2], features[3]]);
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
            for subleaf in 0..8 {
                let mut cache = host.cpuid(4, subleaf);
                if top[0] < 4 || cache[0] & 0x1f == 0 {
                    break;
                }
                cache[0] &= 0x3fff; // not shared, one core
                this.caches.push(cache);
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
        self.leaves.push((leaf, registers));
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
        let features = filtered(host, max, EXTENDED_BASE + 1);
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
            self.put(EXTENDED_BASE + 8, [sizes & 0xff | linear << 8, features[1], 0, 0]);
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
        // XSAVEOPT, XSAVEC, XGETBV with ECX = 1. Not XSAVES: no supervisor state is offered.
        self.xsave_features = host.cpuid(0xd, 1)[0] & 0b111;
        for index in 2..8 {
            if self.xcr0 >> index & 1 != 0 {
                let [size, offset, flags, _] = host.cpuid(0xd, index);
                self.components[index as usize] = Component { size, offset, aligned: flags & 2 != 0 };
            }
        }
    }

    /// Bytes of a standard-format XSAVE area for `xcr0`.
    fn standard_size(&self, xcr0: u64) -> u32 {
        (2..8).filter(|i| xcr0 >> i & 1 != 0).map(|i| self.components[i]).fold(576, |end, c| end.max(c.offset + c.size))
    }

    /// Bytes of a compacted XSAVE area for `xcr0`.
    fn compacted_size(&self, xcr0: u64) -> u32 {
        (2..8).filter(|i| xcr0 >> i & 1 != 0).map(|i| self.components[i]).fold(576, |end, component| {
            let start = if component.aligned { end.next_multiple_of(64) } else { end };
            start + component.size
        })
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
            0xb if self.basic_max >= 0xb => return topology(subleaf),
            4 => return self.caches.get(subleaf as usize).copied().unwrap_or([0; 4]),
            7 if subleaf != 0 => return [0; 4],
            // Beyond the last leaf Intel answers as for the last basic one, AMD with zeros.
            leaf if self.vendor == Vendor::Intel
                && (self.basic_max < leaf && leaf < HYPERVISOR_BASE || leaf > self.extended_max) =>
            {
                self.basic_max
            }
            leaf => leaf,
        };
        let mut registers = match self.leaves.iter().find(|(known, _)| *known == leaf) {
            Some((_, registers)) => *registers,
            None => [0; 4],
        };
        if leaf == 1 && cr4 & crate::walk::cr4::OSXSAVE != 0 {
            registers[2] |= OSXSAVE;
        }
        registers
    }

    fn xsave(&self, subleaf: u32, xcr0: u64) -> Registers {
        if self.basic_max < 0xd || self.xcr0 == 1 {
            return [0; 4];
        }
        match subleaf {
            0 => [self.xcr0 as u32, self.standard_size(xcr0), self.standard_size(self.xcr0), 0],
            1 => {
                let size = if self.xsave_features & 2 != 0 { self.compacted_size(xcr0) } else { 0 };
                [self.xsave_features, size, 0, 0]
            }
            2..8 if self.xcr0 >> subleaf & 1 != 0 => {
                let component = self.components[subleaf as usize];
                [component.size, component.offset, (component.aligned as u32) << 1, 0]
            }
            _ => [0; 4],
        }
    }
}

/// Leaf 0xb: one thread, one core, x2APIC id 0.
fn topology(subleaf: u32) -> Registers {
    match subleaf {
        0 => [0, 1, 1 << 8, 0],
        1 => [0, 1, 2 << 8 | 1, 0],
        _ => [0, 0, subleaf & 0xff, 0],
    }
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
