//! Guests: state transfer in both directions, injection, windows, spaces (2.2.2, 8.2.3, 8.7.3, 8.7.4).

use core::sync::atomic::Ordering::Relaxed;

use lab::event::{Seen, Then};
use lab::guest::{DATA, Guest, Parameters, STACK, run, set_segment};
use lab::guest_code as code;
use lab::hypercall::{Delegation, ctrl_pd};
use lab::memory::{PAGE, delegate, pages};
use lab::report::{Outcome, Stop, must};
use lab::spec::{Field, Selector, field, injection, mtd, perm};
use lab::utcb::{Utcb, pattern};
use lab::{check, equal, number, root, tests};

tests! {
    // Before any NMI is injected: see docs/emulators.md.
    "guest state::an NMI window comes" => nmi_window,
    "guest state::what a reply sets, the next event tells" => round_trip,
    "guest state::only the state that the portal's descriptor names reaches the handler" => to_handler,
    "guest state::only the state that the reply's descriptor names is taken back" => from_handler,
    "guest state::general registers are the guest's" => general,
    "guest state::an injected exception reaches the guest" => inject_exception,
    "guest state::an injected interrupt reaches the guest" => inject_interrupt,
    "guest state::an injected NMI reaches the guest" => inject_nmi,
    "guest state::an injected software interrupt returns behind its instruction" => inject_software,
    "guest state::an interrupt window comes when the guest takes interrupts" => interrupt_window,
    "guest state::an interrupt shadow blocks" => shadow,
    "guest state::CR8 below the threshold is an event" => threshold,
    "guest state::a port of the PIO space does not exit" => port,
    "guest state::an MSR of the MSR space does not exit" => msr,
    "guest state::the NOVA MSR space has the MSRs of the table" => nova_msrs,
    "guest state::another guest space can be assigned" => other_space,
    "guest state::spaces without permission ASSIGN are not assigned" => assign,
    "guest state::memory taken away is gone at once" => taken_away,
    "guest state::memory taken away while the guest runs elsewhere is gone when the call returns" => taken_away_elsewhere,
    "guest state::POISON kills" => poison,
}

const HLT: u16 = 0xc;
const ALL_SAVED: u32 = mtd::GPR_0_7
    | mtd::GPR_8_15
    | mtd::RFLAGS
    | mtd::RIP
    | mtd::STA
    | mtd::CS_SS
    | mtd::DS_ES
    | mtd::FS_GS
    | mtd::TR
    | mtd::LDTR
    | mtd::GDTR
    | mtd::IDTR
    | mtd::CR
    | mtd::DR
    | mtd::XSAVE
    | mtd::SYSCALL
    | mtd::SYSENTER
    | mtd::PAT
    | mtd::EFER
    | mtd::KERNEL_GS
    | mtd::TSC;

const USABLE: [u64; 4] = [0x10, 0xc93, 0xffff_ffff, 0];

/// Values that a group can have, other than those that a guest begins with, legal ones.
fn groups() -> [(u32, alloc::vec::Vec<(Field, u64)>); 17] {
    let segment = |fields: [Field; 4], base: u64| {
        let values = [0x10, 0xc93, 0xffff_ffff, base];
        fields.into_iter().zip(values).collect::<alloc::vec::Vec<_>>()
    };
    let general = |first: usize, seed: u64| (first..first + 8).map(|n| (field::gpr(n), seed + n as u64)).collect();
    [
        (mtd::GPR_0_7, general(0, 0x1111_2222_3333_0000)),
        (mtd::GPR_8_15, general(8, 0x4444_5555_6666_0000)),
        (mtd::RFLAGS, [(field::RFLAGS, 0xcd7)].into()),
        (mtd::RIP, [(field::RIP, code::nops().start)].into()),
        (mtd::CS_SS, segment(field::SS, 0)),
        (mtd::DS_ES, [segment(field::DS, 0x1000), segment(field::ES, 0x2000)].concat()),
        (mtd::FS_GS, [segment(field::FS, 0x7fff_1234_5000), segment(field::GS, 0xffff_8000_0000_1000)].concat()),
        (mtd::TR, field::TR.into_iter().zip([0x18, 0x8b, 0x167, 0x6100]).collect()),
        (mtd::LDTR, field::LDTR.into_iter().zip([0x20, 0x82, 0xff, 0x6200]).collect()),
        (mtd::GDTR, [(field::GDTR_BASE, 0x4000), (field::GDTR_LIMIT, 0x1f)].into()),
        (mtd::IDTR, [(field::IDTR_BASE, 0x5000), (field::IDTR_LIMIT, 0x1ff)].into()),
        (
            mtd::CR,
            [
                (field::CR0, 0x8001_003b),
                (field::CR2, 0xffff_8000_1234_5678),
                (field::CR3, 0x1018),
                (field::CR4, 0x6a0),
                (field::CR8, 9),
            ]
            .into(),
        ),
        (mtd::DR, [(field::DR7, 0x455)].into()),
        (
            mtd::SYSCALL,
            [(field::STAR, 0x1234_5678_9abc_def0), (field::LSTAR, 0xffff_8000_0000_2000), (field::FMASK, 0x4_7700)].into(),
        ),
        (
            mtd::SYSENTER,
            [(field::SYSENTER_CS, 0x18), (field::SYSENTER_ESP, 0xffff_8000_0000_3000), (field::SYSENTER_EIP, 0x7000_4000)].into(),
        ),
        (mtd::PAT, [(field::PAT, 0x0106_0007_0406_0501)].into()),
        (mtd::KERNEL_GS, [(field::KERNEL_GS_BASE, 0xffff_8000_0000_5000)].into()),
    ]
}

