//! What the kernel gives the root task (NOVA 6.1.3, 6.2.3), and where the root task keeps it.

use abi::capability::{Permissions, SELECTOR_COUNT, nova, root};
use abi::{Selector, Status};
use core::sync::atomic::{AtomicU64, Ordering};
use runtime::manifest::selector as own;
use runtime::syscall;

/// Selectors in the root object space, above those that the runtime uses.
pub mod selector {
    use abi::Selector;

    /// The first of them.
    pub const FIRST: Selector = 0x1000;
    /// The NOVA host space.
    pub const NOVA_HOST_SPACE: Selector = 0x1000;
    /// The NOVA PIO space.
    pub const NOVA_PIO_SPACE: Selector = 0x1001;
    /// Upped by the kernel at the end of each line in the memory-buffer console.
    pub const KERNEL_CONSOLE: Selector = 0x1002;
    /// Upped when the main thread has something to do.
    pub const EVENTS: Selector = 0x1010;
    /// Semaphores of locks.
    pub const LOCK_CONSOLE: Selector = 0x1011;
    /// See [`LOCK_CONSOLE`].
    pub const LOCK_CHILDREN: Selector = 0x1012;
    /// An EC that the watchdog recalls.
    pub const STUCK: Selector = 0x1013;
    /// Upped when a virtual machine has ended, and the kernel has taken it back.
    pub const SETTLED: Selector = 0x1014;
    /// Upped when memory is to be cleared.
    pub const SCRUB: Selector = 0x1015;
    /// Upped when it is.
    pub const SCRUBBED: Selector = 0x1016;
    /// Upped when observation is to end.
    pub const OBSERVE: Selector = 0x1017;
    /// Upped when all that was observed has been told.
    pub const OBSERVED: Selector = 0x1018;
    /// See [`LOCK_CONSOLE`].
    pub const LOCK_OBSERVE: Selector = 0x1019;
    /// Upped when a device did what it may not do.
    pub const DMA_FAULTS: Selector = 0x101a;
    /// See [`LOCK_CONSOLE`].
    pub const LOCK_WISHES: Selector = 0x101b;
    /// The guest space of a machine that has ended.
    pub const ENDED: Selector = 0x101c;
    /// First copy of an interrupt semaphore; by global system interrupt.
    pub const INTERRUPTS: Selector = 0x2000;
    /// First copy of a semaphore of a message-signalled interrupt.
    pub const MESSAGES: Selector = 0x3000;
    /// First semaphore of rings.
    pub const RINGS: Selector = 0x4000;
    /// First selector of the first child.
    pub const CHILDREN: Selector = 0x1_0000;
    /// Selectors per child.
    pub const PER_CHILD: Selector = 0x100;
    /// First portal for ECs of the first child on further CPUs.
    pub const FURTHER_PORTALS: Selector = 0x2_0000;
    /// Those of one child: a block for each further CPU.
    pub const FURTHER_PER_CHILD: Selector = 0x400;
}

/// Number of selectors in an object space, as the information page says it.
static SELECTORS: AtomicU64 = AtomicU64::new(SELECTOR_COUNT);

/// Where a selector at the upper end of an object space of [`SELECTOR_COUNT`] selectors is with as many as there are.
fn at_the_end(selector: Selector) -> Selector {
    SELECTORS.load(Ordering::Relaxed).wrapping_sub(SELECTOR_COUNT - selector)
}

/// Takes what the root task works with out of the NOVA object space and puts its own objects where the runtime expects
/// them. `selectors`: how many an object space has.
pub fn take(selectors: u64) -> Result<(), Status> {
    SELECTORS.store(selectors, Ordering::Relaxed);
    let objects = at_the_end(root::OBJECT_SPACE);
    let copy = |from: Selector, to: Selector| {
        syscall::delegate_object(objects, at_the_end(from), objects, to, Permissions::all())
    };
    copy(root::PROTECTION_DOMAIN, own::PROTECTION_DOMAIN)?;
    copy(root::OBJECT_SPACE, own::OBJECT_SPACE)?;
    copy(root::EXECUTION_CONTEXT, own::MAIN_EC)?;
    copy(root::SCHEDULING_CONTEXT, own::MAIN_SC)?;
    for (from, to) in [
        (nova::ROOT_HOST_SPACE, own::HOST_SPACE),
        (nova::ROOT_PIO_SPACE, own::PIO_SPACE),
        (nova::MSR_SPACE, own::MSR_SPACE),
        (nova::HOST_SPACE, selector::NOVA_HOST_SPACE),
        (nova::PIO_SPACE, selector::NOVA_PIO_SPACE),
        (nova::CONSOLE_SEMAPHORE, selector::KERNEL_CONSOLE),
    ] {
        take_from_kernel(at_the_end(from), to)?;
    }
    Ok(())
}

/// Gets the semaphore that is upped when a device did what it may not do.
pub fn take_faults() -> Result<(), Status> {
    take_from_kernel(at_the_end(nova::DMA_FAULTS), selector::DMA_FAULTS)
}

/// Copies a capability from the NOVA object space with all permissions that it has there.
pub fn take_from_kernel(from: Selector, to: Selector) -> Result<(), Status> {
    let (kernel, own) = (at_the_end(root::NOVA_OBJECT_SPACE), at_the_end(root::OBJECT_SPACE));
    syscall::delegate_object(kernel, from, own, to, Permissions::all())
}

/// Gives `count` I/O ports from `base` to the PIO space `space`.
#[allow(unsafe_code)]
pub fn give_ports(space: Selector, base: u16, count: u16) -> Result<(), Status> {
    let at = base as u64;
    let source = (selector::NOVA_PIO_SPACE, at);
    // SAFETY: ports are not memory.
    unsafe { syscall::delegate_range(source, (space, at), count as u64, Permissions::ACCESS, 0) }
}
