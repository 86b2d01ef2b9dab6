//! What the specification (NOVA, release 24.08, x86-64) says in numbers.
//!
//! Written from its text once more, and on purpose not taken from the crate `abi`: a wrong number there would be wrong
//! in the kernel and in its test alike, and nobody would notice.

use core::fmt;

/// Index of a capability in an object space.
pub type Selector = u64;

/// A status code (5.1.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8);

/// 0x0: the operation was successful.
pub const SUCCESS: Status = Status(0x0);
/// 0x1: timeout.
pub const TIMEOUT: Status = Status(0x1);
/// 0x2: abort.
pub const ABORTED: Status = Status(0x2);
/// 0x3: overflow.
pub const OVRFLOW: Status = Status(0x3);
/// 0x4: no such hypercall.
pub const BAD_HYP: Status = Status(0x4);
/// 0x5: no such capability, or not with these permissions.
pub const BAD_CAP: Status = Status(0x5);
/// 0x6: invalid parameter.
pub const BAD_PAR: Status = Status(0x6);
/// 0x7: feature not there.
pub const BAD_FTR: Status = Status(0x7);
/// 0x8: no such CPU, or the wrong one.
pub const BAD_CPU: Status = Status(0x8);
/// 0x9: no such device.
pub const BAD_DEV: Status = Status(0x9);
/// 0xa: not enough memory for an object.
pub const MEM_OBJ: Status = Status(0xa);
/// 0xb: not enough memory for a capability.
pub const MEM_CAP: Status = Status(0xb);

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 12] = [
            "SUCCESS", "TIMEOUT", "ABORTED", "OVRFLOW", "BAD_HYP", "BAD_CAP", "BAD_PAR", "BAD_FTR", "BAD_CPU",
            "BAD_DEV", "MEM_OBJ", "MEM_CAP",
        ];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "status {:#x}", self.0),
        }
    }
}

/// Numbers of hypercalls (5.1.1).
pub mod call {
    #![allow(missing_docs)]
    pub const IPC_CALL: u8 = 0x0;
    pub const IPC_REPLY: u8 = 0x1;
    pub const CREATE_PD: u8 = 0x2;
    pub const CREATE_EC: u8 = 0x3;
    pub const CREATE_SC: u8 = 0x4;
    pub const CREATE_PT: u8 = 0x5;
    pub const CREATE_SM: u8 = 0x6;
    pub const CTRL_PD: u8 = 0x7;
    pub const CTRL_EC: u8 = 0x8;
    pub const CTRL_SC: u8 = 0x9;
    pub const CTRL_PT: u8 = 0xa;
    pub const CTRL_SM: u8 = 0xb;
    pub const CTRL_HW: u8 = 0xc;
    pub const ASSIGN_INT: u8 = 0xd;
    pub const ASSIGN_DEV: u8 = 0xe;
}

/// Permission bits of capabilities (4.1).
pub mod perm {
    #![allow(missing_docs)]
    pub const ALL: u64 = 0x1f;
    // Protection domain (4.1.2.7).
    pub const PD: u64 = 1 << 0;
    pub const EC: u64 = 1 << 1;
    pub const SC: u64 = 1 << 2;
    pub const PT: u64 = 1 << 3;
    pub const SM: u64 = 1 << 4;
    // Spaces (4.1.2.1 to 4.1.2.6).
    pub const GRANT: u64 = 1 << 0;
    pub const TAKE: u64 = 1 << 1;
    pub const ASSIGN: u64 = 1 << 2;
    // Execution context, scheduling context, portal (4.1.2.8 to 4.1.2.10).
    pub const CTRL: u64 = 1 << 0;
    pub const BIND_PT: u64 = 1 << 2;
    pub const BIND_SC: u64 = 1 << 3;
    pub const CALL: u64 = 1 << 1;
    pub const EVENT: u64 = 1 << 2;
    // Semaphore (4.1.2.11).
    pub const UP: u64 = 1 << 0;
    pub const DOWN: u64 = 1 << 1;
    pub const ASSIGN_INT: u64 = 1 << 4;
    // Memory (4.1.3).
    pub const R: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const XU: u64 = 1 << 2;
    pub const XS: u64 = 1 << 3;
    // Port (4.1.4).
    pub const A: u64 = 1 << 0;
}