/// A guest that halts; STARTUP sets `group` to `values`, in a UTCB that is otherwise the usual one.
fn halted(saved: u32, group: u32, values: alloc::vec::Vec<(Field, u64)>) -> Result<Seen, Stop> {
    // RIP is a group, too: where it begins does not matter.
    let (_, mut seen) = run(
        code::hlt().start,
        saved,
        move |utcb| {
            values.iter().for_each(|(field, value)| utcb.set(*field, *value));
            group
        },
        |_| Then::End,
    )?;
    equal!(seen[0].number, HLT);
    Ok(seen.remove(0))
}

fn round_trip() -> Outcome {
    for (group, values) in groups() {
        let seen = halted(group, group, values.clone())?;
        for (field, value) in values {
            let found = seen.state.get(field);
            // NOPs lead from there to HLT.
            let value = if group == mtd::RIP { code::nops().next } else { value };
            check!(found == value, "group {group:#x}, +{:#x}: {found:#x}, not {value:#x}", field.offset);
        }
    }
    Ok(())
}

/// First and last word that a group may fill.
fn words(group: u32) -> &'static [core::ops::RangeInclusive<usize>] {
    match group {
        mtd::GPR_0_7 => &[0..=7],
        mtd::GPR_8_15 => &[8..=15],
        mtd::RFLAGS => &[0x10..=0x10],
        mtd::RIP => &[0x11..=0x12],
        mtd::CS_SS => &[0x20..=0x23],
        mtd::DS_ES => &[0x24..=0x27],
        mtd::FS_GS => &[0x28..=0x2b],
        mtd::TR => &[0x2c..=0x2d],
        mtd::LDTR => &[0x2e..=0x2f],
        mtd::GDTR => &[0x30..=0x31],
        mtd::IDTR => &[0x32..=0x33],
        mtd::CR => &[0x38..=0x3c],
        mtd::DR => &[0x3d..=0x3d],
        mtd::SYSENTER => &[0x41..=0x43],
        mtd::PAT => &[0x44..=0x44],
        mtd::SYSCALL => &[0x46..=0x48],
        mtd::KERNEL_GS => &[0x49..=0x49],
        _ => &[],
    }
}

fn to_handler() -> Outcome {
    const SEED: u64 = 11;
    for (group, _) in groups() {
        // The second event finds the handler's UTCB as the first one left it: a pattern.
        let (_, seen) = run(code::nops().next, group, |_| 0, |event| {
            if event.utcb.word(511) == pattern(SEED, 511) {
                return Then::End;
            }
            event.utcb.fill(SEED);
            Then::Reply(0)
        })?;
        equal!((seen.len(), seen[1].number, seen[1].mtd), (2, HLT, group));
        for word in 0..512 {
            let named = words(group).iter().any(|range| range.contains(&word));
            let found = seen[1].state.word(word);
            check!(named || found == pattern(SEED, word), "group {group:#x} brings word {word:#x}: {found:#x}");
            let table = [mtd::GDTR, mtd::IDTR].contains(&group);
            check!(!named || table || found != pattern(SEED, word) || word == 0x12, "group {group:#x} does not bring word {word:#x}");
        }
    }
    Ok(())
}

