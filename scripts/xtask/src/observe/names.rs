//! What counters and events are called.

use abi::event::{GUEST_ARCH, HOST_ARCH, RECALL, STARTUP, guest};
use abi::observation::counter;

/// Hypercalls by number.
pub const HYPERCALLS: [&str; 16] = [
    "ipc_call",
    "ipc_reply",
    "create_pd",
    "create_ec",
    "create_sc",
    "create_pt",
    "create_sm",
    "ctrl_pd",
    "ctrl_ec",
    "ctrl_sc",
    "ctrl_pt",
    "ctrl_sm",
    "ctrl_hw",
    "assign_int",
    "assign_dev",
    "extension",
];

/// Counters that are not numbered by something else, in the order in which they are shown, under their headings.
pub const COUNTERS: [(&str, &[(usize, &str)]); 4] = [
    (
        "scheduling",
        &[
            (counter::SWITCH, "slow switches of what runs"),
            (counter::SPACE_SWITCH, "slow switches of address spaces"),
            (counter::TURN, "turns of scheduling contexts"),
            (counter::HELP, "callers that helped"),
            (counter::IDLE, "times idle"),
            (counter::FPU_SWITCH, "switches of the FPU"),
        ],
    ),
    (
        "interrupts",
        &[
            (counter::TIMER, "timer"),
            (counter::INTERRUPT, "devices"),
            (counter::ATTENTION, "other CPUs"),
            (counter::MESSAGE, "messages of other CPUs"),
        ],
    ),
    ("shootdowns", &[(counter::ROUND, "rounds begun"), (counter::ANSWER, "rounds of others answered")]),
    ("guests", &[(counter::GUEST_ENTRY, "entries"), (counter::GUEST_FLUSH, "entries that dropped translations")]),
];

/// Events that the specification does not number by the architecture.
fn own_event(number: u16, architectural: u16) -> Option<&'static str> {
    match number.checked_sub(architectural)? {
        STARTUP => Some("startup"),
        RECALL => Some("recall"),
        _ => None,
    }
}

/// The event of a host EC.
pub fn host_event(number: u16) -> String {
    own_event(number, HOST_ARCH).map_or_else(|| format!("exception {number}"), String::from)
}

/// The event of a guest EC.
pub fn guest_event(number: u16) -> String {
    const NAMES: [(u16, &str); 24] = [
        (guest::EXCEPTION, "exception"),
        (guest::EXTERNAL_INTERRUPT, "external interrupt"),
        (guest::TRIPLE_FAULT, "triple fault"),
        (guest::INTERRUPT_WINDOW, "interrupt window"),
        (guest::NMI_WINDOW, "NMI window"),
        (guest::TASK_SWITCH, "task switch"),
        (guest::CPUID, "CPUID"),
        (guest::HLT, "HLT"),
        (guest::INVD, "INVD"),
        (guest::INVLPG, "INVLPG"),
        (guest::RDPMC, "RDPMC"),
        (guest::RDTSC, "RDTSC"),
        (guest::VMCALL, "VMCALL"),
        (guest::CR_ACCESS, "CR access"),
        (guest::DR_ACCESS, "DR access"),
        (guest::IO, "port I/O"),
        (guest::RDMSR, "RDMSR"),
        (guest::WRMSR, "WRMSR"),
        (guest::MWAIT, "MWAIT"),
        (guest::PAUSE, "PAUSE"),
        (guest::TPR_BELOW_THRESHOLD, "TPR below threshold"),
        (guest::PAGE_FAULT, "memory access"),
        (guest::RDTSCP, "RDTSCP"),
        (guest::XSETBV, "XSETBV"),
    ];
    let name = NAMES.iter().find(|(event, _)| *event == number).map(|(_, name)| *name);
    name.or(own_event(number, GUEST_ARCH)).map_or_else(|| format!("event {number:#x}"), String::from)
}
