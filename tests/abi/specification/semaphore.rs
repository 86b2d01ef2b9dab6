//! Semaphores: create_sm and ctrl_sm (2.5, 4.1.2.11, 5.3.5, 5.4.5).

use alloc::vec::Vec;

use lab::capability::{Kind, needs, only_kind};
use lab::hypercall::{assign_int, create_sm, ctrl_sm, flag};
use lab::log::Log;
use lab::report::Outcome;
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, OVRFLOW, SUCCESS, TIMEOUT, perm};
use lab::thread::spawn;
use lab::time::{ms, now};
use lab::{check, equal, root, selector, tests};

const PAST: u64 = 1;

tests! {
    "semaphore::the counter begins with the value given" => initial,
    "semaphore::up and down count" => counts,
    "semaphore::a counter above 0 is taken whatever the timeout" => timeout_not_needed,
    "semaphore::down with Z sets the counter to 0" => zero,
    "semaphore::up ignores Z and the timeout" => up_ignores,
    "semaphore::the largest counter cannot be upped" => overflow,
    "semaphore::a timeout in the past is one at once" => past,
    "semaphore::a timeout is absolute and never early" => absolute,
    "semaphore::timeouts come in the order of their times" => timeout_order,
    "semaphore::without a timeout a down waits" => waits,
    "semaphore::up releases one that waits, and the counter stays" => releases_one,
    "semaphore::who waits is released in the order of coming" => fifo,
    "semaphore::the order is that of coming, not of priority" => fifo_priority,
    "semaphore::who had a timeout is out of the order" => timeout_leaves,
    "semaphore::who was released in time has no timeout later" => released_in_time,
    "semaphore::a released thread of higher priority runs at once" => preempts,
    "semaphore::up needs an SM with permission CTRL_UP" => up_needs,
    "semaphore::down needs an SM with permission CTRL_DN" => down_needs,
    "semaphore::an ordinary one has no permission ASSIGN" => no_assign,
}

/// Counts a semaphore down to 0.
fn drain(sm: Semaphore) -> u64 {
    let mut count = 0;
    while sm.down_until(PAST) == SUCCESS {
        count += 1;
    }
    count
}

fn initial() -> Outcome {
    for count in [0, 1, 5] {
        equal!(drain(Semaphore::new(count)?), count);
    }
    Ok(())
}

fn counts() -> Outcome {
    let sm = Semaphore::new(0)?;
    for _ in 0..3 {
        equal!(sm.up(), SUCCESS);
    }
    equal!(sm.down(), SUCCESS);
    equal!(sm.up(), SUCCESS);
    equal!(drain(sm), 3);
    Ok(())
}

fn timeout_not_needed() -> Outcome {
    let sm = Semaphore::new(3)?;
    for timeout in [0, PAST, now() + ms(1)] {
        equal!(sm.down_until(timeout), SUCCESS);
    }
    equal!(sm.down_until(PAST), TIMEOUT);
    Ok(())
}

fn zero() -> Outcome {
    for count in [1, 2, 1000, u64::MAX] {
        let sm = Semaphore::new(count)?;
        equal!(ctrl_sm(sm.0, flag::SM_DOWN | flag::SM_ZERO, 0), SUCCESS);
        equal!(sm.down_until(PAST), TIMEOUT);
    }
    let sm = Semaphore::new(0)?;
    equal!(ctrl_sm(sm.0, flag::SM_DOWN | flag::SM_ZERO, PAST), TIMEOUT);
    Ok(())
}

fn up_ignores() -> Outcome {
    let sm = Semaphore::new(2)?;
    equal!(ctrl_sm(sm.0, flag::SM_ZERO, 0), SUCCESS);
    equal!(ctrl_sm(sm.0, 0, PAST), SUCCESS);
    equal!(ctrl_sm(sm.0, flag::SM_ZERO, u64::MAX), SUCCESS);
    equal!(drain(sm), 5);
    Ok(())
}

fn overflow() -> Outcome {
    let sm = Semaphore::new(u64::MAX)?;
    equal!(sm.up(), OVRFLOW);
    equal!(sm.down(), SUCCESS);
    equal!(sm.up(), SUCCESS);
    equal!(sm.up(), OVRFLOW);
    equal!(sm.down(), SUCCESS);
    let sm = Semaphore::new(u64::MAX - 2)?;
    for status in [SUCCESS, SUCCESS, OVRFLOW, OVRFLOW] {
        equal!(sm.up(), status);
    }
    equal!(sm.down_until(PAST), SUCCESS);
    Ok(())
}

fn past() -> Outcome {
    let sm = Semaphore::new(0)?;
    let start = now();
    equal!(sm.down_until(PAST), TIMEOUT);
    equal!(sm.down_until(start), TIMEOUT);
    check!(now() - start < ms(1000), "it took {} ticks", now() - start);
    Ok(())
}

fn absolute() -> Outcome {
    let sm = Semaphore::new(0)?;
    for milliseconds in [1, 5, 20] {
        let deadline = now() + ms(milliseconds);
        equal!(sm.down_until(deadline), TIMEOUT);
        let end = now();
        check!(end >= deadline, "{} ticks too early", deadline - end);
        check!(end < deadline + ms(1000), "{} ticks too late", end - deadline);
    }
    Ok(())
}

