//! The line of a function in the log, and its row in the listing of devices.

use super::{Function, Header, Obstacle, Reset, Situation, Use};
use alloc::format;
use alloc::string::String;
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

/// The heading of [`row`]s.
pub fn heading() -> String {
    columns(["address", "id", "class", "group", "RMRR", "MSI-X", "reset", "owner", "pass-through"])
}

/// What can be told of function `number`: where and what it is, its group, memory that the firmware reserved for it,
/// entries of its table of interrupts, how it is reset, who has it, and whether it could be passed through.
pub fn row(situation: &Situation, number: usize) -> Option<String> {
    let function = situation.functions.get(number)?;
    let owner = situation.owners.get(number)?.as_deref();
    let none = || String::from("-");
    let reserved = situation.dmar.and_then(|dmar| dmar.reserved_for(situation.functions, function));
    let messages = match (function.capabilities.msix, function.capabilities.msi) {
        (Some(msix), _) => format!("{}", msix.entries),
        (None, Some(_)) => "MSI".into(),
        (None, None) => none(),
    };
    // What would be in its way even if its owner gave it back comes first.
    let obstacle = situation.obstacle(Use::PassThrough, number, owner.unwrap_or_default());
    let verdict = match obstacle.or(owner.map(|owner| Obstacle::Owner(owner.into()))) {
        Some(obstacle) => format!("no: {obstacle}"),
        None => "yes".into(),
    };
    Some(columns([
        &format!("{}", function.address),
        &format!("{:04x}:{:04x}", function.vendor, function.device),
        class_name(function.class),
        &situation.groups.get(number).map_or_else(none, |group| format!("{group}")),
        &reserved.map_or_else(none, |memory| format!("{:x}-{:x}", memory.start, memory.end - 1)),
        &messages,
        Reset::of(function).map_or("-", Reset::name),
        owner.unwrap_or("-"),
        &verdict,
    ]))
}

fn columns([address, id, class, group, reserved, messages, reset, owner, verdict]: [&str; 9]) -> String {
    format!(
        "{address:7}  {id:9}  {class:13}  {group:>5}  {reserved:17}  {messages:>5}  {reset:5}  {owner:19}  {verdict}"
    )
}
