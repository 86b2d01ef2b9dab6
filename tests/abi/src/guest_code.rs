//! What guests execute: each piece is one instruction that matters, what it needs before it, and HLT behind it.
#![allow(unsafe_code)] // Addresses of assembly.

use core::arch::global_asm;

use crate::guest::CODE;

/// Addresses in a guest.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Where a guest begins.
    pub start: u64,
    /// The instruction that matters.
    pub at: u64,
    /// HLT behind it.
    pub next: u64,
}

unsafe extern "C" {
    static guest_start: u8;
    static guest_end: u8;
    static guest_vectors: u8;
}

/// Where the code is in this program.
pub fn range() -> (u64, u64) {
    (&raw const guest_start as u64, &raw const guest_end as u64)
}

fn in_guest(symbol: *const u8) -> u64 {
    symbol as u64 - range().0 + CODE
}

/// Vectors that have a handler: it loads its number into EAX and halts.
pub const VECTORS: u64 = 64;
const VECTOR_BYTES: u64 = 16;

/// The handler of a vector.
pub fn vector(number: u64) -> u64 {
    in_guest(&raw const guest_vectors) + VECTOR_BYTES * number
}

global_asm!(
    ".pushsection .guest, \"ax\", @progbits",
    ".balign 16",
    ".globl guest_vectors",
    "guest_vectors:",
    ".set number, 0",
    ".rept 64",
    ".balign 16",
    "mov eax, number",
    "hlt",
    "iretq",
    ".set number, number + 1",
    ".endr",
    ".popsection",
);