fn timeout_order() -> Outcome {
    let log = Log::new();
    let base = now() + ms(20);
    let mut threads = Vec::new();
    for place in [3, 1, 4, 0, 2] {
        let sm = Semaphore::new(0)?;
        threads.push(spawn(10, move |_| {
            if sm.down_until(base + ms(3 * place)) == TIMEOUT {
                log.push(place);
            }
        })?);
    }
    for thread in threads {
        thread.done.wait()?;
    }
    equal!(log.all(), [0, 1, 2, 3, 4]);
    Ok(())
}

fn waits() -> Outcome {
    let (sm, log) = (Semaphore::new(0)?, Log::new());
    let thread = spawn(10, move |_| {
        log.push(1);
        let status = sm.down();
        log.push(2 + u64::from(status.0));
    })?;
    lab::time::sleep(5)?;
    equal!(log.all(), [1]);
    equal!(sm.up(), SUCCESS);
    thread.done.wait()?;
    equal!(log.all(), [1, 2]);
    Ok(())
}

/// Threads of equal priority that wait on `sm` in the order of their numbers and then note them.
fn waiting(sm: Semaphore, log: &'static Log, priorities: &[u64]) -> Outcome {
    for (number, &priority) in priorities.iter().enumerate() {
        spawn(priority, move |_| {
            sm.down();
            log.push(number as u64);
        })?;
        // It runs up to its down.
        lab::time::sleep(1)?;
    }
    Ok(())
}

fn releases_one() -> Outcome {
    let (sm, log) = (Semaphore::new(0)?, Log::new());
    waiting(sm, log, &[10, 10, 10])?;
    equal!(sm.up(), SUCCESS);
    lab::time::sleep(2)?;
    equal!(log.all(), [0]);
    // Nothing of that up is left, and two still wait.
    equal!(sm.up(), SUCCESS);
    equal!(sm.up(), SUCCESS);
    lab::time::sleep(2)?;
    equal!(log.all(), [0, 1, 2]);
    equal!(drain(sm), 0);
    Ok(())
}

fn fifo() -> Outcome {
    let (sm, log) = (Semaphore::new(0)?, Log::new());
    waiting(sm, log, &[10; 8])?;
    for _ in 0..8 {
        equal!(sm.up(), SUCCESS);
        lab::time::sleep(1)?;
    }
    equal!(log.all(), [0, 1, 2, 3, 4, 5, 6, 7]);
    Ok(())
}

fn fifo_priority() -> Outcome {
    let (sm, log) = (Semaphore::new(0)?, Log::new());
    waiting(sm, log, &[10, 30, 20])?;
    for _ in 0..3 {
        equal!(sm.up(), SUCCESS);
        lab::time::sleep(1)?;
    }
    equal!(log.all(), [0, 1, 2]);
    Ok(())
}

fn timeout_leaves() -> Outcome {
    let (sm, log) = (Semaphore::new(0)?, Log::new());
    for number in 0..3 {
        spawn(10, move |_| {
            let timeout = if number == 1 { now() + ms(2) } else { 0 };
            let status = sm.down_until(timeout);
            log.push(number << 8 | u64::from(status.0));
        })?;
        lab::time::sleep(1)?;
    }
    lab::time::sleep(5)?;
    equal!(log.all(), [0x101]);
    equal!(sm.up(), SUCCESS);
    equal!(sm.up(), SUCCESS);
    lab::time::sleep(1)?;
    equal!(log.all(), [0x101, 0, 0x200]);
    // Whether they were released or had a timeout: who waited leaves nothing.
    equal!(drain(sm), 0);
    equal!(sm.down_until(now() + ms(2)), TIMEOUT);
    equal!(sm.up(), SUCCESS);
    equal!(drain(sm), 1);
    Ok(())
}

fn released_in_time() -> Outcome {
    let (sm, other, log) = (Semaphore::new(0)?, Semaphore::new(0)?, Log::new());
    let thread = spawn(10, move |_| {
        log.push(u64::from(sm.down_until(now() + ms(10)).0));
        // The timeout of the first passes while this one waits.
        log.push(u64::from(other.down().0));
    })?;
    lab::time::sleep(1)?;
    equal!(sm.up(), SUCCESS);
    lab::time::sleep(20)?;
    equal!(log.all(), [u64::from(SUCCESS.0)]);
    equal!(other.up(), SUCCESS);
    thread.done.wait()?;
    equal!(log.all(), [u64::from(SUCCESS.0); 2]);
    Ok(())
}

fn preempts() -> Outcome {
    let (sm, log) = (Semaphore::new(0)?, Log::new());
    let high = spawn(60, move |_| {
        sm.down();
        log.push(1);
    })?;
    let low = spawn(10, move |_| {
        log.push(0);
        sm.up();
        log.push(2);
    })?;
    low.done.wait()?;
    high.done.wait()?;
    equal!(log.all(), [0, 1, 2]);
    Ok(())
}

fn up_needs() -> Outcome {
    only_kind(&[Kind::Sm], |sm| ctrl_sm(sm, 0, 0))?;
    needs(Semaphore::new(0)?.0, perm::UP, |sm| ctrl_sm(sm, 0, 0))
}

fn down_needs() -> Outcome {
    only_kind(&[Kind::Sm], |sm| ctrl_sm(sm, flag::SM_DOWN, PAST))?;
    needs(Semaphore::new(1)?.0, perm::DOWN, |sm| ctrl_sm(sm, flag::SM_DOWN, PAST))
}

fn no_assign() -> Outcome {
    let sm = selector();
    equal!(create_sm(sm, root::pd(), 0), SUCCESS);
    equal!(assign_int(sm, flag::INT_MASKED, root::cpu(), 0).0, BAD_CAP);
    Ok(())
}
