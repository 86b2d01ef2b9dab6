#![allow(unsafe_code)]
//! Rounds: an EC waits until other CPUs have passed through the kernel once (Kilonova's shootdown and grace period).
//!
//! Unsafe: loads page tables anew.
//!
//! Whoever has taken a right away must not go on before no CPU can use it any more. It asks the CPUs concerned by one
//! interrupt each, all at once, and parks; the last one to answer calls it back. A CPU answers where it holds no
//! reference to any object (see [`attend`]), with its translations of the current host space dropped. An answer thus
//! also says that whatever the CPU had looked up before it has let go.
//!
//! A CPU has one round under way; ECs that come meanwhile share the next one. All state has a fixed size.

use core::sync::atomic::{Ordering, fence};

use abi::Status;
use abi::observation::{Traced, counter};
use kernel_core::mailbox::{Inbox, MailCell, MailCells, Mailbox};
use kernel_core::ready::Fifo;
use kernel_core::shootdown::{Requests, Round, Taken};

use crate::cpu::{CPUS_MAX, Cpu, Owned, count};
use crate::ec::{Continuation, Ec, EcLinks};
use crate::guest::NOBODY;
use crate::object::{self, by_id};
use crate::observation::trace;
use crate::sched::Sc;
use crate::{destroy, lapic, registers, sched, semaphore};

const WORDS: usize = CPUS_MAX / 64;

/// A CPU's part in rounds, and its mail.
pub struct Rounds {
    mailbox: Mailbox,
    inbox: Owned<Inbox>,
    /// CPUs that wait for this one.
    requests: Requests<WORDS>,
    /// This one's round.
    round: Round,
    /// ECs that wait for it.
    waiting: Owned<Fifo>,
    /// ECs that wait for the next one.
    next: Owned<Fifo>,
    /// CPUs that the next one concerns.
    targets: Owned<[u64; WORDS]>,
}

impl Rounds {
    /// Nothing asked, nothing waiting.
    pub const fn new() -> Self {
        Self {
            mailbox: Mailbox::empty(),
            inbox: Owned::new(Inbox::empty()),
            requests: Requests::none(),
            round: Round::ended(),
            waiting: Owned::new(Fifo::empty()),
            next: Owned::new(Fifo::empty()),
            targets: Owned::new([0; WORDS]),
        }
    }
}

/// Calls the attention of `cpu`, which will look at its mail and answer rounds before it runs a program again.
pub fn call(cpu: &Cpu) {
    lapic::send(cpu.apic_id.get(), lapic::CALL_ATTENTION);
}

/// Has `ec` wait until every CPU for which `concerned` holds has answered, and then go on with `after`. False, and
/// nothing done, if there is no such CPU beside this one. What the CPUs shall notice must be written before.
pub fn start(cpu: &Cpu, ec: &Ec, after: Continuation, concerned: &dyn Fn(&Cpu) -> bool) -> bool {
    // Orders what was written before against the reads of what other CPUs use now: they write that, then look.
    fence(Ordering::SeqCst);
    let mut any = false;
    for other in Cpu::all().filter(|other| !core::ptr::eq(*other, cpu) && concerned(other)) {
        if let Some(word) = cpu.rounds.targets.get().get_mut(other.number as usize / 64) {
            *word |= 1 << (other.number % 64);
            any = true;
        }
    }
    if any {
        ec.after_round.set(after);
        ec.continuation.set(Continuation::AwaitRound);
        cpu.counters().count(counter::ROUND);
        trace(cpu, Traced::Round, 0, ec.reference.index() as u64, 0);
        cpu.rounds.next.get().push(&EcLinks, object::id(ec), false);
        launch(cpu);
    }
    any
}

/// Starts the next round if none is under way and somebody waits for one.
fn launch(cpu: &Cpu) {
    let rounds = &cpu.rounds;
    if rounds.waiting.get().front().is_some() || rounds.next.get().front().is_none() {
        return;
    }
    core::mem::swap(rounds.waiting.get(), rounds.next.get());
    let set = core::mem::replace(rounds.targets.get(), [0; WORDS]);
    let word = |cpu: &Cpu| set.get(cpu.number as usize / 64).copied().unwrap_or(0);
    let targets = Cpu::all().filter(|cpu| word(cpu) & 1 << (cpu.number % 64) != 0);
    if rounds.round.start(cpu.number, targets.map(|cpu| (cpu, &cpu.rounds.requests)), call) {
        cpu.reschedule.set(true);
    }
}