/// Host events without a base (8.6.1), and microhypervisor events relative to SEL_HST_ARCH or SEL_GST_ARCH (8.6.2).
pub mod event {
    #![allow(missing_docs)]
    pub const DE: u16 = 0x00;
    pub const DB: u16 = 0x01;
    pub const BP: u16 = 0x03;
    pub const OF: u16 = 0x04;
    pub const BR: u16 = 0x05;
    pub const UD: u16 = 0x06;
    pub const NM: u16 = 0x07;
    pub const NP: u16 = 0x0b;
    pub const SS: u16 = 0x0c;
    pub const GP: u16 = 0x0d;
    pub const PF: u16 = 0x0e;
    pub const MF: u16 = 0x10;
    pub const AC: u16 = 0x11;
    pub const XM: u16 = 0x13;
    pub const STARTUP: u16 = 0;
    pub const RECALL: u16 = 1;
}

/// Cacheability in a memory attribute descriptor (8.7.5).
pub mod cache {
    #![allow(missing_docs)]
    pub const WB: u64 = 0;
    pub const WT: u64 = 1;
    pub const WC: u64 = 2;
    pub const UC: u64 = 3;
    pub const WP: u64 = 4;
}

/// Bits of the message transfer descriptor of events (8.7.4).
pub mod mtd {
    #![allow(missing_docs)]
    pub const POISON: u32 = 1 << 0;
    pub const GPR_0_7: u32 = 1 << 1;
    pub const GPR_8_15: u32 = 1 << 2;
    pub const RFLAGS: u32 = 1 << 3;
    pub const RIP: u32 = 1 << 4;
    pub const STA: u32 = 1 << 5;
    pub const QUAL: u32 = 1 << 6;
    pub const CTRL: u32 = 1 << 7;
    pub const TPR: u32 = 1 << 8;
    pub const INJ: u32 = 1 << 9;
    pub const CS_SS: u32 = 1 << 10;
    pub const DS_ES: u32 = 1 << 11;
    pub const FS_GS: u32 = 1 << 12;
    pub const TR: u32 = 1 << 13;
    pub const LDTR: u32 = 1 << 14;
    pub const GDTR: u32 = 1 << 15;
    pub const IDTR: u32 = 1 << 16;
    pub const PDPTE: u32 = 1 << 17;
    pub const CR: u32 = 1 << 18;
    pub const DR: u32 = 1 << 19;
    pub const XSAVE: u32 = 1 << 20;
    pub const APIC: u32 = 1 << 21;
    pub const SYSCALL: u32 = 1 << 22;
    pub const SYSENTER: u32 = 1 << 23;
    pub const PAT: u32 = 1 << 24;
    pub const EFER: u32 = 1 << 25;
    pub const KERNEL_GS: u32 = 1 << 26;
    pub const TSC: u32 = 1 << 27;
    pub const TLB: u32 = 1 << 29;
    pub const FPU: u32 = 1 << 30;
    pub const SPACES: u32 = 1 << 31;
}

/// Where something lies in a UTCB of the architectural layout (8.7.3) or in the information page (6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes: 1, 2, 4 or 8.
    pub size: usize,
}

/// The fields of the architectural layout.
pub mod field {
    #![allow(missing_docs)]
    use super::Field;

    const fn u16(offset: usize) -> Field {
        Field { offset, size: 2 }
    }
    const fn u32(offset: usize) -> Field {
        Field { offset, size: 4 }
    }
    const fn u64(offset: usize) -> Field {
        Field { offset, size: 8 }
    }
    /// General register by its number in instruction encodings.
    pub const fn gpr(number: usize) -> Field {
        u64(8 * number)
    }
    pub const RAX: Field = gpr(0);
    pub const RCX: Field = gpr(1);
    pub const RDX: Field = gpr(2);
    pub const RBX: Field = gpr(3);
    pub const RSP: Field = gpr(4);
    pub const RBP: Field = gpr(5);
    pub const RSI: Field = gpr(6);
    pub const RDI: Field = gpr(7);
    pub const RFLAGS: Field = u64(0x80);
    pub const RIP: Field = u64(0x88);
    pub const INSTRUCTION_LENGTH: Field = u32(0x90);
    pub const INSTRUCTION_INFO: Field = u32(0x94);
    pub const INTERRUPTIBILITY: Field = u32(0x98);
    pub const ACTIVITY: Field = u32(0x9c);
    pub const QUALIFICATION_1: Field = u64(0xa0);
    pub const QUALIFICATION_2: Field = u64(0xa8);
    pub const QUALIFICATION_3: Field = u64(0xb0);
    pub const EXEC_CONTROLS_1: Field = u32(0xc0);
    pub const EXEC_CONTROLS_2: Field = u32(0xc4);
    pub const EXEC_CONTROLS_3: Field = u64(0xc8);
    pub const CR0_INTERCEPTS: Field = u64(0xd0);
    pub const CR4_INTERCEPTS: Field = u64(0xd8);
    pub const EXCEPTION_INTERCEPTS: Field = u32(0xe0);
    pub const PF_MASK: Field = u32(0xe4);
    pub const PF_MATCH: Field = u32(0xe8);
    pub const TPR_THRESHOLD: Field = u32(0xec);
    pub const INTERRUPTION_INFO: Field = u32(0xf0);
    pub const INTERRUPTION_ERROR: Field = u32(0xf4);
    pub const VECTORING_INFO: Field = u32(0xf8);
    pub const VECTORING_ERROR: Field = u32(0xfc);
    pub const CS: [Field; 4] = segment(0x100);
    pub const SS: [Field; 4] = segment(0x110);
    pub const DS: [Field; 4] = segment(0x120);
    pub const ES: [Field; 4] = segment(0x130);
    pub const FS: [Field; 4] = segment(0x140);
    pub const GS: [Field; 4] = segment(0x150);
    pub const TR: [Field; 4] = segment(0x160);
    pub const LDTR: [Field; 4] = segment(0x170);
    pub const GDTR_LIMIT: Field = u32(0x184);
    pub const GDTR_BASE: Field = u64(0x188);
    pub const IDTR_LIMIT: Field = u32(0x194);
    pub const IDTR_BASE: Field = u64(0x198);
    pub const PDPTE: [Field; 4] = [u64(0x1a0), u64(0x1a8), u64(0x1b0), u64(0x1b8)];
    pub const CR0: Field = u64(0x1c0);
    pub const CR2: Field = u64(0x1c8);
    pub const CR3: Field = u64(0x1d0);
    pub const CR4: Field = u64(0x1d8);
    pub const CR8: Field = u64(0x1e0);
    pub const DR7: Field = u64(0x1e8);
    pub const XCR0: Field = u64(0x1f0);
    pub const XSS: Field = u64(0x1f8);
    pub const APIC_BASE: Field = u64(0x200);
    pub const SYSENTER_CS: Field = u64(0x208);
    pub const SYSENTER_ESP: Field = u64(0x210);
    pub const SYSENTER_EIP: Field = u64(0x218);
    pub const PAT: Field = u64(0x220);
    pub const EFER: Field = u64(0x228);
    pub const STAR: Field = u64(0x230);
    pub const LSTAR: Field = u64(0x238);
    pub const FMASK: Field = u64(0x240);
    pub const KERNEL_GS_BASE: Field = u64(0x248);
    pub const TSC_AUX: Field = u64(0x250);
    pub const SEL_GST: Field = u64(0x258);
    pub const SEL_PIO: Field = u64(0x260);
    pub const SEL_MSR: Field = u64(0x268);

    /// Selector, access rights, limit, base.
    const fn segment(offset: usize) -> [Field; 4] {
        [u16(offset), u16(offset + 2), u32(offset + 4), u64(offset + 8)]
    }
}

