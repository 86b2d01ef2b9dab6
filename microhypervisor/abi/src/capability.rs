//! Capability selectors, permissions and the selectors that exist at start (NOVA 4.1, 4.2, 6.1.3, 6.2.3).

use bitflags::bitflags;

/// Index of a capability in an object space.
pub type Selector = u64;

/// log2 of the number of selectors in an object space.
pub const SELECTOR_BITS: u32 = 18;
/// Number of selectors in an object space; the information page conveys it as `SEL_NUM`.
pub const SELECTOR_COUNT: u64 = 1 << SELECTOR_BITS;

/// Selectors in the root object space at start (NOVA 6.2.3.1).
pub mod root {
    use super::{SELECTOR_COUNT, Selector};
    /// The NOVA object space, permission TAKE.
    pub const NOVA_OBJECT_SPACE: Selector = SELECTOR_COUNT - 1;
    /// The root object space.
    pub const OBJECT_SPACE: Selector = SELECTOR_COUNT - 2;
    /// The root protection domain.
    pub const PROTECTION_DOMAIN: Selector = SELECTOR_COUNT - 3;
    /// The root execution context.
    pub const EXECUTION_CONTEXT: Selector = SELECTOR_COUNT - 4;
    /// The root scheduling context.
    pub const SCHEDULING_CONTEXT: Selector = SELECTOR_COUNT - 5;
}

/// Selectors in the NOVA object space (NOVA 6.1.3.1).
pub mod nova {
    use super::{SELECTOR_COUNT, Selector};
    /// Signalled at the end of each line of the memory-buffer console.
    pub const CONSOLE_SEMAPHORE: Selector = SELECTOR_COUNT - 1;
    /// The NOVA object space itself, permission TAKE.
    pub const OBJECT_SPACE: Selector = SELECTOR_COUNT - 2;
    /// All physical memory that the kernel does not protect, permission TAKE.
    pub const HOST_SPACE: Selector = SELECTOR_COUNT - 3;
    /// All I/O ports that the kernel does not protect, permission TAKE.
    pub const PIO_SPACE: Selector = SELECTOR_COUNT - 4;
    /// The model-specific registers that may be passed through, permission TAKE.
    pub const MSR_SPACE: Selector = SELECTOR_COUNT - 5;
    /// The root object space, all permissions.
    pub const ROOT_OBJECT_SPACE: Selector = SELECTOR_COUNT - 6;
    /// The root host space, all permissions.
    pub const ROOT_HOST_SPACE: Selector = SELECTOR_COUNT - 7;
    /// The root PIO space, all permissions.
    pub const ROOT_PIO_SPACE: Selector = SELECTOR_COUNT - 8;
    /// Signalled when a device did what it may not do, see [`crate::extension`]: permissions DOWN
    /// and ASSIGN_INT, as of an interrupt.
    pub const DMA_FAULTS: Selector = SELECTOR_COUNT - 9;
    /// First interrupt semaphore: pin-based interrupts by global system interrupt, then message-signalled ones.
    pub const INTERRUPT_BASE: Selector = 1 << 16;
    /// First idle scheduling context; one per CPU.
    pub const IDLE_BASE: Selector = 0;
}

bitflags! {
    /// The five permission bits of any capability; their meaning depends on its kind.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Permissions: u8 {
        /// Protection domain: create_pd. NOVA 4.1.2.7.
        const PD = 1 << 0;
        /// Protection domain: create_ec.
        const EC = 1 << 1;
        /// Protection domain: create_sc.
        const SC = 1 << 2;
        /// Protection domain: create_pt.
        const PT = 1 << 3;
        /// Protection domain: create_sm.
        const SM = 1 << 4;

        /// Space: destination of ctrl_pd. NOVA 4.1.2.1 to 4.1.2.6.
        const GRANT = 1 << 0;
        /// Object, host, PIO, MSR space: source of ctrl_pd.
        const TAKE = 1 << 1;
        /// Guest, DMA, PIO, MSR space: a guest EC or a device can be assigned to it.
        const ASSIGN = 1 << 2;

        /// EC, SC, PT: ctrl_ec, ctrl_sc, ctrl_pt. NOVA 4.1.2.8 to 4.1.2.10.
        const CTRL = 1 << 0;
        /// EC: create_pt can bind a portal to it.
        const BIND_PT = 1 << 2;
        /// EC: create_sc can bind a scheduling context to it.
        const BIND_SC = 1 << 3;
        /// PT: ipc_call.
        const CALL = 1 << 1;
        /// PT: delivery of events.
        const EVENT = 1 << 2;

        /// SM: ctrl_sm up. NOVA 4.1.2.11.
        const UP = 1 << 0;
        /// SM: ctrl_sm down.
        const DOWN = 1 << 1;
        /// Interrupt semaphore: assign_int.
        const ASSIGN_INT = 1 << 4;

        /// Memory: readable. NOVA 4.1.3.
        const READ = 1 << 0;
        /// Memory: writable.
        const WRITE = 1 << 1;
        /// Memory: executable in user mode.
        const EXECUTE_USER = 1 << 2;
        /// Memory: executable in supervisor mode.
        const EXECUTE_SUPERVISOR = 1 << 3;

        /// I/O port: accessible. NOVA 4.1.4.
        const ACCESS = 1 << 0;
    }
}

/// What a guest EC or a host program may do with a page of ordinary memory.
pub const MEMORY_ALL: Permissions =
    Permissions::READ.union(Permissions::WRITE).union(Permissions::EXECUTE_USER).union(Permissions::EXECUTE_SUPERVISOR);

/// Cacheability attribute of a memory attribute descriptor (NOVA 8.7.5); values above 4 are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cacheability {
    /// Write back: ordinary RAM.
    WriteBack = 0,
    /// Write through.
    WriteThrough = 1,
    /// Write combining: frame buffers.
    WriteCombining = 2,
    /// Strong uncacheable: device registers.
    Uncacheable = 3,
    /// Write protected.
    WriteProtected = 4,
}

impl Cacheability {
    /// Decodes bits 2:0 of a memory attribute descriptor; `None` for a reserved encoding.
    pub fn from_bits(bits: u32) -> Option<Self> {
        use Cacheability::*;
        const BY_BITS: [Cacheability; 5] = [WriteBack, WriteThrough, WriteCombining, Uncacheable, WriteProtected];
        BY_BITS.get(bits as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_variants() {
        for bits in 0..16 {
            assert_eq!(Cacheability::from_bits(bits).map(|kind| kind as u32), Some(bits).filter(|&bits| bits <= 4));
        }
    }
}
