//! Guests: which exits become events, and what each tells (2.2.2, 8.6.1, 8.6.2, 8.7.4). Numbers and qualifications are those
//! of Intel SDM vol. 3D, appendix C, and vol. 3C, 28.2.1. A kernel that has SVM in this vocabulary is held to the same.

use lab::event::{Event, Seen, Then};
use lab::guest::{self, DATA, Guest, NOTHING, Parameters, STACK, run, startup, vmx};
use lab::guest_code::{self as code, Code};
use lab::capability::copy;
use lab::domain::Domain;
use lab::hypercall::{ctrl_ec, ctrl_pt, flag};
use lab::portal::{Local, Message};
use lab::report::{Outcome, Stop, failed, must};
use lab::spec::{SUCCESS, field, injection, mtd, perm};
use lab::time::{pause, settle, until};
use lab::utcb::Utcb;
use lab::{check, equal, number, root, selector, tests};

use core::sync::atomic::Ordering::Relaxed;

tests! {
    "guest exit::instructions that always exit" => always,
    "guest exit::instructions that exit if a VMM asks" => on_demand,
    "guest exit::RDMSR and WRMSR" => registers,
    "guest exit::port accesses tell size, direction and port" => ports,
    "guest exit::CR0 and CR4 accesses exit for the bits that a VMM intercepts" => control_registers,
    "guest exit::CR3 and CR8 accesses exit if a VMM asks" => cr3_cr8,
    "guest exit::an access without memory tells kind and address" => memory,
    "guest exit::a write to read-only memory" => read_only,
    "guest exit::an intercepted exception tells vector and error" => exceptions,
    "guest exit::exceptions that are not intercepted are the guest's" => own_exceptions,
    "guest exit::page faults are filtered by mask and match" => page_fault_filter,
    "guest exit::a triple fault" => triple_fault,
    "guest exit::instructions of the virtualization extension" => virtualization,
    "guest exit::an invalid state is told, and can be mended" => invalid_state,
    "guest exit::STARTUP comes with the SC, with the stack pointer of creation" => startup_event,
    "guest exit::RECALL" => recalled,
    "guest exit::RECALL of a guest whose handler waits" => recalled_in_handler,
    "guest exit::a guest without a portal for its exit dies" => no_portal,
    "guest exit::each goes to the portal that is there then, with the state that it names then" => handlers,
    "guest exit::a handler may be in another PD" => foreign,
    "guest exit::a guest without spaces does not run" => no_spaces,
    "guest exit::a guest with the FPU flag has an FPU" => fpu,
}

const STATE: u32 = mtd::GPR_0_7 | mtd::RIP | mtd::QUAL;
const HLT: u16 = 0xc;
const CPUID: u64 = 0xa;

/// Runs `code`; its first event must be `number`, at the instruction that matters. Then goes on behind it, where HLT is.
#[track_caller]
fn exits(code: Code, number: u16, prepare: impl Fn(&Utcb) -> u32 + 'static) -> Result<Seen, Stop> {
    let (_, seen) = run(code.start, STATE, prepare, move |event| {
        if event.number != number || event.utcb.get(field::RIP) != code.at {
            return Then::End;
        }
        event.utcb.set(field::RIP, code.next);
        Then::Reply(mtd::RIP)
    })?;
    let [first, last] = &seen[..] else {
        let first = &seen[0];
        let text = alloc::format!("event {:#x} at {:#x}, not {number:#x} at {:#x}", first.number, first.state.get(field::RIP), code.at);
        return Err(failed(text));
    };
    equal!((last.number, last.state.get(field::RIP)), (HLT, code.next));
    let length = first.state.get(field::INSTRUCTION_LENGTH);
    // SVM need not tell.
    check!(length == code.next - code.at || length == 0 && !vmx(), "event {number:#x}: instruction length {length}");
    Ok(first.clone())
}

/// The qualification of `code`'s event.
fn qualification(code: Code, number: u16) -> Result<u64, Stop> {
    Ok(exits(code, number, |_| 0)?.state.get(field::QUALIFICATION_1))
}

fn always() -> Outcome {
    let pieces = [
        (code::cpuid(), 0x0a),
        (code::hlt(), HLT),
        (code::invd(), 0x0d),
        (code::rdpmc(), 0x0f),
        (code::mwait(), 0x24),
        (code::monitor(), 0x27),
        (code::xsetbv(), 0x37),
    ];
    for (code, number) in pieces {
        let seen = exits(code, number, |_| 0)?;
        check!(number == 0x0a || seen.state.get(field::QUALIFICATION_1) == 0, "event {number:#x} with a qualification");
        if number == 0x0a {
            equal!(seen.state.get(field::RAX), 1);
        }
    }
    exits(if vmx() { code::vmcall() } else { code::vmmcall() }, 0x12, |_| 0).map(|_| ())
}

