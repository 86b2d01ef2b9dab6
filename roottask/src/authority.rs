//! What the kernel gives the root task (NOVA 6.1.3, 6.2.3), and where the root task keeps it.

use abi::capability::{Permissions, nova, root};
use abi::{Selector, Status};
use runtime::manifest::selector as own;
use runtime::syscall;

/// Selectors in the root object space, above those that the runtime uses.
pub mod selector {
    use abi::Selector;

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
    /// First copy of an interrupt semaphore; by global system interrupt.
    pub const INTERRUPTS: Selector = 0x2000;
    /// First semaphore of rings.
    pub const RINGS: Selector = 0x4000;
    /// First selector of the first child.
    pub const CHILDREN: Selector = 0x1_0000;
    /// Selectors per child.
    pub const PER_CHILD: Selector = 0x100;
}

/// Takes what the root task works with out of the NOVA object space and puts its own objects where the runtime expects
/// them.
pub fn take() -> Result<(), Status> {
    let copy = |from: Selector, to: Selector| {
        syscall::delegate_object(root::OBJECT_SPACE, from, root::OBJECT_SPACE, to, Permissions::all())
    };
    copy(root::PROTECTION_DOMAIN, own::PROTECTION_DOMAIN)?;
    copy(root::OBJECT_SPACE, own::OBJECT_SPACE)?;
    copy(root::EXECUTION_CONTEXT, own::MAIN_EC)?;
    copy(root::SCHEDULING_CONTEXT, own::MAIN_SC)?;
    take_from_kernel(nova::ROOT_HOST_SPACE, own::HOST_SPACE)?;
    take_from_kernel(nova::ROOT_PIO_SPACE, own::PIO_SPACE)?;
    take_from_kernel(nova::MSR_SPACE, own::MSR_SPACE)?;
    take_from_kernel(nova::HOST_SPACE, selector::NOVA_HOST_SPACE)?;
    take_from_kernel(nova::PIO_SPACE, selector::NOVA_PIO_SPACE)?;
    take_from_kernel(nova::CONSOLE_SEMAPHORE, selector::KERNEL_CONSOLE)
}

/// Copies a capability from the NOVA object space with all permissions that it has there.
pub fn take_from_kernel(from: Selector, to: Selector) -> Result<(), Status> {
    syscall::delegate_object(root::NOVA_OBJECT_SPACE, from, root::OBJECT_SPACE, to, Permissions::all())
}

/// Gives `count` I/O ports from `base` to the PIO space `space`.
#[allow(unsafe_code)]
pub fn give_ports(space: Selector, base: u16, count: u16) -> Result<(), Status> {
    let at = base as u64;
    let source = (selector::NOVA_PIO_SPACE, at);
    // SAFETY: ports are not memory.
    unsafe { syscall::delegate_range(source, (space, at), count as u64, Permissions::ACCESS, 0) }
}
