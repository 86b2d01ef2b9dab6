//! State of guest execution contexts in events and replies (4.4.2, 8.6.1, 8.7.3, 8.7.4), where events have VMX's numbers on
//! every processor.

use alloc::vec::Vec;

use lab::event::Seen;
use lab::machine::not_on_tcg;
use lab::report::{Outcome, Stop};
use lab::spec::{Field, field, injection, mtd};
use lab::transfer_guest::{NOWHERE, STACK, STATE, STUB, STUBS, event, is_vmx, run};
use lab::utcb::Utcb;
use lab::{check, equal, steps, tests};

tests! {
    "guest::all state travels in both directions" => round_trip,
    "guest::a reply changes only what its descriptor names" => named_only,
    "guest::values that the kernel cannot put into registers are VM Entry Failures" => refused_by_kernel,
    "guest::values that the processor refuses are VM Entry Failures" => refused_by_processor,
    "guest::injections that do not exist are VM Entry Failures" => refused_injection,
    "guest::exceptions and external interrupts are injected" => injected,
    "guest::software interrupts are injected behind their instruction" => injected_software,
    "guest::an injected NMI blocks the next one until IRET" => nmi,
    "guest::an NMI window that is open already comes at once" => nmi_window_open,
    "guest::an interrupt window opens behind STI and the instruction after it" => interrupt_window,
    "guest::a task priority below the threshold exits" => threshold,
    "guest::a threshold above the task priority exits before the first instruction" => threshold_at_once,
    "guest::execution controls choose what exits" => controls,
    "guest::CR0 and CR4 exit by bits" => control_registers,
    "guest::exceptions exit by number" => exceptions,
    "guest::page faults exit by error code" => page_faults,
    "guest::an event whose delivery an exit interrupts is delivered later" => interrupted,
    "guest::IDT vectoring information tells the event that was interrupted" => vectoring,
}

/// Event and RIP of each, without STARTUP.
fn places(seen: &[Seen]) -> Vec<(u16, u64)> {
    seen[1..].iter().map(|seen| (seen.number, seen.state.get(field::RIP))).collect()
}

const fn stub(vector: u64) -> u64 {
    STUBS + vector * STUB
}

const CPUID: [u8; 2] = [0x0f, 0xa2];

/// What can be set and read again: field, value, group.
fn values() -> Vec<(Field, u64, u32)> {
    let mut values = alloc::vec![
        (field::RFLAGS, 0x0020_0a97, mtd::RFLAGS),
        (field::CR2, 0x1234_5678_9abc_def0, mtd::CR),
        (field::CR4, 0x6a8, mtd::CR),
        (field::CR0, 0x8005_003b, mtd::CR),
        (field::CR8, 0x9, mtd::CR),
        (field::DR7, 0x3333_0700, mtd::DR),
        (field::XCR0, 3, mtd::XSAVE),
        (field::XSS, 0, mtd::XSAVE),
        (field::STAR, 0x0023_0010_8765_4321, mtd::SYSCALL),
        (field::LSTAR, 0xffff_8000_1234_5678, mtd::SYSCALL),
        (field::FMASK, 0x47_0700, mtd::SYSCALL),
        (field::SYSENTER_CS, 0x1234, mtd::SYSENTER),
        (field::SYSENTER_ESP, 0xffff_ffff_8000_1000, mtd::SYSENTER),
        (field::SYSENTER_EIP, 0x7fff_1234_5678, mtd::SYSENTER),
        (field::PAT, 0x0007_0406_0001_0506, mtd::PAT),
        (field::EFER, 0x501, mtd::EFER),
        (field::KERNEL_GS_BASE, 0xffff_9000_0000_1000, mtd::KERNEL_GS),
        (field::TSC_AUX, 0xfedc_ba98, mtd::TSC),
        (field::GDTR_LIMIT, 0xfff, mtd::GDTR),
        (field::GDTR_BASE, 0xffff_a000_0000_2000, mtd::GDTR),
        (field::IDTR_LIMIT, 0x7ff, mtd::IDTR),
        (field::IDTR_BASE, 0x3000, mtd::IDTR),
    ];
    let segments = [
        (field::DS, [0x10, 0xcf3, 0xffff_ffff, 0], mtd::DS_ES),
        (field::ES, [0x13, 0x4f3, 0xfffff, 0], mtd::DS_ES),
        (field::FS, [0x10, 0xc93, 0xffff_ffff, 0x1234_5678_9000], mtd::FS_GS),
        (field::GS, [0x10, 0xc93, 0xffff_ffff, 0xffff_9876_5432_1000], mtd::FS_GS),
        (field::TR, [0x40, 0x8b, 0x1fff, 0xffff_8888_0000_0000], mtd::TR),
        (field::LDTR, [0x28, 0x82, 0xffff, 0x7777_0000_0000], mtd::LDTR),
    ];
    for (fields, contents, group) in segments {
        values.extend(fields.into_iter().zip(contents).map(|(field, value)| (field, value, group)));
    }
    let registers = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    values.extend(registers.map(|n| {
        let group = if n < 8 { mtd::GPR_0_7 } else { mtd::GPR_8_15 };
        (field::gpr(n), (0x1111_1111_1111_1111 * n as u64) ^ 0x55, group)
    }));
    values
}

