//! Exits of a guest to a handler that answers at once, and back.
//!
//! The guest's own code begins and ends the windows, so that they hold what it executes, too: one instruction.
#![allow(unsafe_code)] // The guest's code, and handlers without a frame.

use core::arch::{global_asm, naked_asm};

use lab::event::Then;
use lab::guest::{CODE, Guest, Parameters};
use lab::guest_code::range;
use lab::hypercall::{create_pt, ctrl_pt};
use lab::portal::Local;
use lab::report::{Outcome, failed, must};
use lab::entry::hip;
use lab::spec::hip::{END, LENGTH};
use lab::spec::{Field, field, mtd};
use lab::{capability, root, tests};

use crate::window::{ROUNDS, number};
use crate::{begin, end};

tests! {
    "exit::CPUID" => cpuid,
    "exit::CPUID, handled by SYSCALL" => cpuid_by_syscall,
    "exit::port out" => out,
}

/// Event numbers of exits (8.6.1).
const CPUID: u64 = 0x0a;
const IO: u64 = 0x1e;
const HLT: u16 = 0x0c;

global_asm!(
    ".pushsection .guest, \"ax\", @progbits",
    ".globl bench_cpuid, bench_cpuid_syscall, bench_out",
    "bench_cpuid:",
    "mov ebp, {rounds}",
    "2:",
    begin!("{cpuid}"),
    "cpuid",
    end!("{cpuid}"),
    "dec ebp",
    "jnz 2b",
    "3: hlt; jmp 3b",
    "bench_cpuid_syscall:",
    "mov ebp, {rounds}",
    "2:",
    begin!("{cpuid_syscall}"),
    "cpuid",
    end!("{cpuid_syscall}"),
    "dec ebp",
    "jnz 2b",
    "3: hlt; jmp 3b",
    "bench_out:",
    "mov ebp, {rounds}",
    "2:",
    begin!("{out}"),
    "out 0x80, al",
    end!("{out}"),
    "dec ebp",
    "jnz 2b",
    "3: hlt; jmp 3b",
    ".popsection",
    rounds = const ROUNDS,
    cpuid = const number("exit.cpuid"),
    cpuid_syscall = const number("exit.cpuid.syscall"),
    out = const number("exit.out"),
);

unsafe extern "C" {
    static bench_cpuid: u8;
    static bench_cpuid_syscall: u8;
    static bench_out: u8;
}

/// Handlers that skip an instruction of two bytes: the identifier, in RDI, is the UTCB's address; the descriptor is RIP's
/// bit. They reply by the instructions `$reply`.
macro_rules! skips {
    ($($(#[$doc:meta])* $name:ident: $reply:literal;)*) => { $(
        $(#[$doc])*
        #[unsafe(naked)]
        extern "C" fn $name() -> ! {
            naked_asm!(
                "add qword ptr [rdi + {rip}], 2",
                "mov edi, 1",
                "mov esi, {mtd}",
                $reply,
                "ud2",
                rip = const field::RIP.offset,
                mtd = const mtd::RIP,
            )
        }
    )* };
}

skips! {
    /// By the specification's way into the kernel.
    skip: "syscall";
    /// By SYSENTER: RCX = stack pointer.
    skip_by_sysenter: "mov rcx, rsp; sysenter";
}

/// Whether the kernel announces SYSENTER, behind what the specification says of the information page.
fn sysenter_announced() -> bool {
    let word = |offset| hip(Field { offset: END + offset, size: 4 });
    hip(LENGTH) as usize >= END + 16 && [word(0), word(4)] == [0x4f4c_494b, 0x4156_4f4e] && word(12) & 1 << 4 != 0
}

/// The way in that the kernel has for handlers of guests' events: announced, or else the one of the specification.
fn shortest() -> u64 {
    let handler: extern "C" fn() -> ! = if sysenter_announced() { skip_by_sysenter } else { skip };
    handler as *const () as u64
}

fn cpuid() -> Outcome {
    exits(&raw const bench_cpuid as u64, CPUID, mtd::RIP, shortest())
}

fn cpuid_by_syscall() -> Outcome {
    exits(&raw const bench_cpuid_syscall as u64, CPUID, mtd::RIP, skip as *const () as u64)
}

/// With what a device model needs to answer.
fn out() -> Outcome {
    exits(&raw const bench_out as u64, IO, mtd::GPR_0_7 | mtd::RIP | mtd::QUAL, shortest())
}

/// Runs a guest from `code` up to HLT, with state of its own in the registers that the host uses, too; `event` is
/// answered at once, by the handler at `entry`.
fn exits(code: u64, event: u64, state: u32, entry: u64) -> Outcome {
    let rip = code - range().0 + CODE;
    let parameters = Parameters { cpu: root::cpu(), rip, mtd: mtd::RIP, flags: 0 };
    let own = |utcb: &lab::utcb::Utcb| {
        utcb.set(field::STAR, 0x0033_0023_0000_0000);
        utcb.set(field::LSTAR, CODE);
        utcb.set(field::FMASK, 0x4_7700);
        utcb.set(field::KERNEL_GS_BASE, CODE);
        utcb.set(field::XCR0, 3);
        mtd::SYSCALL | mtd::KERNEL_GS | mtd::XSAVE
    };
    let guest = Guest::new(parameters, own, |_| Then::End)?;
    let (pt, handler) = (guest.events + event, Local::new()?);
    capability::drop(pt)?;
    must(create_pt(pt, root::pd(), handler.ec, entry))?;
    must(ctrl_pt(pt, handler.utcb.address(), state))?;
    guest.start()?;
    let seen = guest.wait()?;
    match &seen[..] {
        [last] if last.number == HLT => Ok(()),
        _ => Err(failed(alloc::format!("the guest ends with event {:x?}", seen.last().map(|seen| seen.number)))),
    }
}