fn from_handler() -> Outcome {
    // HLT is left behind; then a reply with no descriptor, from a UTCB full of nonsense, changes nothing.
    for group in [0, mtd::GPR_8_15, mtd::RFLAGS, mtd::DS_ES, mtd::KERNEL_GS] {
        let (_, seen) = run(code::nops().next, ALL_SAVED, |_| 0, move |event| {
            if event.utcb.get(field::gpr(8)) == pattern(3, 8) || event.utcb.word(511) == pattern(3, 511) {
                return Then::End;
            }
            event.utcb.fill(3);
            event.utcb.set(field::RFLAGS, 0xcd7);
            event.utcb.set(field::KERNEL_GS_BASE, 0x1234_5000);
            set_segment(&event.utcb, field::DS, [0x10, 0xc93, 0xffff_ffff, 0x9000]);
            set_segment(&event.utcb, field::ES, USABLE);
            Then::Reply(group)
        })?;
        equal!((seen.len(), seen[1].number), (2, HLT));
        for (other, values) in groups() {
            for (field, _) in values {
                let (before, after) = (seen[0].state.get(field), seen[1].state.get(field));
                // GDTR and IDTR: what lies beside the limit is nothing. ES is set to what it was.
                check!(other == group || before == after, "group {group:#x} sets +{:#x}: {before:#x} to {after:#x}", field.offset);
            }
        }
        match group {
            mtd::GPR_8_15 => equal!(seen[1].state.get(field::gpr(15)), pattern(3, 15)),
            mtd::RFLAGS => equal!(seen[1].state.get(field::RFLAGS), 0xcd7),
            mtd::DS_ES => equal!(seen[1].state.get(field::DS[3]), 0x9000),
            mtd::KERNEL_GS => equal!(seen[1].state.get(field::KERNEL_GS_BASE), 0x1234_5000),
            _ => {}
        }
    }
    Ok(())
}

fn general() -> Outcome {
    let (guest, seen) = run(
        code::write_data().start,
        mtd::GPR_0_7,
        |utcb| {
            utcb.set(field::RAX, 0x1234_5678_9abc_def0);
            utcb.set(field::RBX, DATA);
            0
        },
        |_| Then::End,
    )?;
    equal!((seen[0].number, guest.peek(DATA)), (HLT, 0x1234_5678_9abc_def0));
    Ok(())
}

/// Begins with an injection at `rip`; the first event.
fn injected(info: u64, error: u64, rflags: u64) -> Result<(Guest, Seen), Stop> {
    let (guest, mut seen) = run(
        code::nops().start,
        mtd::GPR_0_7 | mtd::RIP | mtd::RFLAGS | mtd::INJ,
        move |utcb| {
            utcb.set(field::INTERRUPTION_INFO, info);
            utcb.set(field::INTERRUPTION_ERROR, error);
            utcb.set(field::INSTRUCTION_LENGTH, 0);
            utcb.set(field::RFLAGS, rflags);
            mtd::INJ
        },
        |_| Then::End,
    )?;
    equal!(seen[0].number, HLT);
    Ok((guest, seen.remove(0)))
}

/// The guest's handler of `vector` was entered with a frame that returns to `place`.
fn frame(guest: &Guest, seen: &Seen, vector: u64, error: Option<u64>, place: u64) -> Outcome {
    equal!(seen.state.get(field::RAX), vector);
    let rsp = STACK - 40 - if error.is_some() { 8 } else { 0 };
    equal!(seen.state.get(field::RSP), rsp);
    if let Some(error) = error {
        equal!(guest.peek(rsp), error);
    }
    equal!(guest.peek(STACK - 40), place);
    equal!(seen.state.get(field::INTERRUPTION_INFO) & injection::VALID, 0);
    Ok(())
}

fn inject_exception() -> Outcome {
    let info = injection::VALID | injection::EXCEPTION;
    let place = code::nops().start;
    let (guest, seen) = injected(info | 6, 0, 2)?;
    frame(&guest, &seen, 6, None, place)?;
    let (guest, seen) = injected(info | injection::ERROR_CODE | 13, 0x18, 2)?;
    frame(&guest, &seen, 13, Some(0x18), place)?;
    // Without V nothing is delivered.
    let (_, seen) = injected(injection::EXCEPTION | 6, 0, 2)?;
    equal!((seen.state.get(field::RIP), seen.state.get(field::RAX)), (code::nops().next, 0));
    Ok(())
}

