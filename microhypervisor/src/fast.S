// SYSCALL, SYSENTER, and calls and replies when nothing is in the way: see fast.rs.

.section .text, "ax", @progbits

// To \miss unless two operands are equal, or unless no bit is set in both.
.macro equal_or miss, one, other, size
    cmp\size \one, \other
    jne \miss
.endm
.macro clear_or miss, one, other, size
    test\size \one, \other
    jnz \miss
.endm

.macro clear registers:vararg
    .irp register, \registers
    xor %\register, %\register
    .endr
.endm
.macro push_all registers:vararg
    .irp register, \registers
    push %\register
    .endr
.endm

// To \miss unless two words in memory are equal. Clobbers RAX.
.macro same_or miss, one, other
    mov \one, %rax;  cmp %rax, \other
    jne \miss
.endm

// To \skip if the message descriptor in RSI does not name \state.
.macro without state, skip
    test $\state, %esi
    jz \skip
.endm

// To \miss unless \address is one of user space, so that a return there cannot fault in the kernel. Clobbers \scratch.
.macro user_or miss, address, scratch
    mov \address, \scratch;  shr $47, \scratch
    jnz \miss
.endm

// What a call preserves beside RDI and RSI, in the EC at `base`, by encoding. RDX comes last: it may be the base.
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

// RCX = physical address of the object of \kind for which the capability at selector \selector (clobbered) of the EC at RSP
// is, with permission \permission; else to \miss. Entries: bits 4:0 permissions, 28:5 index of a header of 32 bytes, 63:32
// generation. Clobbers RAX.
.macro object_at kind, selector, selector32, permission, miss
    cmp ${selectors_end}, \selector
    jae \miss
    mov \selector, %rax;  shr $9, %rax
    mov {selectors}(%rsp), %rcx;  mov (%rcx, %rax, 8), %rcx
    test %rcx, %rcx
    jz \miss
    and $511, \selector32
    mov (%rcx, \selector, 8), %rax
    test \permission, %al
    jz \miss
    mov %eax, %ecx;  and $0x1fffffe0, %ecx;  shr $32, %rax
    equal_or \miss, %eax, {headers}+{generation}(%rcx)
    mov {headers} + {content}(%rcx), %ecx
    xor \kind, %ecx                     // leaves the object's place, if it is one of the kind
    clear_or \miss, $0x3f, %cl
.endm

// RDX = EC of the portal at RCX, which is idle on the CPU at R15, without a recall; R8 = where it enters, a user address, as
// SYSRET wants it; else to \miss. Clobbers RAX.
.macro idle_callee miss
    mov {kernel} + {portal_enters}(%rcx), %eax;  mov {kernel} + {portal_enters} + 4(%rcx), %edx;  shl $5, %eax
    equal_or \miss, %edx, {headers}+{generation}(%rax)
    mov {headers} + {content}(%rax), %edx;  and $~0x3f, %edx;  add ${kernel}, %rdx
    equal_or \miss, %r15, {cpu}(%rdx)
    equal_or \miss, ${idle}, {state}(%rdx), w
    mov {kernel} + {portal_ip}(%rcx), %r8
.endm

// The EC at RSP waits, with continuation \waits, until the EC at RDX has served it.
.macro hand_over waits
    mov %rdx, {callee}(%rsp);  mov %rsp, {caller}(%rdx)
    movb \waits, {state}(%rsp);  movb ${busy}, {state}(%rdx)
.endm

// All of a guest's general registers but RAX and RSP: the first eight from RDI, the others from R15.
.macro load_guest
    mov 64(%r15), %r8;   mov 72(%r15), %r9;   mov 80(%r15), %r10;  mov 88(%r15), %r11
    mov 96(%r15), %r12;  mov 104(%r15), %r13; mov 112(%r15), %r14; mov 120(%r15), %r15
    mov 8(%rdi), %rcx;   mov 16(%rdi), %rdx;  mov 24(%rdi), %rbx;  mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi;  mov 56(%rdi), %rdi
