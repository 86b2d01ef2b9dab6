//! Scheduling contexts at work: priorities, budgets, time (2.3, 3.1, 5.4.3, 6.2).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab::capability::{Kind, needs, only_kind};
use lab::entry::hip;
use lab::hypercall::ctrl_sc;
use lab::log::Log;
use lab::report::{Outcome, Stop, must};
use lab::semaphore::Semaphore;
use lab::spec::{Selector, SUCCESS, hip, perm};
use lab::thread::{Parameters, Thread, spawn, spawn_with};
use lab::time::{ms, now, pause, settle, sleep, spin};
use lab::{acpi, check, equal, number, root, selector, tests};

tests! {
    "ctrl_sc::needs an SC with permission CTRL" => control,
    "scheduling::the time of an SC is what it ran" => consumed,
    "scheduling::the time of the SC that runs counts, too" => consumed_now,
    "scheduling::an SC that waits consumes nothing" => waiting,
    "scheduling::each CPU has an idle SC, whose time is that of idleness" => idle,
    "scheduling::a higher priority runs first" => priority,
    "scheduling::a higher priority preempts" => preempts,
    "scheduling::a lower priority waits as long as a higher one runs" => starves,
    "scheduling::equal priorities take turns" => turns,
    "scheduling::the budget is the length of a turn" => budget,
    "scheduling::within its budget an SC is not preempted by its equals" => within_budget,
    "scheduling::the root SC has the highest priority" => root_priority,
    "scheduling::system time has the frequency that the information page says" => frequency,
}

fn control() -> Outcome {
    only_kind(&[Kind::Sc], |sc| ctrl_sc(sc).0)?;
    needs(root::sc(), perm::CTRL, |sc| ctrl_sc(sc).0)
}

#[track_caller]
fn time(sc: Selector) -> Result<u64, Stop> {
    let (status, time) = ctrl_sc(sc);
    must(status)?;
    Ok(time)
}

fn consumed() -> Outcome {
    let thread = spawn(10, |_| spin(ms(5)))?;
    let start = now();
    thread.done.wait()?;
    let (used, total) = (time(thread.sc)?, now() - start);
    check!(used >= ms(5) && used <= total, "{used} ticks, within {total}");
    Ok(())
}

fn consumed_now() -> Outcome {
    let (start, before) = (now(), time(root::sc())?);
    spin(ms(2));
    let (used, total) = (time(root::sc())? - before, now() - start);
    check!(used >= ms(2) && used <= total, "{used} ticks, within {total}");
    Ok(())
}

fn waiting() -> Outcome {
    let gate = Semaphore::new(0)?;
    let thread = spawn(10, move |_| {
        gate.down();
    })?;
    settle()?;
    let before = time(thread.sc)?;
    spin(ms(3));
    sleep(3)?;
    equal!(time(thread.sc)?, before);
    gate.up();
    thread.done.wait()
}

fn idle() -> Outcome {
    for cpu in 0..root::cpus() {
        let sc = selector();
        equal!(root::from_nova(cpu, sc, perm::ALL), SUCCESS);
        // Nothing but CTRL is defined.
        equal!(ctrl_sc(sc).0, SUCCESS);
        let before = time(sc)?;
        let start = now();
        if cpu == root::cpu() {
            pause(20)?;
        } else {
            spin(ms(20));
        }
        let (used, total) = (time(sc)? - before, now() - start);
        check!(used >= total / 2 && used <= total + ms(1), "CPU {cpu}: idle for {used} ticks of {total}");
    }
    let own = selector();
    must(root::from_nova(root::cpu(), own, perm::ALL))?;
    let before = time(own)?;
    spin(ms(5));
    let used = time(own)? - before;
    check!(used < ms(1), "idle for {used} ticks while a thread ran");
    Ok(())
}

/// A thread that notes `entry`.
fn noting(log: &'static Log, priority: u64, entry: u64) -> Result<Thread, Stop> {
    spawn(priority, move |_| log.push(entry))
}

fn priority() -> Outcome {
    let log = Log::new();
    // The highest is 127, and the lowest is that of the thread that tells when all others wait.
    for priority in [2, 127, 64, 126, 3, 65, 63, 90] {
        noting(log, priority, priority)?;
    }
    settle()?;
    equal!(log.all(), [127, 126, 90, 65, 64, 63, 3, 2]);
    Ok(())
}