fn inject_interrupt() -> Outcome {
    let (guest, seen) = injected(injection::VALID | injection::EXTERNAL | 0x31, 0, 0x202)?;
    frame(&guest, &seen, 0x31, None, code::nops().start)?;
    // An interrupt gate clears IF.
    equal!(seen.state.get(field::RFLAGS) & 0x200, 0);
    Ok(())
}

fn inject_nmi() -> Outcome {
    let (guest, seen) = injected(injection::VALID | injection::NMI | 2, 0, 2)?;
    frame(&guest, &seen, 2, None, code::nops().start)
}

fn inject_software() -> Outcome {
    let code = code::int();
    let (guest, mut seen) = run(
        code.start,
        mtd::GPR_0_7 | mtd::RIP | mtd::RFLAGS | mtd::INJ,
        move |utcb| {
            utcb.set(field::INTERRUPTION_INFO, injection::VALID | injection::SOFTWARE | 0x21);
            utcb.set(field::INSTRUCTION_LENGTH, 2);
            mtd::INJ
        },
        |_| Then::End,
    )?;
    equal!(seen[0].number, HLT);
    frame(&guest, &seen.remove(0), 0x21, None, code.next)
}

/// Asks for windows at the start, and ends at the first event.
fn window(code: code::Code, info: u64, state: u64) -> Result<Seen, Stop> {
    let (_, mut seen) = run(
        code.start,
        mtd::RIP | mtd::RFLAGS | mtd::STA | mtd::INJ,
        move |utcb| {
            utcb.set(field::INTERRUPTION_INFO, info);
            utcb.set(field::INTERRUPTIBILITY, state);
            mtd::INJ
        },
        |_| Then::End,
    )?;
    Ok(seen.remove(0))
}

fn interrupt_window() -> Outcome {
    let code = code::sti();
    let seen = window(code, injection::INTERRUPT_WINDOW, 0)?;
    equal!(seen.number, 7);
    check!(seen.state.get(field::RFLAGS) & 0x200 != 0, "a window while interrupts are off");
    // Not in the shadow of STI.
    check!(seen.state.get(field::RIP) > code.at + 1, "RIP {:#x}", seen.state.get(field::RIP));
    // Without asking, none.
    let seen = window(code::nops(), 0, 0)?;
    equal!(seen.number, HLT);
    // Interrupts stay off: none.
    let seen = window(code::nops(), injection::INTERRUPT_WINDOW, 0)?;
    equal!(seen.number, HLT);
    Ok(())
}

fn nmi_window() -> Outcome {
    // Bochs 2.7 keeps NMIs blocked, if a guest ended so, until any executes IRET (docs/emulators.md).
    window(code::iret(), 0, 0)?;
    let seen = window(code::nops(), injection::NMI_WINDOW, 0)?;
    equal!((seen.number, seen.state.get(field::RIP)), (8, code::nops().start));
    // While NMIs are blocked, none.
    let seen = window(code::nops(), injection::NMI_WINDOW, 8)?;
    equal!(seen.number, HLT);
    check!(seen.state.get(field::INTERRUPTIBILITY) & 8 != 0, "NMIs are open");
    // Until IRET.
    let seen = window(code::iret(), injection::NMI_WINDOW, 8)?;
    equal!((seen.number, seen.state.get(field::RIP)), (8, code::iret().next));
    Ok(())
}

fn shadow() -> Outcome {
    let code = code::nops();
    let (_, seen) = run(
        code.start,
        mtd::RIP | mtd::STA,
        |utcb| {
            utcb.set(field::INTERRUPTION_INFO, injection::INTERRUPT_WINDOW);
            utcb.set(field::RFLAGS, 0x202);
            utcb.set(field::INTERRUPTIBILITY, 1);
            mtd::INJ
        },
        |_| Then::End,
    )?;
    equal!((seen[0].number, seen[0].state.get(field::RIP)), (7, code.start + 1));
    Ok(())
}

