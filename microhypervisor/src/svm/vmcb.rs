//! The SVM instructions (AMD APM vol. 2, 15.5, 15.17) and the entry stub.
#![allow(unsafe_code)] // Privileged instructions and a naked function.

use crate::vcpu::{Gprs, STACK_OFFSET, vcpu_exit};
use core::arch::{asm, naked_asm};

/// Stores what VMRUN does not switch (FS, GS, TR, LDTR, syscall MSRs) into the control block at `pa`.
///
/// # Safety
/// SVM is enabled; `pa` is a control block.
pub unsafe fn vmsave(pa: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmsave rax", in("rax") pa, options(nostack)) };
}

/// Runs the guest of the control block at physical address `vmcb`, then continues at `vcpu_exit` with the guest's
/// general registers stored; RAX is in the control block. Entry 4 of `gprs` holds the physical address of the block
/// with the host's FS, GS, TR, LDTR and syscall MSRs.
///
/// GIF is clear while any of the guest's state is in the registers. IF is set meanwhile: with virtual interrupt
/// masking it is the host's IF at VMRUN that lets physical interrupts end the guest's run.
///
/// # Safety
/// As for [`crate::vcpu::VirtualCpu::enter`]; both control blocks are complete.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(gprs: *mut Gprs, vmcb: u64) -> ! {
    naked_asm!(
        "lea rsp, [rdi + {stack}]",
        "mov rax, rsi",
        "clgi",
        "sti",
        "vmload rax",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "vmrun rax",
        "vmsave rax",
        "mov rax, [rsp - {stack} + 32]",
        "vmload rax",
        "cli",
        "stgi",
        "push r15",
        "push r14",
        "push r13",
        "push r12",
        "push r11",
        "push r10",
        "push r9",
        "push r8",
        "push rdi",
        "push rsi",
        "push rbp",
        "push rax",
        "push rbx",
        "push rdx",
        "push rcx",
        "push rax",
        "mov rdi, rsp",
        "mov rsp, [rdi + {stack}]",
        "call {vcpu_exit}",
        "ud2",
        stack = const STACK_OFFSET,
        vcpu_exit = sym vcpu_exit,
    )
}
