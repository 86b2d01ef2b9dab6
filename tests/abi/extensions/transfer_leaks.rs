//! What the kernel knows, and what other programs had in registers, is not to be found by a program.
#![allow(unsafe_code)] // Machine code.

use core::arch::global_asm;
use core::arch::x86_64::__cpuid_count;

use lab::event::{Seen, provoke};
use lab::hypercall::flag;
use lab::report::{Outcome, Stop};
use lab::spec::{event, field, mtd};
use lab::{check, equal, tests};

tests! {
    "leaks::tables and task state of the kernel cannot be asked for" => no_tables,
    "leaks::a new thread begins with registers of zeros" => registers,
    "leaks::vector registers of another thread are not to be seen" => vector_registers,
}

macro_rules! snippets {
    ($($name:ident $symbol:literal $code:literal;)*) => {
        global_asm!(".pushsection .text.leaks, \"ax\", @progbits", $(concat!($symbol, ": ", $code),)* ".popsection");
        $(fn $name() -> u64 {
            unsafe extern "C" {
                #[link_name = $symbol]
                static SNIPPET: u8;
            }
            &raw const SNIPPET as u64
        })*
    };
}

snippets! {
    sgdt "leaks_sgdt" "sgdt [rsp - 16]; ud2";
    sidt "leaks_sidt" "sidt [rsp - 16]; ud2";
    sldt "leaks_sldt" "sldt eax; ud2";
    smsw "leaks_smsw" "smsw eax; ud2";
    str "leaks_str" "str eax; ud2";
    fill "leaks_fill" "pcmpeqd xmm0, xmm0; movdqa xmm7, xmm0; movdqa xmm8, xmm0; movdqa xmm15, xmm0; fldpi; ud2";
    look "leaks_look" "por xmm0, xmm7; por xmm8, xmm15; por xmm0, xmm8; movq rax, xmm0; movhlps xmm0, xmm0; movq rbx, xmm0; sub rsp, 32; fnstenv [rsp]; movzx ecx, word ptr [rsp + 8]; ud2";
}

fn at(flags: u8, rip: u64) -> Result<Seen, Stop> {
    provoke(flags, move |utcb| {
        utcb.set(field::RIP, rip);
        mtd::RIP
    })
}

fn no_tables() -> Outcome {
    const UMIP: u32 = 1 << 2;
    if __cpuid_count(7, 0).ecx & UMIP == 0 {
        return Err(Stop::Skipped("the processor has no UMIP"));
    }
    for rip in [sgdt(), sidt(), sldt(), smsw(), str()] {
        let seen = at(0, rip)?;
        check!(
            (seen.number, seen.state.get(field::RIP)) == (event::GP, rip),
            "event {:#x} at {:#x}",
            seen.number,
            seen.state.get(field::RIP)
        );
    }
    Ok(())
}

fn registers() -> Outcome {
    let seen = provoke(0, |utcb| {
        // What STARTUP has brought goes back with the UTCB's other fields to where UD2 is.
        utcb.set(field::RIP, lab::provoke::undefined_address());
        mtd::RIP
    })?;
    for number in (0..16).filter(|number| *number != 4) {
        let value = seen.state.get(field::gpr(number));
        check!(value == 0, "general register {number} is {value:#x}");
    }
    Ok(())
}

fn vector_registers() -> Outcome {
    for _ in 0..2 {
        equal!(at(flag::EC_FPU, fill())?.number, event::UD);
        let state = at(flag::EC_FPU, look())?.state;
        equal!([field::RAX, field::RBX].map(|register| state.get(register)), [0, 0]);
        // Tags of x87: all empty.
        equal!(state.get(field::RCX), 0xffff);
    }
    Ok(())
}
