//! Semaphores.
#![allow(unsafe_code)] // Two calls between marks.

use core::arch::asm;

use lab::hypercall::flag;
use lab::report::Outcome;
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, call};
use lab::thread::spawn;
use lab::{equal, tests};

use crate::window::{Call, ROUNDS, number};
use crate::{begin, end};

tests! {
    "sm::up" => up,
    "sm::down" => down,
    "sm::ping-pong" => ping_pong,
}

const DOWN: u8 = call::CTRL_SM | flag::SM_DOWN << 4;

fn up() -> Outcome {
    let sm = Semaphore::new(0)?;
    for _ in 0..ROUNDS {
        let call = Call { selector: sm.0, identifier: call::CTRL_SM, ..Call::default() };
        equal!(call.within::<{ number("sm.up") }>(), SUCCESS);
    }
    Ok(())
}

fn down() -> Outcome {
    let sm = Semaphore::new(ROUNDS as u64)?;
    for _ in 0..ROUNDS {
        let call = Call { selector: sm.0, identifier: DOWN, ..Call::default() };
        equal!(call.within::<{ number("sm.down") }>(), SUCCESS);
    }
    Ok(())
}

/// Two threads of one priority wake each other by turns: the window holds an up and a down of each, and two switches.
fn ping_pong() -> Outcome {
    const PRIORITY: u64 = 50;
    let (ping, pong) = (Semaphore::new(0)?, Semaphore::new(0)?);
    spawn(PRIORITY, move |_| answer(ping, pong))?;
    let first = spawn(PRIORITY, move |_| {
        for _ in 0..ROUNDS {
            up_and_down(ping, pong);
        }
    })?;
    first.done.wait()
}

/// RDI of an up and of a down.
fn identifiers(up: Semaphore, down: Semaphore) -> (u64, u64) {
    (up.0 << 8 | u64::from(call::CTRL_SM), down.0 << 8 | u64::from(DOWN))
}

fn up_and_down(up: Semaphore, down: Semaphore) {
    let (up, down) = identifiers(up, down);
    // SAFETY: the kernel keeps all other registers; these calls change no memory.
    unsafe {
        asm!(
            begin!("{number}"),
            "syscall",
            "mov rdi, r8",
            "syscall",
            end!("{number}"),
            number = const number("sm.pingpong"),
            inout("rdi") up => _,
            inout("r8") down => _,
            // No timeout.
            inout("rsi") 0u64 => _,
            lateout("rax") _, lateout("rcx") _, lateout("rdx") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
}

/// Answers each up of `down` by one of `up`, for ever.
fn answer(down: Semaphore, up: Semaphore) {
    let (up, down) = identifiers(up, down);
    // SAFETY: as above.
    unsafe {
        asm!(
            "2: mov rdi, r12",
            "syscall",
            "mov rdi, r13",
            "syscall",
            "jmp 2b",
            in("r12") down,
            in("r13") up,
            // No timeout.
            in("rsi") 0u64,
            options(noreturn),
        );
    }
}
