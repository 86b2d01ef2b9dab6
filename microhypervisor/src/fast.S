// SYSCALL, SYSENTER, and calls and replies when nothing is in the way: see fast.rs.

.section .text, "ax", @progbits
.globl syscall_entry, sysenter_entry, run, return_from_hypercall, svm_enter, svm_resume, svm_resume_rip, svm_run, svm_event_found, vmx_event, vmx_event_for_syscall, vmx_enter, vmx_resume, vmx_exit

// What an EC found last: the call (RDI) or event and, of SVM, the exit code that alone says so; the count of changes before it
// looked, or 0; address of the portal, its message descriptor, address of its EC; SVM's code for the rest. At first nothing that
// can come.
.set found_key, {last_found};          .set found_code, {last_found} + 8;  .set found_changes, {last_found} + 16
.set found_portal, {last_found} + 24;  .set found_mtd, {last_found} + 32;  .set found_handler, {last_found} + 40
.set found_tail, {last_found} + 48
.set no_code, 0x7fffffffffffffff

// To \miss unless two operands are equal, or unless no bit is set in both.
.macro equal_or miss, one, other, size
    cmp\size \one, \other
    jne \miss
.endm
.macro clear_or miss, one, other, size
    test\size \one, \other
    jnz \miss
.endm
// To \target if they are, or if none is.
.macro if_equal target, one, other, size
    cmp\size \one, \other
    je \target
.endm
.macro if_clear target, one, other, size
    test\size \one, \other
    jz \target
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
    if_clear \skip, $\state, %esi
.endm

// To \miss unless \address in memory is one of user space, so that a return there cannot fault in the kernel.
.macro user_or miss, address
    cmpl $0x7fff, 4 + \address
    ja \miss
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

// R8 = the portal that the EC at RSP found last, RDX = its EC. If something has changed since, goes to \look, which finds
// it. Clobbers RAX.
.macro handler look
    same_or \look, {table} + {changes}, found_changes(%rsp)
    mov found_portal(%rsp), %r8;  mov found_handler(%rsp), %rdx
.endm

// The EC at RSP waits, with continuation \waits, until the EC at RDX has served it.
.macro hand_over waits
    mov %rdx, {callee}(%rsp);  mov %rsp, {caller}(%rdx)
    movb \waits, {state}(%rsp);  movb ${busy}, {state}(%rdx)
.endm

// All of a guest's general registers but RAX and RSP: the first eight from \low, RDI or RDX, the others from \high, R15 or RDX.
.macro load_guest low, high
    mov 64(\high), %r8;   mov 72(\high), %r9;   mov 80(\high), %r10;  mov 88(\high), %r11
    mov 96(\high), %r12;  mov 104(\high), %r13; mov 112(\high), %r14; mov 120(\high), %r15
    mov 8(\low), %rcx;    mov 24(\low), %rbx;   mov 40(\low), %rbp;   mov 48(\low), %rsi
    .ifc \low, %rdi
    mov 16(%rdi), %rdx;  mov 56(%rdi), %rdi
    .else
    mov 56(%rdx), %rdi;  mov 16(%rdx), %rdx
    .endif
.endm

// The handler at RSP is idle again, and the guest EC at RDX runs next on the CPU at R15; R14 = the message.
.macro event_served
    incq {counters} + {calls} + 8(%r15);  incq {counters} + {entries}(%r15)
    movb ${idle}, {state}(%rsp);  movq ${nobody}, {caller}(%rsp)
    mov %rdx, {current}(%r15);  mov {message}(%rsp), %r14
.endm

// Copies the message of the EC at RSP to the EC at RDX, whose page tables are loaded: it runs next on the CPU at R15.
// RSI, the message descriptor, becomes the number of words beyond the first. Clobbers RAX, R9, R10, RBP, RCX.
.macro pass_on
    mov {message}(%rsp), %rax;  mov {message}(%rdx), %r9
    and $0x1ff, %esi;  jnz 3f
2:  mov (%rax), %rax;  mov %rax, (%r9)
    mov %rdx, {current}(%r15)
    mov {tables}(%rdx), %rax
    if_equal 1f, %rax, {space}(%r15)
    mov %rax, {space}(%r15);  mov %rax, %cr3
    .subsection 1