.endm

// Copies the message of the EC at RSP to the EC at RDX, whose page tables are loaded: it runs next on the CPU at R15.
// RSI, the message descriptor, becomes the number of words beyond the first. Clobbers RAX, R9, R10, RBP, RCX.
.macro pass_on
    mov {message}(%rsp), %rax;  mov {message}(%rdx), %r9
    and $0x1ff, %esi
    jnz 3f
2:  mov (%rax), %rax;  mov %rax, (%r9)
    mov %rdx, {current}(%r15)
    mov {tables}(%rdx), %rax
    cmp %rax, {space}(%r15)
    je 1f
    mov %rax, {space}(%r15);  mov %rax, %cr3
    .subsection 1
3:  mov %rdi, %r10;  mov %esi, %ebp;  mov %esi, %ecx;  lea 8(%rax), %rsi;  lea 8(%r9), %rdi
    rep movsq
    mov %ebp, %esi;  mov %r10, %rdi
    jmp 2b
    .previous
1:
.endm

// Each CPU enters through a stub of its own (see smp.rs), which puts the user's RSP into R11 (its content, RFLAGS, is
// 0x202 on return by contract) and the current EC into RSP.
.balign 64
.globl syscall_entry
syscall_entry:
    mov %rcx, {rip}(%rsp);  mov %r11, {rsp}(%rsp)
    cmp ${reply}, %dil
    je is_reply
    ja is_other
    store_registers %rsp
    mov {cpu}(%rsp), %r15
    equal_or slow, $0, {unusual}(%r15), l

    mov %rdi, %r9;  shr $8, %r9
    object_at ${portal}, %r9, %r9d, ${may_call}, slow
    idle_callee slow
    mov {counters}(%r15), %rax;  incq {calls}(%rax)
    mov {kernel} + {portal_identifier}(%rcx), %rdi
    hand_over ${await_reply}
    pass_on

    // Into the portal: identifier in RDI, descriptor in RSI, address in R8.
enter_portal:
    mov {rsp}(%rdx), %rsp;  mov %r8, %rcx;  mov $0x202, %r11d
    clear eax, edx, ebx, ebp, r8d, r9d, r10d, r12d, r13d, r14d, r15d
    sysretq

// SYSENTER, with the user's RIP in RDX, RSP in RCX; RSP = address of the current EC's. It leaves more flags as they were than
// SYSCALL: those that would open user memory, turn string instructions round, or spoil an IRET; and TF, for which a #DB
// comes before the first instruction (see `kernel_interrupt`). The current EC enters this way from now on.
.balign 16
.globl sysenter_entry
sysenter_entry:
    push $2;  popfq
    mov (%rsp), %rsp
    movb $1, {sysenter}(%rsp)
    mov %rdx, {rip}(%rsp);  mov %rcx, {rsp}(%rsp)

    equal_or is_no_reply, ${reply}, %dil, b
is_reply:
    mov {cpu}(%rsp), %r15;  mov {caller}(%rsp), %rdx
    test %rdx, %rdx
    jz slow
    equal_or event_reply, ${await_reply}, {state}(%rdx), w
    equal_or slow, $0, {unusual}(%r15), l
    mov {rip}(%rdx), %r8
    user_or slow, %r8, %rax

    mov {counters}(%r15), %rax;  incq {calls} + 8(%rax)
    movb ${idle}, {state}(%rsp);  movq $0, {caller}(%rsp);  movq $0, {callee}(%rdx)
    pass_on
    mov %r8, %rcx;  xor %edi, %edi      // SUCCESS
leave:
    mov $0x202, %r11d;  mov {rsp}(%rdx), %rsp
    load_registers %rdx
    sysretq

    // The reply to an event. Of a guest: it is entered again, with new general registers and RIP if the reply says so.
