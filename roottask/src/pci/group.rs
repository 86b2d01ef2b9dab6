//! Groups of functions that no IOMMU can keep apart: they reach each other, or send requests in each other's name.
//! PCI Express Base Specification 6.12 (access control services).

use super::{Function, Header, Port};
use alloc::vec::Vec;
use plan::PciAddress;

/// Access control that keeps functions apart: source validation, redirection of requests and of completions, forwarding
/// upstream.
const ISOLATES: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;

/// The number of each function's group, in the order of `functions`.
pub fn groups(functions: &[Function]) -> Vec<usize> {
    let tops: Vec<PciAddress> = functions.iter().map(|function| top(functions, function)).collect();
    let mut names = tops.clone();
    names.sort();
    names.dedup();
    tops.iter().map(|top| names.binary_search(top).unwrap_or(0)).collect()
}

/// The uppermost function or device that others share with `function`; it names the group.
fn top(functions: &[Function], function: &Function) -> PciAddress {
    let mut top = function;
    let mut at = function;
    // No path is longer than there are buses.
    for _ in 0..256 {
        let Some(bridge) = at.above.and_then(|above| functions.iter().find(|other| other.address == above)) else {
            break;
        };
        if !isolates(bridge) {
            top = bridge;
        }
        at = bridge;
    }
    let device = |address: PciAddress| PciAddress::new(address.bus(), address.device(), 0);
    let of_same = |other: &&Function| device(other.address) == device(top.address);
    if functions.iter().filter(of_same).count() > 1 && !keeps_apart(top) {
        return device(top.address);
    }
    top.address
}

/// Whether functions behind this bridge cannot reach each other without passing the IOMMU.
fn isolates(bridge: &Function) -> bool {
    let down = matches!(bridge.capabilities.express.map(|express| express.port), Some(Port::Down | Port::Up));
    // A port with one device behind it, which it does not let speak as another.
    down && matches!(bridge.header, Header::Bridge { .. }) && keeps_apart(bridge)
}

fn keeps_apart(function: &Function) -> bool {
    function.capabilities.access_control.is_some_and(|control| control & ISOLATES == ISOLATES)
}
