# SYSCALL, and calls and replies when nothing is in the way: see fast.rs.

.section .text, "ax", @progbits

# To \miss unless two operands are equal, or unless no bit is set in both.
.macro equal_or miss, one, other, size
    cmp\size \one, \other
    jne \miss
.endm
.macro clear_or miss, one, other, size
    test\size \one, \other
    jnz \miss
.endm

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

# RCX = physical address of the portal for which the capability at selector \selector (clobbered) of the EC at RSP is, with
# permission \permission; else to \miss. Entries: bits 4:0 permissions, 28:5 index of a header of 32 bytes, 63:32
# generation. Clobbers RAX.
.macro portal_at selector, selector32, permission, miss
    cmp ${selectors_end}, \selector
    jae \miss
    mov \selector, %rax
    shr $9, %rax
    mov {selectors}(%rsp), %rcx
    mov (%rcx, %rax, 8), %rcx
    test %rcx, %rcx
    jz \miss
    and $511, \selector32
    mov (%rcx, \selector, 8), %rax
    test \permission, %al
    jz \miss
    mov %eax, %ecx
    and $0x1fffffe0, %ecx
    shr $32, %rax
    equal_or \miss, %eax, {headers}+{generation}(%rcx)
    mov {headers} + {content}(%rcx), %ecx
    xor ${portal}, %ecx                 # leaves the place of the portal, if it is one
    clear_or \miss, $0x3f, %cl
.endm

# RDX = EC of the portal at RCX, which is idle on the CPU at R15, without a recall; R8 = where it enters, a user address,
# as SYSRET wants it; else to \miss. Clobbers RAX.
.macro idle_callee miss
    mov {kernel} + {portal_ec}(%rcx), %eax
    mov {kernel} + {portal_ec} + 4(%rcx), %edx
    shl $5, %eax
    equal_or \miss, %edx, {headers}+{generation}(%rax)
    mov {headers} + {content}(%rax), %edx
    and $~0x3f, %edx
    add ${kernel}, %rdx
    equal_or \miss, %r15, {cpu}(%rdx)
    equal_or \miss, ${idle}, {state}(%rdx), w
    mov {kernel} + {portal_ip}(%rcx), %r8
    mov %r8, %rax
    shr $47, %rax
    jnz \miss
.endm

# The EC at RSP waits, with continuation \waits, until the EC at RDX has served it.
.macro hand_over waits
    mov %rdx, {callee}(%rsp)
    mov %rsp, {caller}(%rdx)
    movb \waits, {state}(%rsp)
    movb ${busy}, {state}(%rdx)
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
    equal_or slow, $0, {unusual}(%r15), l

    mov %rdi, %r9
    shr $8, %r9
    portal_at %r9, %r9d, ${may_call}, slow
    idle_callee slow
    mov {counters}(%r15), %rax
    incq {calls}(%rax)
    mov {kernel} + {portal_identifier}(%rcx), %rdi
    hand_over ${await_reply}
    pass_on

    # Into the portal: identifier in RDI, descriptor in RSI, address in R8.
enter_portal:
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
    equal_or slow, $0, {unusual}(%r15), l
    test %rdx, %rdx
    jz slow
    cmpw ${await_reply}, {state}(%rdx)
    jne event_reply
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
    xor %edi, %edi                      # SUCCESS
leave:
    mov $0x202, %r11d
    mov {rsp}(%rdx), %rsp
    load_registers %rdx
    sysretq

    # The reply to an event. Of a guest: it is entered again, with new general registers and RIP if the reply says so.
event_reply:
    equal_or slow, ${await_event_reply}, {state}(%rdx), w
    mov {guest}(%rdx), %rbx
    equal_or slow, {poised}(%r15), %rbx
    clear_or slow, ${not_fast_reply}, %esi
    mov {spaces_ended}, %rax
    equal_or slow, %rax, {ended}(%rbx)
    mov {guest_space}(%rbx), %rcx
    mov {space_generation}(%rcx), %rax
    equal_or slow, %rax, {seen}(%rbx)
    mov {tables}(%rdx), %rax
    equal_or slow, %rax, {space}(%r15)
    mov {counters}(%r15), %rax
    incq {calls} + 8(%rax)
    incq {entries}(%rax)
    movb ${idle}, {state}(%rsp)
    movq $0, {caller}(%rsp)
    movq $0, {callee}(%rdx)
    mov %rdx, {current}(%r15)
    mov {message}(%rsp), %r14
    mov {control}(%rbx), %rbp
    lea 128(%rdx), %rsp
    jmp *{resume}(%rbx)

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
    jmp leave

# SVM: enters the guest whose control block is at RBP, with RIP and general registers from the message at R14 as far as RSI
# says so, else from the EC at RDX, at whose registers' end RSP is. RBX = what the guest has beyond an EC.
.globl svm_resume
svm_resume:
    movq $0, {vmcb_injection}(%rbp)
    test ${mtd_rip}, %sil
    jz 1f
    mov {utcb_rip}(%r14), %rax
    mov %rax, {vmcb_rip}(%rbp)
