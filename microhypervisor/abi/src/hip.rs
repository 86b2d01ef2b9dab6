//! The hypervisor information page (NOVA 6.3, 8.7.1, 8.7.2) and the extension record behind it.

use crate::extension::Announcement;

/// Value of [`Hip::signature`].
pub const SIGNATURE: u32 = 0x4156_4f4e;
/// Value of an address field whose table is not present.
pub const NOT_PRESENT: u64 = u64::MAX;

/// [`Hip::platform_features`]: the IOMMU is enabled.
pub const FEATURE_IOMMU: u64 = 1 << 0;
/// [`Hip::platform_features`]: Intel VMX is enabled.
pub const FEATURE_VMX: u64 = 1 << 1;
/// [`Hip::platform_features`]: AMD SVM is enabled.
pub const FEATURE_SVM: u64 = 1 << 2;

/// The hypervisor information page. Addresses are physical, ends exclusive.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Hip {
    /// [`SIGNATURE`].
    pub signature: u32,
    /// Makes the sum of all 16-bit words in the page's `length` bytes zero.
    pub checksum: u16,
    /// Length in bytes.
    pub length: u16,
    /// Start of the kernel's memory.
    pub nova_start: u64,
    /// End of the kernel's memory.
    pub nova_end: u64,
    /// Start of the memory-buffer console.
    pub mbuf_start: u64,
    /// End of the memory-buffer console.
    pub mbuf_end: u64,
    /// Start of the root image.
    pub root_start: u64,
    /// End of the root image.
    pub root_end: u64,
    /// ACPI root system description pointer.
    pub acpi_rsdp: u64,
    /// UEFI memory map.
    pub uefi_map: u64,
    /// Size of the UEFI memory map in bytes.
    pub uefi_map_size: u32,
    /// Size of a UEFI memory descriptor.
    pub uefi_descriptor_size: u16,
    /// Version of the UEFI memory descriptors.
    pub uefi_descriptor_version: u16,
    /// Frequency of the system time counter (IA32_TSC) in Hz.
    pub stc_frequency: u64,
    /// Number of selectors in an object space.
    pub sel_num: u64,
    /// Selectors for architectural host events.
    pub sel_hst_arch: u16,
    /// Selectors for microhypervisor host events.
    pub sel_hst_nova: u16,
    /// Selectors for architectural guest events.
    pub sel_gst_arch: u16,
    /// Selectors for microhypervisor guest events.
    pub sel_gst_nova: u16,
    /// Number of CPUs online.
    pub cpu_num: u16,
    /// The CPU that root runs on.
    pub cpu_bsp: u16,
    /// Number of pin-based interrupts.
    pub int_pin: u16,
    /// Number of message-signalled interrupts.
    pub int_msi: u16,
    /// Largest order without partial failure in object spaces.
    pub mco_obj: u8,
    /// The same for host spaces.
    pub mco_hst: u8,
    /// The same for guest spaces.
    pub mco_gst: u8,
    /// The same for DMA spaces.
    pub mco_dma: u8,
    /// The same for PIO spaces.
    pub mco_pio: u8,
    /// The same for MSR spaces.
    pub mco_msr: u8,
    /// Largest memory-encryption key identifier.
    pub kimax: u16,
    /// FEATURE_*.
    pub platform_features: u64,
    /// TPM event log: physical address.
    pub event_log: u64,
    /// TPM event log: size in bytes.
    pub event_log_size: u32,
    /// TPM event log: offset of the byte behind the last entry.
    pub event_log_offset: u32,
    /// What this kernel offers beyond the specification.
    pub extension: Announcement,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Hip, stc_frequency) == 0x50);
    assert!(offset_of!(Hip, cpu_num) == 0x68);
    assert!(offset_of!(Hip, mco_obj) == 0x70);
    assert!(offset_of!(Hip, platform_features) == 0x78);
    assert!(offset_of!(Hip, event_log) == 0x80);
    assert!(offset_of!(Hip, extension) == 0x90);
};
