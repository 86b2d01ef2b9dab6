//! Calls through a portal and back. A message has one word at least: what is called "0 words" is the descriptor 0.
#![allow(unsafe_code)] // Handlers without a frame.

use core::arch::naked_asm;

use lab::domain::Domain;
use lab::hypercall::create_pt;
use lab::portal::Local;
use lab::report::{Outcome, Stop, must};
use lab::spec::{SUCCESS, Selector, call, words};
use lab::{equal, root, selector, tests};

use crate::window::{Call, ROUNDS, number};

tests! {
    "ipc::same PD" => same_pd,
    "ipc::cross PD" => cross_pd,
    "ipc::32 words" => words_32,
    "ipc::512 words" => words_512,
    "hypercall::invalid" => invalid,
}

/// Replies with what has come.
#[unsafe(naked)]
pub extern "C" fn echo() -> ! {
    naked_asm!("mov edi, 1", "syscall", "ud2")
}

/// Replies with one word.
#[unsafe(naked)]
extern "C" fn answer() -> ! {
    naked_asm!("mov edi, 1", "xor esi, esi", "syscall", "ud2")
}

/// A portal to a thread of `pd`.
fn portal(pd: Selector, handler: extern "C" fn() -> !) -> Result<Selector, Stop> {
    let (local, pt) = (Local::within(pd, root::cpu())?, selector());
    must(create_pt(pt, root::pd(), local.ec, handler as *const () as u64))?;
    Ok(pt)
}

fn calls<const NUMBER: u8>(pd: Selector, handler: extern "C" fn() -> !, count: usize) -> Outcome {
    let pt = portal(pd, handler)?;
    for _ in 0..ROUNDS {
        let call = Call { selector: pt, identifier: call::IPC_CALL, rsi: u64::from(words(count)), ..Call::default() };
        equal!(call.within::<NUMBER>(), SUCCESS);
    }
    Ok(())
}

fn same_pd() -> Outcome {
    calls::<{ number("ipc.same_pd.0") }>(root::pd(), echo, 1)
}

fn cross_pd() -> Outcome {
    calls::<{ number("ipc.cross_pd.0") }>(Domain::new()?.pd, echo, 1)
}

fn words_32() -> Outcome {
    calls::<{ number("ipc.cross_pd.32") }>(Domain::new()?.pd, answer, 32)
}

fn words_512() -> Outcome {
    calls::<{ number("ipc.cross_pd.512") }>(Domain::new()?.pd, answer, 512)
}

fn invalid() -> Outcome {
    for _ in 0..ROUNDS {
        // A call that there is, of nothing.
        let call = Call { selector: selector(), identifier: call::CTRL_SM, ..Call::default() };
        equal!(call.within::<{ number("hypercall.invalid") }>(), lab::spec::BAD_CAP);
    }
    Ok(())
}
