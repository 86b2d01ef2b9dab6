//! Hypercalls as such: numbers, registers, status (5.1, 8.8).

use lab::hypercall::flag;
use lab::registers::{REFUSED, Registers, return_address};
use lab::report::Outcome;
use lab::semaphore::Semaphore;
use lab::spec::{BAD_CAP, SUCCESS, call};
use lab::{check, equal, root, selector, tests};

tests! {
    "hypercall::no test uses number 0xf" => reserved_number,
    "hypercall::the return sets RCX, R11 and the flags, and preserves the rest" => registers,
    "hypercall::a failing call preserves registers too" => failing,
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
