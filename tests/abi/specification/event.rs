//! Events of host execution contexts: where they go, what travels, what a reply changes (4.3.2, 4.4.2, 8.6, 8.7.4).

use core::sync::atomic::Ordering::Relaxed;

use lab::capability::reduced;
use lab::event::{HOST_STATE, Subject, Then, provoke, startup};
use lab::hypercall::{NewEc, create_ec, create_pt, create_sc, ctrl_sc, ipc_call};
use lab::portal::Local;
use lab::report::{Outcome, Stop, failed, must};
use lab::semaphore::Semaphore;
use lab::spec::{ABORTED, SUCCESS, Selector, Status, event, field, mtd, perm, scd, words};
use lab::time::{ms, settle, spin};
use lab::utcb::pattern;
use lab::{check, equal, number, provoke as code, root, selectors, tests};

tests! {
    "event::STARTUP comes with the first SC, not before" => startup_with_sc,
    "event::STARTUP tells the stack pointer of the EC's creation" => startup_stack,
    "event::only the state that the portal's descriptor names reaches the handler" => to_handler,
    "event::only the state that the reply's descriptor names is taken back" => from_handler,
    "event::only status and control flags can be written" => flags,
    "event::POISON kills" => poison,
    "event::ctrl_pt changes the descriptor for the next events" => descriptor,
    "event::the portal is event base + number" => base,
    "event::without a portal the EC dies" => no_portal,
    "event::the capability must be a portal's" => not_a_portal,
    "event::the capability needs permission EVENT, and no other" => permission,
    "event::a handler that is dead kills" => dead_handler,
    "event::an event of a handler goes to that handler's own handler" => nested,
    "event::who waits for a busy handler is served later" => busy_handler,
    "event::the handler's time is that of the EC" => time,
    "event::a long chain of handlers that fail" => chain,
    "event::many ECs that die at once" => many_deaths,
}

fn startup_with_sc() -> Outcome {
    let subject = Subject::new(0, HOST_STATE, |_| Then::End)?;
    settle()?;
    check!(subject.seen().is_empty(), "an event without SC");
    subject.start()?;
    let seen = subject.wait()?;
    equal!((seen.len(), seen[0].number), (1, startup()));
    Ok(())
}

fn startup_stack() -> Outcome {
    let subject = Subject::new(0, mtd::GPR_0_7, |_| Then::End)?;
    subject.start()?;
    let seen = subject.wait()?;
    equal!(seen[0].state.get(field::RSP), subject.sp);
    Ok(())
}

const RIP_WORD: usize = field::RIP.offset / 8;
const RFLAGS_WORD: usize = field::RFLAGS.offset / 8;
const FIRST: usize = field::QUALIFICATION_1.offset / 8;
/// A pattern's seed.
const SEED: u64 = 7;

/// Groups of a host EC's state, and the words of the UTCB that they fill.
const GROUPS: [(u32, &[usize]); 5] = [
    (mtd::GPR_0_7, &[0, 1, 2, 3, 4, 5, 6, 7]),
    (mtd::GPR_8_15, &[8, 9, 10, 11, 12, 13, 14, 15]),
    (mtd::RFLAGS, &[RFLAGS_WORD]),
    (mtd::RIP, &[RIP_WORD]),
    (mtd::QUAL, &[FIRST, FIRST + 1]),
];

/// Executes the pattern's code; its #UD, with a portal that has descriptor `mtd` and a handler's UTCB full of [`SEED`].
fn patterned(mtd: u32) -> Result<lab::utcb::Snapshot, Stop> {
    let subject = Subject::new(0, mtd, |event| {
        if event.number != startup() {
            return Then::End;
        }
        event.utcb.fill(SEED);
        event.utcb.set(field::RIP, code::pattern());
        Then::Reply(mtd::RIP)
    })?;
    subject.start()?;
    let seen = subject.wait()?.pop().ok_or_else(|| failed("no event".into()))?;
    equal!((seen.number, seen.mtd), (event::UD, mtd));
    Ok(seen.state)
}

