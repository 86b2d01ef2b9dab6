# The registers of Values in fpu.rs, whose layout this is: loaded from where RDI points, stored to where RSI points. R8B is
# not 0 if there is AVX.

.set X87, 16 * 32
.set X87_CONTROL, X87 + 8 * 10
.set SSE_CONTROL, X87_CONTROL + 4

.macro load_registers
    fninit
    fldcw X87_CONTROL(%rdi)
    ldmxcsr SSE_CONTROL(%rdi)
.irp index, 7, 6, 5, 4, 3, 2, 1, 0
    fldt X87 + \index * 10(%rdi)
.endr
    test %r8b, %r8b
    jz 1f
.irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu \index * 32(%rdi), %ymm\index
.endr
    jmp 2f
1:
.irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu \index * 32(%rdi), %xmm\index
.endr
2:
.endm

.macro store_registers
    test %r8b, %r8b
    jz 6f
.irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu %ymm\index, \index * 32(%rsi)
.endr
    vzeroupper
    jmp 7f
6:
.irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu %xmm\index, \index * 32(%rsi)
.endr
7:  fnstcw X87_CONTROL(%rsi)
    stmxcsr SSE_CONTROL(%rsi)
.irp index, 0, 1, 2, 3, 4, 5, 6, 7
    fstpt X87 + \index * 10(%rsi)
.endr
.endm

.text

# fpu_round(values, seen, until, gap, avx): loads all registers, loops until the TSC jumps by more than `gap` or passes
# `until`, stores them; returns whether it jumped.
.globl fpu_round
fpu_round:
    mov %rdx, %r9
    mov %rcx, %r10
    load_registers
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %r11
3:  rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %rcx
    sub %r11, %rcx
    cmp %r10, %rcx
    ja 4f
    mov %rax, %r11
    cmp %r9, %rax
    jb 3b
    xor %ecx, %ecx
    jmp 5f
4:  mov $1, %ecx
5:  store_registers
    mov %ecx, %eax
    ret

# fpu_saved(values, seen, area, how, avx): loads all registers, saves x87, SSE and AVX state by XSAVE (`how` is 0), XSAVEOPT
# (1) or XSAVEC (2), puts the registers into their initial state, restores them, and stores them.
.globl fpu_saved
fpu_saved:
    mov %rdx, %r9
    mov %rcx, %r10
    load_registers
    mov $7, %eax
    xor %edx, %edx
    cmp $1, %r10
    jb 3f
    ja 4f
    xsaveopt64 (%r9)
    jmp 5f
3:  xsave64 (%r9)
    jmp 5f
4:  xsavec64 (%r9)
5:  xrstor64 fpu_initial(%rip)
    xrstor64 (%r9)
    store_registers
    ret

.section .rodata
.balign 64
fpu_initial:
    .fill 24
    .long 0x1f80
    .fill 576 - 28