fn round_trip() -> Outcome {
    let set = |utcb: Utcb| values().into_iter().fold(0, |all, (field, value, group)| {
        utcb.set(field, value);
        all | group
    });
    let seen = run(&CPUID, steps![set])?;
    equal!(places(&seen), [(event::CPUID, 0)]);
    for (field, value, _) in values() {
        let found = seen[1].state.get(field);
        check!(found == value, "the field at {:#x} is {found:#x}, not {value:#x}", field.offset);
    }
    if is_vmx() {
        equal!(seen[1].state.get(field::INSTRUCTION_LENGTH), 2);
    }
    Ok(())
}

fn named_only() -> Outcome {
    let set = |utcb: Utcb| {
        values().into_iter().for_each(|(field, value, _)| utcb.set(field, value));
        utcb.set(field::RIP, 2);
        mtd::RIP
    };
    let seen = run(&[0x0f, 0xa2, 0x0f, 0xa2], steps![|_| 0, set])?;
    equal!(places(&seen), [(event::CPUID, 0), (event::CPUID, 2)]);
    for (field, ..) in values() {
        let [before, after] = [1, 2].map(|n| seen[n].state.get(field));
        check!(before == after, "the field at {:#x} was {before:#x} and is {after:#x}", field.offset);
    }
    Ok(())
}

/// Replies with a value in a group, which fails, and then with what it was before.
fn refused(place: Field, value: u64, group: u32) -> Outcome {
    let set = move |utcb: Utcb| {
        utcb.set(place, value);
        group
    };
    let restore = move |utcb: Utcb| {
        utcb.set(place, before(place));
        group
    };
    let seen = run(&CPUID, steps![|_| 0, set, restore])?;
    let expected = [(event::CPUID, 0), (event::INVALID_STATE, seen[2].state.get(field::RIP)), (event::CPUID, 0)];
    check!(places(&seen) == expected, "{value:#x} at {:#x}: events {:x?}", place.offset, places(&seen));
    Ok(())
}

fn refused_by_kernel() -> Outcome {
    for (place, value, group) in [
        (field::XCR0, 0, mtd::XSAVE),
        (field::XCR0, 5, mtd::XSAVE),
        (field::XCR0, 1 << 63 | 3, mtd::XSAVE),
        (field::XSS, 1 << 40, mtd::XSAVE),
        (field::LSTAR, 0x0001_0000_0000_0000, mtd::SYSCALL),
        (field::FMASK, 1 << 32, mtd::SYSCALL),
        (field::KERNEL_GS_BASE, 0xfffe_ffff_ffff_ffff, mtd::KERNEL_GS),
        (field::TSC_AUX, 1 << 32, mtd::TSC),
        (field::CR8, 0x10, mtd::CR),
        (field::TPR_THRESHOLD, 0x10, mtd::TPR),
    ] {
        refused(place, value, group)?;
    }
    Ok(())
}