/// What is in a word after the pattern's code.
fn expected(word: usize) -> Option<u64> {
    match word {
        0..16 => Some(code::PATTERN + word as u64),
        RIP_WORD => Some(code::pattern_at()),
        // The qualifications of #UD.
        word if word == FIRST => Some(0),
        // The code set CF. Other status flags are as they were, and RF may be set.
        RFLAGS_WORD => None,
        _ => None,
    }
}

fn to_handler() -> Outcome {
    for (group, words) in GROUPS {
        let state = patterned(group)?;
        for word in 0..512 {
            let found = state.word(word);
            if !words.contains(&word) {
                // The third qualification has no meaning for host ECs.
                let own = if word == RIP_WORD { code::pattern() } else { pattern(SEED, word) };
                check!(found == own || word == FIRST + 2, "group {group:#x} brings word {word:#x}: {found:#x}");
            } else if let Some(expected) = expected(word) {
                check!(found == expected, "group {group:#x}, word {word:#x}: {found:#x}");
            } else if word == RFLAGS_WORD {
                check!(found & 0x203 == 0x203, "RFLAGS {found:#x}");
            }
        }
    }
    let state = patterned(0)?;
    check!((0..512).all(|word| word == RIP_WORD || state.word(word) == pattern(SEED, word)), "descriptor 0 brings state");
    Ok(())
}

fn from_handler() -> Outcome {
    const NEW: u64 = 0x6b6b_0000_0000_0000;
    for (group, words) in GROUPS {
        let count = number(0);
        let subject = Subject::new(0, HOST_STATE, move |event| match count.fetch_add(1, Relaxed) {
            0 => {
                event.utcb.set(field::RIP, code::pattern());
                Then::Reply(mtd::RIP)
            }
            1 => {
                (0..512).for_each(|word| event.utcb.set_word(word, NEW + word as u64));
                event.utcb.set(field::RIP, code::undefined_address());
                event.utcb.set(field::RFLAGS, 0x202);
                // What cannot be written, and what is not a host EC's, is ignored.
                Then::Reply(group | mtd::QUAL | mtd::STA | mtd::CR | mtd::EFER | mtd::DR | mtd::SPACES)
            }
            _ => Then::End,
        })?;
        subject.start()?;
        let seen = subject.wait()?;
        equal!((seen.len(), seen[2].number), (3, event::UD));
        for word in (0..16).chain([RIP_WORD]) {
            let found = seen[2].state.word(word);
            let expected = match (words.contains(&word), word) {
                (true, RIP_WORD) => code::undefined_address(),
                (true, _) => NEW + word as u64,
                (false, _) => seen[1].state.word(word),
            };
            check!(found == expected, "group {group:#x}, word {word:#x}: {found:#x}");
        }
        let carry = seen[2].state.get(field::RFLAGS) & 1;
        equal!(carry, u64::from(group != mtd::RFLAGS));
    }
    Ok(())
}

/// Status flags and DF, all of them, can be written.
const WRITABLE: u64 = 0xcd5;
/// What programs run with: interrupts on.
const FIXED: u64 = 0x202;
/// IF, TF, IOPL, NT, VM, VIF, VIP, ID, and what is reserved: RF (bit 16) and AC (bit 18) apart, which are an EC's own.
const SYSTEM: u64 = !(WRITABLE | 1 << 16 | 1 << 18);

fn flags() -> Outcome {
    for value in [!0, WRITABLE, 0, !WRITABLE & !0x100, 1 << 9, 3 << 12, 1 << 14, 1 << 17] {
        let seen = provoke(0, move |utcb| {
            utcb.set(field::RIP, code::undefined_address());
            utcb.set(field::RFLAGS, value);
            mtd::RIP | mtd::RFLAGS
        })?;
        equal!(seen.number, event::UD);
        let found = seen.state.get(field::RFLAGS);
        check!(found & WRITABLE == value & WRITABLE, "{value:#x} becomes {found:#x}");
        check!(found & SYSTEM == FIXED, "{value:#x} becomes {found:#x}");
    }
    Ok(())
}

