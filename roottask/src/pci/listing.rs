//! The line of a function in the log.

use super::{Function, Header, Reset};
use core::fmt;

/// The name of a class (PCI Code and ID Assignment Specification, chapter 1).
pub fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff, class & 0xff) {
        (0x01, 0x06, 0x01) => "AHCI",
        (0x01, 0x08, 0x02) => "NVMe",
        (0x01, ..) => "storage",
        (0x02, ..) => "network",
        (0x03, ..) => "display",
        (0x04, ..) => "multimedia",
        (0x06, 0x00, _) => "host bridge",
        (0x06, 0x01, _) => "ISA bridge",
        (0x06, 0x04, _) => "PCI bridge",
        (0x06, ..) => "bridge",
        (0x07, 0x00, _) => "serial port",
        (0x0c, 0x03, _) => "USB",
        (0x0c, 0x05, _) => "SMBus",
        (0x08, ..) => "system device",
        _ => "device",
    }
}

/// `00:04.0 1b36:0010 NVMe, group 2, 65 MSI-X, FLR`.
pub fn describe(function: &Function, group: usize) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| {
        let Function { address, vendor, device, class, capabilities, .. } = function;
        write!(f, "{address} {vendor:04x}:{device:04x} {}, group {group}", class_name(*class))?;
        if let Header::Bridge { secondary, .. } = function.header {
            return write!(f, ", to bus {secondary:02x}");
        }
        if let Some(msix) = capabilities.msix {
            write!(f, ", {} MSI-X", msix.entries)?;
        } else if capabilities.msi.is_some() {
            f.write_str(", MSI")?;
        }
        if let Some(reset) = Reset::of(function) {
            write!(f, ", {}", reset.name())?;
        }
        Ok(())
    })
}