event_reply:
    clear_or slow, $~{a_guest_ran}, {unusual}(%r15), l
    equal_or slow, ${await_event_reply}, {state}(%rdx), w
    mov {guest}(%rdx), %rbx
    equal_or slow, {poised}(%r15), %rbx
    clear_or slow, ${not_fast_reply}, %esi
    same_or slow, {spaces_ended}, {ended}(%rbx)
    mov {guest_space}(%rbx), %rcx;  mov {space_generation}(%rcx), %rax
    equal_or slow, %rax, {seen}(%rbx)
    same_or slow, {tables}(%rdx), {space}(%r15)
    mov {counters}(%r15), %rax;  incq {calls} + 8(%rax)
    incq {entries}(%rax)
    movb ${idle}, {state}(%rsp);  movq $0, {caller}(%rsp);  movq $0, {callee}(%rdx)
    mov %rdx, {current}(%r15)
    mov {message}(%rsp), %r14;  mov {control}(%rbx), %rbp;  lea 128(%rdx), %rsp
    jmp *{resume}(%rbx)

// ctrl_sm without Z: of a semaphore that is no interrupt's, and for which nobody waits or has to, only the count changes, see
// `Sm::word`.
is_no_reply:
    jb slow_unsaved
is_other:
    cmp ${up}, %dil
    je 1f
    equal_or slow_unsaved, ${up} + 16, %dil, b
1:  mov %rax, (%rsp);  mov %r9, 72(%rsp)
    user_or slow_other, {rip}(%rsp), %rax
    mov {cpu}(%rsp), %r9
    clear_or slow_other, ${a_guest_ran} + {tracing}, {unusual}(%r9), l
    movzbl %dil, %r11d;  shr $4, %r11d;  inc %r11d  // permission UP, 1, or DOWN, 2; and the least word for it
    mov %rdi, %r9;  shr $8, %r9
    object_at ${semaphore}, %r9, %r9d, %r11b, slow_other
    equal_or semaphore_waits, $-1, {kernel} + {sm_route}(%rcx), l
    mov {kernel} + {sm_word}(%rcx), %rax;  cmp %r11, %rax
    jb semaphore_waits
    lea 3(%rax), %r9;  sub %r11, %r9;  sub %r11, %r9    // one more, or less
    lock cmpxchg %r9, {kernel} + {sm_word}(%rcx)
    jne semaphore_waits
    mov {cpu}(%rsp), %r9;  mov {counters}(%r9), %r9;  incq {calls} + 8 * {up}(%r9)
    mov {rip}(%rsp), %rcx;  mov 72(%rsp), %r9;  mov (%rsp), %rax;  xor %edi, %edi
    mov $0x202, %r11d;  mov {rsp}(%rsp), %rsp
    sysretq

// The semaphore at RCX is an interrupt's, or somebody waits for it, or has to.
semaphore_waits:
    mov (%rsp), %rax;  mov 72(%rsp), %r9
    store_registers %rsp
    mov %rdi, 56(%rsp);  mov %rsi, 48(%rsp);  lea {kernel}(%rcx), %rsi;  mov %rsp, %rdi;  mov {cpu}(%rsp), %rsp
    call {ctrl_sm}
    ud2

// All other calls, and these if anything is in the way. Whoever replies has nothing to save.
slow_other:
    mov (%rsp), %rax;  mov 72(%rsp), %r9
slow_unsaved:
    store_registers %rsp
slow:
    mov %rdi, 56(%rsp);  mov %rsi, 48(%rsp);  mov %rsp, %rdi;  mov {cpu}(%rsp), %rsp
    call {hypercall}
    ud2

// Back to user mode after a hypercall: RDI = EC.
.balign 16
.globl return_from_hypercall
return_from_hypercall:
    mov %rdi, %rdx;  mov 48(%rdx), %rsi;  mov 56(%rdx), %rdi
    mov {rip}(%rdx), %rcx               // canonical and in user space: checked by the caller
    jmp leave

// Enters a guest from Rust: RDI = its EC, RSI = physical address of its control block.
.globl svm_enter
svm_enter:
    lea 128(%rdi), %rsp;  mov %rsi, %rax;  mov %rdi, %r15
    jmp svm_load

