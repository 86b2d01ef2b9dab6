//! The SVM instructions (AMD APM vol. 2, 15.5, 15.17) and the entry stub.
#![allow(unsafe_code)] // Privileged instructions and a naked function.

use crate::vcpu::{Gprs, STACK_OFFSET, load_registers};
use core::arch::{asm, naked_asm};

/// Stores what VMRUN does not switch (FS, GS, TR, LDTR, syscall MSRs) into the control block at `pa`.
///
/// # Safety
/// SVM is enabled; `pa` is a control block.
pub unsafe fn vmsave(pa: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmsave rax", in("rax") pa, options(nostack)) };
}

/// Runs the guest of the control block at physical address `vmcb`, then continues at the exit of `fast.S` with the guest's
/// general registers stored. Entry 4 of `gprs` holds the physical address of the block with the host's FS, GS, TR, LDTR
/// and syscall MSRs.
///
/// # Safety
/// As for [`crate::vcpu::VirtualCpu::enter`]; both control blocks are complete.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(gprs: *mut Gprs, vmcb: u64) -> ! {
    naked_asm!(
        "lea rsp, [rdi + {stack}]",
        "mov rax, rsi",
        load_registers!(),
        "jmp {run}",
        stack = const STACK_OFFSET,
        run = sym crate::fast::svm_run,
    )
}