/// Sets controls.
fn controls(first: u64, second: u64) -> impl Fn(&Utcb) -> u32 + 'static {
    move |utcb| {
        for field in [
            field::EXEC_CONTROLS_3,
            field::CR0_INTERCEPTS,
            field::CR4_INTERCEPTS,
            field::EXCEPTION_INTERCEPTS,
            field::PF_MASK,
            field::PF_MATCH,
        ] {
            utcb.set(field, 0);
        }
        utcb.set(field::EXEC_CONTROLS_1, first);
        // RDTSCP exists.
        utcb.set(field::EXEC_CONTROLS_2, second | 1 << 3);
        mtd::CTRL
    }
}

/// `code` exits with `number` under these controls, and runs through without.
fn demanded(code: Code, number: u16, first: u64, second: u64) -> Outcome {
    exits(code, number, controls(first, second))?;
    let (_, seen) = run(code.start, STATE, controls(0, 0), |_| Then::End)?;
    equal!((seen[0].number, seen[0].state.get(field::RIP)), (HLT, code.next));
    Ok(())
}

fn on_demand() -> Outcome {
    // Intel SDM vol. 3C, 25.6.2.
    demanded(code::invlpg(), 0x0e, 1 << 9, 0)?;
    demanded(code::rdtsc(), 0x10, 1 << 12, 0)?;
    demanded(code::from_dr7(), 0x1d, 1 << 23, 0)?;
    demanded(code::pause(), 0x28, 1 << 30, 0)?;
    demanded(code::lgdt(), 0x2e, 0, 1 << 2)?;
    demanded(code::lldt(), 0x2f, 0, 1 << 2)
}

fn registers() -> Outcome {
    exits(code::rdmsr(), 0x1f, |_| 0)?;
    let seen = exits(code::wrmsr(), 0x20, |_| 0)?;
    equal!((seen.state.get(field::RAX), seen.state.get(field::RCX)), (0x1234, 0x174));
    Ok(())
}

fn ports() -> Outcome {
    const IMMEDIATE: u64 = 1 << 6;
    let pieces = [
        (code::out_immediate(), 0x80 << 16),
        (code::in_word(), 0x1234 << 16 | 1 << 3 | 1),
        (code::out_long(), 0x1234 << 16 | 3),
        (code::outs(), 0x80 << 16 | 1 << 5 | 1 << 4),
        (code::ins(), 0x80 << 16 | 1 << 4 | 1 << 3 | 1),
    ];
    for (code, expected) in pieces {
        let found = qualification(code, 0x1e)?;
        // SVM does not tell an immediate operand.
        check!(found & !IMMEDIATE == expected, "{found:#x}, not {expected:#x}");
    }
    if vmx() {
        equal!(qualification(code::out_immediate(), 0x1e)? & IMMEDIATE, IMMEDIATE);
    }
    Ok(())
}

/// Bit 63: a processor that does not tell the operand.
const UNKNOWN: u64 = 1 << 63;

fn operand(found: u64, register: u64, general: u64) -> Outcome {
    equal!(found & 0xf, register);
    check!(!vmx() || found & UNKNOWN == 0, "VMX tells the operand");
    if found & UNKNOWN == 0 {
        equal!(found, general << 8 | register);
    }
    Ok(())
}

fn control_registers() -> Outcome {
    for (code, field, bit, register, general) in
        [(code::cr0(), field::CR0_INTERCEPTS, 3, 0, 0), (code::cr4(), field::CR4_INTERCEPTS, 10, 4, 1)]
    {
        let intercept = move |bits: u64| {
            move |utcb: &Utcb| {
                let mtd = controls(0, 0)(utcb);
                utcb.set(field, bits);
                mtd
            }
        };
        let seen = exits(code, 0x1c, intercept(1 << bit))?;
        operand(seen.state.get(field::QUALIFICATION_1), register, general)?;
        // A bit that nobody owns changes without an exit.
        let (_, seen) = run(code.start, STATE | mtd::CR, intercept(0), |_| Then::End)?;
        equal!(seen[0].number, HLT);
        let value = seen[0].state.get(if register == 0 { field::CR0 } else { field::CR4 });
        check!(value & 1 << bit != 0, "CR{register} is {value:#x}");
    }
    Ok(())
}