// SVM: enters the guest whose control block is at RBP, with RIP and general registers from the message at R14 as far as RSI
// says so, else from the EC at RDX, at whose registers' end RSP is. RBX = what the guest has beyond an EC.
.globl svm_resume
svm_resume:
    without {mtd_rip}, 1f
    mov {utcb_rip}(%r14), %rax;  mov %rax, {vmcb_rip}(%rbp)
1:  mov %rdx, %rdi;  mov %rdx, %r15
    test ${mtd_gpr_8_15}, %sil
    cmovnz %r14, %r15
    without {mtd_gpr_0_7}, 1f
    mov %r14, %rdi
    mov 32(%r14), %rax;  mov %rax, {vmcb_rsp}(%rbp)
1:  mov (%rdi), %rax;  mov %rax, {vmcb_rax}(%rbp)
    mov {control_physical}(%rbx), %rax
svm_load:
    load_guest

// Runs the guest of the control block at physical address RAX; RSP = the end of the EC's general registers, whose entry 4
// holds the physical address of the block with the host's FS, GS, TR, LDTR and syscall MSRs. GIF is clear while any of the
// guest's state is in the registers. IF is set meanwhile: with virtual interrupt masking it is the host's IF at VMRUN that
// lets physical interrupts end the guest's run. The task priority is zero anyway: QEMU can lose an interrupt that comes
// during an exit, until this makes it look again (docs/emulators.md).
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
    push_all r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rax, rbx, rdx, rcx, rax
    xor %eax, %eax;  mov %rax, %cr8

    // The guest of the EC at RSP stopped.
    mov {cpu}(%rsp), %r15;  mov {guest}(%rsp), %rax
    equal_or exit, {poised}(%r15), %rax
    mov {control}(%rax), %rbp
    clear_or exit, $0x80, {vmcb_interrupted}+3(%rbp), b
    mov {vmcb_rax}(%rbp), %rax;  mov %rax, (%rsp)
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
2:  add {vmcb_exit_info}(%rbp), %ebx    // a WRMSR
    jmp guest_event
    .previous

// Event EBX of the guest EC at RSP goes to its handler, if that is idle and nothing else is in the way.
guest_event:
    clear_or exit, $~{a_guest_ran}, {unusual}(%r15), l
    mov {event_base}(%rsp), %r9;  add %rbx, %r9
    object_at ${portal}, %r9, %r9d, ${may_event}, exit
    idle_callee exit
    mov {kernel} + {portal_mtd}(%rcx), %esi
    clear_or exit, ${not_fast}, %esi
    same_or exit, {tables}(%rdx), {space}(%r15)
    mov {guest}(%rsp), %r12
    jmp *{pass_event}(%r12)

// Event EBX of the EC at RSP is sent to the EC at RDX through the portal at RCX: RDI = identifier, R14 = its message.
.macro send_event
    mov {counters}(%r15), %rax;  incq {events}(%rax, %rbx, 8)
    hand_over ${await_event_reply}
    mov %rdx, {current}(%r15)
    mov {kernel} + {portal_identifier}(%rcx), %rdi;  mov {message}(%rdx), %r14
.endm

// SVM. The control block is at RBP. What a monitor asks for to answer CPUID, a port or device memory is told here.
.globl svm_event
svm_event:
    send_event
    without {mtd_rip}, 1f
    mov {vmcb_rip}(%rbp), %rax;  mov %rax, {utcb_rip}(%r14);  mov {vmcb_next_rip}(%rbp), %r9
    cmpl ${io_exit}, {vmcb_exit_code}(%rbp)
    cmove {vmcb_exit_info} + 8(%rbp), %r9
    sub %rax, %r9;  cmp $15, %r9
    jbe 2f
    xor %r9d, %r9d                      // the length is not known
