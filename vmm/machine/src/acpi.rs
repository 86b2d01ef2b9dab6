//! The ACPI tables of the virtual machine.
//!
//! ACPI 6.5: 5.2.5.3 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.10 (FACS), 5.2.12 (MADT); names in 6 and 7. PCI Firmware
//! Specification 3.2, 4.1.2 (MCFG). The devices' modules say where they are; this one only tells the guest. The hardware is
//! always in ACPI mode: no SMI command.

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::aml::{AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name};
use acpi_tables::aml::{Package, Path, ResourceTemplate, Scope, ZERO};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::loader::bzimage::FIRMWARE;
use crate::memory::{GuestMemory, LOW_RAM_MAX, NotRam};
use crate::pci::bus::{ECAM, ECAM_SIZE, HIGH_MEMORY, HIGH_MEMORY_SIZE};
use crate::{ioapic, pm};

const OEM: [u8; 6] = *b"KILONV";
const TABLE: [u8; 8] = *b"KILONOVA";
const REVISION: u32 = 1;
/// Where LAPICs answer.
const LAPIC: u32 = 0xfee0_0000;
/// CMOS byte that holds the century.
const CENTURY: u8 = 0x32;
/// IRQ of the real-time clock and of the first serial port.
const IRQ_RTC: u32 = 8;
const IRQ_SERIAL: u32 = 4;

/// Tables with the guest-physical addresses where they belong.
pub struct Tables {
    /// Address of the root pointer.
    pub rsdp: u64,
    /// Each table: address, bytes. The root pointer is among them.
    pub tables: Vec<(u64, Vec<u8>)>,
}

/// What the tables say of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// PCI's configuration space is in memory, too: there is more than a host bridge.
    pub ecam: bool,
    /// Some function's memory is above 4 GiB.
    pub high: bool,
}

/// Writes the tables of a machine into the firmware's place in the guest's memory; returns the root pointer's address.
pub fn install(memory: &impl GuestMemory, content: Content) -> Result<u64, NotRam> {
    let Tables { rsdp, tables } = build(FIRMWARE, content);
    for (at, bytes) in tables {
        memory.write(at, &bytes)?;
    }
    Ok(rsdp)
}