3:  mov %rdi, %r10;  mov %esi, %ebp;  mov %esi, %ecx;  lea 8(%rax), %rsi;  lea 8(%r9), %rdi
    rep movsq
    mov %ebp, %esi;  mov %r10, %rdi;  jmp 2b
    .previous
1:
.endm

// Each CPU enters through a stub of its own (see smp.rs), which puts the user's RSP into R11 (its content, RFLAGS, is
// 0x202 on return by contract) and the current EC into RSP.
.balign 64
syscall_entry:
    mov %rcx, {rip}(%rsp);  mov %r11, {rsp}(%rsp)
    if_equal is_reply, ${reply}, %dil, b
    ja is_other
    store_registers %rsp
    mov {cpu}(%rsp), %r15
    equal_or slow, $0, {unusual}(%r15), l

    equal_or find_callee, %rdi, found_key(%rsp)
    handler find_callee
known_callee:
    equal_or slow, ${idle}, {state}(%rdx), w
    incq {counters} + {calls}(%r15)
    mov {portal_identifier}(%r8), %rdi
    hand_over ${await_reply}
    pass_on

    // Into the portal at R8, which enters at a user address: identifier in RDI, descriptor in RSI.
enter_portal:
    mov {rsp}(%rdx), %rsp;  mov {portal_ip}(%r8), %rcx;  mov $0x202, %r11d
    clear eax, edx, ebx, ebp, r8d, r9d, r10d, r12d, r13d, r14d, r15d
    sysretq

// SYSENTER, with the user's RIP in RDX, RSP in RCX; RSP = address of the current EC's. It leaves more flags as they were than
// SYSCALL: those that would open user memory, turn string instructions round, or spoil an IRET; and TF, for which a #DB
// comes before the first instruction (see `kernel_interrupt`). The current EC enters this way from now on.
.balign 16
sysenter_entry:
    push $2;  popfq
    mov (%rsp), %rsp
    movb $1, {sysenter}(%rsp)
    mov %rdx, {rip}(%rsp);  mov %rcx, {rsp}(%rsp)

    equal_or is_no_reply, ${reply}, %dil, b
    mov {cpu}(%rsp), %r15;  mov {caller}(%rsp), %rdx
    equal_or is_reply, ${await_event_reply}, {state}(%rdx), w
    equal_or event_reply, ${mtd_rip}, %esi
    equal_or event_reply, ${a_guest_alone}, {unusual}(%r15), l
    mov {guest}(%rdx), %rbx
    equal_or slow, {poised}(%r15), %rbx
    event_served
    mov ${vmcs_rip}, %eax; vmwrite {utcb_rip}(%r14), %rax
    mov (%rdx), %rax
    load_guest %rdx, %rdx
    vmresume;  jmp vmx_refused
is_reply:
    mov {cpu}(%rsp), %r15;  mov {caller}(%rsp), %rdx
    equal_or is_event_reply, ${await_reply}, {state}(%rdx), w
    equal_or slow, $0, {unusual}(%r15), l
    user_or slow, {rip}(%rdx)

    incq {counters} + {calls} + 8(%r15)
    movb ${idle}, {state}(%rsp);  movq ${nobody}, {caller}(%rsp)
    pass_on
    mov {rip}(%rdx), %rcx;  xor %edi, %edi  // SUCCESS
leave:
    mov $0x202, %r11d;  mov {rsp}(%rdx), %rsp
    load_registers %rdx
    sysretq

    // The reply to an event. Of a guest: it is entered again, with new general registers and RIP if the reply says so. If it is
    // poised still it was the fast path that passed the event on.
is_event_reply:
    equal_or slow, ${await_event_reply}, {state}(%rdx), w
event_reply:
    clear_or slow, $~{a_guest_ran}, {unusual}(%r15), l
    mov {guest}(%rdx), %rbx
    equal_or slow, {poised}(%r15), %rbx
    equal_or 1f, ${mtd_rip}, %esi
    event_served
    jmp *{resume_rip}(%rbx)