fn preempts() -> Outcome {
    let log = Log::new();
    // A timeout wakes it while the other one runs.
    let high = spawn(60, move |_| {
        let _ = pause(2);
        log.push(1);
    })?;
    let low = spawn(20, move |_| {
        spin(ms(10));
        log.push(2);
    })?;
    high.done.wait()?;
    low.done.wait()?;
    equal!(log.all(), [1, 2]);
    Ok(())
}

fn starves() -> Outcome {
    let high = spawn_with(Parameters { cpu: root::cpu(), priority: 60, budget: 1, flags: 0 }, |_| spin(ms(20)))?;
    let low = spawn(59, |_| ())?;
    let seen = number(u64::MAX);
    let sc = low.sc;
    let watcher = spawn(61, move |_| {
        let _ = pause(10);
        seen.store(ctrl_sc(sc).1, Relaxed);
    })?;
    for thread in [watcher, high, low] {
        thread.done.wait()?;
    }
    equal!(seen.load(Relaxed), 0);
    Ok(())
}

/// Two threads of equal priority with these budgets in milliseconds run for so many; the times that they consumed, and
/// how often one followed the other.
fn compete(budgets: [u64; 2], milliseconds: u64) -> Result<([u64; 2], u64), Stop> {
    let (stop, last, changes): (_, &'static AtomicU64, &'static AtomicU64) = (number(0), number(9), number(0));
    let mut threads = alloc::vec::Vec::new();
    for (who, budget) in [0, 1].into_iter().zip(budgets) {
        let parameters = Parameters { cpu: root::cpu(), priority: 20, budget, flags: 0 };
        threads.push(spawn_with(parameters, move |_| {
            while stop.load(Relaxed) == 0 {
                if last.swap(who, Relaxed) != who {
                    changes.fetch_add(1, Relaxed);
                }
            }
        })?);
    }
    pause(milliseconds)?;
    let times = [time(threads[0].sc)?, time(threads[1].sc)?];
    stop.store(1, Relaxed);
    for thread in threads {
        thread.done.wait()?;
    }
    Ok((times, changes.load(Relaxed)))
}

fn turns() -> Outcome {
    let ([first, second], changes) = compete([2, 2], 40)?;
    check!(changes >= 6, "only {changes} turns");
    check!(first < 2 * second && second < 2 * first, "{first} and {second} ticks");
    Ok(())
}

fn budget() -> Outcome {
    let ([long, short], _) = compete([12, 3], 150)?;
    let ratio = 10 * long / short.max(1);
    check!((25..=65).contains(&ratio), "budgets 12 : 3, times {long} : {short}");
    Ok(())
}

fn within_budget() -> Outcome {
    let (_, changes) = compete([1000, 1000], 30)?;
    equal!(changes, 1);
    Ok(())
}

fn root_priority() -> Outcome {
    let log = Log::new();
    noting(log, 127, 1)?;
    // Nobody preempts the root EC, whose budget is 1000 ms.
    spin(ms(5));
    equal!(log.all().len(), 0);
    settle()?;
    equal!(log.all(), [1]);
    Ok(())
}

/// Against the ACPI timer, which runs at 3.579545 MHz in 24 or 32 bits (ACPI 6.5, 4.8.3.3).
fn frequency() -> Outcome {
    const TICKS: u64 = 3_579_545 / 20;
    let port = acpi::fadt(76, 4).unwrap_or(0) as u16;
    check!(port != 0, "the FADT names no timer");
    lab::console::allow(port, 2)?;
    let timer = || u64::from(lab::console::input_long(port)) & 0xff_ffff;
    let (first, start) = (timer(), now());
    let mut passed = 0;
    let mut end = start;
    while passed < TICKS {
        (passed, end) = ((timer() + (1 << 24) - first) & 0xff_ffff, now());
    }
    let frequency = (end - start) * 3_579_545 / passed;
    let said = hip(hip::STC_FREQUENCY);
    check!(frequency.abs_diff(said) < said / 50, "{frequency} Hz, not {said}");
    Ok(())
}
