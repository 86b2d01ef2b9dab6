//! ipc_call and ipc_reply: messages, waiting, helping, donation (4.3.1, 4.4.1, 5.2).

use core::sync::atomic::Ordering::Relaxed;

use lab::domain::Domain;
use lab::event::{Subject, Then, startup};
use lab::hypercall::{ctrl_ec, ctrl_sc, flag, ipc_call};
use lab::log::Log;
use lab::portal::Local;
use lab::registers::{Registers, return_address};
use lab::report::{Outcome, must};
use lab::semaphore::Semaphore;
use lab::spec::{ABORTED, SUCCESS, TIMEOUT, field, mtd, perm, words};
use lab::thread::{Parameters, spawn, spawn_with};
use lab::time::{ms, now, spin};
use lab::utcb::{Utcb, pattern};
use lab::{check, equal, number, probe, root, tests};

tests! {
    "ipc::the words that the descriptor names reach the callee, and no other" => to_callee,
    "ipc::the words that the reply's descriptor names reach the caller, and no other" => to_caller,
    "ipc::undefined bits of the descriptor have no meaning" => undefined_bits,
    "ipc::both UTCBs keep what was sent" => sender_keeps,
    "ipc::the caller's registers survive" => registers,
    "ipc::a callee can call another" => nested,
    "ipc::a deep chain of calls" => deep,
    "ipc::a call into another PD" => across,
    "ipc::without helping a busy callee is a timeout" => timeout,
    "ipc::a callee that is free has no timeout" => no_timeout,
    "ipc::a caller helps a callee that was preempted" => helps,
    "ipc::a caller helps through a chain of callees" => helps_chain,
    "ipc::a caller waits for a callee that blocks" => waits,
    "ipc::callers of a busy callee are all served" => many_callers,
    "ipc::the callee runs with the caller's priority" => priority,
    "ipc::the callee's time is the caller's" => time,
    "ipc::the caller of a callee that dies gets ABORTED" => dies,
    "ipc::a dead callee gives ABORTED" => dead,
    "ipc::a death aborts the caller next to it only" => dies_in_chain,
}

fn to_callee() -> Outcome {
    let (callee, root) = (Local::new()?, Utcb::root());
    let seen = number(u64::MAX);
    let descriptor = number(0);
    let pt = callee.portal(move |message| {
        let sent = message.mtd as usize + 1;
        let right = (0..512).all(|i| message.utcb.word(i) == pattern(if i < sent { 1 } else { 2 }, i));
        seen.store(u64::from(right), Relaxed);
        descriptor.store(u64::from(message.mtd), Relaxed);
        words(1)
    })?;
    for count in [1, 2, 3, 7, 8, 9, 63, 64, 255, 256, 257, 511, 512] {
        root.fill(1);
        callee.utcb.fill(2);
        equal!(ipc_call(pt, words(count), 0).0, SUCCESS);
        equal!(descriptor.load(Relaxed), u64::from(words(count)));
        check!(seen.load(Relaxed) == 1, "of {count} words");
    }
    Ok(())
}

fn to_caller() -> Outcome {
    let (callee, root) = (Local::new()?, Utcb::root());
    let reply = number(0);
    let pt = callee.portal(move |message| {
        message.utcb.fill(3);
        reply.load(Relaxed) as u32
    })?;
    for count in [1, 2, 3, 64, 65, 511, 512] {
        root.fill(1);
        reply.store(u64::from(words(count)), Relaxed);
        equal!(ipc_call(pt, words(1), 0), (SUCCESS, words(count)));
        for i in 0..512 {
            let expected = pattern(if i < count { 3 } else { 1 }, i);
            check!(root.word(i) == expected, "word {i} of {count}: {:#x}", root.word(i));
        }
    }
    Ok(())
}

