//! The way through the guest's tables to a page of its code, kept: instructions that exit come in rows, from one page.
//!
//! The guest may change its tables at any time. A way counts only in the mode and with the root that it was found with, and
//! if each entry on it still holds what it held.

use abi::utcb::Architectural;

use crate::memory::GuestMemory;
use crate::walk::{LEVELS, Paging, Step};

/// Pages that a way is kept to: a program's CPUIDs are in several.
const PAGES: usize = 8;
/// Last place in a page at which eight bytes begin.
const LAST: u64 = 0xff8;
/// The root of a way that leads nowhere: no CR3 has all bits.
const NOWHERE: u64 = u64::MAX;

/// The way to a page. Its size is a power of two, for it is looked for at every exit.
#[derive(Clone, Copy, Debug)]
#[repr(align(128))]
struct Trail {
    /// CR3.
    root: u64,
    /// Linear address of the page.
    linear: u64,
    /// Its guest-physical address.
    physical: u64,
    /// What the entries on it held.
    steps: [Step; LEVELS],
}

impl Default for Trail {
    fn default() -> Self {
        Self { root: NOWHERE, linear: 0, physical: 0, steps: [Step::default(); LEVELS] }
    }
}

impl Trail {
    /// The way to the instruction that the CPU has just executed in 64-bit mode; see [`Paging::executed`]. Needs RIP, CR,
    /// EFER.
    fn of(state: &Architectural, memory: &impl GuestMemory) -> Option<Self> {
        let (gpa, steps) = Paging::of(state).way(memory, state.rip)?;
        let offset = state.rip & 0xfff;
        Some(Self { root: state.cr3, linear: state.rip - offset, physical: gpa - offset, steps })
    }

    /// See [`Trails::code`].
    #[inline(always)]
    fn code(&self, state: &Architectural, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let offset = state.rip.wrapping_sub(self.linear);
        if offset > LAST || state.cr3 != self.root || !Paging::is_long(state) {
            return None;
        }
        for step in &self.steps {
            if read(step.at)? != step.entry {
                return None;
            }
        }
        read(self.physical + offset)
    }
}

/// The ways that a vCPU's exits took of late.
#[derive(Clone, Debug, Default)]
pub struct Trails([Trail; PAGES]);

impl Trails {
    #[inline(always)]
    fn slot(rip: u64) -> usize {
        (rip >> 12) as usize % PAGES
    }

    /// The eight bytes at the instruction pointer, by any way to read eight bytes of RAM; None if no way to its page is kept
    /// that still leads there, or fewer are left in the page. Needs RIP, CR, EFER.
    #[inline(always)]
    pub fn code(&self, state: &Architectural, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.0[Self::slot(state.rip)].code(state, read)
    }

    /// The same, where the way has to be found first.
    pub fn find(&mut self, state: &Architectural, memory: &impl GuestMemory) -> Option<u64> {
        let trail = &mut self.0[Self::slot(state.rip)];
        *trail = Trail::of(state, memory)?;
        trail.code(state, |gpa| memory.read_u64(gpa).ok())
    }
}