/// Interruption information (8.7.3.2).
pub mod injection {
    #![allow(missing_docs)]
    pub const VALID: u64 = 1 << 31;
    pub const NMI_WINDOW: u64 = 1 << 13;
    pub const INTERRUPT_WINDOW: u64 = 1 << 12;
    pub const ERROR_CODE: u64 = 1 << 11;
    pub const EXTERNAL: u64 = 0 << 8;
    pub const NMI: u64 = 2 << 8;
    pub const EXCEPTION: u64 = 3 << 8;
    pub const SOFTWARE: u64 = 4 << 8;
    pub const PRIVILEGED: u64 = 5 << 8;
    pub const SOFTWARE_EXCEPTION: u64 = 6 << 8;
}

/// Platform features in the information page (8.7.1).
pub mod feature {
    #![allow(missing_docs)]
    pub const IOMMU: u64 = 1 << 0;
    pub const VMX: u64 = 1 << 1;
    pub const SVM: u64 = 1 << 2;
}

/// Scheduling context descriptor (4.5).
pub const fn scd(budget_ms: u64, priority: u64, cos: u64) -> u64 {
    budget_ms | priority << 16 | cos << 23
}

/// Message transfer descriptor of a regular message of `words` words (4.4.1).
pub const fn words(words: usize) -> u32 {
    words as u32 - 1
}

/// Fields of the hypervisor information page (6.3, 8.7.2).
pub mod hip {
    #![allow(missing_docs)]
    use super::Field;

    const fn field(offset: usize, size: usize) -> Field {
        Field { offset, size }
    }
    pub const SIGNATURE: Field = field(0x00, 4);
    pub const CHECKSUM: Field = field(0x04, 2);
    pub const LENGTH: Field = field(0x06, 2);
    pub const NOVA_START: Field = field(0x08, 8);
    pub const NOVA_END: Field = field(0x10, 8);
    pub const MBUF_START: Field = field(0x18, 8);
    pub const MBUF_END: Field = field(0x20, 8);
    pub const ROOT_START: Field = field(0x28, 8);
    pub const ROOT_END: Field = field(0x30, 8);
    pub const ACPI_RSDP: Field = field(0x38, 8);
    pub const UEFI_MAP: Field = field(0x40, 8);
    pub const UEFI_MAP_SIZE: Field = field(0x48, 4);
    pub const UEFI_DESC_SIZE: Field = field(0x4c, 2);
    pub const UEFI_DESC_VERSION: Field = field(0x4e, 2);
    pub const STC_FREQUENCY: Field = field(0x50, 8);
    pub const SEL_NUM: Field = field(0x58, 8);
    pub const SEL_HST_ARCH: Field = field(0x60, 2);
    pub const SEL_HST_NOVA: Field = field(0x62, 2);
    pub const SEL_GST_ARCH: Field = field(0x64, 2);
    pub const SEL_GST_NOVA: Field = field(0x66, 2);
    pub const CPU_NUM: Field = field(0x68, 2);
    pub const CPU_BSP: Field = field(0x6a, 2);
    pub const INT_PIN: Field = field(0x6c, 2);
    pub const INT_MSI: Field = field(0x6e, 2);
    pub const MCO_OBJ: Field = field(0x70, 1);
    pub const MCO_HST: Field = field(0x71, 1);
    pub const MCO_GST: Field = field(0x72, 1);
    pub const MCO_DMA: Field = field(0x73, 1);
    pub const MCO_PIO: Field = field(0x74, 1);
    pub const MCO_MSR: Field = field(0x75, 1);
    pub const KIMAX: Field = field(0x76, 2);
    pub const PLATFORM_FEATURES: Field = field(0x78, 8);
    pub const EVENT_LOG: Field = field(0x80, 8);
    pub const EVENT_LOG_SIZE: Field = field(0x88, 4);
    pub const EVENT_LOG_OFFSET: Field = field(0x8c, 4);
    /// End of what the specification defines.
    pub const END: usize = 0x90;
    /// Value of SIGNATURE.
    pub const MAGIC: u64 = 0x4156_4f4e;
    /// Value of an address field whose table is not there.
    pub const NOT_PRESENT: u64 = u64::MAX;
}
