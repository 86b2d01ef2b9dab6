//! What this kernel offers beyond the specification. A program written for NOVA never notices.
//!
//! Extensions use hypercall number 0xf with the operation in the flags; the information page announces them in
//! [`Announcement`], behind its specified part but inside its length and checksum.

/// Value of [`Announcement::magic`]: "KILONOVA" in little-endian ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"KILONOVA");
/// Current value of [`Announcement::version`].
pub const VERSION: u32 = 1;

/// [`Announcement::features`]: [`Operation::MoveAllowance`] exists.
pub const FEATURE_ALLOWANCE: u32 = 1 << 0;
/// [`Announcement::features`]: guest events are numbered and qualified as on VMX on every CPU, see [`crate::event`].
pub const FEATURE_NEUTRAL_EVENTS: u32 = 1 << 1;
/// [`Announcement::features`]: [`Operation::Destroy`] and [`Operation::Balance`] exist.
pub const FEATURE_DESTROY: u32 = 1 << 2;
/// [`Announcement::features`]: there are counters and a trace, see [`crate::observation`], and [`Operation::Trace`].
pub const FEATURE_OBSERVATION: u32 = 1 << 3;

/// [`Announcement::features`]: SYSENTER is a second way into the kernel, for handlers of guests' events. RDI and RSI are as for
/// SYSCALL, and the results; RDX holds the address to return to, RCX the stack pointer there, and what the kernel leaves in
/// RCX, RDX and R11 is undefined. No call that takes more than RDI and RSI can be made this way. A handler that replies this
/// way leaves the guest's SYSCALL registers in the CPU while it runs; its own SYSCALL works, but takes longer.
pub const FEATURE_SYSENTER: u32 = 1 << 4;

/// [`Announcement::features`]: [`Operation::Fault`] exists, and the semaphore [`crate::capability::nova::DMA_FAULTS`].
pub const FEATURE_FAULTS: u32 = 1 << 5;

/// The record in the information page that announces the extensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Announcement {
    /// [`MAGIC`], or 0 on a kernel without extensions.
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// FEATURE_*.
    pub features: u32,
    /// Physical address of the first CPU's frames of [`crate::observation`]; those of the others follow.
    pub observation: u64,
    /// Number of a CPU's frames: one of counters, the others of the trace.
    pub observation_frames: u32,
    /// 0.
    pub reserved: u32,
}

/// Operations of hypercall 0xf, by the value of its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// RDI selector: a PD capability with permission PD. RSI: a number of 4 KiB frames. Moves that much of the
    /// caller's allowance of kernel memory to that PD; a PD that paid from its creator's account gets its own first.
    /// MEM_OBJ if the caller has not that much left.
    MoveAllowance = 0,
    /// RDI selector: any object. RSI: the PD capability, with permission PD, of the protection domain in which it was
    /// created. Destroys the object, a PD with everything that was created in it; all its memory is free when the call
    /// returns. ECs blocked in it get ABORTED. BAD_CAP if one of the selectors has no such capability; BAD_PAR if the
    /// object was created elsewhere, if the caller is inside, or if it is an object space, host space or the first PIO
    /// space, which go with their PD only.
    Destroy = 1,
    /// RDI selector: a PD capability with permission PD. Returns in RSI the number of frames that the PD could still
    /// use, in RDX the number of those that are free in the whole kernel.
    Balance = 2,
    /// RDI selector: the NOVA host space, with permission TAKE. RSI bit 0: 1 turns the trace of all CPUs on, 0 off.
    Trace = 3,
    /// From the root protection domain only, BAD_HYP else. Returns what a device did that it may not do: in RSI its source
    /// id (bits 15:0), the reason (23:16, VT-d specification 7.1.3), whether it would have read (24); in RDX the page's address
    /// at which (of an interrupt the index of its entry, in bits 63:48). Reason 0: there was no more, and the semaphore is
    /// upped at the next one. Until then no further fault costs an interrupt.
    Fault = 4,
}