fn threshold() -> Outcome {
    let (_, seen) = run(
        code::lower_cr8().start,
        mtd::RIP | mtd::CR,
        |utcb| {
            utcb.set(field::CR8, 9);
            utcb.set(field::TPR_THRESHOLD, 6);
            mtd::TPR
        },
        |_| Then::End,
    )?;
    equal!((seen[0].number, seen[0].state.get(field::CR8)), (0x2b, 3));
    equal!(seen[0].state.get(field::RIP), code::lower_cr8().next);
    Ok(())
}

fn port() -> Outcome {
    let guest = Guest::new(
        Parameters { cpu: root::cpu(), rip: code::out_immediate().start, mtd: mtd::RIP, flags: 0 },
        |_| 0,
        |_| Then::End,
    )?;
    let all = Delegation { src: root::NOVA_PIO, dst: guest.pio, ssb: 0x80, dsb: 0x80, order: 0, mask: perm::A, mad: 0 };
    must(ctrl_pd(&all))?;
    guest.start()?;
    equal!(guest.wait()?[0].number, HLT);
    Ok(())
}

fn msr() -> Outcome {
    const SYSENTER_CS: u64 = 0x174;
    for (mask, read, write) in [(0, 0x1f, 0x20), (1 << 0, HLT, 0x20), (1 << 1, 0x1f, HLT), (3, HLT, HLT)] {
        for (code, expected) in [(code::rdmsr_sysenter(), read), (code::wrmsr(), write)] {
            let parameters = Parameters { cpu: root::cpu(), rip: code.start, mtd: mtd::RIP | mtd::SYSENTER, flags: 0 };
            let guest = Guest::new(parameters, |_| 0, |_| Then::End)?;
            let (src, dst, msr) = (root::NOVA_MSR, guest.msr, SYSENTER_CS);
            must(ctrl_pd(&Delegation { src, dst, ssb: msr, dsb: msr, order: 0, mask, mad: 0 }))?;
            guest.start()?;
            let seen = guest.wait()?;
            check!(seen[0].number == expected, "permissions {mask}: event {:#x}", seen[0].number);
            if (code.at, seen[0].number) == (code::wrmsr().at, HLT) {
                equal!(seen[0].state.get(field::SYSENTER_CS), 0x1234);
            }
        }
    }
    Ok(())
}

/// A processor that lacks one raises #GP in the guest instead, which is no exit for the MSR either.
fn nova_msrs() -> Outcome {
    const ALL: u64 = 3;
    let registers = [(0x174, 3), (0xc000_0102, 3), (0x49, 2), (0x10b, 2), (0x10, 1), (0xfe, 1), (0x10a, 1), (0x1a0, 0)];
    for (register, may) in registers {
        for (code, exit, right) in [(code::read_msr(), 0x1f, 1), (code::write_msr(), 0x20, 2)] {
            let parameters = Parameters { cpu: root::cpu(), rip: code.start, mtd: mtd::RIP, flags: 0 };
            let prepare = move |utcb: &Utcb| {
                utcb.set(field::gpr(1), register);
                0
            };
            let guest = Guest::new(parameters, prepare, |_| Then::End)?;
            let (src, dst) = (root::NOVA_MSR, guest.msr);
            must(ctrl_pd(&Delegation { src, dst, ssb: register, dsb: register, order: 0, mask: ALL, mad: 0 }))?;
            guest.start()?;
            let number = guest.wait()?[0].number;
            check!((number == exit) == (may & right == 0), "MSR {register:#x}: event {number:#x}");
        }
    }
    Ok(())
}

/// A space whose page at [`DATA`] is another one.
fn another_space(guest: &Guest) -> Result<(Selector, u64), Stop> {
    let gst = lab::capability::space(root::pd(), lab::hypercall::create::GST)?;
    let page = pages(1);
    let all = perm::R | perm::W | perm::XU | perm::XS;
    for address in (0..0x10000).step_by(PAGE as usize) {
        delegate(if address == DATA { page } else { guest.memory + address }, gst, address, 0, all)?;
    }
    let (start, end) = code::range();
    for offset in (0..end - start).step_by(PAGE as usize) {
        delegate(start + offset, gst, lab::guest::CODE + offset, 0, perm::R | perm::XU | perm::XS)?;
    }
    Ok((gst, page))
}