fn refused_by_processor() -> Outcome {
    not_on_tcg("QEMU checks too little, and forgets the guest's state")?;
    for (place, value, group) in [
        (field::CR0, 0x1_8000_0031, mtd::CR),
        (field::CR0, 0x8000_0030, mtd::CR),
        (field::CR4, 1 << 63 | 0x20, mtd::CR),
        (field::DR7, 1 << 32 | 0x400, mtd::DR),
        (field::EFER, 1 << 63 | 0xd01, mtd::EFER),
        (field::PAT, 0x0007_0406_0007_0402, mtd::PAT),
    ] {
        refused(place, value, group)?;
    }
    if !is_vmx() {
        return Ok(());
    }
    for (place, value, group) in [
        (field::RFLAGS, 0, mtd::RFLAGS),
        (field::SYSENTER_EIP, 0x0001_0000_0000_0000, mtd::SYSENTER),
        (field::GDTR_BASE, 0x0001_0000_0000_0000, mtd::GDTR),
        (field::IDTR_LIMIT, 0x1_0000, mtd::IDTR),
        (field::FS[3], 0x0001_0000_0000_0000, mtd::FS_GS),
        (field::TR[1], 0x1000, mtd::TR),
        (field::CS[1], 0xe9b, mtd::CS_SS),
        (field::INTERRUPTIBILITY, 3, mtd::STA),
    ] {
        refused(place, value, group)?;
    }
    Ok(())
}

/// What a field has that [`refused`] changes.
fn before(place: Field) -> u64 {
    let initial = [
        (field::XCR0, 1),
        (field::CR0, 0x8000_0031),
        (field::CR4, 0x20),
        (field::DR7, 0x400),
        (field::EFER, 0xd01),
        (field::PAT, 0x0007_0406_0007_0406),
        (field::RFLAGS, 2),
        (field::GDTR_BASE, 0x5000),
        (field::IDTR_LIMIT, 0xfff),
        (field::TR[1], 0x8b),
        (field::CS[1], 0xa9b),
    ];
    initial.into_iter().find(|(field, _)| *field == place).map_or(0, |(_, value)| value)
}

fn inject(utcb: Utcb, info: u64, error: u64, length: u64) -> u32 {
    utcb.set(field::INTERRUPTION_INFO, info | injection::VALID);
    utcb.set(field::INTERRUPTION_ERROR, error);
    utcb.set(field::INSTRUCTION_LENGTH, length);
    mtd::INJ
}

fn refused_injection() -> Outcome {
    not_on_tcg("QEMU forgets the guest's state")?;
    // Reserved type; NMI and hardware exception with another vector.
    for info in [1 << 8 | 0x20, injection::NMI | 3, injection::EXCEPTION | 0x20] {
        let undo = |utcb: Utcb| {
            utcb.set(field::INTERRUPTION_INFO, 0);
            mtd::INJ
        };
        let seen = run(&CPUID, steps![move |utcb| inject(utcb, info, 0, 0), undo])?;
        check!(
            places(&seen) == [(event::INVALID_STATE, 0), (event::CPUID, 0)],
            "{info:#x}: events {:x?}",
            places(&seen)
        );
    }
    Ok(())
}

/// Loads the words of the frame on the guest's stack into RAX, RBX, RCX, RDX, RSI, RDI, and exits.
const READ_FRAME: [u8; 29] = [
    0x48, 0x8b, 0x04, 0x24, // mov rax, [rsp]
    0x48, 0x8b, 0x5c, 0x24, 0x08, // mov rbx, [rsp + 8]
    0x48, 0x8b, 0x4c, 0x24, 0x10, // mov rcx, [rsp + 16]
    0x48, 0x8b, 0x54, 0x24, 0x18, // mov rdx, [rsp + 24]
    0x48, 0x8b, 0x74, 0x24, 0x20, // mov rsi, [rsp + 32]
    0x0f, 0xa2, // cpuid
    0xf4, 0xf4, 0xf4,
];

/// Where [`READ_FRAME`] is put.
const READ_AT: u64 = 0x100;

/// RFLAGS: RF.
const RF: u64 = 1 << 16;
/// RFLAGS 2, IF.
const OPEN: u64 = 0x202;