2:  mov %r9, {utcb_length}(%r14)        // and no information
1:  test $~{mtd_rip}, %esi
    jz enter_portal
    mov {vmcb_rsp}(%rbp), %r9
    mov $~({mtd_rip} + {mtd_gpr_0_7} + {mtd_gpr_8_15} + {mtd_cr} + {mtd_efer}), %r10d
    without {mtd_qual}, 1f
    cmpl ${io_exit}, {vmcb_exit_code}(%rbp)
    jne 1f
    // As `io_qualification`: port; string and REP; input; size less one.
    mov {vmcb_exit_info}(%rbp), %eax;  mov %eax, %ebx;  mov %eax, %ecx;  shr $4, %ecx
    and $7, %ecx;  dec %ecx;  and $12, %ebx;  lea (%rcx, %rbx, 4), %ebx
    mov %eax, %ecx;  and $1, %ecx;  lea (%rbx, %rcx, 8), %ebx;  and $0xffff0000, %eax;  or %eax, %ebx
    xor %eax, %eax;  mov %rax, {utcb_qualification} + 8(%r14);  mov %rax, {utcb_qualification} + 16(%r14)
    mov %rbx, {utcb_qualification}(%r14);  btr ${mtd_qual_bit}, %r10d
1:  without {mtd_cr}, 1f
    mov {vmcb_cr4}(%rbp), %rax;  mov %rax, {utcb_cr4}(%r14);  mov {vmcb_cr3}(%rbp), %rax;  mov %rax, {utcb_cr3}(%r14)
    mov {vmcb_cr0}(%rbp), %rax;  mov %rax, {utcb_cr0}(%r14);  mov {vmcb_cr2}(%rbp), %rax;  mov %rax, {utcb_cr2}(%r14)
    mov {vmcb_tpr}(%rbp), %eax;  and $15, %eax;  mov %rax, {utcb_cr8}(%r14)
1:  without {mtd_efer}, message
    mov {vmcb_efer}(%rbp), %rax;  and $~{efer_svme}, %rax;  mov %rax, {utcb_efer}(%r14)

.macro copy_registers offsets:vararg
    .irp offset, \offsets
    mov \offset(%rsp), %rax;  mov %rax, \offset(%r14)
    .endr
.endm

// The message at R14 gets general registers, with RSP from R9, and what of the descriptor in RSI is in R10 as well.
message:
    without {mtd_gpr_0_7}, 1f
    mov %r9, 32(%r14)
    copy_registers 0, 8, 16, 24, 40, 48, 56
1:  without {mtd_gpr_8_15}, 1f
    copy_registers 64, 72, 80, 88, 96, 104, 112, 120
1:  clear_or 5f, %r10d, %esi, l
to_portal:
    cmpb $0, {syscall_off}(%r12)
    je enter_portal
    mov {rsp}(%rdx), %rcx;  mov %r8, %rdx
    clear eax, ebx, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
    sti                                 // takes effect behind the next instruction
    sysexitq
    .subsection 1
5:  mov %rsp, %r13;  mov %r15, %rsp;  push %rdi;  push %rsi;  push %rdx;  push %r8
    mov %r13, %rdi;  and %r10d, %esi
    call {save_rest}
    pop %r8;  pop %rdx;  pop %rsi;  pop %rdi
    jmp to_portal
    .previous

// VMX. A handler that enters by SYSENTER leaves the guest's SYSCALL where it is. The host's is off after the exit, as the
// VMCS says: if that is not yet, or no longer, what the handler needs, the slow path mends it.
.globl vmx_event
vmx_event:
    movzbl {sysenter}(%rdx), %eax
    equal_or exit, %al, {syscall_off}(%r12), b
    user_or exit, {rsp}(%rdx), %r9
    send_event
    cmpb $0, {syscall_off}(%r12)
    je 4f
3:  without {mtd_rip}, 1f
    mov ${vmcs_rip}, %eax; vmread %rax, {utcb_rip}(%r14)
    mov ${vmcs_length}, %eax; vmread %rax, %rbx
    mov ${vmcs_information}, %eax; vmread %rax, %rcx
    mov %ebx, {utcb_length}(%r14);  mov %ecx, {utcb_information}(%r14)