1:  mov %rdx, %rdi
    mov %rdx, %r15
    test ${mtd_gpr_8_15}, %sil
    cmovnz %r14, %r15
    test ${mtd_gpr_0_7}, %sil
    jz 1f
    mov %r14, %rdi
    mov 32(%r14), %rax
    mov %rax, {vmcb_rsp}(%rbp)
1:  mov (%rdi), %rax
    mov %rax, {vmcb_rax}(%rbp)
    mov {control_physical}(%rbx), %rax
    mov 64(%r15), %r8;   mov 72(%r15), %r9;   mov 80(%r15), %r10;  mov 88(%r15), %r11
    mov 96(%r15), %r12;  mov 104(%r15), %r13; mov 112(%r15), %r14; mov 120(%r15), %r15
    mov 8(%rdi), %rcx;   mov 16(%rdi), %rdx;  mov 24(%rdi), %rbx;  mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi;  mov 56(%rdi), %rdi

# Runs the guest of the control block at physical address RAX; RSP = the end of the EC's general registers, whose entry 4
# holds the physical address of the block with the host's FS, GS, TR, LDTR and syscall MSRs. GIF is clear while any of the
# guest's state is in the registers. IF is set meanwhile: with virtual interrupt masking it is the host's IF at VMRUN that
# lets physical interrupts end the guest's run. The task priority is zero anyway: QEMU can lose an interrupt that comes
# during an exit, until this makes it look again (docs/emulators.md).
.globl svm_run
svm_run:
    clgi
    sti
    vmload %rax
    vmrun %rax
    vmsave %rax
    mov 32 - 128(%rsp), %rax
    vmload %rax
    cli
    stgi
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rax, rbx, rdx, rcx, rax
    push %\register
    .endr
    xor %eax, %eax
    mov %rax, %cr8

    # The guest of the EC at RSP stopped.
    mov {cpu}(%rsp), %r15
    mov {guest}(%rsp), %rax
    equal_or exit, {poised}(%r15), %rax
    mov {control}(%rax), %rbp
    clear_or exit, $0x80, {vmcb_interrupted}+3(%rbp), b
    mov {vmcb_rax}(%rbp), %rax
    mov %rax, (%rsp)
    mov {vmcb_exit_code}(%rbp), %rax
    cmp ${exit_codes}, %rax
    jae 1f
    movzbl {exit_events}(%rax), %ebx
    test %ebx, %ebx
    jz exit
    cmp ${event_rdmsr}, %ebx
    je 2f
    .subsection 1
1:  mov ${event_page_fault}, %ebx
    cmp ${nested_fault}, %rax
    je guest_event
    jmp exit
2:  add {vmcb_exit_info}(%rbp), %ebx    # a WRMSR
    jmp guest_event
    .previous

# Event EBX of the guest EC at RSP goes to its handler, if that is idle and nothing else is in the way.
guest_event:
    clear_or exit, $~{a_guest_ran}, {unusual}(%r15), l
    mov {event_base}(%rsp), %r9
    add %rbx, %r9
    portal_at %r9, %r9d, ${may_event}, exit
    idle_callee exit
    mov {kernel} + {portal_mtd}(%rcx), %esi
    clear_or exit, ${not_fast}, %esi
    mov {tables}(%rdx), %rax
    equal_or exit, %rax, {space}(%r15)
    mov {counters}(%r15), %rax
    incq {events}(%rax, %rbx, 8)
    hand_over ${await_event_reply}
    mov %rdx, {current}(%r15)
    mov %ecx, %r12d
    mov %rdx, %r13
    mov %esi, %r14d
    mov %rsp, %rdi
    mov %r15, %rsp
    call {save_state}
    mov %r13, %rdx
    mov %r14d, %esi
    mov {kernel} + {portal_identifier}(%r12), %rdi
    mov {kernel} + {portal_ip}(%r12), %r8
    jmp enter_portal

# VMX: Rust does what depends on the vendor. Descriptor in RSI, message at R14, CPU at R15, EC at RDX.
.globl vmx_resume
vmx_resume:
    mov %rdx, %rdi
    mov %r14, %rdx
    mov %r15, %rsp
    call {resume_vmx}
    ud2

# After an exit or a refused entry: stores the guest's general registers, at whose end RSP is. Entry 4 gets RFLAGS, where
# CF or ZF say that there was no entry; an exit clears them.
.globl vmx_exit
vmx_exit:
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp
    push %\register
    .endr
    pushfq
    .irp register, rbx, rdx, rcx, rax
    push %\register
    .endr
    mov {cpu}(%rsp), %r15
    mov {guest}(%rsp), %rax
    equal_or exit, {poised}(%r15), %rax
    clear_or exit, $0x41, 32(%rsp), b
    mov ${vmcs_reason}, %ecx
    vmread %rcx, %rbx
    movabs ${vmx_events}, %rax
    cmp $63, %ebx
    ja exit
    bt %rbx, %rax
    jc guest_event

exit:
    mov %rsp, %rdi
    mov {cpu}(%rsp), %rsp
    call {vcpu_exit}
    ud2
