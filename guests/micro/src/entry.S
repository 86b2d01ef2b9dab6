/* From a multiboot 1 loader's 32-bit protected mode to Rust in long mode: header, page tables, GDT, interrupt stubs.
   Multiboot Specification 0.6.96, 3.1; Intel SDM vol. 3A, 10.8.5 (entering long mode). */

.section .multiboot, "ax"
.balign 4
multiboot_header:
    .long 0x1badb002
    .long 0x00010003                            /* modules on pages, memory sizes, address fields */
    .long -(0x1badb002 + 0x00010003)
    .long multiboot_header
    .long image_start
    .long image_end
    .long bss_end
    .long micro_entry

.section .text
.code32
.global micro_entry
micro_entry:
    cli
    cld
    movl $stack_top, %esp
    movl %eax, %esi                             /* loader's magic */
    movl %ebx, %ebp                             /* boot information */

    /* Identity map of the first 4 GiB by pages of 2 MiB. */
    movl $page_directories, %edi
    movl $0x83, %eax                            /* present, writable, large */
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $page_pointers, %edi
    movl $(page_directories + 3), %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 2b
    movl $(page_pointers + 3), %eax
    movl %eax, page_root

    movl $page_root, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax                            /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax                            /* LME */
    wrmsr
    movl %cr0, %eax
    andl $0xfffffff3, %eax                      /* neither EM nor TS */
    orl $0x80000022, %eax                       /* PG, NE, MP */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $long_mode

.code64
long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $stack_top, %esp
    movl %esi, %edi
    movl %ebp, %esi
    xorl %ebp, %ebp
    call main
    ud2

/* Every vector: registers as Rust's `Frame` has them. */
.altmacro
.macro stub vector
    .balign 16
    .if !(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17)
    pushq $0
    .endif
    pushq $\vector
    jmp interrupt_common
.endm

.balign 16
.global interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    stub %vector
    .set vector, vector + 1
.endr

interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq %rsp, %rdi
    subq $8, %rsp                               /* 15 words on a 16-byte boundary: one more */
    call interrupt
    addq $8, %rsp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

.section .rodata
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff                    /* 0x08: 64-bit code */
    .quad 0x00cf93000000ffff                    /* 0x10: data */
gdt_pointer:
    .word . - gdt - 1
    .long gdt

.section .bss
.balign 4096
page_root:
    .skip 4096
page_pointers:
    .skip 4096
page_directories:
    .skip 4 * 4096
    .skip 65536
stack_top:
