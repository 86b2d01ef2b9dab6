# From a multiboot loader's 32-bit protected mode to 64-bit mode, with 4 GiB mapped as they are.
#
# Multiboot Specification 0.6.96, 3.1 (header) and 3.2 (machine state); Intel SDM vol. 3A, 11.8.5 (entering 64-bit mode).

.set MULTIBOOT_MAGIC, 0x1badb002
.set MULTIBOOT_FLAGS, 1 << 16 | 1 << 1      # address fields are valid; memory sizes wanted

.section .multiboot, "ax"
.balign 4
multiboot_header:
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .long multiboot_header
    .long image_start
    .long image_data_end
    .long image_end
    .long start

.set CR0_PG_WP_NE_PE, 1 << 31 | 1 << 16 | 1 << 5 | 1
.set CR4_PAE, 1 << 5
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8
.set LARGE_PAGE, 0x83                       # 2 MiB, writable, present
.set TABLE, 0x03

.text
.code32
.globl start
start:
    cli
    cld
    mov %eax, boot_magic
    mov %ebx, boot_information
    # Four page directories of 512 large pages; the loader cleared them.
    mov $LARGE_PAGE, %eax
    xor %ecx, %ecx
1:  mov %eax, directories(, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $2048, %ecx
    jne 1b
    mov $directories + TABLE, %eax
    xor %ecx, %ecx
2:  mov %eax, pointers(, %ecx, 8)
    add $0x1000, %eax
    inc %ecx
    cmp $4, %ecx
    jne 2b
    movl $pointers + TABLE, top_table

    mov %cr4, %eax
    or $CR4_PAE, %eax
    mov %eax, %cr4
    mov $top_table, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0_PG_WP_NE_PE, %eax
    mov %eax, %cr0
    lgdt descriptor_table_pointer
    ljmp $8, $long_mode

.code64
long_mode:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov $stack_top, %esp
    xor %ebp, %ebp
    mov boot_magic(%rip), %edi
    mov boot_information(%rip), %esi
    call enter
    ud2

.data
.balign 8
.globl descriptor_table
descriptor_table:
    .quad 0
    .quad 0x00af9b000000ffff                # 64-bit code
    .quad 0x00cf93000000ffff                # data
    .quad 0x00cf9b000000ffff                # 32-bit code, for further CPUs
descriptor_table_end:
descriptor_table_pointer:
    .word descriptor_table_end - descriptor_table - 1
    .long descriptor_table
    .balign 4
boot_magic:
    .long 0
boot_information:
    .long 0

.bss
.balign 4096
.globl top_table
top_table:
    .skip 4096
pointers:
    .skip 4096
directories:
    .skip 4 * 4096
stack:
    .skip 32 * 1024
stack_top:
