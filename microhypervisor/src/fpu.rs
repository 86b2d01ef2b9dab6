#![allow(unsafe_code)]
//! FPU state stays in the registers until another owner needs the unit (Intel SDM vol. 1, 13).
//!
//! Unsafe: XSAVE and XRSTOR.
//!
//! CR0.TS is set whenever the registers may hold somebody else's state: user programs without the FPU right can never
//! look at it. Only an EC with that right, as owner, runs with TS clear. Guests have their own CR0.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::registers::xcontrol::XCr0;

use crate::cpu::Cpu;
use crate::ec::Ec;
use crate::registers::{CR0_TS, Cr0};

/// State components that are saved.
static COMPONENTS: AtomicU64 = AtomicU64::new(3);
/// Enables XSAVE with all components of XCR0 that the processor has.
pub fn init(cpu: &Cpu, components: u64) {
    COMPONENTS.store(components, Ordering::Relaxed);
    load_xcr0(cpu, components);
    set_ts();
}

/// Components that the processor has.
pub fn components() -> u64 {
    COMPONENTS.load(Ordering::Relaxed)
}

fn clear_ts() {
    // SAFETY: CLTS has no other effect.
    unsafe { asm!("clts", options(nomem, nostack)) }
}

/// Makes FPU instructions fault.
pub fn set_ts() {
    // SAFETY: only TS changes.
    unsafe { Cr0::write_raw(Cr0::read_raw() | CR0_TS) }
}

/// Makes `ec` the owner of the registers; TS is as before.
pub fn acquire(cpu: &Cpu, ec: &Ec) {
    if core::ptr::eq(cpu.fpu_owner.get(), ec) {
        return;
    }
    cpu.counters().count(abi::observation::counter::FPU_SWITCH);
    cpu.poised.set(crate::guest::NOBODY);
    clear_ts();
    load_xcr0(cpu, components());
    let (low, high) = (components() as u32, (components() >> 32) as u32);
    // SAFETY: the owner's area is as large as CPUID says and aligned to a page; owners outlive their ownership.
    unsafe {
        if let Some(area) = cpu.fpu_owner.get().as_ref().and_then(|owner| owner.fpu_state) {
            asm!("xsave64 [{}]", in(reg) area.pointer(), in("eax") low, in("edx") high, options(nostack));
        }
        if let Some(area) = ec.fpu_state {
            asm!("xrstor64 [{}]", in(reg) area.pointer(), in("eax") low, in("edx") high, options(nostack));
        }
    }
    cpu.fpu_owner.set(ec);
    set_ts();
}

/// `ec` is gone: what it has in the registers is nobody's.
pub fn forget(cpu: &Cpu, ec: &Ec) {
    if core::ptr::eq(cpu.fpu_owner.get(), ec) {
        cpu.fpu_owner.set(core::ptr::null());
    }
}

/// Writes XCR0 if it has another value.
pub fn load_xcr0(cpu: &Cpu, value: u64) {
    if cpu.xcr0.get() != value {
        // SAFETY: values are subsets of what the processor has that contain x87, checked where they come from.
        unsafe { XCr0::write_raw(value) };
        cpu.poised.set(crate::guest::NOBODY);
        cpu.xcr0.set(value);
    }
}

/// A new FPU state area: x87 control word and MXCSR have their reset values, all else is in its initial state.
pub fn reset_area(area: *mut u8) {
    // SAFETY: a whole zeroed frame. FCW at 0, MXCSR at 24 of the legacy region (Intel SDM vol. 1, 10.5.1); XSTATE_BV at
    // 512 names both components, so that XRSTOR takes these values.
    unsafe {
        area.cast::<u16>().write(0x037f);
        area.add(24).cast::<u32>().write(0x1f80);
        area.add(512).cast::<u64>().write(3);
    }
}

/// Before user mode: TS clear only for an owner with the FPU right.
#[inline(always)]
pub fn prepare_user(cpu: &Cpu, ec: &Ec) {
    let clear = ec.fpu_state.is_some() && core::ptr::eq(cpu.fpu_owner.get(), ec);
    if clear {
        clear_ts();
    } else if cpu.unusual.ts_clear.get() {
        set_ts();
    }
    cpu.unusual.ts_clear.set(clear);
}
