// Entries into the kernel. Every entry from user mode saves the general registers at the start of the current EC,
// takes the CPU's stack, and jumps into Rust, which never returns here.
// Layout of an EC: general registers 0..127 by encoding, stack 128, vector 136, error 144, frame 152..191.

.section .text, "ax", @progbits

.macro save_registers                   // RSP = EC + 128 -> EC
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rsp, rbx, rdx, rcx, rax
    push %\register
    .endr
.endm

.macro restore_registers                // RSP = EC -> EC + 128
    .irp register, rax, rcx, rdx, rbx, rbp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pop %\register                      // the slot of RSP is overwritten by RBP's
    .endr
.endm

// Interrupt stubs: 4 bytes each, which push the vector with its sign, and behind each 32 of them where they go on.
.balign 16
.globl interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 8
    .rept 32
    pushq $(vector ^ 128) - 128
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    jmp 2f
    .else
    jmp 1f
    .endif
    .set vector, vector + 1
    .endr
1:  jmp without_error
2:  jmp interrupt_common
    .balign 16
.endr

// #DB, NMI, #DF, #MC come on stacks of their own, because they can hit the kernel before it has one, the others on the
// CPU's. From user mode the frame moves to the EC.
.balign 16
without_error:
    pushq (%rsp);  movq $0, 8(%rsp)
interrupt_common:
    testb $3, 24(%rsp)                  // CS of the interrupted code
    jz 1f
    push %rax;  push %rcx
    mov %rsp, %rax;  and ${block_mask}, %rax    // the CPU's block holds this stack
    mov {current}(%rax), %rax           // the current EC
    .set word, 0
    .rept 7
    mov 16 + word(%rsp), %rcx;  mov %rcx, 136 + word(%rax)
    .set word, word + 8
    .endr
    pop %rcx;  pop %rax
    and ${block_mask}, %rsp;  mov {current}(%rsp), %rsp;  lea 128(%rsp), %rsp
    save_registers
    mov %rsp, %rdi;  mov 128(%rsp), %rsp;  xor %ebp, %ebp
    push $2;  popfq                     // neither AC, which would open user memory to the kernel, nor DF
    call {user_interrupt}
    ud2

    // From the kernel: idle, or the window in which it takes pending interrupts. Anything else is a kernel fault.
1:  .irp register, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11
    push %\register
    .endr
    cld
    lea 72(%rsp), %rdi
    push %rbp;  mov %rsp, %rbp;  and $-16, %rsp
    call {kernel_interrupt}
    mov %rbp, %rsp;  pop %rbp
    .irp register, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    pop %\register
    .endr
    add $16, %rsp
    iretq

// Back to user mode after an exception or interrupt: RDI = EC.
.balign 16
.globl return_from_interrupt
return_from_interrupt:
    mov %rdi, %rsp
    restore_registers
    add $24, %rsp                       // stack, vector, error
    iretq
