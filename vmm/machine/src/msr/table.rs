//! The table of model-specific registers, sorted by number.

use super::{Line, Rule, StateRegister};
use crate::cpuid::Vendor;
use crate::kvmclock;

use Rule::{Board, Fixed, Kept, KvmClock, ReadOnly, State, Tsc, Zero};
use StateRegister as S;

/// Registers that the guest may use without an exit: plain vCPU state that the kernel switches, written at every
/// context switch or system-call set-up.
pub const PASS_THROUGH: &[u32] = &[
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

const fn all(first: u32, last: u32, rule: Rule, name: &'static str, reason: &'static str) -> Line {
    Line { first, last, vendor: None, rule, name, reason }
}

const fn intel(index: u32, rule: Rule, name: &'static str, reason: &'static str) -> Line {
    Line { first: index, last: index, vendor: Some(Vendor::Intel), rule, name, reason }
}

const fn amd(first: u32, last: u32, rule: Rule, name: &'static str, reason: &'static str) -> Line {
    Line { first, last, vendor: Some(Vendor::Amd), rule, name, reason }
}

/// Write-back in all eight ranges of a fixed-range MTRR.
const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
const MTRR: &str = "memory types: kept for the guest's book-keeping; nested paging says what RAM is";

/// The registers, sorted; ranges do not overlap.
pub const TABLE: &[Line] = &[
    all(0x10, 0x10, Tsc, "IA32_TIME_STAMP_COUNTER", "the guest's TSC is the host's; writing it is refused"),
    intel(0x17, Fixed(0), "IA32_PLATFORM_ID", "microcode loaders read it unasked"),
    all(0x1b, 0x1b, Board, "IA32_APIC_BASE", "the emulated LAPIC"),
    intel(0x3a, ReadOnly(1), "IA32_FEATURE_CONTROL", "locked, nothing enabled: VMX and SGX are hidden"),
    all(0x3b, 0x3b, Zero, "IA32_TSC_ADJUST", "nobody moved the TSC, and nobody can"),
    intel(0x79, Fixed(0), "IA32_BIOS_UPDT_TRIG", "microcode is the host's business"),
    all(0x8b, 0x8b, Fixed(0), "IA32_BIOS_SIGN_ID", "microcode revision: the guest cannot load any"),
    all(0xfe, 0xfe, ReadOnly(0x508), "IA32_MTRRCAP", "eight variable ranges, fixed ranges, write combining"),
    all(0x174, 0x174, State(S::SysenterCs), "IA32_SYSENTER_CS", "vCPU state"),
    all(0x175, 0x175, State(S::SysenterEsp), "IA32_SYSENTER_ESP", "vCPU state"),
    all(0x176, 0x176, State(S::SysenterEip), "IA32_SYSENTER_EIP", "vCPU state"),
    intel(0x1a0, Kept(1 | 1 << 11 | 1 << 12), "IA32_MISC_ENABLE", "fast strings; branch trace and PEBS unavailable"),
    all(0x1d9, 0x1d9, Kept(0), "IA32_DEBUGCTL", "Linux clears it in debug traps; branch traces are not offered"),
    all(0x200, 0x20f, Kept(0), "IA32_MTRR_PHYSBASE/MASK", MTRR),
    all(0x250, 0x250, Kept(WRITE_BACK), "IA32_MTRR_FIX64K", MTRR),
    all(0x258, 0x258, Kept(WRITE_BACK), "IA32_MTRR_FIX16K_80000", MTRR),
    all(0x259, 0x259, Kept(0), "IA32_MTRR_FIX16K_A0000", MTRR),
    all(0x268, 0x26f, Kept(WRITE_BACK), "IA32_MTRR_FIX4K", MTRR),
    all(0x277, 0x277, State(S::Pat), "IA32_PAT", "vCPU state"),
    all(0x2ff, 0x2ff, Kept(0xc06), "IA32_MTRR_DEF_TYPE", MTRR),
    all(0x6e0, 0x6e0, Board, "IA32_TSC_DEADLINE", "the emulated LAPIC's timer"),
    all(0x800, 0x8ff, Board, "x2APIC", "the emulated LAPIC"),
    all(kvmclock::MSR_WALL_CLOCK, kvmclock::MSR_SYSTEM_TIME, KvmClock, "kvmclock", "CPUID 0x40000001 announces it"),
    all(
        0xc000_0080,
        0xc000_0080,
        State(S::Efer),
        "IA32_EFER",
        "vCPU state; bits that CPUID does not offer are refused",
    ),
    all(0xc000_0081, 0xc000_0081, State(S::Star), "IA32_STAR", "vCPU state"),
    all(0xc000_0082, 0xc000_0082, State(S::Lstar), "IA32_LSTAR", "vCPU state"),
    all(
        0xc000_0083,
        0xc000_0083,
        Kept(0),
        "IA32_CSTAR",
        "SYSCALL in compatibility mode, AMD only: kept, should it exit",
    ),
    all(0xc000_0084, 0xc000_0084, State(S::Fmask), "IA32_FMASK", "vCPU state"),
    all(0xc000_0100, 0xc000_0100, State(S::FsBase), "IA32_FS_BASE", "vCPU state"),
    all(0xc000_0101, 0xc000_0101, State(S::GsBase), "IA32_GS_BASE", "vCPU state"),
    all(0xc000_0102, 0xc000_0102, State(S::KernelGsBase), "IA32_KERNEL_GS_BASE", "vCPU state"),
    all(0xc000_0103, 0xc000_0103, State(S::TscAux), "IA32_TSC_AUX", "vCPU state"),
    amd(0xc001_0000, 0xc001_0007, Fixed(0), "PERF_CTL/PERF_CTR", "architectural since K7, no CPUID bit; do not count"),
    amd(0xc001_0010, 0xc001_0010, Kept(0), "SYSCFG", "Linux looks for special MTRR bits and memory encryption"),
    amd(0xc001_0015, 0xc001_0015, Kept(1 << 24), "HWCR", "TscFreqSel: the TSC counts at P0; Linux warns otherwise"),
    amd(0xc001_001a, 0xc001_001a, Fixed(0), "TOP_MEM", "chipset memory map: there is none"),
    amd(0xc001_001d, 0xc001_001d, Fixed(0), "TOP_MEM2", "chipset memory map: there is none"),
    amd(0xc001_001f, 0xc001_001f, Kept(0), "NB_CFG", "northbridge quirks are looked up by CPU family"),
    amd(0xc001_0055, 0xc001_0055, Fixed(0), "INT_PENDING", "C1E erratum check by CPU family: not active"),
    amd(0xc001_0058, 0xc001_0058, Fixed(0), "MMIO_CONF_BASE", "no memory-mapped configuration space"),
    amd(0xc001_1020, 0xc001_1020, Kept(0), "LS_CFG", "errata by CPU family"),
    amd(0xc001_1022, 0xc001_1022, Kept(0), "DC_CFG", "errata by CPU family"),
    amd(0xc001_1023, 0xc001_1023, Kept(0), "BU_CFG", "errata by CPU family"),
    amd(0xc001_1029, 0xc001_1029, Kept(1 << 1), "DE_CFG", "LFENCE serializes: Linux sets and tests the bit"),
    amd(0xc001_102a, 0xc001_102a, Kept(0), "BU_CFG2", "errata by CPU family"),
];
