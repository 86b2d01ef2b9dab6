//! The rings between programs: the root task makes their memory and semaphores and gives each side its end.
#![allow(unsafe_code)]

use crate::authority::selector;
use crate::window;
use abi::capability::Permissions;
use abi::{Selector, Status};
use roottask::frames::{FreeMemory, PAGE, PhysRange};
use runtime::channel::Sender;
use runtime::manifest::{Name, Range, RingEntry, Role, selector as own};
use runtime::ring::{HEADER_LENGTH, Header};
use runtime::sync::{Semaphore, sleep_until};
use runtime::{syscall, time};

/// How long the living end of a ring gets to take something, in milliseconds.
const PATIENCE_MS: u64 = 500;
/// Time between looks at it.
const LOOK_MS: u64 = 2;

/// Makes semaphores at consecutive selectors.
pub struct Semaphores(Selector);

impl Semaphores {
    /// None made yet.
    pub const fn new() -> Self {
        Self(selector::RINGS)
    }

    /// A new semaphore with counter 0.
    pub fn make(&mut self) -> Result<Selector, Status> {
        let sel = self.0;
        self.0 += 1;
        syscall::create_sm(sel, own::PROTECTION_DOMAIN, 0)?;
        Ok(sel)
    }
}

/// A ring, from the root task's side.
#[derive(Clone, Copy)]
pub struct SharedRing {
    /// Its pages.
    pub memory: PhysRange,
    /// Semaphore that the consumer waits on.
    pub data: Selector,
    /// Semaphore that the producer waits on.
    pub space: Selector,
    address: u64,
}

impl SharedRing {
    /// A ring with `capacity` bytes, a power of two of at least a page; `None` if memory is short.
    pub fn make(
        free: &mut FreeMemory,
        capacity: usize,
        data: Selector,
        space: Selector,
    ) -> Result<Option<Self>, Status> {
        let Some(memory) = free.allocate((HEADER_LENGTH + capacity) as u64, PAGE) else { return Ok(None) };
        window::fill(memory, &[], 0)?;
        // The mapping stays: the root task looks at rings to see whether everything has arrived.
        let start = window::map(memory, Permissions::READ | Permissions::WRITE)?;
        // SAFETY: fresh, mapped, aligned memory that no program has yet.
        unsafe { start.cast::<Header>().write(Header::new(capacity)) };
        Ok(Some(Self { memory, data, space, address: start as u64 }))
    }

    /// Makes the ring usable for a new program at the end `dead`, whose program is gone and may have written anything.
    /// A line of `text` that it left unfinished ends here.
    pub fn recover(&self, dead: Role, text: bool) {
        // SAFETY: mapped for ever, and everyone accesses it by atomics only.
        let header = unsafe { &*(self.address as *const Header) };
        header.restore(self.memory.length() as usize - HEADER_LENGTH);
        if dead == Role::Consumer {
            header.skip_to_producer();
            return Semaphore::from_selector(self.space).up();
        }
        let Some(mut end) = Sender::from_entry(&self.entry(Role::Producer)) else { return };
        if text && end.last().is_some_and(|byte| byte != b'\n') {
            // A ring that is full, or whose indices are wrong, gets none.
            let _ = end.send(b"\n");
        }
        let data = Semaphore::from_selector(self.data);
        data.up();
        for _ in 0..2 {
            if drained(&end) {
                break;
            }
            header.push_consumer();
            data.up();
        }
    }

    /// The root task's own end.
    pub fn entry(&self, role: Role) -> RingEntry {
        RingEntry {
            name: Name::EMPTY,
            role: role as u32,
            memory: Range { address: self.address, length: self.memory.length() },
            sel_data: self.data,
            sel_space: self.space,
        }
    }
}

/// Waits until the consumer has taken everything, or nothing has moved for [`PATIENCE_MS`]; whether it has.
fn drained(ring: &Sender) -> bool {
    let mut last = usize::MAX;
    let mut deadline = 0;
    loop {
        let waiting = ring.backlog();
        if waiting == 0 {
            return true;
        }
        if waiting != last {
            (last, deadline) = (waiting, time::now() + time::ticks_from_ms(PATIENCE_MS));
        } else if time::now() >= deadline {
            return false;
        }
        sleep_until(time::now() + time::ticks_from_ms(LOOK_MS));
    }
}