/// What was once a count of typed items and a mark for accepting capabilities: only the words travel.
fn undefined_bits() -> Outcome {
    let (callee, root) = (Local::new()?, Utcb::root());
    let count = number(0);
    let pt = callee.portal(move |message| {
        let changed = (0..512).filter(|&i| message.utcb.word(i) != pattern(2, i)).count();
        count.store(changed as u64, Relaxed);
        message.utcb.fill(3);
        !0x1ff | words(4)
    })?;
    for upper in [1 << 9, 1 << 31, !0x1ff] {
        root.fill(1);
        callee.utcb.fill(2);
        let (status, reply) = ipc_call(pt, upper | words(3), 0);
        equal!((status, reply & 0x1ff), (SUCCESS, words(4)));
        equal!(count.load(Relaxed), 3);
        equal!((0..512).filter(|&i| root.word(i) == pattern(3, i)).count(), 4);
    }
    Ok(())
}

fn sender_keeps() -> Outcome {
    let (callee, root) = (Local::new()?, Utcb::root());
    let pt = callee.portal(|_| words(1))?;
    root.fill(1);
    callee.utcb.fill(2);
    equal!(ipc_call(pt, words(10), 0).0, SUCCESS);
    for i in 0..512 {
        equal!(root.word(i), pattern(1, i));
        equal!(callee.utcb.word(i), pattern(if i < 10 { 1 } else { 2 }, i));
    }
    Ok(())
}

fn registers() -> Outcome {
    let pt = Local::new()?.portal(|_| words(2))?;
    let before = Registers::new(pt << 8, u64::from(words(1)), 3, 4, 5);
    let mut after = before;
    after.call();
    equal!(after.gpr[7], 0);
    equal!(after.gpr[6], u64::from(words(2)));
    for register in [0, 2, 3, 5, 8, 9, 10, 12, 13, 14, 15] {
        check!(after.gpr[register] == before.gpr[register], "register {register}: {:#x}", after.gpr[register]);
    }
    equal!((after.gpr[1], after.gpr[11], after.rflags), (return_address(), 0x202, 0x202));
    Ok(())
}

fn nested() -> Outcome {
    let inner = Local::new()?.portal(|message| {
        message.utcb.set_word(0, message.utcb.word(0) * 2);
        words(1)
    })?;
    let outer = Local::new()?.portal(move |message| {
        let first = message.utcb.word(0);
        let status = ipc_call(inner, words(1), 0).0;
        message.utcb.set_word(0, message.utcb.word(0) + first + u64::from(status.0));
        words(1)
    })?;
    Utcb::root().set_word(0, 100);
    equal!(ipc_call(outer, words(1), 0).0, SUCCESS);
    equal!(Utcb::root().word(0), 300);
    Ok(())
}

fn deep() -> Outcome {
    const DEPTH: u64 = 32;
    let mut pt = Local::new()?.portal(|_| words(1))?;
    for _ in 1..DEPTH {
        let next = pt;
        pt = Local::new()?.portal(move |message| {
            let status = ipc_call(next, words(1), 0).0;
            message.utcb.set_word(0, message.utcb.word(0) + if status == SUCCESS { 1 } else { 1000 });
            words(1)
        })?;
    }
    for _ in 0..2 {
        Utcb::root().set_word(0, 0);
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(Utcb::root().word(0), DEPTH - 1);
    }
    Ok(())
}

fn across() -> Outcome {
    let domain = Domain::new()?;
    let page = lab::memory::pages(1);
    let address = lab::memory::page_address();
    lab::memory::poke(page, 0xabcd);
    // Mapped there and not here: the callee runs in its own host space.
    lab::memory::delegate(page, domain.hst, address, 0, perm::R)?;
    let pt = Local::within(domain.pd, root::cpu())?.portal(move |message| {
        message.utcb.set_word(0, lab::memory::peek(address));
        words(1)
    })?;
    for _ in 0..2 {
        Utcb::root().set_word(0, 0);
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(Utcb::root().word(0), 0xabcd);
        check!(probe::read(address)?.is_some(), "the callee's memory is the caller's");
    }
    Ok(())
}

fn timeout() -> Outcome {
    let gate = Semaphore::new(0)?;
    let pt = Local::new()?.portal(move |_| {
        gate.down();
        words(1)
    })?;
    let caller = spawn(10, move |_| {
        ipc_call(pt, words(1), 0);
    })?;
    lab::time::sleep(2)?;
    equal!(ipc_call(pt, words(1), flag::CALL_TIMEOUT).0, TIMEOUT);
    gate.up();
    caller.done.wait()?;
    gate.up();
    equal!(ipc_call(pt, words(1), flag::CALL_TIMEOUT).0, SUCCESS);
    Ok(())
}

