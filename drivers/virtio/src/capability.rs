//! Where a device's structures lie: its vendor capabilities (VirtIO 1.2, 4.1.4).

use device::registers::Place;

/// Status register and its bit for a list of capabilities (PCI 3.0, 6.2.3).
const STATUS: usize = 0x06;
const STATUS_LIST: u8 = 1 << 4;
const LIST: usize = 0x34;
const VENDOR: u8 = 0x09;
/// More capabilities do not fit between the header and the end of the first 256 bytes.
const CAPABILITIES_MAX: usize = 48;

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// The structures of a modern device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structures {
    /// Common configuration (4.1.4.3).
    pub common: Place,
    /// Notifications (4.1.4.4).
    pub notify: Place,
    /// Bytes between the places of notifications.
    pub notify_multiplier: u32,
    /// Interrupt status (4.1.4.5).
    pub isr: Place,
    /// Configuration of the kind of device (4.1.4.6), and its length.
    pub device: Option<(Place, u32)>,
}

impl Structures {
    /// Finds them in the device's configuration space; `None` if it is no modern device. Of several structures of one
    /// kind the first counts.
    pub fn find(config: &[u8]) -> Option<Self> {
        let (mut common, mut notify, mut isr, mut device) = (None, None, None, None);
        if config.get(STATUS)? & STATUS_LIST == 0 {
            return None;
        }
        let mut at = config.get(LIST)? & !3;
        for _ in 0..CAPABILITIES_MAX {
            let Some(capability) = config.get(usize::from(at)..).filter(|_| at >= 0x40) else { break };
            if let [VENDOR, _, length, kind, bar @ 0..=5, ..] = *capability
                && length >= 16
                && let (Some(offset), Some(size)) = (word(capability, 8), word(capability, 12))
            {
                let place = Place { bar, offset };
                match kind {
                    COMMON => _ = common.get_or_insert(place),
                    NOTIFY => _ = notify.get_or_insert((place, word(capability, 16)?)),
                    ISR => _ = isr.get_or_insert(place),
                    DEVICE => _ = device.get_or_insert((place, size)),
                    _ => {}
                }
            }
            at = capability.get(1)? & !3;
        }
        let (notify, notify_multiplier) = notify?;
        Some(Self { common: common?, notify, notify_multiplier, isr: isr?, device })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::vec::Vec;

    /// Configuration space of a device with these capabilities: kind, BAR, offset, length, and 4 bytes behind.
    pub fn config(capabilities: &[(u8, u8, u32, u32, u32)]) -> Vec<u8> {
        let mut bytes = std::vec![0; 256];
        bytes[STATUS] = STATUS_LIST;
        bytes[LIST] = 0x40;
        for (i, (kind, bar, offset, length, more)) in capabilities.iter().enumerate() {
            let at = 0x40 + i * 20;
            let next = if i + 1 == capabilities.len() { 0 } else { at as u8 + 20 };
            bytes[at..at + 8].copy_from_slice(&[VENDOR, next, 20, *kind, *bar, 0, 0, 0]);
            for (j, word) in [offset, length, more].into_iter().enumerate() {
                bytes[at + 8 + j * 4..at + 12 + j * 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn structures_are_found() {
        // As QEMU's devices have them, with a second common structure and one of an unknown kind.
        let list = [
            (1, 4, 0, 56, 0),
            (3, 4, 0x1000, 4, 0),
            (9, 2, 0, 4, 0),
            (4, 4, 0x2000, 0x1000, 0),
            (2, 4, 0x3000, 0x1000, 4),
            (1, 1, 8, 56, 0),
        ];
        let place = |offset| Place { bar: 4, offset };
        let expected = Structures {
            common: place(0),
            notify: place(0x3000),
            notify_multiplier: 4,
            isr: place(0x1000),
            device: Some((place(0x2000), 0x1000)),
        };
        assert_eq!(Structures::find(&config(&list)), Some(expected));
        assert_eq!(Structures::find(&config(&list[1..5])), None, "no common configuration");
        let without = Structures { device: None, ..expected };
        assert_eq!(Structures::find(&config(&[list[0], list[1], list[4]])), Some(without));
    }

    #[test]
    fn strange_lists_end() {
        assert_eq!(Structures::find(&[]), None);
        assert_eq!(Structures::find(&[0xff; 256]), None);
        assert_eq!(Structures::find(&[0xff; 70]), None);
        let mut circle = config(&[(1, 4, 0, 56, 0), (3, 4, 0, 4, 0)]);
        circle[0x40 + 20 + 1] = 0x40;
        assert_eq!(Structures::find(&circle), None);
        let mut none = config(&[(1, 4, 0, 56, 0), (2, 4, 0, 4, 4), (3, 4, 0, 4, 0)]);
        assert!(Structures::find(&none).is_some());
        none[STATUS] = 0;
        assert_eq!(Structures::find(&none), None);
        // A BAR that there cannot be.
        assert_eq!(Structures::find(&config(&[(1, 6, 0, 56, 0), (2, 4, 0, 4, 4), (3, 4, 0, 4, 0)])), None);
    }
}
