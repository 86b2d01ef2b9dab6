//! What the VMX unit defines: MSRs (Intel SDM vol. 4; vol. 3D, appendix A), control bits (vol. 3C, 25.6 to 25.8),
//! VMCS fields (vol. 3D, appendix B), exit reasons (appendix C).

/// Modules of bit masks: name and number of each bit.
macro_rules! bits {
    ($($(#[$doc:meta])* $module:ident: $type:ty { $($bit:literal $name:ident)* })*) => { $(
        $(#[$doc])*
        pub mod $module { $(pub const $name: $type = 1 << $bit;)* }
    )* };
}

/// Constants whose values follow each other by two, from the one given.
macro_rules! by_twos {
    () => {};
    ($value:expr => $name:ident $($rest:ident)*; $($more:tt)*) => {
        pub const $name: u32 = $value;
        by_twos! { $value + 2 => $($rest)*; $($more)* }
    };
    ($value:expr =>; $($more:tt)*) => { by_twos! { $($more)* } };
}

/// CPUID leaf 1 ECX: VMX.
pub const CPUID_VMX: u32 = 1 << 5;

/// Model-specific registers.
pub mod msr {
    by_twos! {
        0x3a => FEATURE_CONTROL;
        0x480 => BASIC;
        0x485 => MISC;
        0x486 => CR0_FIXED0 CR4_FIXED0;
        0x487 => CR0_FIXED1 CR4_FIXED1;
        0x48b => SECONDARY TRUE_PIN TRUE_EXIT;
        0x48c => EPT_VPID TRUE_PRIMARY TRUE_ENTRY;
    }
}

/// MSR BASIC: the TRUE capability MSRs exist.
pub const BASIC_TRUE: u64 = 1 << 55;

bits! {
    /// Pin-based controls.
    pin: u32 { 0 EXTERNAL_INTERRUPT 3 NMI 5 VIRTUAL_NMIS 6 PREEMPTION_TIMER }
    /// Primary processor-based controls.
    primary: u32 {
        2 INTERRUPT_WINDOW 7 HLT 9 INVLPG 10 MWAIT 11 RDPMC 12 RDTSC 15 CR3_LOAD 16 CR3_STORE 19 CR8_LOAD 20 CR8_STORE
        21 TPR_SHADOW 22 NMI_WINDOW 23 MOV_DR 25 IO_BITMAPS 27 MONITOR_TRAP 28 MSR_BITMAPS 29 MONITOR 30 PAUSE
        31 SECONDARY
    }
    /// Secondary processor-based controls.
    secondary: u32 {
        0 APIC_ACCESSES 1 EPT 2 DESCRIPTOR_TABLES 3 RDTSCP 5 VPID 6 WBINVD 7 UNRESTRICTED_GUEST 11 RDRAND 12 INVPCID 16 RDSEED 20 XSAVES
    }
    /// Exit controls.
    exit: u32 { 2 SAVE_DEBUG 9 HOST_64 15 ACKNOWLEDGE_INTERRUPT 18 SAVE_PAT 19 LOAD_PAT 20 SAVE_EFER 21 LOAD_EFER }
    /// Entry controls.
    entry: u32 { 2 LOAD_DEBUG 9 IA32E 14 LOAD_PAT 15 LOAD_EFER }
    /// EPT and VPID capabilities.
    ept: u64 {
        6 FOUR_LEVELS 14 WRITE_BACK 16 PAGE_2M 17 PAGE_1G 20 INVEPT 25 INVEPT_SINGLE 26 INVEPT_ALL 32 INVVPID
        42 INVVPID_ALL
    }
}

/// Controls that are clear but while the VMM waits for a window.
pub const WINDOWS: u32 = primary::INTERRUPT_WINDOW | primary::NMI_WINDOW;
/// Primary processor-based controls that a VMM can set.
pub const VMM_PRIMARY: u32 = {
    use primary::*;
    INVLPG | RDTSC | CR3_LOAD | CR3_STORE | CR8_LOAD | CR8_STORE | MOV_DR | MONITOR_TRAP | PAUSE
};
/// Secondary processor-based controls that a VMM can set.
pub const VMM_SECONDARY: u32 = {
    use secondary::*;
    APIC_ACCESSES | DESCRIPTOR_TABLES | RDTSCP | RDRAND | INVPCID | RDSEED | XSAVES
};
/// Those of them that are set until the VMM says otherwise.
pub const VMM_INITIAL: u32 = secondary::RDTSCP | secondary::INVPCID;
/// EPT pointer: write-back tables of four levels.
pub const EPT_POINTER_ATTRIBUTES: u64 = 3 << 3 | 6;

/// A word of controls: capability MSR, VMCS field, bits that are needed, bits that are welcome.
pub struct Controls(pub u32, pub u32, pub u32, pub u32);

/// Index in [`CONTROLS`].
pub const PIN: usize = 0;
/// Index in [`CONTROLS`].
pub const PRIMARY: usize = 1;
/// Index in [`CONTROLS`].
pub const SECONDARY: usize = 2;

/// The words of controls.
pub const CONTROLS: [Controls; 5] = {
    use {entry as n, exit as x, pin as i, primary as p, secondary as s};
    const PIN: u32 = i::EXTERNAL_INTERRUPT | i::NMI | i::VIRTUAL_NMIS;
    const EXITING: u32 = p::HLT | p::MWAIT | p::RDPMC | p::MONITOR | p::IO_BITMAPS | p::MSR_BITMAPS;
    const PRIMARY: u32 = EXITING | p::TPR_SHADOW | p::SECONDARY | WINDOWS;
    const SECONDARY: u32 = s::EPT | s::UNRESTRICTED_GUEST | s::VPID;
    const WELCOME: u32 = s::RDTSCP | s::WBINVD | s::INVPCID;
    const SWITCHED: u32 = x::SAVE_PAT | x::LOAD_PAT | x::SAVE_EFER | x::LOAD_EFER;
    const EXIT: u32 = x::SAVE_DEBUG | x::HOST_64 | x::ACKNOWLEDGE_INTERRUPT | SWITCHED;
    const ENTRY: u32 = n::LOAD_DEBUG | n::LOAD_PAT | n::LOAD_EFER;
    [
        Controls(msr::TRUE_PIN, field::PIN_CONTROLS, PIN, i::PREEMPTION_TIMER),
        Controls(msr::TRUE_PRIMARY, field::PRIMARY_CONTROLS, PRIMARY, 0),
        Controls(msr::SECONDARY, field::SECONDARY_CONTROLS, SECONDARY, WELCOME),
        Controls(msr::TRUE_EXIT, field::EXIT_CONTROLS, EXIT, 0),
        Controls(msr::TRUE_ENTRY, field::ENTRY_CONTROLS, ENTRY, 0),
    ]
};

/// Interruption information and vectoring information: valid.
pub const INFO_VALID: u32 = 1 << 31;
/// Those bits of information from an exit that make up information for an entry.
pub const INFO_EVENT: u32 = INFO_VALID | 0xfff;
/// Exit reason: the entry failed.
pub const ENTRY_FAILED: u32 = 1 << 31;
/// Exit reason that [`abi::event::guest`] does not name: machine check during entry.
pub const REASON_MACHINE_CHECK: u16 = 0x29;
/// Exit reason: preemption timer.
pub const REASON_TIMER: u16 = 0x34;

/// Exit reasons, a bit each, that are the VMM's without anything to do before; they deliver no event.
pub const PLAIN_EVENTS: u64 = {
    use abi::event::guest::*;
    let plain =
        [CPUID, HLT, INVD, INVLPG, RDPMC, RDTSC, VMCALL, DR_ACCESS, IO, RDMSR, WRMSR, MONITOR, PAUSE, WBINVD, XSETBV];
    let (mut mask, mut n) = (0, 0);
    while n < plain.len() {
        mask |= 1 << plain[n];
        n += 1;
    }
    mask
};

/// VMCS fields. Of segments (ES, CS, SS, DS, FS, GS, LDTR, TR) and descriptor tables (GDTR, IDTR) only the first of
/// each kind is named; the others follow by twos.
pub mod field {
    by_twos! {
        0x0000 => VPID;
        0x0800 => SELECTORS;
        0x0c02 => HOST_CS HOST_SS;
        0x0c0c => HOST_TR;
        0x2000 => IO_BITMAP_A IO_BITMAP_B MSR_BITMAP;
        0x2010 => TSC_OFFSET VIRTUAL_APIC APIC_ACCESS;
        0x201a => EPT_POINTER;
        0x202c => XSS_EXITING;
        0x2400 => PHYSICAL_ADDRESS;
        0x2800 => LINK_POINTER DEBUGCTL PAT EFER PDPTES;
        0x2c00 => HOST_PAT HOST_EFER;
        0x4000 => PIN_CONTROLS PRIMARY_CONTROLS EXCEPTION_BITMAP PAGE_FAULT_MASK PAGE_FAULT_MATCH CR3_TARGETS
            EXIT_CONTROLS EXIT_MSR_STORES EXIT_MSR_LOADS ENTRY_CONTROLS ENTRY_MSR_LOADS ENTRY_INFO ENTRY_ERROR
            ENTRY_LENGTH TPR_THRESHOLD SECONDARY_CONTROLS;
        0x4400 => INSTRUCTION_ERROR REASON EXIT_INFO EXIT_ERROR VECTORING_INFO VECTORING_ERROR INSTRUCTION_LENGTH
            INSTRUCTION_INFO;
        0x4800 => LIMITS;
        0x4810 => TABLE_LIMITS;
        0x4814 => ACCESS_RIGHTS;
        0x4824 => INTERRUPTIBILITY ACTIVITY;
        0x482a => SYSENTER_CS;
        0x482e => TIMER;
        0x4c00 => HOST_SYSENTER_CS;
        0x6000 => CR0_MASK CR4_MASK CR0_SHADOW CR4_SHADOW;
        0x6400 => QUALIFICATION;
        0x640a => LINEAR_ADDRESS;
        0x6800 => CR0 CR3 CR4 BASES;
        0x6816 => TABLE_BASES;
        0x681a => DR7 RSP RIP RFLAGS PENDING_DEBUG SYSENTER_ESP SYSENTER_EIP;
        0x6c00 => HOST_CR0 HOST_CR3 HOST_CR4 HOST_FS_BASE HOST_GS_BASE HOST_TR_BASE HOST_GDTR_BASE HOST_IDTR_BASE
            HOST_SYSENTER_ESP HOST_SYSENTER_EIP HOST_RSP HOST_RIP;
    }
    /// What a new VMCS has as zero for good, or for a start: also the selectors of the host's ES, DS, FS, GS.
    #[rustfmt::skip]
    pub const ZERO: [u32; 17] = [
        CR3_TARGETS, EXIT_MSR_STORES, EXIT_MSR_LOADS, ENTRY_MSR_LOADS, ENTRY_INFO, TSC_OFFSET, DEBUGCTL, PENDING_DEBUG,
        EPT_POINTER, APIC_ACCESS, XSS_EXITING, HOST_FS_BASE, HOST_GS_BASE, 0x0c00, 0x0c06, 0x0c08, 0x0c0a,
    ];
}