1:  clear_or slow, ${not_fast_reply}, %esi
    event_served
    jmp *{resume}(%rbx)

// ctrl_sm without Z: of a semaphore that is no interrupt's, and for which nobody waits or has to, only the count changes, see
// `Sm::word`.
is_no_reply:
    jb slow_unsaved
is_other:
    if_equal 1f, ${up}, %dil, b
    equal_or slow_unsaved, ${down}, %dil, b
1:  mov %rax, (%rsp);  mov %r9, 72(%rsp)
    user_or slow_other, {rip}(%rsp)
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
    mov {cpu}(%rsp), %r9;  incq {counters} + {calls} + 8 * {up}(%r9)
    mov {rip}(%rsp), %rcx;  mov 72(%rsp), %r9;  mov (%rsp), %rax;  xor %edi, %edi
    mov $0x202, %r11d;  mov {rsp}(%rsp), %rsp
    sysretq

// The EC at RSP, whose RDI and RSI are as they were, makes hypercall EAX: RBX = EC, RSP = its CPU.
.macro begin_hypercall
    mov %rdi, 56(%rsp);  mov %rsi, 48(%rsp);  movb ${busy}, {state}(%rsp)
    mov %rsp, %rbx;  mov {cpu}(%rsp), %rsp
    incq {counters} + {hypercalls}(%rsp, %rax, 8)
.endm

// The semaphore at RCX is an interrupt's, or somebody waits for it, or has to.
semaphore_waits:
    mov (%rsp), %rax;  mov 72(%rsp), %r9
    store_registers %rsp
    mov ${up}, %eax
    begin_hypercall
    lea {kernel}(%rcx), %rdx;  movzbl %dil, %ecx;  mov %rsp, %rdi;  mov %rbx, %rsi
    call {ctrl_sm}

// The hypercall of the EC at RBX is over, with status AL. RBP and R12 to R15 are the program's still.
end_hypercall:
    movzbl %al, %edi
    equal_or 1f, $0, {unusual}(%rsp), q // nor is anybody to be looked for
    equal_or 1f, $0, {recall}(%rbx), b
    user_or 1f, {rip}(%rbx)
    mov {rip}(%rbx), %rcx;  mov $0x202, %r11d;  mov 48(%rbx), %rsi;  mov (%rbx), %rax;  mov 16(%rbx), %rdx
    mov 64(%rbx), %r8;  mov 72(%rbx), %r9;  mov 80(%rbx), %r10;  mov {rsp}(%rbx), %rsp;  mov 24(%rbx), %rbx
    sysretq
1:  mov %rdi, 56(%rbx);  mov %rsp, %rdi;  mov %rbx, %rsi
    jmp run

// All other calls, and these if anything is in the way. Whoever replies has nothing to save.
slow_other:
    mov (%rsp), %rax;  mov 72(%rsp), %r9
slow_unsaved:
    store_registers %rsp
slow:
    mov %edi, %eax;  and $15, %eax
    begin_hypercall
    clear_or 2f, ${tracing}, {unusual}(%rsp), l
1:  movzbl %dil, %ecx;  mov %rdi, %rdx;  shr $8, %rdx;  mov %rsp, %rdi;  mov %rbx, %rsi
    call {hypercall};  jmp end_hypercall
2:  mov %rbx, %rdi
    call {trace_hypercall};  mov 56(%rbx), %rdi;  jmp 1b

// Runs the EC at RSI on the CPU at RDI: at once if it returns from a hypercall and is not recalled, its page tables are loaded,
// the FPU is another's, and nothing is unusual, nor anybody to be looked for.
.balign 16
run:
    mov %rdi, %rsp
    equal_or 1f, $0, {unusual}(%rdi), q
    equal_or 1f, ${busy}, {state}(%rsi), w
    user_or 1f, {rip}(%rsi)
    same_or 1f, {tables}(%rsi), {space}(%rdi)
    if_equal 1f, %rsi, {fpu_owner}(%rdi)
    if_equal return_from_hypercall, %rsi, {current}(%rdi)
    mov %rsi, {current}(%rdi);  incq {counters} + {switches}(%rdi)