fn poison() -> Outcome {
    let alive = number(0);
    let subject = Subject::new(0, HOST_STATE, move |event| {
        alive.fetch_add(1, Relaxed);
        event.utcb.set(field::RIP, code::undefined_address());
        Then::End
    })?;
    subject.start()?;
    subject.wait()?;
    settle()?;
    equal!(alive.load(Relaxed), 1);
    Ok(())
}

fn descriptor() -> Outcome {
    let subject = Subject::new(0, HOST_STATE, |event| {
        if event.number != startup() {
            return Then::End;
        }
        event.utcb.set(field::RIP, code::undefined_address());
        Then::Reply(mtd::RIP)
    })?;
    let pt = subject.events + u64::from(event::UD);
    // The identifier is that of the handler: a second portal, set anew, is needed to see the descriptor alone.
    let handler = Local::new()?;
    let seen = number(0);
    lab::capability::drop(pt)?;
    handler.portal_at(pt, mtd::RIP, move |message| {
        seen.store(u64::from(message.mtd) | 1 << 63, Relaxed);
        mtd::POISON
    })?;
    subject.start()?;
    settle()?;
    equal!(seen.load(Relaxed), u64::from(mtd::RIP) | 1 << 63);
    Ok(())
}

/// A local thread whose events begin at the first selector, and a portal to it that raises #UD.
struct Faulty {
    events: Selector,
    pt: Selector,
}

impl Faulty {
    fn new() -> Result<Self, Stop> {
        let events = selectors(lab::thread::event_count());
        let pt = Local::with_events(events)?.portal(|_| {
            code::undefined();
            words(1)
        })?;
        Ok(Self { events, pt })
    }

    fn ud(&self) -> Selector {
        self.events + u64::from(event::UD)
    }

    fn call(&self) -> Status {
        ipc_call(self.pt, words(1), 0).0
    }
}

/// Has `handler` skip UD2 at `pt`; the result counts.
fn skip_at(handler: &Local, pt: Selector) -> Result<&'static core::sync::atomic::AtomicU64, Stop> {
    let count = number(0);
    handler.portal_at(pt, mtd::RIP, move |message| {
        count.fetch_add(1, Relaxed);
        message.utcb.set(field::RIP, message.utcb.get(field::RIP) + 2);
        mtd::RIP
    })?;
    Ok(count)
}

fn base() -> Outcome {
    let faulty = Faulty::new()?;
    let handler = Local::new()?;
    let others: alloc::vec::Vec<_> = [faulty.ud() - 1, faulty.ud() + 1, faulty.events + u64::from(event::PF)]
        .into_iter()
        .map(|pt| skip_at(&handler, pt))
        .collect::<Result<_, _>>()?;
    let count = skip_at(&handler, faulty.ud())?;
    equal!(faulty.call(), SUCCESS);
    equal!(count.load(Relaxed), 1);
    check!(others.iter().all(|other| other.load(Relaxed) == 0), "another portal was called");
    Ok(())
}

fn no_portal() -> Outcome {
    let faulty = Faulty::new()?;
    equal!(faulty.call(), ABORTED);
    // It is dead for good.
    skip_at(&Local::new()?, faulty.ud())?;
    equal!(faulty.call(), ABORTED);
    Ok(())
}

fn not_a_portal() -> Outcome {
    for &(kind, object) in lab::capability::one_of_each()? {
        if kind == lab::capability::Kind::Pt {
            continue;
        }
        let faulty = Faulty::new()?;
        must(lab::capability::copy(object, faulty.ud(), perm::ALL))?;
        let status = faulty.call();
        check!(status == ABORTED, "{kind:?}: {status:?}");
    }
    Ok(())
}

fn permission() -> Outcome {
    for (mask, expected) in [(perm::EVENT, SUCCESS), (perm::ALL & !perm::EVENT, ABORTED)] {
        let faulty = Faulty::new()?;
        let pt = lab::selector();
        skip_at(&Local::new()?, pt)?;
        must(lab::capability::copy(reduced(pt, mask)?, faulty.ud(), perm::ALL))?;
        equal!(faulty.call(), expected);
    }
    Ok(())
}

