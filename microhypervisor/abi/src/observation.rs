//! What can be seen of each CPU: counters, and a trace of what it did.
//!
//! The kernel writes them into frames of its own, whose place the information page names (see
//! [`Announcement`](crate::extension::Announcement)): for each CPU a page of [`COUNTERS`] 64-bit counters, and behind it
//! pages of records. Whoever can take from the NOVA host space can map these frames, to read.
//!
//! Records are written round and round while the trace is on; the one with number `n` stands at `n` modulo the number
//! of records that fit. A reader that reads the number of the next record, [`counter::RECORDS`], before and after the
//! records knows which of them it can trust: those whose number is above the second value less the size of the ring.

/// Number of counters of a CPU; one page.
pub const COUNTERS: usize = 512;
/// Number of records in a page.
pub const RECORDS_PER_PAGE: u64 = crate::PAGE_SIZE as u64 / 32;

/// Places of the counters.
pub mod counter {
    /// Hypercalls, by number: 16 counters.
    pub const HYPERCALL: usize = 0;
    /// Programs and guests began to run in place of another, but for calls, replies and exits that nothing hindered.
    pub const SWITCH: usize = 16;
    /// Page tables of another host space were loaded, with the same exception.
    pub const SPACE_SWITCH: usize = 17;
    /// Turns of scheduling contexts.
    pub const TURN: usize = 18;
    /// The CPU had nothing to do.
    pub const IDLE: usize = 19;
    /// A caller found its callee busy and lent it its time.
    pub const HELP: usize = 20;
    /// Timer interrupts.
    pub const TIMER: usize = 21;
    /// Interrupts of devices.
    pub const INTERRUPT: usize = 22;
    /// Interrupts by which other CPUs called for attention.
    pub const ATTENTION: usize = 23;
    /// Messages of other CPUs.
    pub const MESSAGE: usize = 24;
    /// Rounds: what this CPU took away, others had to confirm.
    pub const ROUND: usize = 25;
    /// Confirmations for other CPUs: their shootdowns.
    pub const ANSWER: usize = 26;
    /// Guest entries.
    pub const GUEST_ENTRY: usize = 27;
    /// Guest entries that dropped translations.
    pub const GUEST_FLUSH: usize = 28;
    /// The FPU changed hands.
    pub const FPU_SWITCH: usize = 29;
    /// Events of host ECs that went to a handler, by number.
    pub const HOST_EVENT: usize = 64;
    /// Events of guest ECs that went to a handler, by number.
    pub const GUEST_EVENT: usize = 128;
    /// Number of the next record of the trace.
    pub const RECORDS: usize = 511;
}

/// What a record tells. Its four words are the system time, the kind in bits 7:0 with a detail in bits 31:16, and two
/// words that belong to the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Traced {
    /// An EC begins to run, in user or guest mode. First: its identity; second: that of its protection domain.
    Switch = 1,
    /// There is nothing to run.
    Idle = 2,
    /// A hypercall. Detail: number and flags; first: the selector; second: identity of the EC.
    Hypercall = 3,
    /// An event of an EC goes to its handler. Detail: its number; bit 15 for a guest EC. First: identity of the EC;
    /// second: that of the handler.
    Event = 4,
    /// An interrupt. Detail: the vector.
    Interrupt = 5,
    /// A round begins: other CPUs are asked to confirm. First: identity of the EC that waits.
    Round = 6,
    /// This CPU confirms.
    Answer = 7,
}

const _: () = {
    assert!(counter::HOST_EVENT + (crate::event::HOST_ARCH + crate::event::HOST_NOVA) as usize <= counter::GUEST_EVENT);
    assert!(counter::GUEST_EVENT + (crate::event::GUEST_ARCH + crate::event::GUEST_NOVA) as usize <= counter::RECORDS);
};
