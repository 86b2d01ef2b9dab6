//! Hypercall numbers, flags and status codes (NOVA 5.1, 8.8).
//!
//! A hypercall is SYSCALL with RDI = selector << 8 | flags << 4 | number and further parameters in RSI, RDX, RAX, R8.
//! On return RDI holds the status in bits 7:0, RCX the return address, R11 0x202; all other registers are preserved
//! but for the outputs that the call names.

/// The hypercalls by number (NOVA 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hypercall {
    /// Send a message through a portal and wait for the reply.
    IpcCall = 0x0,
    /// Reply to the caller and wait for the next message.
    IpcReply = 0x1,
    /// Create a protection domain or one of its spaces.
    CreatePd = 0x2,
    /// Create an execution context.
    CreateEc = 0x3,
    /// Create a scheduling context.
    CreateSc = 0x4,
    /// Create a portal.
    CreatePt = 0x5,
    /// Create a semaphore.
    CreateSm = 0x6,
    /// Take capabilities from one space and grant them to another.
    CtrlPd = 0x7,
    /// Recall an execution context.
    CtrlEc = 0x8,
    /// Read the time that a scheduling context consumed.
    CtrlSc = 0x9,
    /// Set identifier and message transfer descriptor of a portal.
    CtrlPt = 0xa,
    /// Up or down on a semaphore.
    CtrlSm = 0xb,
    /// Sleep states, reset, cache allocation.
    CtrlHw = 0xc,
    /// Route an interrupt to a CPU.
    AssignInt = 0xd,
    /// Assign a device to a DMA space.
    AssignDev = 0xe,
    /// Not in the specification: see [`crate::extension`].
    Extension = 0xf,
}

/// Flags in bits 7:4 of the hypercall identifier, by hypercall.
pub mod flag {
    /// ipc_call: return TIMEOUT instead of helping a busy callee.
    pub const CALL_NO_HELP: u8 = 1 << 0;
    /// create_ec: a guest EC instead of a host EC.
    pub const EC_GUEST: u8 = 1 << 0;
    /// create_ec: a host EC that can have an SC (global thread); a guest EC with time offsetting.
    pub const EC_GLOBAL: u8 = 1 << 1;
    /// create_ec: the EC can use the FPU.
    pub const EC_FPU: u8 = 1 << 2;
    /// ctrl_ec: return only when the recall has been observed.
    pub const RECALL_STRONG: u8 = 1 << 0;
    /// ctrl_sm: down instead of up.
    pub const SM_DOWN: u8 = 1 << 0;
    /// ctrl_sm down: set the counter to zero instead of decrementing it.
    pub const SM_ZERO: u8 = 1 << 1;
    /// assign_int: keep the interrupt masked.
    pub const INT_MASKED: u8 = 1 << 0;
    /// assign_int: level-triggered.
    pub const INT_LEVEL: u8 = 1 << 1;
    /// assign_int: active low.
    pub const INT_LOW: u8 = 1 << 2;
    /// assign_int: owned by a guest.
    pub const INT_GUEST: u8 = 1 << 3;
}

/// What create_pd creates: the operation in its flags (NOVA 5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CreatePd {
    /// A protection domain.
    ProtectionDomain = 0,
    /// Its object space.
    ObjectSpace = 1,
    /// Its host space.
    HostSpace = 2,
    /// A guest space.
    GuestSpace = 3,
    /// A DMA space.
    DmaSpace = 4,
    /// A PIO space.
    PioSpace = 5,
    /// An MSR space.
    MsrSpace = 6,
}

/// Status codes of hypercalls (NOVA 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Operation successful.
    Success = 0x0,
    /// Operation timeout.
    Timeout = 0x1,
    /// Operation abort.
    Aborted = 0x2,
    /// Operation overflow.
    Overflow = 0x3,
    /// Invalid hypercall.
    BadHyp = 0x4,
    /// Invalid capability.
    BadCap = 0x5,
    /// Invalid parameter.
    BadPar = 0x6,
    /// Invalid feature.
    BadFtr = 0x7,
    /// Invalid CPU number.
    BadCpu = 0x8,
    /// Invalid device.
    BadDev = 0x9,
    /// Insufficient memory for object creation.
    MemObj = 0xa,
    /// Insufficient memory for capability creation.
    MemCap = 0xb,
}