// Back to user mode after a hypercall of the EC at RSI.
return_from_hypercall:
    mov %rsi, %rdx;  mov 48(%rdx), %rsi;  mov 56(%rdx), %rdi
    mov {rip}(%rdx), %rcx;  jmp leave   // RCX is canonical and in user space: checked by the caller
1:  call {go_on};  ud2

// Enters a guest from Rust: RDI = its EC, RSI = physical address of its control block.
svm_enter:
    lea 128(%rdi), %rsp;  mov %rsi, %rax;  mov %rdi, %r15;  jmp svm_load

// SVM: enters the guest of the EC at RDX, with RIP and general registers from the message at R14 as far as RSI says so, else from
// the EC. RBX = what the guest has beyond an EC.
svm_resume:
    mov {control}(%rbx), %rbp;  lea 128(%rdx), %rsp;  mov {control_physical}(%rbx), %rax
    without {mtd_rip}, 1f
    mov {utcb_rip}(%r14), %rcx;  mov %rcx, {vmcb_rip}(%rbp)
1:  mov %rdx, %rdi;  mov %rdx, %r15
    test ${mtd_gpr_8_15}, %sil
    cmovnz %r14, %r15
    without {mtd_gpr_0_7}, svm_load
    mov %r14, %rdi
    mov 32(%r14), %rcx;  mov %rcx, {vmcb_rsp}(%rbp);  mov (%r14), %rcx;  mov %rcx, {vmcb_rax}(%rbp)
svm_load:
    load_guest %rdi, %r15
    jmp svm_run

// The same with RIP from the message, all else from the EC.
svm_resume_rip:
    mov {control}(%rbx), %rbp;  lea 128(%rdx), %rsp;  mov {control_physical}(%rbx), %rax
    mov {utcb_rip}(%r14), %rcx;  mov %rcx, {vmcb_rip}(%rbp)
    load_guest %rdx, %rdx               // RAX is in the control block still

// Runs the guest of the control block at physical address RAX; RSP = the end of the EC's general registers, whose entry 4
// holds the physical address of the block with the host's FS, GS, TR, LDTR and syscall MSRs. GIF is clear while any of the
// guest's state is in the registers. IF is set meanwhile: with virtual interrupt masking it is the host's IF at VMRUN that
// lets physical interrupts end the guest's run. The task priority is zero anyway: QEMU can lose an interrupt that comes
// during an exit, until this makes it look again (docs/emulators.md).
svm_run:
    clgi;  sti;  vmload %rax
    vmrun %rax
    vmsave %rax;  mov 32 - 128(%rsp), %rax;  vmload %rax;  cli;  stgi
    push_all r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rax, rbx, rdx, rcx
    mov {guest} - 8(%rsp), %r12;  mov {control}(%r12), %r11
    push {vmcb_rax}(%r11)

    // The guest of the EC at RSP stopped.
    xor %eax, %eax;  mov %rax, %cr8;  mov {cpu}(%rsp), %r15
    equal_or exit, {poised}(%r15), %r12
    clear_or exit, $0x80, {vmcb_interrupted}+3(%r11), b
    mov {vmcb_exit_code}(%r11), %r8;  mov found_key(%rsp), %r13
    equal_or svm_reason, %r8, found_code(%rsp)
svm_handler:
    handler find_handler

// Event R13 of the EC at RSP is sent to the EC at RDX through the portal at R8: RDI = identifier, RSI = message descriptor,
// R14 = its message.
.macro send_event
    incq {counters} + {events}(%r15, %r13, 8)
    hand_over ${await_event_reply}
    mov %rdx, {current}(%r15)
    mov {portal_identifier}(%r8), %rdi;  mov found_mtd(%rsp), %esi;  mov {message}(%rdx), %r14
.endm

// Event R13 of the guest EC at RSP, whose exit code is in the control block at R11, goes to the EC at RDX through the portal at
// R8, if it is idle and nothing else is in the way. The guest's RBX, RBP, R9 and R10 are where they were. What a monitor
// asks for to answer CPUID, a port or device memory is told here.
svm_event:
    equal_or exit, ${idle}, {state}(%rdx), w
    send_event
    mov {vmcb_rip}(%r11), %rax;  mov %rax, {utcb_rip}(%r14)
    jmp *found_tail(%rsp)

