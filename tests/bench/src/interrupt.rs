//! From a device's interrupt to the program that waits for it, by a semaphore.
#![allow(unsafe_code)] // Marks in assembly.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab::hypercall::{assign_int, flag};
use lab::interrupt::Uart;
use lab::report::Outcome;
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, call};
use lab::thread::spawn;
use lab::{equal, number as shared_number, root, tests};

use crate::window::{ROUNDS, number};
use crate::{begin, end};

tests! {
    "irq::to a program" => to_program,
}

/// One thread makes the device interrupt it; a thread of a higher priority waits for that.
fn to_program() -> Outcome {
    const LOW: u64 = 40;
    const HIGH: u64 = 60;
    let (uart, sm) = Uart::new()?;
    equal!(assign_int(sm.0, 0, root::cpu(), 0).0, SUCCESS);
    sm.down_until(1);
    let taken: &'static AtomicU64 = shared_number(0);
    spawn(HIGH, move |_| take(sm, taken))?;
    let low = spawn(LOW, move |_| {
        for round in 0..ROUNDS as u64 {
            raise();
            while taken.load(Relaxed) <= round {
                core::hint::spin_loop();
            }
            uart.lower();
        }
    })?;
    low.done.wait()?;
    equal!(assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0).0, SUCCESS);
    Ok(())
}

/// Lets the device interrupt when it has nothing to send, which is now. The window is ended by who waits.
fn raise() {
    // SAFETY: the device is the test's own, and its interrupt goes to a semaphore.
    unsafe {
        asm!(
            begin!("{number}"),
            "out dx, al",
            number = const number("irq.user"),
            in("dx") Uart::BASE + 1,
            in("al") 2u8,
        );
    }
}

/// Waits for the interrupt for ever, ends the window each time, and counts.
fn take(sm: Semaphore, taken: &'static AtomicU64) {
    let down = sm.0 << 8 | u64::from(call::CTRL_SM | flag::SM_DOWN << 4);
    // SAFETY: the number lives for ever; the kernel keeps these registers.
    unsafe {
        asm!(
            "2: mov rdi, r12",
            "xor esi, esi",
            "syscall",
            end!("{number}"),
            "inc qword ptr [r13]",
            "jmp 2b",
            number = const number("irq.user"),
            in("r12") down,
            in("r13") taken.as_ptr(),
            options(noreturn),
        );
    }
}