1:  test $~{mtd_rip}, %esi
    jz to_portal
    without {mtd_qual}, 1f
    mov ${vmcs_qualification}, %eax; vmread %rax, {utcb_qualification}(%r14)
    mov ${vmcs_linear}, %eax; vmread %rax, {utcb_qualification} + 8(%r14)
    mov ${vmcs_physical}, %eax; vmread %rax, {utcb_qualification} + 16(%r14)
1:  without {mtd_gpr_0_7}, 1f
    mov ${vmcs_rsp}, %eax; vmread %rax, %r9
1:  mov $~({mtd_rip} + {mtd_qual} + {mtd_gpr_0_7} + {mtd_gpr_8_15}), %r10d
    jmp message
    .subsection 1
    // The handler enters by SYSCALL: it needs its own.
4:  mov %rsp, %r13;  mov %r15, %rsp;  push %rdi;  push %rsi;  push %rdx;  push %r8
    mov %r15, %rdi
    call {leave}
    pop %r8;  pop %rdx;  pop %rsi;  pop %rdi;  mov %r13, %rsp
    jmp 3b
    .previous

// The general registers of the guest that stopped, at whose end RSP is. Entry 4 gets \refused.
.macro save_guest refused
    push_all r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp
    push \refused
    push_all rbx, rdx, rcx, rax
.endm

// Enters a guest from Rust: RDI = its EC, RSI = 0 the first time. RSP stays: exits have their own.
.globl vmx_enter
vmx_enter:
    mov %rdi, %r15
    test %rsi, %rsi
    jmp vmx_load

// VMX: enters a guest again, as above. If a host program needed its own state meanwhile Rust loads the guest's.
.globl vmx_resume
vmx_resume:
    testl ${a_guest_ran}, {unusual}(%r15)
    jz 2f
    .subsection 1
2:  mov %rdx, %r12;  mov %esi, %r13d;  mov %rdx, %rdi;  mov %r15, %rsp
    call {make_live}
    mov %r12, %rdx;  mov %r13d, %esi
    jmp 3f
    .previous
3:  without {mtd_rip}, 1f
    mov ${vmcs_rip}, %eax; vmwrite {utcb_rip}(%r14), %rax
1:  mov %r15, %rsp;  mov %rdx, %rdi;  mov %rdx, %r15
    test ${mtd_gpr_8_15}, %sil
    cmovnz %r14, %r15
    without {mtd_gpr_0_7}, 1f
    mov %r14, %rdi
    mov ${vmcs_rsp}, %eax; vmwrite 32(%r14), %rax
1:  test %esp, %esp                     // it was launched
vmx_load:
    mov (%rdi), %rax
    load_guest                          // the flag survives
    jz 1f
    vmresume
    jmp vmx_refused
1:  vmlaunch

// The CPU did not enter the guest of the current EC. RSP = somewhere on the CPU's stack.
vmx_refused:
    and ${block_mask}, %rsp;  mov {stack_top}(%rsp), %rsp;  lea 128(%rsp), %rsp
    save_guest $1
    jmp exit

// After an exit. Programs may change CR2, so it is kept now.
.globl vmx_exit
vmx_exit:
    save_guest $0
    mov {cpu}(%rsp), %r15;  mov {guest}(%rsp), %rax
    mov %cr2, %rcx;  mov %rcx, {guest_cr2}(%r15)
    equal_or exit, {poised}(%r15), %rax
    mov ${vmcs_reason}, %ecx;  vmread %rcx, %rbx
    movabs ${vmx_events}, %rax
    cmp $63, %ebx
    ja exit
    bt %rbx, %rax
    jc guest_event

exit:
    mov %rsp, %rdi;  mov {cpu}(%rsp), %rsp
    call {vcpu_exit}
    ud2