/// Injects at RIP 0x40 with interrupts on; the frame that the guest finds, from RSP on.
fn frame(info: u64, error: u64, length: u64) -> Result<[u64; 5], Stop> {
    let mut code = [0xf4; READ_AT as usize + READ_FRAME.len()];
    code[READ_AT as usize..].copy_from_slice(&READ_FRAME);
    let set = move |utcb: Utcb| {
        utcb.set(field::RIP, 0x40);
        utcb.set(field::RFLAGS, OPEN);
        inject(utcb, info, error, length)
    };
    let read = |utcb: Utcb| {
        utcb.set(field::RIP, READ_AT);
        mtd::RIP
    };
    let seen = run(&code, steps![set, read])?;
    equal!(places(&seen), [(event::CPUID, stub(info & 0xff)), (event::CPUID, READ_AT + 24)]);
    // Of RF processors differ.
    let state = &seen[2].state;
    Ok([field::RAX, field::RBX, field::RCX, field::RDX, field::RSI].map(|register| state.get(register) & !RF))
}

fn injected() -> Outcome {
    equal!(frame(injection::EXTERNAL | 0x41, 0, 0)?, [0x40, 8, OPEN, STACK, 0x10]);
    equal!(frame(injection::EXCEPTION | 6, 0, 0)?[..4], [0x40, 8, OPEN, STACK]);
    let error = injection::EXCEPTION | injection::ERROR_CODE;
    for vector in [10, 11, 12, 13, 14] {
        let frame = frame(error | vector, 0x1234, 0)?;
        equal!(frame, [0x1234, 0x40, 8, OPEN, STACK]);
    }
    Ok(())
}

fn injected_software() -> Outcome {
    equal!(frame(injection::SOFTWARE | 0x81, 0, 2)?[..4], [0x42, 8, OPEN, STACK]);
    equal!(frame(injection::SOFTWARE_EXCEPTION | 3, 0, 1)?[..4], [0x41, 8, OPEN, STACK]);
    equal!(frame(injection::PRIVILEGED | 1, 0, 1)?[..4], [0x41, 8, OPEN, STACK]);
    Ok(())
}

fn window(utcb: Utcb, window: u64) -> u32 {
    utcb.set(field::INTERRUPTION_INFO, window);
    mtd::INJ
}

fn nmi() -> Outcome {
    // Handler: NOP; IRETQ. The window opens behind it, where the NMI came.
    let mut code = [0x90; 0x200];
    code[0x10..0x12].copy_from_slice(&CPUID);
    code[0x101..0x103].copy_from_slice(&[0x48, 0xcf]);
    let enter = |utcb: Utcb| inject(utcb, injection::NMI | 2, 0, 0);
    let leave = |utcb: Utcb| {
        utcb.set(field::RIP, 0x100);
        mtd::RIP | window(utcb, injection::NMI_WINDOW)
    };
    let seen = run(&code, steps![enter, leave, enter, |utcb| {
        utcb.set(field::RIP, 0x100);
        mtd::RIP
    }])?;
    equal!(places(&seen), [
        (event::CPUID, stub(2)),
        (event::NMI_WINDOW, 0),
        (event::CPUID, stub(2)),
        // No second window: it was not asked for again.
        (event::CPUID, 0x10),
    ]);
    let blocked: Vec<u64> = seen[1..].iter().map(|seen| seen.state.get(field::INTERRUPTIBILITY) >> 3 & 1).collect();
    equal!(blocked, [1, 0, 1, 0]);
    // Of a step over IRET nothing is left.
    equal!(seen[2].state.get(field::RFLAGS) & !RF, 2);
    equal!(seen[4].state.get(field::RFLAGS) & !RF, 2);
    Ok(())
}

fn nmi_window_open() -> Outcome {
    let seen = run(&CPUID, steps![|utcb| window(utcb, injection::NMI_WINDOW), |_| 0])?;
    equal!(places(&seen), [(event::NMI_WINDOW, 0), (event::CPUID, 0)]);
    // Behind MOV SS it opens one instruction later.
    let shadow = |utcb: Utcb| {
        utcb.set(field::INTERRUPTIBILITY, 2);
        mtd::STA | window(utcb, injection::NMI_WINDOW)
    };
    let seen = run(&[0x90, 0x90, 0x0f, 0xa2], steps![shadow, |_| 0])?;
    equal!(places(&seen), [(event::NMI_WINDOW, 1), (event::CPUID, 2)]);
    equal!(seen[2].state.get(field::RFLAGS), 2);
    Ok(())
}