/// This CPU drops its translations of the current host space. Before the next entry of a guest it looks whether those of the
/// guest must go, see `Memory::generation`, and whether its spaces have.
pub fn flush(cpu: &Cpu) {
    cpu.poised.set(NOBODY);
    // SAFETY: the tables are loaded already; loading them again drops stale translations.
    unsafe { registers::set_cr3(cpu.space.root()) };
}

/// Answers all CPUs that `asked`; false if there is none.
fn answer(cpu: &Cpu, asked: Taken<WORDS>) -> bool {
    let mut flushed = false;
    for other in asked.filter_map(Cpu::by_number) {
        if !core::mem::replace(&mut flushed, true) {
            flush(cpu);
        }
        cpu.counters().count(counter::ANSWER);
        trace(cpu, Traced::Answer, 0, 0, 0);
        if other.rounds.round.acknowledge() {
            call(other);
        }
    }
    flushed
}

/// ECs whose round is over go on. False if there are none.
fn finish(cpu: &Cpu) -> bool {
    if cpu.rounds.waiting.get().front().is_none() || !cpu.rounds.round.has_ended() {
        return false;
    }
    while let Some(id) = cpu.rounds.waiting.get().pop_front(&EcLinks) {
        let ec = by_id::<Ec>(id);
        // It may have been stopped meanwhile.
        if ec.continuation.get() == Continuation::AwaitRound {
            ec.continuation.set(ec.after_round.get());
            sched::unpark(cpu, ec);
        }
    }
    launch(cpu);
    true
}

/// What a message says, in the name of an EC or SC.
pub mod mail {
    /// An EC: the semaphore that it waits on was upped.
    pub const WAKE: u32 = 1 << 0;
    /// An EC: the semaphore that it waits on is being destroyed.
    pub const ABORT: u32 = 1 << 1;
    /// An SC: it is new.
    pub const START: u32 = 1 << 2;
    /// An EC or SC: it is being destroyed.
    pub const STOP: u32 = 1 << 3;
}

/// Ids of SCs carry this bit, those of ECs do not.
const SC: u32 = 1;

struct Cells;
impl MailCells for Cells {
    fn cell(&self, id: u32) -> &MailCell {
        if id & SC != 0 { &by_id::<Sc>(id & !SC).mail } else { &by_id::<Ec>(id).mail }
    }
}

fn post(to: &Cpu, id: u32, message: u32) {
    if !to.rounds.mailbox.post(&Cells, id, message) {
        return;
    }
    if core::ptr::eq(to, Cpu::this()) {
        to.reschedule.set(true);
    } else {
        call(to);
    }
}

/// Sends a message about `ec` to its CPU.
pub fn post_ec(ec: &Ec, message: u32) {
    post(ec.cpu, object::id(ec), message);
}

/// Sends a message about `sc` to its CPU.
pub fn post_sc(sc: &Sc, message: u32) {
    post(sc.cpu, object::id(sc) | SC, message);
}

fn deliver(cpu: &'static Cpu, id: u32, message: u32) {
    if id & SC != 0 {
        let sc = by_id::<Sc>(id & !SC);
        return match message & mail::STOP != 0 {
            true => sched::remove(cpu, sc),
            false => sched::begin(cpu, sc),
        };
    }
    let ec = by_id::<Ec>(id);
    if message & mail::STOP != 0 {
        destroy::stop(cpu, ec);
    } else {
        semaphore::woken(cpu, ec, if message & mail::ABORT != 0 { Status::Aborted } else { Status::Success });
    }
}

/// Messages handled between two looks at pending interrupts.
const BATCH: u32 = 8;

/// Does what other CPUs want of this one. Callers hold no reference to any object afterwards, not even to an EC that
/// they were about to run. False if there was nothing to do.
pub fn attend(cpu: &'static Cpu) -> bool {
    let rounds = &cpu.rounds;
    let quiet = rounds.inbox.get().is_empty(&rounds.mailbox) && rounds.waiting.get().front().is_none();
    (!quiet || rounds.requests.any(count())) && attend_to_others(cpu)
}

#[inline(never)]
fn attend_to_others(cpu: &'static Cpu) -> bool {
    let rounds = &cpu.rounds;
    // Before the mail, so that all mail that was sent before a request is handled before its answer.
    let asked = rounds.requests.take(count());
    let mut handled = 0_u32;
    while let Some((id, message)) = rounds.inbox.get().take(&rounds.mailbox, &Cells) {
        cpu.counters().count(counter::MESSAGE);
        deliver(cpu, id, message);
        handled = handled.saturating_add(1);
        if handled.is_multiple_of(BATCH) {
            registers::interrupt_window();
        }
    }
    answer(cpu, asked) | finish(cpu) | (handled != 0)
}
