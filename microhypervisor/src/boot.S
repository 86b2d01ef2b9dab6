// Entry from the boot loader: 32-bit protected mode without paging, in the section that runs at its physical address.
// Multiboot2 (EAX = 0x36d76289, EBX = information) and PVH (EBX = start information) become one hand-over:
// EDI = magic, ESI = information. The first 4 GiB are mapped one to one until the kernel runs on its own tables.

.set MULTIBOOT2_MAGIC, 0xe85250d6
.set PVH_MAGIC, 0x336ec578
.set KERNEL, 0xffffffff80000000

.section .boot.header, "a", @progbits
.balign 8
multiboot2_header:
    .long MULTIBOOT2_MAGIC, 0, multiboot2_end - multiboot2_header
    .long -(MULTIBOOT2_MAGIC + (multiboot2_end - multiboot2_header))
    .short 6, 1                     // align modules to pages, optional
    .long 8
    .short 0, 0
    .long 8
multiboot2_end:

.section .note.pvh, "a", @note
    .long 4, 4, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long boot_pvh

.section .bootbss, "aw", @nobits
.balign 4096
boot_pml4:     .skip 4096
boot_pdpt_low: .skip 4096
boot_pdpt_high:.skip 4096
boot_pd:       .skip 4096 * 4
boot_pd_end:

.section .boot, "ax", @progbits
.code32
.globl boot_multiboot2
boot_pvh:
    mov $PVH_MAGIC, %eax
boot_multiboot2:
    cld
    mov %eax, %ebp                  // magic
    mov %ebx, %esi                  // information

    // Four page directories of 2 MiB pages: 4 GiB one to one, and its first GiB at KERNEL.
    mov $boot_pd, %edi
    mov $0x83, %eax
1:  mov %eax, (%edi);  movl $0, 4(%edi)
    add $0x200000, %eax;  add $8, %edi
    cmp $boot_pd_end, %edi
    jne 1b
    movl $boot_pd + 3, boot_pdpt_low;            movl $boot_pd + 0x1003, boot_pdpt_low + 8
    movl $boot_pd + 0x2003, boot_pdpt_low + 16;  movl $boot_pd + 0x3003, boot_pdpt_low + 24
    movl $boot_pd + 3, boot_pdpt_high + 510 * 8
    movl $boot_pdpt_low + 3, boot_pml4;          movl $boot_pdpt_high + 3, boot_pml4 + 511 * 8

boot_paging:
    mov %cr4, %eax;  or $0x20, %eax;  mov %eax, %cr4    // PAE
    mov $boot_pml4, %eax;  mov %eax, %cr3
    mov $0xc0000080, %ecx           // EFER: SCE, LME, NXE
    rdmsr
    or $0x901, %eax
    wrmsr
    mov $0x80010033, %eax;  mov %eax, %cr0              // PG, WP, NE, ET, MP, PE
    lgdt boot_gdtr
    ljmp $8, $2f
.code64
2:  mov $16, %eax;  mov %eax, %ds;  mov %eax, %es;  mov %eax, %ss
    xor %eax, %eax;  mov %eax, %fs;  mov %eax, %gs
    mov $further_entry, %rax
    test %ebp, %ebp
    jz 3f
    mov ${block} + {stack}, %rsp
    push $0
    mov ${main}, %rax
3:  mov %ebp, %edi;  mov %esi, %esi;  xor %ebp, %ebp
    jmp *%rax

.balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
boot_gdtr:
    .short . - boot_gdt - 1
    .quad boot_gdt

// Where a further processor starts: a copy of this on a page below 1 MiB, which CS points to, in real mode.
.code16
.globl trampoline
trampoline:
    cli
    cld
    lgdtl %cs:trampoline_gdtr - trampoline
    mov %cr0, %eax;  or $1, %al;  mov %eax, %cr0
    ljmpl $24, $3f
trampoline_gdtr:
    .short boot_gdtr - boot_gdt - 1
    .long boot_gdt
.org trampoline + {trampoline_size}
.code32
3:  mov $16, %eax;  mov %eax, %ds
    xor %ebp, %ebp
    jmp boot_paging

// A further processor in 64-bit mode, on the boot page tables. It claims what was prepared for it; if that has been
// given up because it came too late, it sleeps for ever.
.section .text
.code64
further_entry:
    mov ${offered}, %eax;  mov ${claimed}, %edx
    lock cmpxchg %edx, {ticket}(%rip)
    jne 1f
    mov {tables}(%rip), %rax;  mov %rax, %cr3
    mov {further_stack}(%rip), %rsp
    push $0
    jmp {further}
1:  cli
    hlt
    jmp 1b