fn interrupt_window() -> Outcome {
    // NOP; STI; NOP; NOP; CPUID.
    let code = [0x90, 0xfb, 0x90, 0x90, 0x0f, 0xa2];
    let seen = run(&code, steps![|utcb| window(utcb, injection::INTERRUPT_WINDOW), |_| 0])?;
    equal!(places(&seen), [(event::INTERRUPT_WINDOW, 3), (event::CPUID, 4)]);
    // The request is there to be read, until the window comes.
    let seen = run(&CPUID, steps![|utcb| window(utcb, injection::INTERRUPT_WINDOW)])?;
    equal!(seen[1].state.get(field::INTERRUPTION_INFO), injection::INTERRUPT_WINDOW);
    // A write of CR8 meanwhile is executed.
    let code = [0x44, 0x0f, 0x22, 0xc0, 0xfb, 0x90, 0x0f, 0xa2];
    let set = |utcb: Utcb| {
        utcb.set(field::RAX, 5);
        mtd::GPR_0_7 | window(utcb, injection::INTERRUPT_WINDOW)
    };
    let seen = run(&code, steps![set])?;
    equal!(places(&seen), [(event::INTERRUPT_WINDOW, 6)]);
    equal!((seen[1].state.get(field::CR8), seen[1].state.get(field::RFLAGS)), (5, OPEN));
    Ok(())
}

/// MOV CR8, RAX; MOV CR8, RBX; CPUID.
const PRIORITIES: [u8; 10] = [0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x22, 0xc3, 0x0f, 0xa2];

fn priorities(utcb: Utcb, cr8: u64, threshold: u64) -> u32 {
    let values = [(field::CR8, cr8), (field::TPR_THRESHOLD, threshold), (field::RAX, 6), (field::RBX, 4)];
    values.into_iter().for_each(|(field, value)| utcb.set(field, value));
    mtd::CR | mtd::TPR | mtd::GPR_0_7
}

fn threshold() -> Outcome {
    let stop = |utcb: Utcb| {
        utcb.set(field::TPR_THRESHOLD, 0);
        mtd::TPR
    };
    let seen = run(&PRIORITIES, steps![|utcb| priorities(utcb, 9, 5), stop])?;
    equal!(places(&seen), [(event::TPR_BELOW_THRESHOLD, 8), (event::CPUID, 8)]);
    equal!((seen[1].state.get(field::CR8), seen[1].state.get(field::RFLAGS)), (4, 2));
    Ok(())
}

fn threshold_at_once() -> Outcome {
    let stop = |utcb: Utcb| {
        utcb.set(field::TPR_THRESHOLD, 3);
        mtd::TPR
    };
    let seen = run(&PRIORITIES, steps![|utcb| priorities(utcb, 3, 5), stop])?;
    equal!(places(&seen), [(event::TPR_BELOW_THRESHOLD, 0), (event::CPUID, 8)]);
    Ok(())
}

/// Code behind which CPUID follows, word of controls, bit, event. Not the monitor trap flag: Bochs has it, without effect.
const CONTROLS: [(&[u8], Field, u32, u16); 10] = [
    (&[0x0f, 0x01, 0x38], field::EXEC_CONTROLS_1, 9, event::INVLPG),
    (&[0x0f, 0x31], field::EXEC_CONTROLS_1, 12, event::RDTSC),
    (&[0x0f, 0x22, 0xd8], field::EXEC_CONTROLS_1, 15, event::CR_ACCESS),
    (&[0x0f, 0x20, 0xd8], field::EXEC_CONTROLS_1, CR3_STORE, event::CR_ACCESS),
    (&[0x44, 0x0f, 0x22, 0xc0], field::EXEC_CONTROLS_1, 19, event::CR_ACCESS),
    (&[0x44, 0x0f, 0x20, 0xc0], field::EXEC_CONTROLS_1, CR8_STORE, event::CR_ACCESS),
    (&[0x0f, 0x21, 0xc3], field::EXEC_CONTROLS_1, 23, event::DR_ACCESS),
    (&[0xf3, 0x90], field::EXEC_CONTROLS_1, 30, event::PAUSE),
    (&[0x0f, 0x01, 0x04, 0x24], field::EXEC_CONTROLS_2, 2, event::GDTR_IDTR_ACCESS),
    (&[0x0f, 0x00, 0xc0], field::EXEC_CONTROLS_2, 2, event::LDTR_TR_ACCESS),
];
const CR3_STORE: u32 = 16;
const CR8_STORE: u32 = 20;

