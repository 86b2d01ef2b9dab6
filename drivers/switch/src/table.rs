//! The addresses that the switch has learned: bounded as a whole and for each port, and forgotten with age.
//!
//! An address has a window of 8 slots, chosen by a hash that ports cannot foresee. One that finds its window
//! full is not learned, nor is one of a port that has [`PORT_MAX`]; frames for it are flooded then, which is slow but
//! right. So a port that sends from a million addresses fills its own share, and nobody else's.

use crate::address::Mac;
use alloc::vec::Vec;

/// Slots of the table.
pub const SLOTS: usize = 4096;
/// Most addresses of one port.
pub const PORT_MAX: u16 = 512;
/// Slots that an address may be in.
const WINDOW: usize = 8;
/// Seconds without a frame from an address until it is forgotten (IEEE 802.1Q, 8.8.3).
pub const AGE: u32 = 300;

#[derive(Clone, Copy)]
struct Entry {
    mac: Mac,
    port: u8,
    /// When the last frame came from it, in seconds.
    seen: u32,
}

/// The table.
pub struct Table {
    slots: Vec<Option<Entry>>,
    /// Addresses of each port.
    counts: Vec<u16>,
    seed: u64,
}

impl Table {
    /// An empty table for `ports` ports, at most 256; `seed` should be unforeseeable.
    pub fn new(ports: usize, seed: u64) -> Self {
        Self { slots: alloc::vec![None; SLOTS], counts: alloc::vec![0; ports], seed }
    }

    /// The port behind which `mac` was seen, at most [`AGE`] seconds before `now`.
    pub fn port(&self, mac: Mac, now: u32) -> Option<usize> {
        let entry = self.window(mac).find_map(|slot| self.slots[slot].filter(|e| e.mac == mac))?;
        (!old(&entry, now)).then_some(entry.port.into())
    }

    /// A frame from `mac` came by `port`. False if that cannot be kept.
    pub fn learn(&mut self, mac: Mac, port: usize, now: u32) -> bool {
        let mut vacant = None;
        for slot in self.window(mac) {
            match self.slots[slot] {
                Some(entry) if entry.mac == mac && usize::from(entry.port) == port => {
                    self.slots[slot] = Some(Entry { seen: now, ..entry });
                    return true;
                }
                Some(entry) if entry.mac == mac || old(&entry, now) => {
                    self.counts[usize::from(entry.port)] -= 1;
                    self.slots[slot] = None;
                    vacant = Some(slot);
                }
                Some(_) => {}
                None => vacant = Some(slot),
            }
        }
        let count = &mut self.counts[port];
        match vacant {
            Some(slot) if *count < PORT_MAX => {
                *count += 1;
                self.slots[slot] = Some(Entry { mac, port: port as u8, seen: now });
                true
            }
            _ => false,
        }
    }

    /// Forgets what is old, so that it does not count for its port.
    pub fn sweep(&mut self, now: u32) {
        for slot in &mut self.slots {
            if let Some(entry) = slot.filter(|entry| old(entry, now)) {
                self.counts[usize::from(entry.port)] -= 1;
                *slot = None;
            }
        }
    }

    /// Addresses known behind `port`.
    pub fn count(&self, port: usize) -> u16 {
        self.counts[port]
    }

    /// The slots that `mac` may be in.
    fn window(&self, mac: Mac) -> impl Iterator<Item = usize> + use<> {
        // A finalizer of good avalanche: every bit of the seed moves every bit of the slot.
        let mut hash = mac.number() ^ self.seed;
        hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let first = (hash >> 40) as usize;
        (0..WINDOW).map(move |step| (first + step) % SLOTS)
    }
}

fn old(entry: &Entry, now: u32) -> bool {
    now.saturating_sub(entry.seen) > AGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn mac(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    #[test]
    fn addresses_move_and_age() {
        let mut table = Table::new(3, 1);
        assert_eq!(table.port(mac(1), 0), None);
        assert!(table.learn(mac(1), 2, 10));
        assert_eq!(table.port(mac(1), 10 + AGE), Some(2));
        assert_eq!(table.port(mac(1), 11 + AGE), None, "forgotten");
        assert!(table.learn(mac(1), 2, 200));
        assert_eq!(table.port(mac(1), 200 + AGE), Some(2), "seen again");
        assert!(table.learn(mac(1), 0, 201));
        assert_eq!((table.port(mac(1), 201), table.count(0), table.count(2)), (Some(0), 1, 0));
        table.sweep(201 + AGE);
        assert_eq!(table.count(0), 1);
        table.sweep(202 + AGE);
        assert_eq!((table.port(mac(1), 201), table.count(0)), (None, 0));
    }

    #[test]
    fn a_port_with_a_million_addresses_fills_its_own_share_only() {
        let mut table = Table::new(2, 0x1234_5678_9abc_def0);
        let learned = (0..1_000_000).filter(|&number| table.learn(mac(number), 0, 1)).count();
        assert_eq!((learned, table.count(0)), (PORT_MAX.into(), PORT_MAX));
        let others =
            (2_000_000..2_000_000 + u32::from(PORT_MAX)).filter(|&number| table.learn(mac(number), 1, 1)).count();
        assert!(others >= usize::from(PORT_MAX) - 8, "{others} of {PORT_MAX}");
        // When its own have aged the port learns again, without a sweep if it comes to the same windows.
        table.sweep(2 + AGE);
        assert!(table.learn(mac(5_000_000), 0, 2 + AGE));
    }

    proptest! {
        #[test]
        fn what_is_known_is_what_was_learned_last(
            steps in proptest::collection::vec((0u32..40, 0usize..4, 0u32..200, any::<bool>()), 1..200),
        ) {
            let mut table = Table::new(4, 99);
            let mut model: BTreeMap<u32, (usize, u32)> = BTreeMap::new();
            let mut now = 0;
            for (number, port, pause, sweep) in steps {
                now += pause;
                if sweep {
                    table.sweep(now);
                }
                prop_assert!(table.learn(mac(number), port, now));
                model.insert(number, (port, now));
                for (&number, &(port, seen)) in &model {
                    prop_assert_eq!(table.port(mac(number), now), (now - seen <= AGE).then_some(port));
                }
            }
            table.sweep(now);
            for port in 0..4 {
                let live = model.values().filter(|(p, seen)| *p == port && now - seen <= AGE).count();
                prop_assert_eq!(usize::from(table.count(port)), live);
            }
        }
    }
}