/// Makes the tables of a machine for addresses from `base` on, which must be aligned to 64 bytes.
pub fn build(base: u64, content: Content) -> Tables {
    let mut tables = Vec::new();
    let mut next = base + Rsdp::len() as u64;
    let mut place = |bytes: Vec<u8>| {
        let at = next.next_multiple_of(64);
        next = at + bytes.len() as u64;
        tables.push((at, bytes));
        at
    };
    let dsdt = place(dsdt(content));
    let facs = place(bytes(&FACS::new()));
    let fadt = place(fadt(dsdt as u32, facs as u32));
    let madt = place(madt(content.vcpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if content.ecam {
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        mcfg.add_ecam(ECAM, 0, 0, 0);
        xsdt.add_entry(place(bytes(&mcfg)));
    }
    let xsdt = place(bytes(&xsdt));
    tables.push((base, bytes(&Rsdp::new(OEM, xsdt))));
    Tables { rsdp: base, tables }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(Space::SystemIo, bits, 0, access, address as u64)
}

fn fadt(dsdt: u32, facs: u32) -> Vec<u8> {
    /// No C2, no C3: latencies above these limits.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    /// Legacy devices on an ISA bus; no VGA. No 8042: the reset line at port 0x64 is not one to be found.
    const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2;

    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = (dsdt as u64).into();
    fadt.firmware_ctrl = facs.into();
    fadt.sci_int = (pm::SCI as u16).into();
    fadt.pm1a_evt_blk = (pm::PM1A_EVENT as u32).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(pm::PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = (pm::PM1A_CONTROL as u32).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(pm::PM1A_CONTROL, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = (pm::PM_TIMER as u32).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(pm::PM_TIMER, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(pm::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    /// The machine also has two 8259As.
    const PCAT_COMPATIBLE: u32 = 1;
    const HEADER: u32 = 36;
    /// Active high, level-triggered.
    const SCI_FLAGS: u16 = 0x000d;
    const ALL_PROCESSORS: u8 = 0xff;

    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM, TABLE, REVISION);
    madt.append_slice(&LAPIC.to_le_bytes());
    madt.append_slice(&PCAT_COMPATIBLE.to_le_bytes());
    for vcpu in 0..vcpus {
        madt.append_slice(&bytes(&ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes(&IoApic::new(0, ioapic::BASE as u32, 0)));
    // Interrupt source overrides: type 2, length 10, bus 0, source, global system interrupt, flags.
    for (source, gsi, flags) in [(0, 2u32, 0), (pm::SCI, pm::SCI as u32, SCI_FLAGS)] {
        madt.append_slice(&[2, 10, 0, source]);
        madt.append_slice(&gsi.to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    }
    // NMI at LINT1 of every LAPIC: type 4, length 6, processor, flags, pin.
    madt.append_slice(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    madt.as_slice().to_vec()
}

fn dsdt(Content { ecam, high, .. }: Content) -> Vec<u8> {
    const HEADER: u32 = 36;
    let s5 = Name::new("_S5_".into(), &Package::new(vec![&pm::SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]));

    let interrupt = |number| Interrupt::new(true, true, false, false, number);
    let serial_resources =
        Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(0x3f8, 0x3f8, 1, 8), &interrupt(IRQ_SERIAL)]));
    let serial_id = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let serial_number = Name::new("_UID".into(), &1u8);
    let serial = Device::new("COM1".into(), vec![&serial_id, &serial_number, &serial_resources]);

    let rtc_id = Name::new("_HID".into(), &EISAName::new("PNP0B00"));
    let rtc_resources =
        Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(0x70, 0x70, 1, 2), &interrupt(IRQ_RTC)]));
    let rtc = Device::new("RTC_".into(), vec![&rtc_id, &rtc_resources]);

    // Ports and memory that belong to the board and to no driver.
    let board_id = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let power = IO::new(pm::PM1A_EVENT, pm::PM1A_EVENT, 1, 0x0c);
    let configuration = Memory32Fixed::new(true, ECAM as u32, ECAM_SIZE as u32);
    let mut board_list: Vec<&dyn Aml> = vec![&power];
    if ecam {
        board_list.push(&configuration);
    }
    let board_resources = Name::new("_CRS".into(), &ResourceTemplate::new(board_list));
    let board = Device::new("BORD".into(), vec![&board_id, &board_resources]);

    let (pci, pci_express) = (EISAName::new("PNP0A03"), EISAName::new("PNP0A08"));
    let bridge_id = Name::new("_HID".into(), if ecam { &pci_express } else { &pci });
    let bridge_other_id = Name::new("_CID".into(), &pci);
    let bridge_number = Name::new("_UID".into(), &ZERO);
    let window_end = if ecam { ECAM as u32 - 1 } else { ioapic::BASE as u32 - 1 };
    let (bus, io) = (AddressSpace::new_bus_number(0u16, 0u16), IO::new(0xcf8, 0xcf8, 1, 8));
    let (low_ports, high_ports) =
        (AddressSpace::new_io(0u16, 0xcf7u16, None), AddressSpace::new_io(0xd00u16, 0xffffu16, None));
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(uncached, true, LOW_RAM_MAX as u32, window_end, None);
    let high_memory = AddressSpace::new_memory(uncached, true, HIGH_MEMORY, HIGH_MEMORY + HIGH_MEMORY_SIZE - 1, None);
    let mut windows: Vec<&dyn Aml> = vec![&bus, &io, &low_ports, &high_ports, &memory];
    if high {
        windows.push(&high_memory);
    }
    let bridge_resources = Name::new("_CRS".into(), &ResourceTemplate::new(windows));
    let mut bridge_list: Vec<&dyn Aml> = vec![&bridge_id, &bridge_number, &bridge_resources];
    if ecam {
        bridge_list.push(&bridge_other_id);
    }
    let bridge = Device::new("PCI0".into(), bridge_list);

    let devices = Scope::new(Path::new("\\_SB_"), vec![&bridge, &board, &rtc, &serial]);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&bytes(&s5));
    dsdt.append_slice(&bytes(&devices));
    dsdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::memory::VecMemory;
    use std::process::Command;
    use std::string::String;
    use std::{env, fs, println};

    fn table<'a>(tables: &'a Tables, signature: &[u8]) -> &'a (u64, Vec<u8>) {
        tables.tables.iter().find(|(_, bytes)| bytes.starts_with(signature)).unwrap()
    }

    #[test]
    fn checksums_lengths_and_places() {
        let tables = build(FIRMWARE, Content { vcpus: 16, ecam: true, high: true });
        for (at, bytes) in &tables.tables {
            assert!(*at >= FIRMWARE && at + (bytes.len() as u64) < 0x10_0000);
            if !bytes.starts_with(b"RSD") && !bytes.starts_with(b"FACS") {
                assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
                assert_eq!(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize, bytes.len());
            }
        }
        let memory = VecMemory::new(1 << 20);
        assert_eq!(install(&memory, Content { vcpus: 16, ecam: true, high: true }), Ok(FIRMWARE));
        assert_eq!(memory.read_u64(FIRMWARE), Ok(u64::from_le_bytes(*b"RSD PTR ")));
        assert_eq!(memory.read_u64(FIRMWARE + 24), Ok(table(&tables, b"XSDT").0));
        assert_eq!(table(&tables, b"FACS").0 % 64, 0);
    }

    /// Intel's compiler takes every table apart, and what it wrote together again, without an error or a warning.
    #[test]
    fn the_compiler_finds_no_fault() {
        if Command::new("iasl").arg("-v").output().is_err() {
            println!("iasl is not installed: not checked");
            return;
        }
        let folder = env::temp_dir().join(std::format!("kilonova-acpi-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (signature, ecam, high) in [
            ("DSDT", false, false),
            ("DSDT", true, false),
            ("DSDT", true, true),
            ("FACP", true, true),
            ("APIC", true, true),
            ("FACS", true, true),
            ("MCFG", true, true),
            ("XSDT", true, true),
        ] {
            let tables = build(FIRMWARE, Content { vcpus: 3, ecam, high });
            let file = folder.join(signature);
            fs::write(&file, &table(&tables, signature.as_bytes()).1).unwrap();
            let run = |arguments: &[&str]| {
                let output = Command::new("iasl").current_dir(&folder).args(arguments).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{signature}: {text}");
                text.into_owned()
            };
            let text = run(&["-d", signature]);
            assert!(!text.contains("Error") && !text.contains("Warning"), "{signature}: {text}");
            let text = run(&["-we", &std::format!("{signature}.dsl")]);
            assert!(text.contains("0 Errors"), "{signature}: {text}");
            assert!(!text.contains("Warnings") || text.contains("0 Warnings"), "{signature}: {text}");
        }
        let _ = fs::remove_dir_all(&folder);
    }
}
