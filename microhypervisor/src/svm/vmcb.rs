//! The SVM instructions (AMD APM vol. 2, 15.5, 15.17) and the entry stub.
#![allow(unsafe_code)] // Privileged instructions and a naked function.

use crate::vcpu::{Gprs, STACK_OFFSET, load_registers, push_registers, vcpu_exit};
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
/// masking it is the host's IF at VMRUN that lets physical interrupts end the guest's run. The task priority is zero
/// anyway: QEMU can lose an interrupt that comes during an exit, until this makes it look again (`docs/emulators.md`).
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
        load_registers!(),
        "vmrun rax",
        "vmsave rax",
        "mov rax, [rsp - {stack} + 32]",
        "vmload rax",
        "cli",
        "stgi",
        "xor eax, eax; mov cr8, rax",
        push_registers!("push rax"),
        "call {vcpu_exit}",
        "ud2",
        stack = const STACK_OFFSET,
        vcpu_exit = sym vcpu_exit,
    )
}