fn dead_handler() -> Outcome {
    let handler = Local::new()?;
    let kill = handler.portal(|_| {
        code::undefined();
        words(1)
    })?;
    let faulty = Faulty::new()?;
    let count = skip_at(&handler, faulty.ud())?;
    equal!(ipc_call(kill, words(1), 0).0, ABORTED);
    equal!(faulty.call(), ABORTED);
    equal!(count.load(Relaxed), 0);
    Ok(())
}

fn nested() -> Outcome {
    let faulty = Faulty::new()?;
    let events = selectors(lab::thread::event_count());
    let outer = skip_at(&Local::new()?, events + u64::from(event::UD))?;
    let inner = number(0);
    Local::with_events(events)?.portal_at(faulty.ud(), mtd::RIP, move |message| {
        let rip = message.utcb.get(field::RIP);
        code::undefined();
        inner.fetch_add(1, Relaxed);
        message.utcb.set(field::RIP, rip + 2);
        mtd::RIP
    })?;
    equal!(faulty.call(), SUCCESS);
    equal!((inner.load(Relaxed), outer.load(Relaxed)), (1, 1));
    Ok(())
}

fn busy_handler() -> Outcome {
    let (gate, count) = (Semaphore::new(0)?, number(0));
    let handler = Local::new()?;
    let mut threads = alloc::vec::Vec::new();
    for priority in [10, 30, 20] {
        let faulty = Faulty::new()?;
        handler.portal_at(faulty.ud(), mtd::RIP, move |message| {
            gate.down();
            message.utcb.set(field::RIP, message.utcb.get(field::RIP) + 2);
            mtd::RIP
        })?;
        threads.push(lab::thread::spawn(priority, move |_| {
            if faulty.call() == SUCCESS {
                count.fetch_add(1, Relaxed);
            }
        })?);
    }
    settle()?;
    equal!(count.load(Relaxed), 0);
    for _ in 0..3 {
        gate.up();
        settle()?;
    }
    for thread in threads {
        thread.done.wait()?;
    }
    equal!(count.load(Relaxed), 3);
    Ok(())
}

fn time() -> Outcome {
    let subject = Subject::new(0, mtd::RIP, |event| {
        if event.number != startup() {
            spin(ms(10));
            return Then::End;
        }
        event.utcb.set(field::RIP, code::undefined_address());
        Then::Reply(mtd::RIP)
    })?;
    subject.start()?;
    subject.wait()?;
    let (status, used) = ctrl_sc(subject.sc);
    equal!(status, SUCCESS);
    check!(used >= ms(10), "{used} ticks of at least {}", ms(10));
    Ok(())
}

/// Each handler's address is not canonical, so that it fails at its first instruction, and its handler likewise. The kernel
/// must not run out of anything when it calls, and when all of them die.
fn chain() -> Outcome {
    const LENGTH: usize = 200;
    let count = lab::thread::event_count();
    let mut events = selectors(count);
    for _ in 0..LENGTH {
        let next = selectors(count);
        let ec = bare(events)?;
        for number in [event::GP, event::PF] {
            must(create_pt(next + u64::from(number), root::pd(), ec, 1 << 63))?;
        }
        events = next;
    }
    let (ec, pt) = (bare(events)?, lab::selector());
    must(create_pt(pt, root::pd(), ec, 1 << 63))?;
    equal!(ipc_call(pt, words(1), 0).0, ABORTED);
    Ok(())
}

/// A local thread without a stack.
fn bare(events: Selector) -> Result<Selector, Stop> {
    let ec = lab::selector();
    must(create_ec(ec, &NewEc { events, flags: 0, ..lab::capability::global_thread() }))?;
    Ok(ec)
}

/// Threads without portals, all of which begin and die before the kernel sees user mode again.
fn many_deaths() -> Outcome {
    for _ in 0..300 {
        let ec = lab::capability::idle_thread()?;
        must(create_sc(lab::selector(), root::pd(), ec, scd(1, 50, 0)))?;
    }
    settle()
}
