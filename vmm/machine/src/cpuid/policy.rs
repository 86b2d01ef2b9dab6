//! Which CPU features a guest sees, and why.

/// A register of CPUID's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// What happens to feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// As on the host.
    Pass,
    /// Set whatever the host has: the monitor provides it.
    Set,
    /// Hidden. Bits that no line names are hidden too; these lines say why.
    Hide,
}

/// One line of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// CPUID leaf (subleaf 0).
    pub leaf: u32,
    /// Register.
    pub register: Register,
    /// Bits that the line is about.
    pub bits: u32,
    /// What happens to them.
    pub rule: Rule,
    /// Why.
    pub reason: &'static str,
}

/// Leaf 1, ECX: XSAVE.
pub const XSAVE: u32 = 1 << 26;

const fn bits(list: &[u32]) -> u32 {
    let (mut mask, mut i) = (0, 0);
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

const fn line(leaf: u32, register: Register, list: &[u32], rule: Rule, reason: &'static str) -> Feature {
    Feature { leaf, register, bits: bits(list), rule, reason }
}

const PLAIN: &str = "plain instructions: they need nothing from the monitor";

use Register::{Ebx, Ecx, Edx};
use Rule::{Hide, Pass, Set};

/// The policy, by leaf and register.
pub const FEATURES: &[Feature] = &[
    // SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES AVX F16C RDRAND
    line(1, Ecx, &[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 28, 29, 30], Pass, PLAIN),
    line(1, Ecx, &[17], Pass, "PCID: nested paging keeps it the guest's own business"),
    line(1, Ecx, &[26], Pass, "XSAVE: XSETBV exits and is checked against leaf 0xd"),
    line(1, Ecx, &[21], Set, "x2APIC: the emulated LAPIC has it; saves instruction emulation"),
    line(1, Ecx, &[24], Set, "TSC deadline: the emulated LAPIC has it whatever the host has; nothing to calibrate"),
    line(1, Ecx, &[31], Set, "hypervisor: tells the guest to look at leaf 0x40000000"),
    line(1, Ecx, &[2, 4, 11], Hide, "debug store, silicon debug: need state that is not virtualized"),
    line(1, Ecx, &[3], Hide, "MONITOR/MWAIT: would stop the physical CPU; HLT exits instead"),
    line(1, Ecx, &[5, 6], Hide, "VMX, SMX: no nested virtualization"),
    line(1, Ecx, &[7, 8, 10], Hide, "power and thermal management is the host's"),
    line(1, Ecx, &[14, 15], Hide, "xTPR, PDCM: chipset and performance-monitoring registers that do not exist"),
    line(1, Ecx, &[18], Hide, "direct cache access: no such devices"),
    // FPU VME DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT PSE-36 CLFSH MMX FXSR SSE SSE2 self-snoop
    line(1, Edx, &[0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26, 27], Pass, PLAIN),
    line(1, Edx, &[9], Set, "APIC: the emulated LAPIC"),
    line(1, Edx, &[12], Set, "MTRR: emulated; without them Linux gives up PAT too"),
    line(1, Edx, &[7, 14], Hide, "machine checks go to the host; there are no banks to show"),
    line(1, Edx, &[18], Hide, "processor serial number"),
    line(1, Edx, &[21, 22, 29, 31], Hide, "debug store and thermal control are the host's"),
    line(1, Edx, &[28], Hide, "several processors: set where there are several vCPUs"),
    // FSGSBASE BMI1 AVX2 FDP-only SMEP BMI2 ERMS FCS/FDS RDSEED ADX SMAP CLFLUSHOPT CLWB SHA
    line(7, Ebx, &[0, 3, 5, 6, 7, 8, 9, 13, 18, 19, 20, 23, 24, 29], Pass, PLAIN),
    line(7, Ebx, &[10], Pass, "INVPCID: nested paging keeps it the guest's own business"),
    line(7, Ebx, &[16, 17, 21, 28, 30, 31], Pass, "AVX-512: its state is in XCR0 components 5 to 7"),
    line(7, Ebx, &[1], Set, "TSC_ADJUST: always zero; tells the guest that nobody moved the TSC"),
    line(7, Ebx, &[4, 11], Hide, "transactional memory: switched off in practice"),
    line(7, Ebx, &[2, 25], Hide, "SGX, processor trace: need state that is not virtualized"),
    line(7, Ebx, &[12, 15], Hide, "resource monitoring and allocation are the host's"),
    line(7, Ebx, &[14], Hide, "MPX: gone from new CPUs, its state is not offered"),
    // AVX512_VBMI UMIP AVX512_VBMI2 GFNI VAES VPCLMULQDQ AVX512_VNNI AVX512_BITALG AVX512_VPOPCNTDQ MOVDIRI MOVDIR64B
    line(7, Ecx, &[1, 2, 6, 8, 9, 10, 11, 12, 14, 27, 28], Pass, PLAIN),
    line(7, Ecx, &[22], Pass, "RDPID: IA32_TSC_AUX is the guest's own"),
    line(7, Ecx, &[3, 4], Hide, "protection keys: their state is not offered in XCR0"),
    line(7, Ecx, &[5], Hide, "UMONITOR/UMWAIT: would stop the physical CPU"),
    line(7, Ecx, &[7], Hide, "shadow stacks: supervisor state is not offered"),
    line(7, Ecx, &[16], Hide, "57-bit linear addresses: the monitor walks four levels"),
    line(7, Edx, &[4, 14], Pass, PLAIN), // fast short REP MOV, SERIALIZE
    line(7, Edx, &[10], Pass, "MD_CLEAR: VERW works in a guest as on the host"),
    line(7, Edx, &[26, 27, 28, 29, 31], Hide, "speculation-control registers are not virtualized yet"),
    // LAHF ABM SSE4A misaligned SSE 3DNow-prefetch XOP FMA4 TBM
    line(0x8000_0001, Ecx, &[0, 5, 6, 7, 8, 11, 16, 21], Pass, PLAIN),
    line(0x8000_0001, Ecx, &[2, 12], Hide, "SVM, SKINIT: no nested virtualization"),
    line(0x8000_0001, Ecx, &[1, 22], Hide, "topology: set where there are several vCPUs"),
    line(0x8000_0001, Ecx, &[19], Hide, "node id: its MSR is not virtualized, and there is one node"),
    line(0x8000_0001, Ecx, &[3, 4], Hide, "extended APIC space, CR8 by LOCK MOV CR0: not emulated"),
    line(0x8000_0001, Ecx, &[9, 10, 13, 15, 23, 24, 26, 27, 28, 29], Hide, "registers that are not virtualized"),
    // AMD's copies of leaf 1, EDX
    line(0x8000_0001, Edx, &[0, 1, 2, 3, 4, 5, 6, 8, 13, 15, 16, 17, 23, 24], Pass, PLAIN),
    line(0x8000_0001, Edx, &[9, 12], Pass, "copies of APIC and MTRR in leaf 1"),
    // SYSCALL NX MMX extensions FFXSR 1-GiB pages LM 3DNow
    line(0x8000_0001, Edx, &[11, 20, 22, 25, 26, 29, 30, 31], Pass, PLAIN),
    line(0x8000_0001, Edx, &[27], Pass, "RDTSCP: IA32_TSC_AUX is the guest's own"),
    line(0x8000_0001, Edx, &[7, 14], Hide, "machine checks go to the host"),
    line(0x8000_0008, Ebx, &[0, 2], Pass, PLAIN), // CLZERO, error pointers always saved
    line(0x8000_0008, Ebx, &[12, 14, 15, 17, 24, 25], Hide, "speculation-control registers are not virtualized yet"),
];