// The same when the handler has just been found: what the rest is. Where the CPU tells no instruction's length it never does.
svm_event_found:
    mov $svm_port, %rax
    if_equal 1f, ${io_exit}, {vmcb_exit_code}(%r11), l
    mov $svm_more, %rax
    clear_or 1f, $~{mtd_rip}, found_mtd(%rsp), l
    mov $svm_rip, %rax
    equal_or 1f, $0, {vmcb_next_rip}(%r11), q
    mov $svm_rip_alone, %rax
1:  mov %rax, found_tail(%rsp)
    jmp svm_event

// The rest. RIP is in RAX; the length of the instruction is told, 0 if it is not known, and no information.
svm_rip_alone:
    movq $0, {utcb_length}(%r14)
    jmp enter_portal
.macro svm_length
    mov {vmcb_next_rip}(%r11), %rcx;  sub %rax, %rcx;  cmp $15, %rcx;  jbe 2f
    xor %ecx, %ecx
2:  mov %rcx, {utcb_length}(%r14)
.endm
svm_rip:
    svm_length
    jmp enter_portal
svm_port:
    // As `io_qualification` port; string and REP; input; size less one.
    mov {vmcb_exit_info} + 8(%r11), %rcx;  sub %rax, %rcx;  movzbl %cl, %ecx;  mov %rcx, {utcb_length}(%r14)
    mov $~({mtd_rip} + {mtd_qual} + {mtd_gpr_0_7} + {mtd_gpr_8_15} + {mtd_cr} + {mtd_efer}), %r15d
    without {mtd_qual}, 1f
    mov {vmcb_exit_info}(%r11), %eax;  mov %eax, %ecx;  and $1, %ecx;  mov %eax, %r13d;  and $13, %r13d;  add %ecx, %r13d
    mov %eax, %ecx;  shr $4, %ecx;  and $7, %ecx;  and $0xffff0000, %eax;  lea -1(%rcx, %r13, 4), %ecx;  or %ecx, %eax
    mov %rax, {utcb_qualification}(%r14);  movq $0, {utcb_qualification} + 8(%r14)
    movq $0, {utcb_qualification} + 16(%r14);  jmp 1f
svm_more:
    svm_length
    mov $~({mtd_rip} + {mtd_gpr_0_7} + {mtd_gpr_8_15} + {mtd_cr} + {mtd_efer}), %r15d
1:  clear_or 4f, ${mtd_cr} + {mtd_efer}, %esi
5:  mov {vmcb_rsp}(%r11), %rcx
    .subsection 1
4:  without {mtd_cr}, 1f
    mov {vmcb_cr4}(%r11), %rax;  mov %rax, {utcb_cr4}(%r14);  mov {vmcb_cr3}(%r11), %rax;  mov %rax, {utcb_cr3}(%r14)
    mov {vmcb_cr0}(%r11), %rax;  mov %rax, {utcb_cr0}(%r14);  mov {vmcb_cr2}(%r11), %rax;  mov %rax, {utcb_cr2}(%r14)
    mov {vmcb_tpr}(%r11), %eax;  and $15, %eax;  mov %rax, {utcb_cr8}(%r14)
1:  without {mtd_efer}, 5b
    mov {vmcb_efer}(%r11), %rax;  and $~{efer_svme}, %rax;  mov %rax, {utcb_efer}(%r14);  jmp 5b
    .previous

.macro copy_registers offsets:vararg
    .irp offset, \offsets
    mov \offset(%rsp), %rax;  mov %rax, \offset(%r14)
    .endr
.endm

// The message at R14 gets general registers, with RSP from RCX, and what of the descriptor in RSI is in R15 as well.
message:
    without {mtd_gpr_0_7}, 1f
    mov %rcx, 32(%r14);  mov %rbx, 24(%r14);  mov %rbp, 40(%r14)
    copy_registers 0, 8, 16, 48, 56