fn controls() -> Outcome {
    for (instruction, word, bit, expected) in CONTROLS {
        let mut code = instruction.to_vec();
        code.extend(CPUID);
        // For MOV to CR3 the page tables; but for CR8, whose MOV has a prefix, a priority.
        let rax = if instruction[0] == 0x44 { 7 } else { 0x1000 };
        let set = move |utcb: Utcb, value: u64| {
            utcb.set(field::RAX, rax);
            utcb.set(word, value << bit);
            mtd::GPR_0_7 | mtd::CTRL
        };
        // QEMU never lets reads of control registers exit.
        if !matches!(bit, CR3_STORE | CR8_STORE) || not_on_tcg("").is_ok() {
            let with = run(&code, steps![move |utcb| set(utcb, 1)])?;
            check!(places(&with) == [(expected, 0)], "bit {bit}: events {:x?}", places(&with));
        }
        let without = run(&code, steps![move |utcb| set(utcb, 0)])?;
        let end = instruction.len() as u64;
        check!(places(&without) == [(event::CPUID, end)], "without bit {bit}: events {:x?}", places(&without));
    }
    Ok(())
}

fn control_registers() -> Outcome {
    // MOV CR0, RAX; CPUID, and with CR4.
    for (modrm, intercepts, value, owned) in [
        (0xc0, field::CR0_INTERCEPTS, 0x8000_0039, 1 << 3),
        (0xe0, field::CR4_INTERCEPTS, 0xa0, 1 << 7),
    ] {
        let code = [0x0f, 0x22, modrm, 0x0f, 0xa2];
        let set = move |utcb: Utcb, owned: u64| {
            utcb.set(field::RAX, value);
            utcb.set(intercepts, owned);
            mtd::GPR_0_7 | mtd::CTRL
        };
        let seen = run(&code, steps![move |utcb| set(utcb, owned)])?;
        equal!(places(&seen), [(event::CR_ACCESS, 0)]);
        if is_vmx() {
            equal!(seen[1].state.get(field::QUALIFICATION_1), u64::from(modrm >> 3 & 7));
            // Another bit than the VMM's.
            let seen = run(&code, steps![move |utcb| set(utcb, 1 << 2)])?;
            equal!(places(&seen), [(event::CPUID, 3)]);
        }
        let seen = run(&code, steps![move |utcb| set(utcb, 0)])?;
        equal!(places(&seen), [(event::CPUID, 3)]);
        let register = if modrm == 0xc0 { field::CR0 } else { field::CR4 };
        equal!(seen[1].state.get(register), value);
    }
    Ok(())
}

fn intercept(utcb: Utcb, bits: u64) -> u32 {
    utcb.set(field::EXCEPTION_INTERCEPTS, bits);
    mtd::CTRL
}

fn exceptions() -> Outcome {
    // UD2; INT1; INT3; MOV from an address that is not canonical.
    let cases: [(&[u8], u64, u64); 4] = [
        (&[0x0f, 0x0b], 6, injection::EXCEPTION),
        (&[0xf1], 1, injection::PRIVILEGED),
        (&[0xcc], 3, injection::SOFTWARE_EXCEPTION),
        (&[0x48, 0x8b, 0x00], 13, injection::EXCEPTION | injection::ERROR_CODE),
    ];
    for (code, number, kind) in cases {
        let set = move |utcb: Utcb, bits: u64| {
            utcb.set(field::RAX, 1 << 63);
            mtd::GPR_0_7 | intercept(utcb, bits)
        };
        // SVM does not take INT1 for an exception, and QEMU not INT3.
        if number != 1 && (number != 3 || not_on_tcg("").is_ok()) || is_vmx() {
            let seen = run(code, steps![move |utcb| set(utcb, 1 << number)])?;
            check!(places(&seen) == [(event::EXCEPTION, 0)], "exception {number}: {:x?}", places(&seen));
            check!(seen[1].state.get(field::QUALIFICATION_2) & 0xfff == kind | number, "exception {number}");
        }
        let seen = run(code, steps![move |utcb| set(utcb, 0)])?;
        check!(places(&seen) == [(event::CPUID, stub(number))], "exception {number}: {:x?}", places(&seen));
    }
    Ok(())
}

