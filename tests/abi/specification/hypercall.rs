//! Hypercalls as such: numbers, registers, status (5.1, 8.8).

use core::sync::atomic::Ordering::Relaxed;

use lab::domain::Domain;
use lab::entry::user_end;
use lab::hypercall::{NewEc, create_ec, create_sc, flag};
use lab::memory::PAGE;
use lab::portal::Local;
use lab::registers::{REFUSED, Registers, return_address};
use lab::report::{Outcome, must};
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, SUCCESS, call, event, field, mtd, perm, scd};
use lab::{check, equal, memory, number, root, selector, selectors, tests, thread};

tests! {
    "hypercall::no test uses number 0xf" => reserved_number,
    "hypercall::the return sets RCX, R11 and the flags, and preserves the rest" => registers,
    "hypercall::a failing call preserves registers too" => failing,
    "hypercall::a call in the last bytes of user space returns with #GP in the program" => last_bytes,
}

fn reserved_number() -> Outcome {
    for flags in 0..16 {
        let mut registers = Registers::new(flags << 4 | 0xf, 0, 0, 0, 0);
        registers.call();
        equal!(registers.gpr[7], REFUSED);
    }
    Ok(())
}

fn preserved(number: u8, selector: u64, rsi: u64, rdx: u64) -> Outcome {
    let before = Registers::new(selector << 8 | u64::from(number), rsi, rdx, 0x1111, 0x2222);
    let mut after = before;
    after.call();
    for register in (0..16).filter(|register| ![1, 4, 7, 11].contains(register)) {
        check!(after.gpr[register] == before.gpr[register], "register {register}: {:#x}", after.gpr[register]);
    }
    equal!(after.gpr[1], return_address());
    equal!(after.gpr[11], 0x202);
    equal!(after.rflags, 0x202);
    Ok(())
}

fn registers() -> Outcome {
    preserved(call::CREATE_SM, selector(), root::pd(), 7)
}

fn failing() -> Outcome {
    preserved(call::CREATE_SM, selector(), selector(), 7)?;
    let sm = Semaphore::new(0)?;
    equal!(sm.up(), SUCCESS);
    equal!(lab::hypercall::ctrl_sm(selector(), flag::SM_DOWN, 0), BAD_CAP);
    Ok(())
}

/// The address behind the instruction is not canonical: a SYSRET or IRET to it could fault in the kernel. By calls that are
/// quick, that have more to do, that fail, and that come back by a reply.
fn last_bytes() -> Outcome {
    let domain = Domain::empty()?;
    let (page, code) = (memory::pages(1), memory::page_address());
    memory::poke(page + PAGE - 8, 0x050f << 48);
    memory::map_physical(memory::physical(page), code, 0, perm::R | perm::XU, 0)?;
    memory::delegate(code, domain.hst, user_end() - PAGE, 0, perm::R | perm::XU)?;
    let (sm, callee, done) = (Semaphore::new(0)?, Local::new()?.portal(|_| 0)?, Semaphore::new(0)?);
    let (own, to) = (selector(), selector());
    domain.give(sm.0, own, perm::ALL)?;
    domain.give(callee, to, perm::ALL)?;
    let sm_call = |flags: u8| own << 8 | u64::from(flags << 4 | call::CTRL_SM);
    let calls = [
        sm_call(0),
        sm_call(flag::SM_DOWN),
        sm_call(0),
        sm_call(flag::SM_DOWN | flag::SM_ZERO),
        selector() << 8 | u64::from(call::CTRL_SC),
        to << 8 | u64::from(call::IPC_CALL),
        selector() << 8 | u64::from(call::IPC_CALL),
    ];
    let (next, events, handler) = (number(0), selectors(thread::event_count()), Local::new()?);
    let startup = events + u64::from(lab::event::startup());
    for (event, begins) in [(startup, true), (events + u64::from(event::GP), false)] {
        handler.portal_at(event, mtd::GPR_0_7 | mtd::RIP, move |message| {
            let at = next.fetch_add(1, Relaxed) as usize;
            if at < calls.len() && (begins || message.utcb.get(field::RIP) == user_end()) {
                message.utcb.set(field::RDI, calls[at]);
                message.utcb.set(field::RSI, 0);
                message.utcb.set(field::RIP, user_end() - 2);
                return mtd::GPR_0_7 | mtd::RIP;
            }
            done.up();
            mtd::POISON
        })?;
        domain.give(event, event, perm::ALL)?;
    }
    let ec = selector();
    let new = NewEc { pd: domain.pd, page: memory::page_address(), events, ..lab::capability::global_thread() };
    must(create_ec(ec, &new))?;
    must(create_sc(selector(), root::pd(), ec, scd(100, 50, 0)))?;
    done.wait()?;
    equal!(next.load(Relaxed), calls.len() as u64 + 1);
    Ok(())
}
