//! Interrupt semaphores and assign_int (4.1.2.11, 5.4.5, 5.5.2, 6.1.3.1).

use lab::capability::{Kind, exists, needs, only_kind};
use lab::console::{allow, output};
use lab::entry::hip;
use lab::hypercall::{assign_int, ctrl_sm, flag};
use lab::interrupt::{Uart, pin_of, semaphore};
use lab::report::{Outcome, Stop};
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, BAD_CPU, SUCCESS, TIMEOUT, hip, perm};
use lab::time::{ms, now};
use lab::{check, equal, root, tests};

tests! {
    "interrupt::there is a semaphore for each interrupt" => semaphores,
    "interrupt::they carry ASSIGN and CTRL_DN only" => permissions,
    "assign_int::needs an SM with permission ASSIGN" => needs_assign,
    "assign_int::needs an interrupt's semaphore" => ordinary,
    "assign_int::the CPU must exist" => cpu,
    "assign_int::pins have no message" => no_message,
    "interrupt::an interrupt ups its semaphore" => ups,
    "interrupt::a masked interrupt is not signalled" => masked,
    "interrupt::only its own interrupt ups a semaphore" => own,
    "interrupt::an edge is signalled once" => edge,
    "interrupt::a level is signalled as long as it lasts, once for each down" => level,
    "interrupt::down must be on the CPU to which it is routed" => routed,
}

/// The programmable interval timer's counter 0, and the pin of its interrupt.
fn start_timer() -> Result<u64, Stop> {
    const COUNTER: u16 = 0x40;
    const COMMAND: u16 = 0x43;
    allow(COUNTER, 2)?;
    // Counter 0, both bytes, rate generator: 1193182 Hz / 2386 = 500 Hz.
    output(COMMAND, 0x34);
    output(COUNTER, (2386 & 0xff) as u8);
    output(COUNTER, (2386 >> 8) as u8);
    Ok(pin_of(0))
}

fn semaphores() -> Outcome {
    let count = hip(hip::INT_PIN) + hip(hip::INT_MSI);
    check!(hip(hip::INT_PIN) >= 24, "fewer pins than an I/O APIC has");
    for number in 0..count {
        let sm = semaphore(number)?;
        check!(exists(sm.0), "no semaphore for interrupt {number}");
    }
    for number in [count, count + 1, 0xffff] {
        let sm = semaphore(number)?;
        check!(!exists(sm.0), "a semaphore for interrupt {number}");
    }
    Ok(())
}

fn permissions() -> Outcome {
    let sm = semaphore(hip(hip::INT_PIN) - 1)?;
    equal!(sm.up(), BAD_CAP);
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    equal!(sm.down_until(1), TIMEOUT);
    Ok(())
}

fn needs_assign() -> Outcome {
    let assign = |sm| assign_int(sm, flag::INT_MASKED, root::cpu(), 0).0;
    only_kind(&[Kind::Sm], assign)?;
    needs(semaphore(hip(hip::INT_PIN) - 1)?.0, perm::ASSIGN_INT, assign)
}

fn ordinary() -> Outcome {
    equal!(assign_int(Semaphore::new(0)?.0, flag::INT_MASKED, root::cpu(), 0).0, BAD_CAP);
    equal!(assign_int(root::CONSOLE, flag::INT_MASKED, root::cpu(), 0).0, BAD_CAP);
    Ok(())
}

fn cpu() -> Outcome {
    let sm = semaphore(hip(hip::INT_PIN) - 1)?;
    for cpu in [root::cpus(), root::cpus() + 1, 0xffff, 1 << 16, 1 << 32, u64::MAX] {
        equal!(assign_int(sm.0, flag::INT_MASKED, cpu, 0).0, BAD_CPU);
    }
    for cpu in 0..root::cpus() {
        equal!(assign_int(sm.0, flag::INT_MASKED, cpu, 0).0, SUCCESS);
    }
    Ok(())
}

fn no_message() -> Outcome {
    let sm = semaphore(hip(hip::INT_PIN) - 1)?;
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0x1234), (SUCCESS, 0, 0));
    Ok(())
}

/// Forgets what was signalled.
fn drain(sm: Semaphore) {
    ctrl_sm(sm.0, flag::SM_DOWN | flag::SM_ZERO, 1);
}

fn ups() -> Outcome {
    let sm = semaphore(start_timer()?)?;
    equal!(assign_int(sm.0, 0, root::cpu(), 0).0, SUCCESS);
    let start = now();
    for _ in 0..10 {
        sm.wait()?;
    }
    // One was perhaps there already.
    let passed = now() - start;
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    check!(passed >= ms(14), "ten interrupts of 500 Hz within {passed} ticks");
    Ok(())
}

fn masked() -> Outcome {
    let sm = semaphore(start_timer()?)?;
    for _ in 0..2 {
        equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
        drain(sm);
        equal!(sm.down_until(now() + ms(20)), TIMEOUT);
        equal!(assign_int(sm.0, 0, root::cpu(), 0).0, SUCCESS);
        sm.wait()?;
    }
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    Ok(())
}

fn own() -> Outcome {
    let pin = start_timer()?;
    let (sm, other) = (semaphore(pin)?, semaphore(pin + 7)?);
    equal!(assign_int(other.0, 0, root::cpu(), 0).0, SUCCESS);
    equal!(assign_int(sm.0, 0, root::cpu(), 0).0, SUCCESS);
    sm.wait()?;
    equal!(other.down_until(now() + ms(10)), TIMEOUT);
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    equal!(assign_int(other.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    Ok(())
}

fn edge() -> Outcome {
    let (uart, sm) = Uart::new()?;
    equal!(assign_int(sm.0, 0, root::cpu(), 0).0, SUCCESS);
    drain(sm);
    for _ in 0..3 {
        uart.raise();
        sm.wait()?;
        // It is still raised.
        equal!(sm.down_until(now() + ms(5)), TIMEOUT);
        uart.lower();
    }
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    Ok(())
}

fn level() -> Outcome {
    let (uart, sm) = Uart::new()?;
    equal!(assign_int(sm.0, flag::INT_LEVEL, root::cpu(), 0).0, SUCCESS);
    drain(sm);
    uart.raise();
    for _ in 0..5 {
        sm.wait()?;
    }
    uart.lower();
    // One may have come before.
    sm.down_until(now() + ms(5));
    equal!(sm.down_until(now() + ms(5)), TIMEOUT);
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    Ok(())
}

fn routed() -> Outcome {
    if root::cpus() < 2 {
        return Err(Stop::Skipped("one CPU"));
    }
    let other = (root::cpu() + 1) % root::cpus();
    let sm = semaphore(start_timer()?)?;
    equal!(assign_int(sm.0, 0, other, 0).0, SUCCESS);
    equal!(sm.down_until(now() + ms(5)), BAD_CPU);
    let parameters = lab::thread::Parameters { cpu: other, priority: 20, budget: 100, flags: 0 };
    let thread = lab::thread::spawn_with(parameters, move |_| {
        for _ in 0..3 {
            sm.down();
        }
    })?;
    thread.done.wait()?;
    // Whatever it has counted meanwhile.
    lab::time::sleep(20)?;
    equal!(sm.down_until(now() + ms(5)), BAD_CPU);
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    // What was signalled before may be there still.
    drain(sm);
    equal!(sm.down_until(now() + ms(5)), TIMEOUT);
    Ok(())
}