fn cr3_cr8() -> Outcome {
    for (code, control, register, general) in [(code::to_cr3(), 15, 3, 3), (code::to_cr8(), 19, 8, 2)] {
        let seen = exits(code, 0x1c, controls(1 << control, 0))?;
        operand(seen.state.get(field::QUALIFICATION_1), register, general)?;
        demanded(code, 0x1c, 1 << control, 0)?;
    }
    let (_, seen) = run(code::to_cr8().start, STATE | mtd::CR, controls(0, 0), |_| Then::End)?;
    equal!((seen[0].number, seen[0].state.get(field::CR8)), (HLT, 5));
    Ok(())
}

fn memory() -> Outcome {
    for (code, access, offset) in [(code::read(), 1, 0x123), (code::write(), 2, 0x123), (code::fetch(), 4, 0x120)] {
        let (_, seen) = run(code.start, STATE, |_| 0, |_| Then::End)?;
        let state = &seen[0].state;
        equal!(seen[0].number, 0x30);
        equal!(state.get(field::QUALIFICATION_1) & 7, access);
        // The page's address at least is told; SVM tells all of it.
        equal!(state.get(field::QUALIFICATION_3), NOTHING + offset);
        equal!(state.get(field::RIP), if access == 4 { NOTHING + offset } else { code.at });
        if state.get(field::QUALIFICATION_1) & 1 << 7 != 0 {
            equal!(state.get(field::QUALIFICATION_2), NOTHING + offset);
        }
    }
    Ok(())
}

fn read_only() -> Outcome {
    let (_, seen) = run(code::write_code().start, STATE, |_| 0, |_| Then::End)?;
    equal!((seen[0].number, seen[0].state.get(field::QUALIFICATION_1) & 7), (0x30, 2));
    equal!(seen[0].state.get(field::QUALIFICATION_3), guest::CODE);
    Ok(())
}

/// Intercepts these exceptions, page faults as mask and match say.
fn intercept(bits: u64, mask: u64, matching: u64) -> impl Fn(&Utcb) -> u32 + 'static {
    move |utcb| {
        let mtd = controls(0, 0)(utcb);
        utcb.set(field::EXCEPTION_INTERCEPTS, bits);
        utcb.set(field::PF_MASK, mask);
        utcb.set(field::PF_MATCH, matching);
        mtd
    }
}

/// Interruption information of an exception event: on VMX in a field that no descriptor names but by qualifications.
fn exceptions() -> Outcome {
    for (code, vector, error) in [(code::ud(), 6u64, None), (code::page_fault(), 14, Some(0u64))] {
        let (_, seen) = run(code.start, STATE, intercept(1 << vector, 0, 0), |_| Then::End)?;
        let state = &seen[0].state;
        equal!((seen[0].number, state.get(field::RIP)), (0, code.at));
        let info = state.get(field::QUALIFICATION_2);
        equal!(info & (injection::VALID | 0x7ff), injection::VALID | injection::EXCEPTION | vector);
        equal!(info & injection::ERROR_CODE != 0, error.is_some());
        if let Some(error) = error {
            equal!(state.get(field::QUALIFICATION_3), error);
            equal!(state.get(field::QUALIFICATION_1), 1 << 30);
        }
    }
    Ok(())
}

/// What a guest's handler of `vector` was called with: its return address.
fn delivered(guest: &Guest, seen: &[Seen], vector: u64, error: bool) -> Result<u64, Stop> {
    equal!((seen[0].number, seen[0].state.get(field::RAX)), (HLT, vector));
    let frame = STACK - 40 - if error { 8 } else { 0 };
    equal!(seen[0].state.get(field::RSP), frame);
    Ok(guest.peek(frame + if error { 8 } else { 0 }))
}

fn own_exceptions() -> Outcome {
    for (code, vector, error) in [(code::ud(), 6, false), (code::page_fault(), 14, true), (code::int3(), 3, false)] {
        let (guest, seen) = run(code.start, STATE, intercept(0, 0, 0), |_| Then::End)?;
        let place = delivered(&guest, &seen, vector, error)?;
        equal!(place, if vector == 3 { code.next } else { code.at });
    }
    Ok(())
}

fn page_fault_filter() -> Outcome {
    const PF: u64 = 1 << 14;
    // Error code 0: a read of what is not present. Intel SDM vol. 3C, 26.2.
    for (bits, mask, matching, exits) in
        [(PF, 0, 0, true), (0, 0, 0, false), (PF, 2, 2, false), (0, 2, 2, true), (PF, 2, 0, true), (0, 0, 1, true)]
    {
        let (_, seen) = run(code::page_fault().start, STATE, intercept(bits, mask, matching), |_| Then::End)?;
        let expected = if exits { 0 } else { HLT };
        check!(seen[0].number == expected, "bits {bits:#x}, mask {mask}, match {matching}: event {:#x}", seen[0].number);
    }
    Ok(())
}

