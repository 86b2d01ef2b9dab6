//! Whether a processor can run guests, decided from what its registers say.

use crate::reason::Reason;

/// IA32_FEATURE_CONTROL: no more writes (Intel SDM vol. 3C, 24.7).
const FEATURE_LOCKED: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMXON works outside SMX operation.
const FEATURE_VMX: u64 = 1 << 2;
/// VM_CR: EFER.SVME cannot be set (AMD APM vol. 2, 15.30.1).
const VM_CR_DISABLED: u64 = 1 << 4;

/// What the user can do about it.
const VMX_LOCKED_OFF: &str = "VT-x is locked off by the firmware (IA32_FEATURE_CONTROL = #): \
    enable Intel Virtualization Technology in the firmware setup";
const SVM_DISABLED: &str = "AMD-V is disabled by the firmware (VM_CR = #): enable SVM mode in the firmware setup";

/// Whether VMX can be used, given whether CPUID lists it and IA32_FEATURE_CONTROL; and what that register must be set
/// to first, if anything.
pub const fn vmx_usable(feature_control: u64, cpuid_vmx: bool) -> Result<Option<u64>, Reason> {
    match (cpuid_vmx, feature_control & FEATURE_LOCKED != 0, feature_control & FEATURE_VMX != 0) {
        (false, ..) => Err(Reason(&"this processor has neither VT-x nor AMD-V", 0)),
        (true, true, true) => Ok(None),
        (true, true, false) => Err(Reason(&VMX_LOCKED_OFF, feature_control)),
        (true, false, _) => Ok(Some(feature_control | FEATURE_VMX | FEATURE_LOCKED)),
    }
}

/// Whether SVM, which CPUID lists, can be used, given VM_CR.
pub const fn svm_usable(vm_cr: u64) -> Result<(), Reason> {
    if vm_cr & VM_CR_DISABLED != 0 { Err(Reason(&SVM_DISABLED, vm_cr)) } else { Ok(()) }
}

/// The value of a word of VMX controls: all bits of `set`, those of `may` that exist, and those that the processor
/// demands. The capability register has the bits that must be 1 in 31:0 and those that can be 1 in 63:32 (Intel SDM
/// vol. 3D, A.3).
///
/// # Errors
/// The bits of `set` that do not exist.
pub const fn vmx_adjust(capability: u64, set: u32, may: u32) -> Result<u32, u32> {
    let (demanded, possible) = (capability as u32, (capability >> 32) as u32);
    match set & !possible {
        0 => Ok(set | may & possible | demanded),
        missing => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn vmx_needs_cpuid_and_firmware() {
        assert_eq!(vmx_usable(5, false), Err(Reason(&"this processor has neither VT-x nor AMD-V", 0)));
        assert_eq!(vmx_usable(5, true), Ok(None));
        assert_eq!(vmx_usable(0xff07, true), Ok(None));
        assert_eq!(vmx_usable(0, true), Ok(Some(5)));
        // Enabled but not locked: VMXON still faults until locked.
        assert_eq!(vmx_usable(4, true), Ok(Some(5)));
        // Locked with VMX inside SMX only.
        assert_eq!(vmx_usable(3, true), Err(Reason(&VMX_LOCKED_OFF, 3)));
        assert_eq!(
            vmx_usable(1, true).unwrap_err().to_string(),
            "VT-x is locked off by the firmware (IA32_FEATURE_CONTROL = 1): \
             enable Intel Virtualization Technology in the firmware setup"
        );
    }

    #[test]
    fn svm_needs_cpuid_and_firmware() {
        assert_eq!(svm_usable(0), Ok(()));
        assert_eq!(svm_usable(8), Ok(()));
        assert_eq!(
            svm_usable(0x18).unwrap_err().to_string(),
            "AMD-V is disabled by the firmware (VM_CR = 0x18): enable SVM mode in the firmware setup"
        );
    }

    #[test]
    fn controls_are_what_is_demanded_and_possible() {
        let capability = 0x0000_00ff_0000_0016;
        assert_eq!(vmx_adjust(capability, 0x01, 0x00), Ok(0x17));
        assert_eq!(vmx_adjust(capability, 0x81, 0x140), Ok(0xd7));
        assert_eq!(vmx_adjust(capability, 0x301, 0xffff), Err(0x300));
    }
}
