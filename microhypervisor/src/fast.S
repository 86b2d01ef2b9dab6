# SYSCALL, and calls and replies when nothing is in the way: see fast.rs.

.section .text, "ax", @progbits

# What a call preserves beside RDI and RSI, in the EC at `base`, by encoding. RDX comes last: it may be the base.
.macro store_registers base
    mov %rax, 0(\base);   mov %rbx, 24(\base);  mov %rbp, 40(\base);  mov %r8, 64(\base)
    mov %r9, 72(\base);   mov %r10, 80(\base);  mov %r12, 96(\base);  mov %r13, 104(\base)
    mov %r14, 112(\base); mov %r15, 120(\base); mov %rdx, 16(\base)
.endm
.macro load_registers base
    mov 0(\base), %rax;   mov 24(\base), %rbx;  mov 40(\base), %rbp;  mov 64(\base), %r8
    mov 72(\base), %r9;   mov 80(\base), %r10;  mov 96(\base), %r12;  mov 104(\base), %r13
    mov 112(\base), %r14; mov 120(\base), %r15; mov 16(\base), %rdx
.endm

# Copies the message of the EC at RSP to the EC at RDX, whose page tables are loaded: it runs next on the CPU at R15.
# RSI, the message descriptor, becomes the number of words beyond the first. Clobbers RAX, R9, R10, RBP, RCX.
.macro pass_on
    mov {message}(%rsp), %rax
    mov {message}(%rdx), %r9
    and $0x1ff, %esi
    jnz 3f
2:  mov (%rax), %rax
    mov %rax, (%r9)
    mov %rdx, {current}(%r15)
    mov {tables}(%rdx), %rax
    cmp %rax, {space}(%r15)
    je 1f
    mov %rax, {space}(%r15)
    mov %rax, %cr3
    .subsection 1
3:  mov %rdi, %r10
    mov %esi, %ebp
    mov %esi, %ecx
    lea 8(%rax), %rsi
    lea 8(%r9), %rdi
    rep movsq
    mov %ebp, %esi
    mov %r10, %rdi
    jmp 2b
    .previous
1:
.endm

# Each CPU enters through a stub of its own (see smp.rs), which puts the user's RSP into R11 (its content, RFLAGS, is
# 0x202 on return by contract) and the current EC into RSP.
.balign 64
.globl syscall_entry
syscall_entry:
    mov %rcx, {rip}(%rsp)
    mov %r11, {rsp}(%rsp)
    test %dil, %dil
    jnz not_call
    store_registers %rsp
    mov {cpu}(%rsp), %r15
    cmpl $0, {unusual}(%r15)
    jne slow

    # The capability at selector RDI >> 8: bits 4:0 permissions, 28:5 index of a header of 32 bytes, 63:32 generation.
    cmp ${selectors_end} << 8, %rdi
    jae slow
    mov %rdi, %rax
    shr $17, %rax
    mov {selectors}(%rsp), %rcx
    mov (%rcx, %rax, 8), %rcx
    test %rcx, %rcx
    jz slow
    mov %edi, %eax
    shr $8, %eax
    and $511, %eax
    mov (%rcx, %rax, 8), %rax
    test ${may_call}, %al
    jz slow
    mov %eax, %ecx
    and $0x1fffffe0, %ecx
    shr $32, %rax
    cmp %eax, {headers} + {generation}(%rcx)
    jne slow
    mov {headers} + {content}(%rcx), %ecx
    xor ${portal}, %ecx                 # leaves the place of the portal, if it is one
    test $0x3f, %cl
    jnz slow

    # The portal's EC: idle on this CPU, without a recall.
    mov {kernel} + {portal_ec}(%rcx), %eax
    mov {kernel} + {portal_ec} + 4(%rcx), %edx
    shl $5, %eax
    cmp %edx, {headers} + {generation}(%rax)
    jne slow
    mov {headers} + {content}(%rax), %edx
    and $~0x3f, %edx
    add ${kernel}, %rdx
    cmp %r15, {cpu}(%rdx)
    jne slow
    cmpw ${idle}, {state}(%rdx)
    jne slow
    mov {kernel} + {portal_ip}(%rcx), %r8
    mov %r8, %rax
    shr $47, %rax                       # SYSRET wants a user address
    jnz slow

    mov {counters}(%r15), %rax
    incq {calls}(%rax)
    mov {kernel} + {portal_identifier}(%rcx), %rdi
    mov %rdx, {callee}(%rsp)
    mov %rsp, {caller}(%rdx)
    movb ${await_reply}, {state}(%rsp)
    movb ${busy}, {state}(%rdx)
    pass_on
    mov {rsp}(%rdx), %rsp
    mov %r8, %rcx
    mov $0x202, %r11d
    .irp register, eax, edx, ebx, ebp, r8d, r9d, r10d, r12d, r13d, r14d, r15d
    xor %\register, %\register
    .endr
    sysretq

not_call:
    cmp ${reply}, %dil
    jne slow_unsaved
    mov {cpu}(%rsp), %r15
    mov {caller}(%rsp), %rdx
    cmpl $0, {unusual}(%r15)
    jne slow
    test %rdx, %rdx
    jz slow
    cmpw ${await_reply}, {state}(%rdx)
    jne slow
    mov {rip}(%rdx), %r8
    mov %r8, %rax
    shr $47, %rax
    jnz slow

    mov {counters}(%r15), %rax
    incq {calls} + 8(%rax)
    movb ${idle}, {state}(%rsp)
    movq $0, {caller}(%rsp)
    movq $0, {callee}(%rdx)
    pass_on
    mov %r8, %rcx
    mov $0x202, %r11d
    xor %edi, %edi                      # SUCCESS
    mov {rsp}(%rdx), %rsp
    load_registers %rdx
    sysretq

# All other calls, and these if anything is in the way. Whoever replies has nothing to save.
slow_unsaved:
    store_registers %rsp
slow:
    mov %rdi, 56(%rsp)
    mov %rsi, 48(%rsp)
    mov %rsp, %rdi
    mov {cpu}(%rsp), %rsp
    call {hypercall}
    ud2

# Back to user mode after a hypercall: RDI = EC.
.balign 16
.globl return_from_hypercall
return_from_hypercall:
    mov %rdi, %rdx
    mov 48(%rdx), %rsi
    mov 56(%rdx), %rdi
    mov {rip}(%rdx), %rcx               # canonical and in user space: checked by the caller
    mov $0x202, %r11d
    mov {rsp}(%rdx), %rsp
    load_registers %rdx
    sysretq