macro_rules! pieces {
    ($($(#[$doc:meta])* $name:ident $before:literal $instruction:literal;)*) => {
        global_asm!(
            ".pushsection .guest, \"ax\", @progbits",
            $(
                concat!(".globl guest_", stringify!($name), ", guest_", stringify!($name), "_at, guest_", stringify!($name), "_next"),
                concat!("guest_", stringify!($name), ":"),
                $before,
                concat!("guest_", stringify!($name), "_at:"),
                $instruction,
                concat!("guest_", stringify!($name), "_next:"),
                "1: hlt; jmp 1b",
            )*
            ".popsection",
        );
        $($(#[$doc])*
        pub fn $name() -> Code {
            unsafe extern "C" {
                #[link_name = concat!("guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("guest_", stringify!($name), "_at")]
                static AT: u8;
                #[link_name = concat!("guest_", stringify!($name), "_next")]
                static NEXT: u8;
            }
            Code { start: in_guest(&raw const START), at: in_guest(&raw const AT), next: in_guest(&raw const NEXT) }
        })*
    };
}

pieces! {
    /// HLT.
    hlt "" "hlt";
    /// CPUID, leaf 1.
    cpuid "mov eax, 1" "cpuid";
    /// IRET to the next instruction.
    iret "mov rax, rsp; push 16; push rax; pushfq; push 8; lea rax, [rip + 2f]; push rax" "iretq; 2:";
    /// INVD.
    invd "" "invd";
    /// WBINVD.
    wbinvd "" "wbinvd";
    /// RDTSC.
    rdtsc "" "rdtsc";
    /// RDTSCP.
    rdtscp "" "rdtscp";
    /// RDPMC.
    rdpmc "xor ecx, ecx" "rdpmc";
    /// PAUSE.
    pause "" "pause";
    /// INVLPG.
    invlpg "mov eax, 0x7000" "invlpg [rax]";
    /// MONITOR.
    monitor "mov eax, 0x7000; xor ecx, ecx; xor edx, edx" "monitor";
    /// MWAIT.
    mwait "xor eax, eax; xor ecx, ecx" "mwait";
    /// XSETBV.
    xsetbv "mov rax, cr4; or eax, 0x40000; mov cr4, rax; xor ecx, ecx; mov eax, 1; xor edx, edx" "xsetbv";
    /// VMCALL.
    vmcall "" "vmcall";
    /// VMMCALL.
    vmmcall "" "vmmcall";
    /// VMXOFF.
    vmxoff "" ".byte 0x0f, 0x01, 0xc4";
    /// VMLAUNCH.
    vmlaunch "" ".byte 0x0f, 0x01, 0xc2";
    /// VMRESUME.
    vmresume "" ".byte 0x0f, 0x01, 0xc3";
    /// VMRUN.
    vmrun "xor eax, eax" ".byte 0x0f, 0x01, 0xd8";
    /// VMLOAD.
    vmload "xor eax, eax" ".byte 0x0f, 0x01, 0xda";
    /// VMSAVE.
    vmsave "xor eax, eax" ".byte 0x0f, 0x01, 0xdb";
    /// STGI.
    stgi "" ".byte 0x0f, 0x01, 0xdc";
    /// CLGI.
    clgi "" ".byte 0x0f, 0x01, 0xdd";
    /// RDMSR of EFER.
    rdmsr "mov ecx, 0xc0000080" "rdmsr";
    /// WRMSR of IA32_SYSENTER_CS.
    wrmsr "mov ecx, 0x174; mov eax, 0x1234; xor edx, edx" "wrmsr";
    /// RDMSR of IA32_SYSENTER_CS.
    rdmsr_sysenter "mov ecx, 0x174" "rdmsr";
    /// RDMSR of what RCX names.
    read_msr "nop" "rdmsr";
    /// WRMSR of what RCX names.
    write_msr "nop" "wrmsr";
    /// Port 0x80, a byte out, number immediate.
    out_immediate "mov eax, 0x5a" "out 0x80, al";
    /// Port 0x1234, two bytes in.
    in_word "mov edx, 0x1234" "in ax, dx";
    /// Port 0x1234, four bytes out.
    out_long "mov edx, 0x1234; mov eax, 0x89abcdef" "out dx, eax";
    /// Port 0x80, a string of bytes out, repeated.
    outs "mov edx, 0x80; mov esi, 0x7000; mov ecx, 3" "rep outsb";
    /// Port 0x80, a string of words in.
    ins "mov edx, 0x80; mov edi, 0x7000" "insw";
    /// MOV to CR0 of RAX: as it is, TS set.
    cr0 "mov rax, cr0; or eax, 8" "mov cr0, rax";
    /// MOV to CR3 of RBX.
    to_cr3 "mov rbx, cr3" "mov cr3, rbx";
    /// MOV to CR4 of RCX: OSXMMEXCPT set.
    cr4 "mov rcx, cr4; or ecx, 0x400" "mov cr4, rcx";
    /// MOV to CR8 of RDX.
    to_cr8 "mov edx, 5" "mov cr8, rdx";
    /// MOV from DR7 to RAX.
    from_dr7 "" "mov rax, dr7";
    /// Reads where nothing is.
    read "mov ebx, 0x400123" "mov eax, [rbx]";
    /// Writes where nothing is.
    write "mov ebx, 0x400123" "mov [rbx], eax";
    /// Executes where nothing is.
    fetch "mov ebx, 0x400120" "jmp rbx";
    /// Writes the code, which is read-only.
    write_code "mov ebx, 0x10000" "mov [rbx], eax";
    /// #UD.
    ud "" "ud2";
    /// #PF: no linear address.
    page_fault "mov ebx, 0x40000000" "mov eax, [rbx]";
    /// #BP.
    int3 "" "int3";
    /// A triple fault: no IDT.
    triple_fault "push 0; push 0; lidt [rsp]" "ud2";
    /// LGDT.
    lgdt "push 0; push 0x4000; sub rsp, 2; mov word ptr [rsp], 0x27" "lgdt [rsp]";
    /// LLDT of nothing.
    lldt "xor eax, eax" "lldt ax";
    /// Interrupts on, then waits by spinning.
    sti "" "sti; nop; 2: jmp 2b";
    /// Writes RAX where RBX points to.
    write_data "" "mov [rbx], rax";
    /// CPUID, then writes RAX where RBX points to: three bytes.
    write_after_cpuid "cpuid" "mov [rbx], rax";
    /// Reads the word behind [`crate::guest::DATA`] into RSI, executes CPUID, reads it again.
    read_data_twice "mov esi, [0x7008]; cpuid" "mov rax, [0x7008]";
    /// MOV to CR8 of a lower priority.
    lower_cr8 "mov eax, 3" "mov cr8, rax";
    /// Spins, counting in RBX.
    spin "" "2: inc rbx; mov [0x7000], rbx; jmp 2b";
    /// NOPs.
    nops "" "nop; nop; nop";
    /// Increments the word at [`crate::guest::DATA`] for ever.
    count "" "2: inc qword ptr [0x7000]; jmp 2b";
    /// FPU instruction.
    fpu "" "fninit";
    /// INT 0x21.
    int "" "int 0x21";
}