/// A guest that writes RAX at [`DATA`] after a CPUID, whose reply assigns what `spaces` holds.
fn assigning(spaces: &'static [core::sync::atomic::AtomicU64; 3]) -> Result<Guest, Stop> {
    let code = code::write_after_cpuid();
    Guest::new(
        Parameters { cpu: root::cpu(), rip: code.start, mtd: mtd::RIP | mtd::GPR_0_7, flags: 0 },
        |utcb: &Utcb| {
            utcb.set(field::RBX, DATA);
            0
        },
        move |event| {
            if event.number != 0x0a {
                return Then::End;
            }
            for (field, space) in [field::SEL_GST, field::SEL_PIO, field::SEL_MSR].into_iter().zip(spaces) {
                event.utcb.set(field, space.load(Relaxed));
            }
            event.utcb.set(field::RAX, 0x77);
            event.utcb.set(field::RIP, code.next - 3);
            Then::Reply(mtd::RIP | mtd::GPR_0_7 | mtd::SPACES)
        },
    )
}

fn other_space() -> Outcome {
    let spaces = lab::shared([const { core::sync::atomic::AtomicU64::new(0) }; 3]);
    let guest = assigning(spaces)?;
    let (gst, page) = another_space(&guest)?;
    for (to, space) in spaces.iter().zip([gst, guest.pio, guest.msr]) {
        to.store(space, Relaxed);
    }
    guest.start()?;
    equal!(guest.wait()?.len(), 2);
    equal!((guest.peek(DATA), lab::memory::peek(page)), (0, 0x77));
    Ok(())
}

fn assign() -> Outcome {
    let spaces = lab::shared([const { core::sync::atomic::AtomicU64::new(0) }; 3]);
    let guest = assigning(spaces)?;
    let (gst, page) = another_space(&guest)?;
    let without = |space| lab::capability::reduced(space, perm::ALL & !perm::ASSIGN);
    for (to, space) in spaces.iter().zip([without(gst)?, without(guest.pio)?, without(guest.msr)?]) {
        to.store(space, Relaxed);
    }
    guest.start()?;
    guest.wait()?;
    equal!(lab::memory::peek(page), 0);
    Ok(())
}

fn taken_away() -> Outcome {
    let (code, count) = (code::read_data_twice(), number(0));
    let guest = Guest::new(
        Parameters { cpu: root::cpu(), rip: code.start, mtd: mtd::RIP | mtd::QUAL | mtd::GPR_0_7, flags: 0 },
        |_| 0,
        move |event| {
            if event.number != 0x0a {
                return Then::End;
            }
            // A kernel may have other ways for exits that follow each other.
            if count.fetch_add(1, Relaxed) < 3 {
                return Then::Reply(0);
            }
            // Read once; this is taken away from below it.
            let gst = event.utcb.get(field::RSI);
            if delegate(lab::memory::segments()[2].0, gst, DATA, 0, 0).is_err() {
                return Then::End;
            }
            event.utcb.set(field::RIP, event.utcb.get(field::RIP) + 2);
            Then::Reply(mtd::RIP)
        },
    )?;
    // The handler learns the guest space from the guest, which was told.
    guest.poke(DATA + 8, guest.gst);
    guest.start()?;
    let seen = guest.wait()?;
    equal!((seen.len(), seen[4].number), (5, 0x30));
    equal!(seen[4].state.get(field::QUALIFICATION_3) & !0xfff, DATA);
    Ok(())
}

fn taken_away_elsewhere() -> Outcome {
    if root::cpus() < 2 {
        return Err(Stop::Skipped("one CPU"));
    }
    let cpu = (root::cpu() + 1) % root::cpus();
    let parameters = Parameters { cpu, rip: code::count().start, mtd: mtd::RIP | mtd::QUAL, flags: 0 };
    let guest = Guest::new(parameters, |_| 0, |_| Then::End)?;
    guest.start()?;
    while guest.peek(DATA) < 100 {}
    delegate(guest.memory + DATA, guest.gst, DATA, 0, 0)?;
    let stopped = guest.peek(DATA);
    lab::time::spin(lab::time::ms(1));
    equal!(guest.peek(DATA), stopped);
    let seen = guest.wait()?;
    equal!((seen.len(), seen[0].number, seen[0].state.get(field::QUALIFICATION_3) & !0xfff), (1, 0x30, DATA));
    Ok(())
}

fn poison() -> Outcome {
    let count = number(0);
    let (..) = run(code::hlt().start, mtd::RIP, |_| 0, move |_| {
        count.fetch_add(1, Relaxed);
        Then::End
    })?;
    lab::time::settle()?;
    equal!(count.load(Relaxed), 1);
    Ok(())
}