fn no_timeout() -> Outcome {
    let pt = Local::new()?.portal(|_| words(1))?;
    equal!(ipc_call(pt, words(1), flag::CALL_TIMEOUT).0, SUCCESS);
    Ok(())
}

/// Low priority calls and is preempted inside; high priority calls the same portal; middle priority must wait for both.
fn helps() -> Outcome {
    let log = Log::new();
    let begun = Semaphore::new(0)?;
    let pt = Local::new()?.portal(move |message| {
        let who = message.utcb.word(0);
        log.push(who);
        if who == 1 {
            begun.up();
            spin(ms(3));
        }
        log.push(who + 10);
        words(1)
    })?;
    preempted(begun, log, pt)?;
    equal!(log.all(), [1, 11, 3, 13, 103, 102, 101]);
    Ok(())
}

/// The same, where the portal's EC has called another when it is preempted.
fn helps_chain() -> Outcome {
    let log = Log::new();
    let begun = Semaphore::new(0)?;
    let mut pt = Local::new()?.portal(move |_| {
        log.push(50);
        if log.all().len() == 2 {
            begun.up();
            spin(ms(3));
        }
        log.push(51);
        words(1)
    })?;
    for _ in 0..4 {
        let next = pt;
        pt = Local::new()?.portal(move |_| {
            ipc_call(next, words(1), 0);
            words(1)
        })?;
    }
    let next = pt;
    let outer = Local::new()?.portal(move |message| {
        let who = message.utcb.word(0);
        log.push(who);
        ipc_call(next, words(1), 0);
        log.push(who + 10);
        words(1)
    })?;
    preempted(begun, log, outer)?;
    equal!(log.all(), [1, 50, 51, 11, 3, 50, 51, 13, 103, 102, 101]);
    Ok(())
}

/// Threads 1 (low), 2 (middle) and 3 (high): the first and the last call `pt`; all note 100 + their number at the end.
/// `begun` is upped inside of the first call: the high thread goes on then, and it sets the middle one going.
fn preempted(begun: Semaphore, log: &'static Log, pt: u64) -> Outcome {
    let middle_gate = Semaphore::new(0)?;
    let call = move |utcb: Utcb, who: u64| {
        utcb.set_word(0, who);
        ipc_call(pt, words(1), 0);
        log.push(100 + who);
    };
    let high = spawn(40, move |utcb| {
        begun.down();
        middle_gate.up();
        call(utcb, 3);
    })?;
    let middle = spawn(30, move |_| {
        middle_gate.down();
        log.push(102);
    })?;
    let low = spawn(20, move |utcb| call(utcb, 1))?;
    for thread in [low, middle, high] {
        thread.done.wait()?;
    }
    Ok(())
}

fn waits() -> Outcome {
    let (gate, log) = (Semaphore::new(0)?, Log::new());
    let pt = Local::new()?.portal(move |message| {
        log.push(message.utcb.word(0));
        gate.down();
        words(1)
    })?;
    let call = move |who| {
        move |utcb: Utcb| {
            utcb.set_word(0, who);
            let status = ipc_call(pt, words(1), 0).0;
            log.push(who + 10 + u64::from(status.0));
        }
    };
    let low = spawn(20, call(1))?;
    lab::time::sleep(1)?;
    let high = spawn(40, call(2))?;
    lab::time::sleep(1)?;
    // Both wait: others run.
    equal!(log.all(), [1]);
    gate.up();
    lab::time::sleep(1)?;
    gate.up();
    low.done.wait()?;
    high.done.wait()?;
    let mut entries = log.all();
    equal!(entries[..2], [1, 2][..]);
    entries.sort_unstable();
    equal!(entries, [1, 2, 11, 12]);
    Ok(())
}

