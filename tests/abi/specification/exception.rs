//! Exceptions of host execution contexts (5.3.2, 8.6.1).

use lab::entry::user_end;
use lab::event::provoke;
use lab::hypercall::flag;
use lab::machine::not_on_tcg;
use lab::memory::{delegate, page_address, pages};
use lab::report::{Outcome, Stop};
use lab::spec::{event, field, mtd, perm};
use lab::utcb::Snapshot;
use lab::{check, equal, probe, provoke as code, root, tests};

tests! {
    "exception::#DE: division by zero" => divide,
    "exception::#DB: INT1" => int1,
    "exception::#DB: single step" => step,
    "exception::#BP: INT3" => breakpoint,
    "exception::#UD: undefined opcode" => undefined,
    "exception::#NM: the FPU without flag F" => no_fpu,
    "exception::#SS: the stack is not canonical" => stack,
    "exception::#GP: privileged instruction" => privileged,
    "exception::#GP: address is not canonical" => non_canonical,
    "exception::#GP: the error code names a selector" => selector,
    "exception::#GP: interrupts that programs may not raise" => software_interrupt,
    "exception::#PF: the error code tells the access, and the address is there" => page_fault,
    "exception::#PF: the page is present" => present,
    "exception::#PF: the kernel's addresses" => kernel_addresses,
    "exception::#MF: x87" => x87,
    "exception::#AC: alignment" => alignment,
    "exception::#XM: SSE" => simd,
}

/// Begins at `rip` with `rdi` and the stack pointer of its creation unless `rsp` is given; its first event.
fn at(flags: u8, rip: u64, rdi: u64, rsp: Option<u64>) -> Result<(u16, Snapshot), Stop> {
    let seen = provoke(flags, move |utcb| {
        utcb.set(field::RIP, rip);
        utcb.set(field::RDI, rdi);
        if let Some(rsp) = rsp {
            utcb.set(field::RSP, rsp);
        }
        mtd::RIP | mtd::GPR_0_7
    })?;
    Ok((seen.number, seen.state))
}

/// The event at `rip` is `number`, with this error code, the instruction pointer at `place`.
fn raises(flags: u8, rip: u64, number: u16, error: u64, place: u64) -> Outcome {
    let (found, state) = at(flags, rip, 0, None)?;
    check!(found == number, "event {found:#x} instead of {number:#x}, RIP {:#x}", state.get(field::RIP));
    equal!(state.get(field::RIP), place);
    equal!(state.get(field::QUALIFICATION_1), error);
    Ok(())
}

fn divide() -> Outcome {
    raises(0, code::divide(), event::DE, 0, code::divide_at())
}

fn int1() -> Outcome {
    raises(0, code::int1(), event::DB, 0, code::int1_next())
}

fn step() -> Outcome {
    // The trap comes behind the instruction that follows POPF.
    raises(0, code::step(), event::DB, 0, code::step_next())
}

fn breakpoint() -> Outcome {
    raises(0, code::breakpoint(), event::BP, 0, code::breakpoint_next())
}

fn undefined() -> Outcome {
    raises(0, code::undefined_address(), event::UD, 0, code::undefined_address())
}

fn no_fpu() -> Outcome {
    for rip in [code::fpu(), code::sse()] {
        raises(0, rip, event::NM, 0, rip)?;
        // With the flag the instruction is executed, and the next one raises #UD.
        let (number, _) = at(flag::EC_FPU, rip, 0, None)?;
        equal!(number, event::UD);
    }
    Ok(())
}

fn stack() -> Outcome {
    not_on_tcg("QEMU raises #GP instead")?;
    let (number, state) = at(0, code::stack(), 0, Some(1 << 63))?;
    equal!(number, event::SS);
    equal!((state.get(field::RIP), state.get(field::RSP)), (code::stack(), 1 << 63));
    equal!(state.get(field::QUALIFICATION_1), 0);
    Ok(())
}

fn privileged() -> Outcome {
    raises(0, code::privileged(), event::GP, 0, code::privileged())
}

fn non_canonical() -> Outcome {
    for address in [1 << 63, 0x7fff_ffff_ffff_ffff, 1 << 57] {
        let (number, state) = at(0, code::non_canonical(), address, None)?;
        equal!((number, state.get(field::QUALIFICATION_1)), (event::GP, 0));
    }
    Ok(())
}

fn selector() -> Outcome {
    raises(0, code::selector(), event::GP, 0xfff8, code::selector_at())
}

fn software_interrupt() -> Outcome {
    raises(0, code::int(), event::GP, 0x80 << 3 | 2, code::int())
}

fn page_fault() -> Outcome {
    let address = page_address() + 0x123;
    let cases = [(code::read(), 0), (code::write(), probe::WRITE), (code::fetch(), probe::FETCH)];
    for (rip, access) in cases {
        let (number, state) = at(0, rip, address, None)?;
        equal!(number, event::PF);
        equal!(state.get(field::QUALIFICATION_1), probe::USER | access);
        equal!(state.get(field::QUALIFICATION_2), address);
        equal!(state.get(field::RIP), if access == probe::FETCH { address } else { rip });
    }
    Ok(())
}

fn present() -> Outcome {
    let address = page_address();
    delegate(pages(1), root::HST, address, 0, perm::R)?;
    let cases = [(code::write(), probe::WRITE), (code::fetch(), probe::FETCH)];
    for (rip, access) in cases {
        let (number, state) = at(0, rip, address, None)?;
        equal!(number, event::PF);
        equal!(state.get(field::QUALIFICATION_1), probe::PRESENT | probe::USER | access);
        equal!(state.get(field::QUALIFICATION_2), address);
    }
    Ok(())
}

/// Whatever is there, a program cannot tell more than that it may not.
fn kernel_addresses() -> Outcome {
    for address in [user_end().wrapping_neg(), 0xffff_8000_0000_0000, 0xffff_ffff_8020_0000, 0xffff_ffff_ffff_f000] {
        for rip in [code::read(), code::write()] {
            let (number, _) = at(0, rip, address, None)?;
            check!(number == event::PF || number == event::GP, "event {number:#x} at {address:#x}");
        }
    }
    for rip in [user_end(), 0xffff_ffff_8020_0000, 1 << 63] {
        let (number, _) = at(0, rip, 0, None)?;
        check!(number == event::PF || number == event::GP, "event {number:#x} at {rip:#x}");
    }
    Ok(())
}

fn x87() -> Outcome {
    raises(flag::EC_FPU, code::x87(), event::MF, 0, code::x87_at())
}

fn alignment() -> Outcome {
    not_on_tcg("QEMU does not check alignment")?;
    raises(0, code::unaligned(), event::AC, 0, code::unaligned_at())
}

fn simd() -> Outcome {
    not_on_tcg("QEMU does not raise it")?;
    raises(flag::EC_FPU, code::simd(), event::XM, 0, code::simd_at())
}