1:  without {mtd_gpr_8_15}, 1f
    mov %r9, 72(%r14);  mov %r10, 80(%r14)
    copy_registers 64, 88, 96, 104, 112, 120
1:  clear_or more_to_tell, %r15d, %esi, l
to_portal:
    if_equal enter_portal, $0, {syscall_off}(%r12), b
    mov {rsp}(%rdx), %rcx;  mov {portal_ip}(%r8), %rdx
    clear eax, ebx, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
    sti                                 // takes effect behind the next instruction
    sysexitq

// VMX. A handler that enters by SYSENTER leaves the guest's SYSCALL where it is. The host's is off after the exit, as the
// VMCS says: if that is not yet, or no longer, what the handler needs, the slow path mends it.
vmx_event:
    equal_or exit, ${idle_by_sysenter}, {state}(%rdx), l
    user_or exit, {rsp}(%rdx)
3:  send_event
    mov ${vmcs_rip}, %eax; vmread %rax, {utcb_rip}(%r14)
    mov ${vmcs_length}, %eax; vmread %rax, %r13
    mov ${vmcs_information}, %eax; vmread %rax, %rcx
    mov %r13d, {utcb_length}(%r14);  mov %ecx, {utcb_information}(%r14)
    if_clear to_portal, $~{mtd_rip}, %esi
    without {mtd_qual}, 1f
    mov ${vmcs_qualification}, %eax; vmread %rax, {utcb_qualification}(%r14)
    mov ${vmcs_linear}, %eax; vmread %rax, {utcb_qualification} + 8(%r14)
    mov ${vmcs_physical}, %eax; vmread %rax, {utcb_qualification} + 16(%r14)
1:  without {mtd_gpr_0_7}, 1f
    mov ${vmcs_rsp}, %eax; vmread %rax, %rcx
1:  mov $~({mtd_rip} + {mtd_qual} + {mtd_gpr_0_7} + {mtd_gpr_8_15}), %r15d
    jmp message

// A handler that enters by SYSCALL needs its own.
vmx_event_for_syscall:
    equal_or exit, ${idle}, {state}(%rdx), l
    mov %r15, %rsp;  mov %r15, %rdi
    call {leave}
    mov {current}(%r15), %rsp;  mov found_portal(%rsp), %r8;  mov found_handler(%rsp), %rdx
    mov 72(%rsp), %r9;  mov 80(%rsp), %r10
    jmp 3b

// The general registers of the guest that stopped, at whose end RSP is. Entry 4 gets \refused.
.macro save_guest refused
    push_all r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp
    push \refused
    push_all rbx, rdx, rcx, rax
.endm

// Enters a guest from Rust: RDI = its EC, RSI = 0 the first time. RSP stays: exits have their own.
vmx_enter:
    mov %rdi, %r15;  mov %rdi, %rsp
    test %rsi, %rsi;  jmp vmx_load

// VMX: enters a guest again, as above. If a host program needed its own state meanwhile Rust loads the guest's.
vmx_resume:
    if_clear make_live, ${a_guest_ran}, {unusual}(%r15), l
is_live:
    without {mtd_rip}, 1f
    mov ${vmcs_rip}, %eax; vmwrite {utcb_rip}(%r14), %rax
1:  mov %rdx, %rdi;  mov %rdx, %r15
    test ${mtd_gpr_8_15}, %sil
    cmovnz %r14, %r15
    without {mtd_gpr_0_7}, 1f
    mov %r14, %rdi
    mov ${vmcs_rsp}, %eax; vmwrite 32(%r14), %rax
1:  test %esp, %esp                     // it was launched
vmx_load:
    mov (%rdi), %rax
    load_guest %rdi, %r15               // the flag survives
    jz 1f
    vmresume;  jmp vmx_refused
1:  vmlaunch

// The CPU did not enter the guest of its current EC. RSP = an EC of the CPU.
vmx_refused:
    mov {cpu}(%rsp), %rsp;  mov {current}(%rsp), %rsp;  lea 128(%rsp), %rsp
    save_guest $1
    jmp exit

