//! Machine code that raises an exception of every kind.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};

/// Raises #UD in the current execution context.
pub fn undefined() {
    // SAFETY: an exception, at most the end of the execution context.
    unsafe { asm!("ud2") }
}

/// What [`pattern`] loads into register 0.
pub const PATTERN: u64 = 0x5a5a_0000_0000_0000;

macro_rules! snippets {
    ($($(#[$doc:meta])* $address:ident $symbol:literal $code:literal;)*) => {
        global_asm!(
            ".pushsection .text.provoke, \"ax\", @progbits",
            $(concat!(".globl ", $symbol), concat!($symbol, ":"), $code,)*
            ".popsection",
        );
        $($(#[$doc])*
        pub fn $address() -> u64 {
            unsafe extern "C" {
                #[link_name = $symbol]
                static SNIPPET: u8;
            }
            &raw const SNIPPET as u64
        })*
    };
}

snippets! {
    /// #UD.
    undefined_address "provoke_undefined" "ud2";
    /// #DE.
    divide "provoke_divide" "xor edx, edx; mov eax, 1; xor ecx, ecx; .globl provoke_divide_at; provoke_divide_at: div ecx; ud2";
    /// #DB by INT1.
    int1 "provoke_int1" ".byte 0xf1; .globl provoke_int1_next; provoke_int1_next: ud2";
    /// #DB by single step: after the NOP.
    step "provoke_step" "pushfq; or qword ptr [rsp], 0x100; popfq; nop; .globl provoke_step_next; provoke_step_next: ud2";
    /// #BP.
    breakpoint "provoke_breakpoint" "int3; .globl provoke_breakpoint_next; provoke_breakpoint_next: ud2";
    /// FPU instruction.
    fpu "provoke_fpu" "fninit; ud2";
    /// SSE instruction.
    sse "provoke_sse" "xorps xmm0, xmm0; ud2";
    /// #SS: a push at RSP, which is not canonical.
    stack "provoke_stack" "push rax; ud2";
    /// #GP: a privileged instruction.
    privileged "provoke_privileged" "hlt; ud2";
    /// #GP with error code: a selector behind the end of the table.
    selector "provoke_selector" "mov eax, 0xfff8; .globl provoke_selector_at; provoke_selector_at: mov ds, eax; ud2";
    /// #GP: an access to what RDI points to, which is not canonical.
    non_canonical "provoke_non_canonical" "mov rax, [rdi]; ud2";
    /// #PF: reads what RDI points to.
    read "provoke_read" "mov rax, [rdi]; ud2";
    /// #PF: writes what RDI points to.
    write "provoke_write" "mov [rdi], rax; ud2";
    /// #PF: executes what RDI points to.
    fetch "provoke_fetch" "jmp rdi";
    /// #MF: x87 division by zero, unmasked.
    x87 "provoke_x87" "fninit; sub rsp, 16; mov word ptr [rsp], 0x37b; fldcw [rsp]; fld1; fldz; fdivp; .globl provoke_x87_at; provoke_x87_at: fwait; ud2";
    /// #XM: SSE division by zero, unmasked.
    simd "provoke_simd" "sub rsp, 16; mov dword ptr [rsp], 0x1d80; ldmxcsr [rsp]; xorps xmm1, xmm1; mov dword ptr [rsp], 0x3f800000; movss xmm0, [rsp]; .globl provoke_simd_at; provoke_simd_at: divss xmm0, xmm1; ud2";
    /// #AC: an unaligned access with RFLAGS.AC.
    unaligned "provoke_unaligned" "pushfq; or qword ptr [rsp], 0x40000; popfq; .globl provoke_unaligned_at; provoke_unaligned_at: mov eax, [rsp + 1]; ud2";
    /// An interrupt that programs may not raise.
    int "provoke_int" "int 0x80; ud2";
    /// Loads register i with [`PATTERN`] + i, all of them, then #UD.
    pattern "provoke_pattern" "mov rax, 0x5a5a000000000000; mov rcx, 0x5a5a000000000001; mov rdx, 0x5a5a000000000002;\
         mov rbx, 0x5a5a000000000003; mov rsp, 0x5a5a000000000004; mov rbp, 0x5a5a000000000005;\
         mov rsi, 0x5a5a000000000006; mov rdi, 0x5a5a000000000007; mov r8, 0x5a5a000000000008;\
         mov r9, 0x5a5a000000000009; mov r10, 0x5a5a00000000000a; mov r11, 0x5a5a00000000000b;\
         mov r12, 0x5a5a00000000000c; mov r13, 0x5a5a00000000000d; mov r14, 0x5a5a00000000000e;\
         mov r15, 0x5a5a00000000000f; stc; .globl provoke_pattern_at; provoke_pattern_at: ud2";
    /// Spins for ever.
    spin "provoke_spin" "1: pause; jmp 1b";
    /// Counts up RBX for ever.
    count "provoke_count" "1: inc rbx; jmp 1b";
}

/// Where the instruction is that raises the exception, or the one behind it.
macro_rules! places {
    ($($(#[$doc:meta])* $name:ident $symbol:literal;)*) => {
        $($(#[$doc])*
        pub fn $name() -> u64 {
            unsafe extern "C" {
                #[link_name = $symbol]
                static PLACE: u8;
            }
            &raw const PLACE as u64
        })*
    };
}

places! {
    /// DIV of [`divide`].
    divide_at "provoke_divide_at";
    /// Behind INT1 of [`int1`].
    int1_next "provoke_int1_next";
    /// Behind NOP of [`step`].
    step_next "provoke_step_next";
    /// Behind INT3 of [`breakpoint`].
    breakpoint_next "provoke_breakpoint_next";
    /// MOV to DS of [`selector`].
    selector_at "provoke_selector_at";
    /// FWAIT of [`x87`].
    x87_at "provoke_x87_at";
    /// DIVSS of [`simd`].
    simd_at "provoke_simd_at";
    /// UD2 of [`pattern`].
    pattern_at "provoke_pattern_at";
    /// The access of [`unaligned`].
    unaligned_at "provoke_unaligned_at";
}