fn triple_fault() -> Outcome {
    let (_, seen) = run(code::triple_fault().start, STATE, |_| 0, |_| Then::End)?;
    equal!(seen[0].number, 2);
    Ok(())
}

type Piece = (fn() -> Code, u16);

fn virtualization() -> Outcome {
    let vmx_pieces: &[Piece] =
        &[(code::vmlaunch, 0x14), (code::vmresume, 0x18), (code::vmxoff, 0x1a)];
    let svm_pieces: &[Piece] =
        &[(code::vmrun, 0x14), (code::vmload, 0x15), (code::vmsave, 0x16), (code::clgi, 0x1a), (code::stgi, 0x1b)];
    for (code, number) in if vmx() { vmx_pieces } else { svm_pieces } {
        let code = code();
        let (guest, seen) = run(code.start, STATE, |_| 0, |_| Then::End)?;
        // Where the extension is off for the guest, the instruction is undefined.
        if seen[0].number == HLT {
            equal!(delivered(&guest, &seen, 6, false)?, code.at);
        } else {
            equal!((seen[0].number, seen[0].state.get(field::RIP)), (*number, code.at));
        }
    }
    Ok(())
}

fn invalid_state() -> Outcome {
    let rip = code::hlt().start;
    let (_, seen) = run(
        rip,
        STATE | mtd::CR,
        |utcb| {
            // Paging without protection.
            utcb.set(field::CR0, 0x8000_0030);
            0
        },
        move |event| {
            if event.number != 0x21 {
                return Then::End;
            }
            Then::Reply(guest::reset(&event.utcb, rip))
        },
    )?;
    equal!((seen.len(), seen[0].number), (2, 0x21));
    equal!((seen[1].number, seen[1].state.get(field::RIP)), (HLT, rip));
    Ok(())
}

fn startup_event() -> Outcome {
    let stack = number(0);
    let guest = Guest::new(
        Parameters { cpu: root::cpu(), rip: code::hlt().start, mtd: STATE, flags: 0 },
        |_| 0,
        |_| Then::End,
    )?;
    lab::capability::drop(guest.events + u64::from(startup()))?;
    lab::portal::Local::new()?.portal_at(guest.events + u64::from(startup()), mtd::GPR_0_7, move |message| {
        stack.store(message.utcb.get(field::RSP), Relaxed);
        mtd::POISON
    })?;
    settle()?;
    equal!(stack.load(Relaxed), 0);
    guest.start()?;
    settle()?;
    equal!(stack.load(Relaxed), STACK);
    Ok(())
}

fn recalled() -> Outcome {
    for flags in [0, flag::RECALL_STRONG] {
        let rounds = number(0);
        let code = code::spin();
        let guest = Guest::new(
            Parameters { cpu: root::cpu(), rip: code.start, mtd: STATE, flags: 0 },
            |_| 0,
            move |_| if rounds.fetch_add(1, Relaxed) == 2 { Then::End } else { Then::Reply(0) },
        )?;
        guest.start()?;
        for round in 0..3 {
            // On a busy machine it can take long until the guest gets anywhere.
            let before = guest.peek(DATA);
            until(|| guest.peek(DATA) != before)?;
            equal!(rounds.load(Relaxed), round);
            equal!(ctrl_ec(guest.ec, flags), SUCCESS);
            until(|| rounds.load(Relaxed) != round)?;
            pause(2)?;
            equal!(rounds.load(Relaxed), round + 1);
        }
        let seen = guest.wait()?;
        let mut counted = 0;
        for seen in &seen {
            equal!(seen.number, guest::recall());
            let count = seen.state.get(field::RBX);
            check!(count > counted, "it counted to {count}, before to {counted}");
            counted = count;
        }
    }
    Ok(())
}

fn recalled_in_handler() -> Outcome {
    let gate = lab::semaphore::Semaphore::new(0)?;
    let guest = Guest::new(
        Parameters { cpu: root::cpu(), rip: code::cpuid().start, mtd: STATE, flags: 0 },
        |_| 0,
        move |event| {
            if event.number != 0x0a {
                return Then::End;
            }
            gate.down();
            event.utcb.set(field::RIP, code::cpuid().next);
            Then::Reply(mtd::RIP)
        },
    )?;
    guest.start()?;
    settle()?;
    equal!(ctrl_ec(guest.ec, 0), SUCCESS);
    gate.up();
    let seen = guest.wait()?;
    // Before the guest goes on.
    equal!((seen.len(), seen[1].number, seen[1].state.get(field::RIP)), (2, guest::recall(), code::cpuid().next));
    Ok(())
}

