# Entries into the kernel. Every entry from user mode saves the general registers at the start of the current EC,
# takes the CPU's stack, and jumps into Rust, which never returns here.
# Layout of an EC: general registers 0..127 by encoding, stack 128, vector 136, error 144, frame 152..191.

.section .text, "ax", @progbits

.macro save_registers                   # RSP = EC + 128 -> EC
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rdi
    push %rsi
    push %rbp
    push %rsp
    push %rbx
    push %rdx
    push %rcx
    push %rax
.endm

# Interrupt stubs: 16 bytes each. Vectors without an error code push a zero.
.balign 16
.globl interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    push $0
    .endif
    pushq $vector
    .if vector == 1 || vector == 2 || vector == 8 || vector == 18
    jmp interrupt_ist
    .else
    jmp interrupt_common
    .endif
    .set vector, vector + 1
.endr

# #DB, NMI, #DF, #MC come on stacks of their own, because they can hit the kernel before it has one. From user mode
# their frame moves to the EC, and then they are like all others.
.balign 16
interrupt_ist:
    testb $3, 24(%rsp)
    jz 1f
    push %rax
    push %rcx
    mov {block} + {current}, %rax       # the current EC
    .set word, 0
    .rept 7
    mov 16 + word(%rsp), %rcx
    mov %rcx, 136 + word(%rax)
    .set word, word + 8
    .endr
    pop %rcx
    pop %rax
    mov {block} + {current}, %rsp
    lea 136(%rsp), %rsp

.balign 16
interrupt_common:
    testb $3, 24(%rsp)                  # CS of the interrupted code
    jz 1f
    sub $8, %rsp                        # RSP0 was the end of the EC's frame: skip the stack field
    save_registers
    mov %rsp, %rdi
    mov 128(%rsp), %rsp
    xor %ebp, %ebp
    cld
    call {user_interrupt}
    ud2

    # From the kernel: idle, or the window in which it takes pending interrupts. Anything else is a kernel fault.
1:  push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    cld
    lea 72(%rsp), %rdi
    mov %rsp, %rax
    push %rbp
    mov %rsp, %rbp
    and $-16, %rsp
    call {kernel_interrupt}
    mov %rbp, %rsp
    pop %rbp
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

# SYSCALL of the first CPU. The user's RSP goes to R11 (its content, RFLAGS, is 0x202 on return by contract).
.balign 16
.globl syscall_entry
syscall_entry:
    mov %rsp, %r11
    mov {block} + {current}, %rsp       # the current EC
    mov %r11, 176(%rsp)
    mov %rcx, 152(%rsp)
    mov %rax, 0(%rsp)
    mov %rdx, 16(%rsp)
    mov %rbx, 24(%rsp)
    mov %rbp, 40(%rsp)
    mov %rsi, 48(%rsp)
    mov %rdi, 56(%rsp)
    mov %r8, 64(%rsp)
    mov %r9, 72(%rsp)
    mov %r10, 80(%rsp)
    mov %r12, 96(%rsp)
    mov %r13, 104(%rsp)
    mov %r14, 112(%rsp)
    mov %r15, 120(%rsp)
    mov %rsp, %rdi
    mov 128(%rsp), %rsp
    xor %ebp, %ebp
    call {hypercall}
    ud2

.macro restore_registers                # RSP = EC -> EC + 128
    pop %rax
    pop %rcx
    pop %rdx
    pop %rbx
    add $8, %rsp
    pop %rbp
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
.endm

# Back to user mode after a hypercall: RDI = EC.
.balign 16
.globl return_from_hypercall
return_from_hypercall:
    mov %rdi, %rsp
    restore_registers
    mov 24(%rsp), %rcx                  # RIP, canonical and in user space: checked by the caller
    mov $0x202, %r11d
    mov 48(%rsp), %rsp
    sysretq

# Back to user mode after an exception or interrupt: RDI = EC.
.balign 16
.globl return_from_interrupt
return_from_interrupt:
    mov %rdi, %rsp
    restore_registers
    add $24, %rsp                       # stack, vector, error
    iretq