fn many_callers() -> Outcome {
    let (gate, served) = (Semaphore::new(0)?, number(0));
    let pt = Local::new()?.portal(move |_| {
        gate.down();
        served.fetch_add(1, Relaxed);
        words(1)
    })?;
    let mut callers = alloc::vec::Vec::new();
    for priority in [10, 30, 20, 30, 10, 5] {
        callers.push(spawn(priority, move |_| {
            if ipc_call(pt, words(1), 0).0 == SUCCESS {
                served.fetch_add(100, Relaxed);
            }
        })?);
        lab::time::sleep(1)?;
    }
    for _ in 0..6 {
        gate.up();
        lab::time::sleep(1)?;
    }
    for caller in callers {
        caller.done.wait()?;
    }
    equal!(served.load(Relaxed), 606);
    Ok(())
}

fn priority() -> Outcome {
    let (log, gate) = (Log::new(), Semaphore::new(0)?);
    let pt = Local::new()?.portal(move |message| {
        let who = message.utcb.word(0);
        // The middle thread becomes ready while this runs.
        gate.up();
        spin(ms(1));
        log.push(who);
        words(1)
    })?;
    for (caller, expected) in [(40, [40, 30]), (20, [30, 20])] {
        let before = log.all().len();
        let middle = spawn(30, move |_| {
            gate.down();
            log.push(30);
        })?;
        let other = spawn(caller, move |utcb| {
            utcb.set_word(0, caller);
            ipc_call(pt, words(1), 0);
        })?;
        middle.done.wait()?;
        other.done.wait()?;
        equal!(log.all()[before..], expected[..]);
    }
    Ok(())
}

fn time() -> Outcome {
    let pt = Local::new()?.portal(|_| {
        spin(ms(20));
        words(1)
    })?;
    let busy = Semaphore::new(0)?;
    let parameters = Parameters { cpu: root::cpu(), priority: 20, budget: 1000, flags: 0 };
    let thread = spawn_with(parameters, move |_| {
        busy.down();
        ipc_call(pt, words(1), 0);
    })?;
    lab::time::sleep(1)?;
    let (status, before) = ctrl_sc(thread.sc);
    equal!(status, SUCCESS);
    let start = now();
    busy.up();
    thread.done.wait()?;
    let total = now() - start;
    let used = ctrl_sc(thread.sc).1 - before;
    check!(used >= ms(20), "{used} ticks of at least {}", ms(20));
    check!(used <= total, "{used} ticks in {total}");
    Ok(())
}

/// A portal whose handler raises an event for which there is no portal.
fn deadly() -> Result<u64, lab::report::Stop> {
    Local::new()?.portal(|_| {
        lab::provoke::undefined();
        words(1)
    })
}

fn dies() -> Outcome {
    equal!(ipc_call(deadly()?, words(1), 0).0, ABORTED);
    Ok(())
}

fn dead() -> Outcome {
    let callee = Local::new()?;
    let [kill, other] = [
        callee.portal(|_| {
            lab::provoke::undefined();
            words(1)
        })?,
        callee.portal(|_| words(1))?,
    ];
    equal!(ipc_call(other, words(1), 0).0, SUCCESS);
    equal!(ipc_call(kill, words(1), 0).0, ABORTED);
    for pt in [kill, other] {
        equal!(ipc_call(pt, words(1), 0).0, ABORTED);
        equal!(ipc_call(pt, words(1), flag::CALL_TIMEOUT).0, ABORTED);
    }
    // A subject that its handler has poisoned is dead as well.
    let subject = Subject::new(0, mtd::RIP, |event| {
        if event.number == startup() {
            event.utcb.set(field::RIP, lab::provoke::undefined_address());
            return Then::Reply(mtd::RIP);
        }
        Then::End
    })?;
    subject.start()?;
    subject.wait()?;
    must(ctrl_ec(subject.ec, 0))
}

fn dies_in_chain() -> Outcome {
    let inner = deadly()?;
    let outer = Local::new()?.portal(move |message| {
        let status = ipc_call(inner, words(1), 0).0;
        message.utcb.set_word(0, u64::from(status.0));
        words(1)
    })?;
    for _ in 0..2 {
        equal!(ipc_call(outer, words(1), 0).0, SUCCESS);
        equal!(Utcb::root().word(0), u64::from(ABORTED.0));
    }
    Ok(())
}