// After an exit. Programs may change CR2, so it is kept now.
vmx_exit:
    save_guest $0
    mov {cpu}(%rsp), %r15;  mov {guest}(%rsp), %r12
    mov %cr2, %rcx;  mov %rcx, {guest_cr2}(%r15)
    equal_or exit, {poised}(%r15), %r12
    mov ${vmcs_reason}, %ecx;  vmread %rcx, %r13
    equal_or 1f, %r13, found_key(%rsp)
    handler find_handler
    jmp *{pass_event}(%r12)
1:  movabs ${vmx_events}, %rax
    cmp $63, %r13d;  ja exit
    bt %r13, %rax;   jc find_handler

exit:
    mov %rsp, %rdi;  mov {cpu}(%rsp), %rsp
    call {vcpu_exit};  ud2

// The callee of this call is not known.
find_callee:
    mov %rdi, %r9;  mov %rdi, %r13;  shr $8, %r9;  mov ${may_call}, %r10d;  jmp find
callee_found:
    mov %r14, found_changes(%rsp);  mov %rcx, %r8;  jmp known_callee

// Keeps the exit code with the handler, unless it does not tell the event alone.
svm_reason:
    mov ${event_page_fault}, %r13d
    if_equal find_handler, ${nested_fault}, %r8
    cmp ${exit_codes}, %r8;  jae exit
    movzbl {exit_events}(%r8), %r13d
    if_clear exit, %r13d, %r13d, l
    equal_or find_handler, ${event_rdmsr}, %r13d, l
    mov $no_code, %r8;  add {vmcb_exit_info}(%r11), %r13d    // a WRMSR
    if_equal svm_handler, %r13, found_key(%rsp)

// Event R13 of the guest EC at RSP, whose handler is not known. It must have asked for what can be told here, and be in the EC's own
// host space, whose page tables are loaded while the guest runs.
find_handler:
    mov {event_base}(%rsp), %r9;  add %r13, %r9;  mov ${may_event}, %r10d

// RCX = portal for the selector in R9 and the permission in R10B, RDX = its EC, which is on the CPU at R15, both kept for R13 and
// R8. Clobbers RAX, R14.
find:
    mov {table} + {changes}, %r14;  movq $0, found_changes(%rsp)
    object_at ${portal}, %r9, %r9d, %r10b, 1f
    mov {kernel} + {portal_enters}(%rcx), %eax;  mov {kernel} + {portal_enters} + 4(%rcx), %edx;  shl $5, %eax
    equal_or 1f, %edx, {headers}+{generation}(%rax)
    mov {headers} + {content}(%rax), %edx;  and $~0x3f, %edx;  add ${kernel}, %rdx;  add ${kernel}, %rcx
    equal_or 1f, %r15, {cpu}(%rdx)
    mov {portal_mtd}(%rcx), %r9d;  mov %r13, found_key(%rsp);  mov %r8, found_code(%rsp)
    mov %rcx, found_portal(%rsp);  mov %r9, found_mtd(%rsp);  mov %rdx, found_handler(%rsp)
    if_equal callee_found, ${may_call}, %r10b, b
    xor ${mtd_rip}, %r9d
    clear_or exit, ${not_fast}, %r9d
    same_or exit, {tables}(%rdx), {tables}(%rsp)
    mov %r14, found_changes(%rsp);  mov %rcx, %r8;  mov 72(%rsp), %r9;  mov 80(%rsp), %r10
    jmp *{pass_event}(%r12)
1:  if_equal slow, ${may_call}, %r10b, b
    jmp exit

// The message gets what Rust has to get.
more_to_tell:
    mov %rsp, %r13;  mov {cpu}(%rsp), %rsp;  push %rdi;  push %rsi;  push %rdx;  push %r8
    mov %r13, %rdi;  and %r15d, %esi
    call {save_rest}
    pop %r8;  pop %rdx;  pop %rsi;  pop %rdi;  jmp to_portal

// The state of the guest of the EC at RDX was taken out of the registers.
make_live:
    mov %rdx, %r12;  mov %esi, %r13d;  mov %rdx, %rdi;  mov %r15, %rsp
    call {make_live}
    mov %r12, %rdx;  mov %r13d, %esi;  mov found_handler(%rdx), %rsp;  jmp is_live
