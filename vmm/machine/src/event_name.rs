//! What guest events are called in reports.

use abi::event::{GUEST_ARCH, RECALL, STARTUP, guest};

/// Names of the guest events for reports; an empty string where a number has none.
pub const fn event_name(event: u16) -> &'static str {
    match event {
        guest::EXCEPTION => "exception",
        guest::EXTERNAL_INTERRUPT => "external interrupt",
        guest::TRIPLE_FAULT => "triple fault",
        guest::INIT => "INIT",
        guest::SIPI => "SIPI",
        guest::INTERRUPT_WINDOW => "interrupt window",
        guest::NMI_WINDOW => "NMI window",
        guest::TASK_SWITCH => "task switch",
        guest::CPUID => "CPUID",
        guest::GETSEC => "GETSEC",
        guest::HLT => "HLT",
        guest::INVD => "INVD",
        guest::INVLPG => "INVLPG",
        guest::RDPMC => "RDPMC",
        guest::RDTSC => "RDTSC",
        guest::RSM => "RSM",
        guest::VMCALL => "VMCALL",
        guest::VMCLEAR..=guest::VMXON => "virtualization instruction",
        guest::CR_ACCESS => "CR access",
        guest::DR_ACCESS => "DR access",
        guest::IO => "port I/O",
        guest::RDMSR => "RDMSR",
        guest::WRMSR => "WRMSR",
        guest::INVALID_STATE => "invalid guest state",
        guest::MWAIT => "MWAIT",
        guest::MONITOR => "MONITOR",
        guest::PAUSE => "PAUSE",
        guest::PAGE_FAULT => "memory access",
        guest::EPT_MISCONFIGURATION => "EPT misconfiguration",
        guest::RDTSCP => "RDTSCP",
        guest::WBINVD => "WBINVD",
        guest::XSETBV => "XSETBV",
        e if e == GUEST_ARCH + STARTUP => "startup",
        e if e == GUEST_ARCH + RECALL => "recall",
        _ => "",
    }
}
