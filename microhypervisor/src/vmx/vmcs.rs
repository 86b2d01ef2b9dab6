//! The VMX instructions (Intel SDM vol. 3C, chapter 31).
#![allow(unsafe_code)] // Privileged instructions.

use core::arch::asm;

/// Proof that the VMCS of the vCPU at hand is the current one: its fields can be read and written.
#[derive(Clone, Copy)]
pub struct Current(());

impl Current {
    /// Makes the VMCS at physical address `pa` current.
    ///
    /// # Safety
    /// `pa` is a VMCS region that was cleared, and the token is not used once another VMCS is current.
    pub unsafe fn load(pa: u64) -> Self {
        // SAFETY: the caller's promise.
        unsafe { asm!("vmptrld [{}]", in(reg) &pa, options(nostack)) };
        Self(())
    }

    /// Says that a VMCS is current already.
    ///
    /// # Safety
    /// The VMCS of the vCPU at hand was loaded and no other since; as for [`Self::load`].
    pub unsafe fn assume() -> Self {
        Self(())
    }

    /// Reads a field; the CPU has it.
    #[inline(always)]
    pub fn read(self, field: u32) -> u64 {
        let value;
        // SAFETY: a VMCS is current; a field that the CPU lacks gives an arbitrary value.
        unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nostack)) };
        value
    }

    /// Reads a field of 32 bits or less.
    #[inline(always)]
    pub fn read32(self, field: u32) -> u32 {
        self.read(field) as u32
    }

    /// Writes a field. Entry and control fields are checked by the CPU when the guest is entered; what the host
    /// fields say is the vendor module's responsibility.
    #[inline(always)]
    pub fn write(self, field: u32, value: u64) {
        // SAFETY: a VMCS is current; a field that the CPU lacks is not written.
        unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack)) };
    }

    /// Writes a field of 32 bits or less.
    #[inline(always)]
    pub fn write32(self, field: u32, value: u32) {
        self.write(field, u64::from(value));
    }
}

/// Enters VMX operation; false if the CPU refuses.
///
/// # Safety
/// CR4.VMXE is set; the page at `region` has the revision and belongs to the CPU.
pub unsafe fn vmxon(region: u64) -> bool {
    let refused: u8;
    // SAFETY: the caller's promise.
    unsafe { asm!("vmxon [{}]", "setbe {}", in(reg) &region, out(reg_byte) refused, options(nostack)) };
    refused == 0
}

/// Writes a VMCS back to its region and makes it not current.
///
/// # Safety
/// `pa` is a VMCS region, active at most on this CPU.
pub unsafe fn vmclear(pa: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmclear [{}]", in(reg) &pa, options(nostack)) };
}

/// Drops what is cached of guest spaces: of one EPT pointer, or of all for 0.
pub fn invept(pointer: u64) {
    let kind: u64 = if pointer == 0 { 2 } else { 1 };
    let descriptor = [pointer, 0];
    // SAFETY: only drops cached translations; both kinds were checked when VMX was enabled.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// Drops what is cached under all VPIDs.
pub fn invvpid_all() {
    let descriptor = [0u64; 2];
    // SAFETY: only drops cached translations; called only where the CPU has VPIDs and this kind.
    unsafe { asm!("invvpid {}, [{}]", in(reg) 2u64, in(reg) &descriptor, options(nostack)) };
}