fn page_faults() -> Outcome {
    // MOV RAX, [RCX]; MOV [RCX], RAX: error codes 0 and 2.
    let code = |write: bool| if write { [0x48, 0x89, 0x01] } else { [0x48, 0x8b, 0x01] };
    const PF: u64 = 1 << 14;
    for (bits, mask, match_) in [(PF, 0, 0), (PF, 2, 2), (PF, 2, 0), (0, 2, 2), (0, 2, 0), (0, 0, 1), (0, 0, 0)] {
        for write in [false, true] {
            let set = move |utcb: Utcb| {
                utcb.set(field::RCX, 0x4000_0000);
                utcb.set(field::PF_MASK, mask);
                utcb.set(field::PF_MATCH, match_);
                mtd::GPR_0_7 | intercept(utcb, bits)
            };
            let seen = run(&code(write), steps![set])?;
            let error = u64::from(write) << 1;
            let exits = (bits != 0) == (error & mask == match_);
            let expected = if exits { (event::EXCEPTION, 0) } else { (event::CPUID, stub(14)) };
            check!(places(&seen) == [expected], "{bits:#x} {mask} {match_} {write}: {:x?}", places(&seen));
            let address = if exits { field::QUALIFICATION_1 } else { field::CR2 };
            equal!(seen[1].state.get(address), 0x4000_0000);
        }
    }
    Ok(())
}

/// The stack is where there is no memory.
fn no_stack(utcb: Utcb, info: u64, length: u64) -> u32 {
    utcb.set(field::RSP, NOWHERE + 0x1000);
    utcb.set(field::RFLAGS, OPEN);
    inject(utcb, info, 0x1234, length)
}

fn stack_again(utcb: Utcb) -> u32 {
    utcb.set(field::RSP, STACK);
    mtd::GPR_0_7
}

const EVENTS: [(u64, u64); 4] = [
    (injection::EXTERNAL | 0x41, 0),
    (injection::NMI | 2, 0),
    (injection::EXCEPTION | injection::ERROR_CODE | 13, 0),
    (injection::SOFTWARE | 0x81, 2),
];

fn interrupted() -> Outcome {
    for (info, length) in EVENTS {
        let seen = run(&CPUID, steps![move |utcb| no_stack(utcb, info, length), stack_again])?;
        equal!(seen[1].number, event::EPT_VIOLATION);
        check!(seen[1].state.get(field::QUALIFICATION_3) >> 12 == NOWHERE >> 12, "another address");
        check!(places(&seen)[1] == (event::CPUID, stub(info & 0xff)), "{info:#x}: {:x?}", places(&seen));
        // It is replaced by what the reply injects, and by nothing.
        let clear = |utcb: Utcb| stack_again(utcb) | window(utcb, 0);
        let seen = run(&CPUID, steps![move |utcb| no_stack(utcb, info, length), clear])?;
        equal!(seen[2].number, event::CPUID);
        check!(seen[2].state.get(field::RIP) < 0x10, "{info:#x}: injected though it was taken away");
    }
    Ok(())
}

fn vectoring() -> Outcome {
    for (info, length) in EVENTS {
        let seen = run(&CPUID, steps![move |utcb| no_stack(utcb, info, length)])?;
        equal!(seen[1].mtd & STATE, STATE);
        equal!(seen[1].number, event::EPT_VIOLATION);
        let state = &seen[1].state;
        equal!(state.get(field::VECTORING_INFO) & !(1 << 12), info | injection::VALID);
        if info & injection::ERROR_CODE != 0 {
            equal!(state.get(field::VECTORING_ERROR), 0x1234);
        }
        equal!(state.get(field::INTERRUPTION_INFO), info | injection::VALID);
    }
    Ok(())
}
