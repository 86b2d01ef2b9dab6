# Where a further CPU starts, in real mode at the page that the start-up IPI named, to which this code is copied, and its
# way to 64-bit mode on a stack of its own. Intel SDM vol. 3A, 9.4.4 (start-up), 10.9.1 (protected mode).

.set FURTHER_CR0_PE, 1
.set FURTHER_CR0_PG_WP_NE_PE, 1 << 31 | 1 << 16 | 1 << 5 | 1
.set FURTHER_CR4_PAE, 1 << 5
.set FURTHER_MSR_EFER, 0xc0000080
.set FURTHER_EFER_LME, 1 << 8
.set CPUID_ID_SHIFT, 24
.set STACK_SHIFT, 14

.text
.globl further_begin, further_end
.code16
further_begin:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    lgdtl further_table - further_begin
    mov %cr0, %eax
    or $FURTHER_CR0_PE, %eax
    mov %eax, %cr0
    ljmpl $24, $further_protected
    .balign 4
further_table:
    .word 4 * 8 - 1
    .long descriptor_table
further_end:

.code32
further_protected:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov %cr4, %eax
    or $FURTHER_CR4_PAE, %eax
    mov %eax, %cr4
    mov $top_table, %eax
    mov %eax, %cr3
    mov $FURTHER_MSR_EFER, %ecx
    rdmsr
    or $FURTHER_EFER_LME, %eax
    wrmsr
    mov $FURTHER_CR0_PG_WP_NE_PE, %eax
    mov %eax, %cr0
    ljmp $8, $further_long

.code64
further_long:
    mov $1, %eax
    cpuid
    shr $CPUID_ID_SHIFT, %ebx
    mov %ebx, %edi
    lea 1(%rdi), %eax
    shl $STACK_SHIFT, %rax
    lea further_stacks(%rax), %rsp
    xor %ebp, %ebp
    call further_enter
    ud2

.bss
.balign 16
further_stacks:
    .skip 16 << STACK_SHIFT
