//! Register numbers and fields of the local APIC.
//!
//! Intel SDM vol. 3A, table 11-1 (memory-mapped offsets, here divided by 16) and table 11-6 (x2APIC MSRs, here less
//! 0x800): both give the same number.

/// Local APIC id.
pub const ID: u32 = 0x02;
/// Version.
pub const VERSION: u32 = 0x03;
/// Task priority.
pub const TPR: u32 = 0x08;
/// Processor priority.
pub const PPR: u32 = 0x0a;
/// End of interrupt.
pub const EOI: u32 = 0x0b;
/// Logical destination.
pub const LDR: u32 = 0x0d;
/// Destination format; xAPIC only.
pub const DFR: u32 = 0x0e;
/// Spurious-interrupt vector.
pub const SVR: u32 = 0x0f;
/// First of eight in-service registers.
pub const ISR: u32 = 0x10;
/// First of eight trigger-mode registers.
pub const TMR: u32 = 0x18;
/// First of eight interrupt-request registers.
pub const IRR: u32 = 0x20;
/// Error status.
pub const ESR: u32 = 0x28;
/// Interrupt command, bits 31:0; in x2APIC mode all 64 bits.
pub const ICR: u32 = 0x30;
/// Interrupt command, bits 63:32; xAPIC only.
pub const ICR_HIGH: u32 = 0x31;
/// First of the local vector table: timer.
pub const LVT_TIMER: u32 = 0x32;
/// LVT thermal monitor.
pub const LVT_THERMAL: u32 = 0x33;
/// LVT performance counters.
pub const LVT_PERFORMANCE: u32 = 0x34;
/// LVT LINT0.
pub const LVT_LINT0: u32 = 0x35;
/// LVT LINT1.
pub const LVT_LINT1: u32 = 0x36;
/// LVT error.
pub const LVT_ERROR: u32 = 0x37;
/// Timer initial count.
pub const INITIAL_COUNT: u32 = 0x38;
/// Timer current count.
pub const CURRENT_COUNT: u32 = 0x39;
/// Timer divide configuration.
pub const DIVIDE: u32 = 0x3e;
/// Self IPI; x2APIC only.
pub const SELF_IPI: u32 = 0x3f;

/// Version 0x14, six LVT entries, EOI-broadcast suppression.
pub const VERSION_VALUE: u32 = 0x14 | 5 << 16 | 1 << 24;

/// SVR: software enable.
pub const SVR_ENABLE: u32 = 1 << 8;
/// SVR: ends of level-triggered interrupts stay local.
pub const SVR_SUPPRESS_BROADCAST: u32 = 1 << 12;
/// SVR: bits that can be written: vector, enable, suppression. Focus checking does not exist on this version.
pub const SVR_WRITABLE: u32 = 0x11ff;

/// LVT: masked.
pub const LVT_MASKED: u32 = 1 << 16;
/// Bits of each LVT entry that can be written, from [`LVT_TIMER`] on.
pub const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

/// ESR: an IPI with an illegal vector was sent.
pub const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: an interrupt with an illegal vector was received.
pub const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: access to a register that does not exist.
pub const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// ICR bits that mean something in both modes: vector, delivery mode, destination mode, level, trigger, shorthand.
/// Bit 12 (delivery status) is read-only.
pub const ICR_WRITABLE: u64 = 0xc_cfff;
/// ICR bits that a write in x2APIC mode may set: also the 32-bit destination.
pub const ICR_X2APIC: u64 = 0xffff_ffff_0000_0000 | ICR_WRITABLE;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BOOTSTRAP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: enabled.
pub const BASE_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: the page's address, as wide as the architecture allows.
pub const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The address after reset.
pub const BASE_DEFAULT: u64 = 0xfee0_0000;
