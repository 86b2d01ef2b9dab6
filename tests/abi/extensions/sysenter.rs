//! SYSENTER, the second way into the kernel: handlers that reply by it leave the guest's SYSCALL registers in the processor.
//! Neither they nor other programs, nor the guest, may notice.
#![allow(unsafe_code)] // The guest's code, and handlers without a frame.

use core::arch::{asm, global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab::entry::hip;
use lab::event::Then;
use lab::guest::{CODE, Guest, Parameters};
use lab::guest_code::range;
use lab::hypercall::{create_pt, ctrl_pt, flag};
use lab::portal::{Local, dispatch};
use lab::registers::OTHER_ENTRY;
use lab::report::{Outcome, Stop, Test, must};
use lab::semaphore::Semaphore;
use lab::spec::hip::END;
use lab::spec::{Field, SUCCESS, Selector, Status, TIMEOUT, call, event, field, mtd};
use lab::utcb::Utcb;
use lab::{capability, check, equal, root, selectors, tests, thread};

use crate::traced::{all_of, guest_exit, guest_state};
use crate::transfer_guest;

tests! {
    "sysenter::it is announced where a guest's handler gains by it" => announced,
    "sysenter::guests whose handlers reply by it" => guests,
    "sysenter::flags that a program sets do not reach the kernel" => flags,
    "sysenter::calls with few parameters, by any program" => calls,
    "sysenter::a handler's SYSCALL works all the same" => stray,
    "sysenter::another program that runs meanwhile has its SYSCALL" => preempted,
    "sysenter::whatever state an event carries" => any_state,
    "sysenter::a stack pointer that is no address" => stack_pointers,
    "sysenter::a handler's page fault leaves CR2 to the guest" => page_fault,
    "sysenter::a handler finds no segment behind the kernel's table" => segments,
}

const FEATURE_SYSENTER: u64 = 1 << 4;

fn is_announced() -> bool {
    hip(Field { offset: END + 12, size: 4 }) & FEATURE_SYSENTER != 0
}

fn needed() -> Outcome {
    if is_announced() { Ok(()) } else { Err(Stop::Skipped("SYSENTER is for handlers of VMX guests")) }
}

fn announced() -> Outcome {
    equal!(is_announced(), lab::guest::vmx());
    Ok(())
}

global_asm!(
    ".globl sysenter_entry, sysenter_entry_with_flags",
    // As the laboratory's entry of portals.
    "sysenter_entry:",
    "mov rdx, rcx; mov rcx, r11",
    "call {dispatch}",
    "mov esi, eax; mov edi, 1; mov rcx, rsp; xor edx, edx",
    "sysenter",
    "ud2",
    // With TF, DF, NT and AC. TF traps behind SYSENTER, which is in the kernel.
    "sysenter_entry_with_flags:",
    "mov rdx, rcx; mov rcx, r11",
    "call {dispatch}",
    "mov esi, eax; mov edi, 1; xor edx, edx",
    "pushfq; or dword ptr [rsp], 0x44500; mov rcx, rsp; add rcx, 8; popfq",
    "sysenter",
    "ud2",
    ".pushsection .guest, \"ax\", @progbits",
    ".globl sysenter_guest, sysenter_guest_entry",
    "sysenter_guest:",
    "mov ebp, {rounds}",
    "2: cpuid; dec ebp; jnz 2b",
    // To the guest's own entry.
    "mov ebx, 1; syscall",
    "3: hlt; jmp 3b",
    "sysenter_guest_entry:",
    "mov ebx, 2; hlt; jmp 3b",
    ".popsection",
    dispatch = sym dispatch,
    rounds = const ROUNDS,
);

unsafe extern "C" {
    static sysenter_entry: u8;
    static sysenter_entry_with_flags: u8;
    static sysenter_guest: u8;
    static sysenter_guest_entry: u8;
}

/// Exits of the guest.
const ROUNDS: u64 = 50;

/// Runs tests of guests with handlers that begin at `entry`.
fn with_entry(entry: *const u8, topics: &[&[Test]]) -> Outcome {
    needed()?;
    OTHER_ENTRY.store(entry as u64, Relaxed);
    let outcome = all_of(topics);
    OTHER_ENTRY.store(0, Relaxed);
    outcome
}

fn guests() -> Outcome {
    // Of the others entries that fail, and injections: each guest takes kernel memory that is not given back before the
    // root task ends.
    with_entry(&raw const sysenter_entry, &[guest_state::TESTS, &transfer_guest::TESTS[2..8]])
}

fn flags() -> Outcome {
    with_entry(&raw const sysenter_entry_with_flags, &[&guest_exit::TESTS[..2]])
}

/// A hypercall by SYSENTER with `flags` set in RFLAGS; RDI and RSI behind it.
fn enter(rdi: u64, rsi: u64, flags: u64) -> (u64, u64) {
    let (status, result);
    // SAFETY: the kernel returns behind the instruction, with the stack pointer and all registers but those named.
    unsafe {
        asm!(
            "pushfq; or [rsp], {flags}; mov rcx, rsp; add rcx, 8; lea rdx, [rip + 2f]; popfq",
            "sysenter",
            "2:",
            flags = in(reg) flags,
            inout("rdi") rdi => status, inout("rsi") rsi => result, out("rcx") _, out("rdx") _, out("r11") _,
        );
    }
    (status, result)
}

fn calls() -> Outcome {
    needed()?;
    let semaphore = Semaphore::new(0)?;
    let ctrl = |flags: u8| semaphore.0 << 8 | u64::from(flags) << 4 | u64::from(call::CTRL_SM);
    for rflags in [0, 0x44500] {
        equal!(Status(enter(ctrl(0), 0, rflags).0 as u8), SUCCESS);
        equal!(Status(enter(ctrl(flag::SM_DOWN), 1, rflags).0 as u8), SUCCESS);
        equal!(Status(enter(ctrl(flag::SM_DOWN), 1, rflags).0 as u8), TIMEOUT);
        let received = lab::number(0);
        let pt = Local::new()?.portal(|message| {
            received.store((0..16).fold(0, |sum, word| sum * 3 + message.utcb.word(word)), Relaxed);
            7
        })?;
        (0..16).for_each(|word| Utcb::root().set_word(word, word as u64 & 1));
        let (status, mtd) = enter(pt << 8 | u64::from(call::IPC_CALL), 15, rflags);
        equal!((Status(status as u8), mtd), (SUCCESS, 7));
        equal!(received.load(Relaxed), (0..16).fold(0, |sum, word| sum * 3 + (word & 1)));
    }
    Ok(())
}

/// What handlers use.
static SEMAPHORE: AtomicU64 = AtomicU64::new(0);
static STATUS: AtomicU64 = AtomicU64::new(0);
static FOUND: AtomicU64 = AtomicU64::new(0);

/// Handlers of CPUID: RDI is the UTCB's address.
macro_rules! handlers {
    ($($name:ident: $($line:literal)+;)*) => { $(
        #[unsafe(naked)]
        extern "C" fn $name() -> ! {
            naked_asm!(
                "add qword ptr [rdi + {rip}], 2",
                $($line,)+
                "mov edi, 1",
                "mov esi, {mtd}",
                "sysenter",
                "ud2",
                "/* {semaphore} {status} {found} */",
                rip = const field::RIP.offset,
                mtd = const mtd::RIP,
                semaphore = sym SEMAPHORE,
                status = sym STATUS,
                found = sym FOUND,
            )
        }
    )* };
}

handlers! {
    // Before and behind what the kernel does for it.
    by_syscall: "mov rdi, [rip + {semaphore}]; xor esi, esi; syscall; or [rip + {status}], rdi; mov rcx, rsp";
    by_sysenter: "mov rdi, [rip + {semaphore}]; xor esi, esi; mov rcx, rsp; lea rdx, [rip + 2f]; sysenter
        2: or [rip + {status}], rdi; mov rcx, rsp";
    plain: "mov rcx, rsp";
    without_stack: "inc qword ptr [rip + {found}]; mov rcx, [rip + {found}]; ror rcx, 17";
    faulting: "mov rax, [0x1230]; mov rcx, rsp";
    looking: "xor ecx, ecx; xor r8d, r8d; 2: lsl eax, ecx; setz al; movzx eax, al; add r8d, eax; add ecx, 4
        cmp ecx, 0x10000; jb 2b; mov [rip + {found}], r8; mov rcx, rsp";
}

/// The registers that the host uses, too, with values of the guest's own.
fn own() -> [(Field, u64); 5] {
    [
        (field::STAR, 0x0033_0008_0000_0000),
        (field::LSTAR, &raw const sysenter_guest_entry as u64 - range().0 + CODE),
        (field::FMASK, 0x4_7700),
        (field::KERNEL_GS_BASE, CODE + 8),
        (field::CR2, 0x1234_5678_9abc),
    ]
}

/// Runs guests whose CPUIDs a handler with event base `events` skips; their registers are their own in the end.
fn exits(handler: extern "C" fn() -> !, events: Selector) -> Outcome {
    needed()?;
    exits_with(handler, events, mtd::RIP)
}

fn exits_with(handler: extern "C" fn() -> !, events: Selector, asked: u32) -> Outcome {
    let rip = &raw const sysenter_guest as u64 - range().0 + CODE;
    let state = mtd::GPR_0_7 | mtd::RIP | mtd::SYSCALL | mtd::KERNEL_GS | mtd::CR;
    let parameters = Parameters { cpu: root::cpu(), rip, mtd: state, flags: 0 };
    let prepare = |utcb: &Utcb| {
        own().iter().for_each(|(field, value)| utcb.set(*field, *value));
        utcb.set(field::EFER, utcb.get(field::EFER) | 1);
        mtd::SYSCALL | mtd::KERNEL_GS | mtd::CR | mtd::EFER
    };
    let guest = Guest::new(parameters, prepare, |_| Then::End)?;
    let (pt, local) = (guest.events + 0x0a, Local::with_events(events)?);
    capability::drop(pt)?;
    must(create_pt(pt, root::pd(), local.ec, handler as *const () as u64))?;
    must(ctrl_pt(pt, local.utcb.address(), asked))?;
    guest.start()?;
    let seen = guest.wait()?;
    equal!(seen.len(), 1);
    equal!(seen[0].number, 0x0c);
    // It came to its own entry.
    equal!(seen[0].state.get(field::RBX), 2);
    for (field, value) in own() {
        equal!(seen[0].state.get(field), value);
    }
    Ok(())
}

/// Runs a guest whose handler ups a semaphore at each exit.
fn with_semaphore(handler: extern "C" fn() -> !, semaphore: Semaphore) -> Outcome {
    SEMAPHORE.store(semaphore.0 << 8 | u64::from(call::CTRL_SM), Relaxed);
    STATUS.store(0, Relaxed);
    exits(handler, root::NO_EVENTS)?;
    equal!(STATUS.load(Relaxed), 0);
    Ok(())
}

fn stray() -> Outcome {
    let semaphore = Semaphore::new(0)?;
    with_semaphore(by_syscall, semaphore)?;
    for _ in 0..ROUNDS {
        equal!(semaphore.down_until(1), SUCCESS);
    }
    equal!(semaphore.down_until(1), TIMEOUT);
    Ok(())
}

fn preempted() -> Outcome {
    needed()?;
    let (semaphore, done) = (Semaphore::new(0)?, Semaphore::new(0)?);
    for handler in [by_sysenter as extern "C" fn() -> !, by_syscall] {
        // More urgent than the guest: each up makes it run at once.
        let _urgent = thread::spawn(120, move |_| {
            for _ in 0..ROUNDS {
                semaphore.down();
            }
            done.up();
        })?;
        with_semaphore(handler, semaphore)?;
        done.wait()?;
    }
    Ok(())
}

fn any_state() -> Outcome {
    needed()?;
    let groups = [mtd::GPR_0_7 | mtd::QUAL, mtd::CR, mtd::SYSCALL, mtd::KERNEL_GS, mtd::TSC, mtd::CS_SS | mtd::EFER | mtd::DR];
    for group in groups {
        exits_with(plain, root::NO_EVENTS, mtd::RIP | group)?;
    }
    Ok(())
}

fn stack_pointers() -> Outcome {
    // 1 << 47, 2 << 47 and so on: not canonical, or the kernel's.
    FOUND.store(0, Relaxed);
    exits(without_stack, root::NO_EVENTS)?;
    equal!(FOUND.load(Relaxed), ROUNDS);
    Ok(())
}

fn page_fault() -> Outcome {
    let events = selectors(thread::event_count());
    let faults = lab::number(0);
    Local::new()?.portal_at(events + u64::from(event::PF), mtd::RIP, |message| {
        faults.fetch_add(1, Relaxed);
        message.utcb.set(field::RIP, message.utcb.get(field::RIP) + 8);
        mtd::RIP
    })?;
    exits(faulting, events)?;
    equal!(faults.load(Relaxed), ROUNDS);
    Ok(())
}

fn segments() -> Outcome {
    exits(looking, root::NO_EVENTS)?;
    // The user's code and stack segments, the latter twice, with each of four requested privilege levels at most.
    let found = FOUND.load(Relaxed);
    check!((3..=3 * 4).contains(&found), "{found} selectors name segments");
    Ok(())
}