fn no_portal() -> Outcome {
    let count = number(0);
    let guest = Guest::new(
        Parameters { cpu: root::cpu(), rip: code::cpuid().start, mtd: STATE, flags: 0 },
        |_| 0,
        move |_| {
            count.fetch_add(1, Relaxed);
            Then::End
        },
    )?;
    lab::capability::drop(guest.events + 0x0a)?;
    guest.start()?;
    settle()?;
    equal!(count.load(Relaxed), 0);
    Ok(())
}

/// A guest exits again and again for the same reason: three times to one portal, then to another one, which asks for more
/// after three times, and is taken away after six.
fn handlers() -> Outcome {
    const MARK: u64 = 0x5a5a_a5a5_1234_4321;
    let (first, second, told, events, identifier) = (number(0), number(0), number(0), number(0), number(0));
    let (local, other) = (Local::on(root::cpu())?, selector());
    let body = move |message: &Message| {
        let count = second.fetch_add(1, Relaxed) + 1;
        told.fetch_add(u64::from(count > 1 && message.utcb.get(field::RAX) != MARK), Relaxed);
        message.utcb.set(field::RAX, MARK);
        if count == 3 {
            ctrl_pt(other, identifier.load(Relaxed), mtd::RIP | mtd::GPR_0_7);
        }
        if count == 6 {
            copy(other, events.load(Relaxed) + CPUID, 0);
        }
        0
    };
    identifier.store(local.portal_at(other, mtd::RIP, body)?, Relaxed);
    let parameters = Parameters { cpu: root::cpu(), rip: code::cpuid().start, mtd: STATE, flags: 0 };
    let guest = Guest::new(
        parameters,
        |_| 0,
        move |_| {
            if first.fetch_add(1, Relaxed) == 2 {
                copy(other, events.load(Relaxed) + CPUID, perm::EVENT);
            }
            Then::Reply(0)
        },
    )?;
    events.store(guest.events, Relaxed);
    guest.start()?;
    // A handler may have to wait for other CPUs before it replies.
    until(|| second.load(Relaxed) == 6)?;
    pause(20)?;
    settle()?;
    equal!([first, second, told].map(|number| number.load(Relaxed)), [3, 6, 3]);
    Ok(())
}

fn foreign() -> Outcome {
    let (count, other) = (number(0), selector());
    let local = Local::within(Domain::new()?.pd, root::cpu())?;
    let body = move |message: &Message| {
        let right = message.utcb.get(field::RIP) == code::cpuid().at;
        if right && count.fetch_add(1, Relaxed) < 5 { 0 } else { mtd::POISON }
    };
    local.portal_at(other, mtd::RIP, body)?;
    let parameters = Parameters { cpu: root::cpu(), rip: code::cpuid().start, mtd: STATE, flags: 0 };
    let guest = Guest::new(parameters, |_| 0, |_| Then::End)?;
    must(copy(other, guest.events + CPUID, perm::EVENT))?;
    guest.start()?;
    settle()?;
    equal!(count.load(Relaxed), 6);
    Ok(())
}

fn no_spaces() -> Outcome {
    let count = number(0);
    let guest = Guest::new(
        Parameters { cpu: root::cpu(), rip: code::hlt().start, mtd: STATE, flags: 0 },
        |utcb| {
            [field::SEL_GST, field::SEL_PIO, field::SEL_MSR].into_iter().for_each(|field| utcb.set(field, selector()));
            0
        },
        move |event: &Event| {
            // It may be told as an entry that failed.
            count.fetch_add(u64::from(event.number != 0x21), Relaxed);
            Then::End
        },
    )?;
    guest.start()?;
    settle()?;
    equal!(count.load(Relaxed), 0);
    Ok(())
}

fn fpu() -> Outcome {
    let parameters = Parameters { cpu: root::cpu(), rip: code::fpu().start, mtd: STATE, flags: flag::EC_FPU };
    let guest = Guest::new(parameters, |_| 0, |_| Then::End)?;
    guest.start()?;
    let seen = guest.wait()?;
    equal!((seen[0].number, seen[0].state.get(field::RIP)), (HLT, code::fpu().next));
    Ok(())
}
