//! Where a frame goes: the learning bridge of IEEE 802.1Q without VLANs and spanning tree, with a filter of addresses.
//!
//! A port with a fixed address may send only from it, and gets only what is for it: frames for it, for groups, for
//! all. The other ports (the uplink) learn: what is for an address that nobody has been seen with goes to all of them.
//! No frame goes back to the port it came from, and nobody can take a fixed address: a frame that comes from one by
//! another port is forged.

use crate::address::Mac;
use crate::table::Table;
use alloc::vec::Vec;

/// Most ports of a switch.
pub const PORTS_MAX: usize = 64;

/// Several ports: bit n is port n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports(u64);

impl Ports {
    fn one(port: usize) -> Self {
        Self(1 << port)
    }

    fn without(self, port: usize) -> Self {
        Self(self.0 & !(1 << port))
    }
}

impl Ports {
    /// These and those of `other`.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Iterator for Ports {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        let port = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (port != u64::BITS).then_some(port as usize)
    }
}

/// Why a frame goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its source is not the port's, or another port's, or no station's.
    Forged,
    /// It is for the link only, or for a station on the side that it comes from.
    Local,
}

/// Why there can be no such switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// More than [`PORTS_MAX`] ports.
    TooManyPorts,
    /// Two ports have this fixed address.
    SameAddress(Mac),
    /// This is no address of a station.
    NoStation(Mac),
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooManyPorts => write!(f, "more than {PORTS_MAX} ports"),
            Self::SameAddress(mac) => write!(f, "two ports have the address {mac}"),
            Self::NoStation(mac) => write!(f, "{mac} is no address of a station"),
        }
    }
}

/// What the switch knows of addresses.
pub struct Forwarding {
    /// The fixed address of each port.
    fixed: Vec<Option<Mac>>,
    /// The fixed addresses in order, with their ports.
    stations: Vec<(Mac, usize)>,
    /// Ports without a fixed address.
    learning: Ports,
    all: Ports,
    table: Table,
}

impl Forwarding {
    /// For ports with these fixed addresses; `seed` should be unforeseeable.
    pub fn new(fixed: Vec<Option<Mac>>, seed: u64) -> Result<Self, ConfigError> {
        if fixed.len() > PORTS_MAX {
            return Err(ConfigError::TooManyPorts);
        }
        let mut stations: Vec<_> = fixed.iter().enumerate().filter_map(|(port, mac)| Some(((*mac)?, port))).collect();
        stations.sort_unstable();
        if let Some((mac, _)) = stations.iter().find(|(mac, _)| !mac.is_station()) {
            return Err(ConfigError::NoStation(*mac));
        }
        if let Some(pair) = stations.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(ConfigError::SameAddress(pair[0].0));
        }
        let mut learning = Ports::default();
        let mut all = Ports::default();
        for (port, mac) in fixed.iter().enumerate() {
            all.0 |= 1 << port;
            learning.0 |= u64::from(mac.is_none()) << port;
        }
        let table = Table::new(fixed.len(), seed);
        Ok(Self { fixed, stations, learning, all, table })
    }

    /// The ports that `frame`, which came by port `from` at `now` (in seconds), goes to.
    pub fn destinations(&mut self, from: usize, frame: &[u8], now: u32) -> Result<Ports, Refusal> {
        let (destination, source) = Mac::of_frame(frame).ok_or(Refusal::Forged)?;
        match self.fixed[from] {
            Some(mac) if mac == source => {}
            Some(_) => return Err(Refusal::Forged),
            None if !source.is_station() || self.station(source).is_some() => return Err(Refusal::Forged),
            // An address that finds no place is not known, and what is for it is flooded.
            None => _ = self.table.learn(source, from, now),
        }
        if destination.is_link_local() {
            return Err(Refusal::Local);
        }
        let to = match destination.is_group() {
            true => self.all,
            false => match self.station(destination).or_else(|| self.table.port(destination, now)) {
                Some(port) => Ports::one(port),
                None => self.learning,
            },
        };
        match to.without(from) {
            Ports(0) if !destination.is_group() => Err(Refusal::Local),
            ports => Ok(ports),
        }
    }

    /// Forgets old addresses; to be called from time to time.
    pub fn sweep(&mut self, now: u32) {
        self.table.sweep(now);
    }

    /// Addresses known behind `port`, beside a fixed one.
    pub fn learned(&self, port: usize) -> u16 {
        self.table.count(port)
    }

    fn station(&self, mac: Mac) -> Option<usize> {
        let found = self.stations.binary_search_by_key(&mac, |(station, _)| *station);
        found.ok().map(|index| self.stations[index].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
    const X: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
    const Y: Mac = Mac([2, 0, 0, 0, 0, 0x11]);
    const ALL: Mac = Mac([0xff; 6]);
    /// Ports: 0 and 1 learn, 2 is A's, 3 is B's.
    const UP: usize = 0;
    const OTHER: usize = 1;
    const PORT_A: usize = 2;
    const PORT_B: usize = 3;

    fn switch() -> Forwarding {
        Forwarding::new(vec![None, None, Some(A), Some(B)], 7).unwrap()
    }

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [&to.0[..], &from.0, &[8, 0, 1, 2, 3]].concat()
    }

    fn ask(switch: &mut Forwarding, port: usize, to: Mac, from: Mac) -> Result<Vec<usize>, Refusal> {
        switch.destinations(port, &frame(to, from), 5).map(Vec::from_iter)
    }

    #[test]
    fn frames_go_where_their_addresses_say() {
        let mut s = switch();
        assert_eq!(ask(&mut s, PORT_A, B, A), Ok(vec![PORT_B]));
        assert_eq!(ask(&mut s, PORT_A, ALL, A), Ok(vec![UP, OTHER, PORT_B]));
        assert_eq!(ask(&mut s, PORT_A, Mac([0x33, 0x33, 0, 0, 0, 1]), A), Ok(vec![UP, OTHER, PORT_B]));
        assert_eq!(ask(&mut s, PORT_A, X, A), Ok(vec![UP, OTHER]), "unknown: nobody with a fixed address gets it");
        assert_eq!(ask(&mut s, UP, A, X), Ok(vec![PORT_A]));
        assert_eq!(ask(&mut s, PORT_B, X, B), Ok(vec![UP]), "learned");
        assert_eq!(ask(&mut s, UP, Y, X), Ok(vec![OTHER]), "not back");
        assert_eq!(ask(&mut s, OTHER, X, Y), Ok(vec![UP]));
        assert_eq!(s.destinations(PORT_B, &frame(X, B), 6 + crate::table::AGE), Ok(Ports(3)), "aged");
    }

    #[test]
    fn nothing_goes_back_or_beyond_its_link() {
        let mut s = switch();
        assert_eq!(ask(&mut s, PORT_A, A, A), Err(Refusal::Local));
        assert_eq!(ask(&mut s, UP, Y, X), Ok(vec![OTHER]));
        assert_eq!(ask(&mut s, UP, X, Y), Err(Refusal::Local), "both are behind the uplink");
        assert_eq!(ask(&mut s, UP, Mac([1, 0x80, 0xc2, 0, 0, 0]), X), Err(Refusal::Local));
        let mut alone = Forwarding::new(vec![Some(A)], 7).unwrap();
        assert_eq!(ask(&mut alone, 0, ALL, A), Ok(vec![]));
        assert_eq!(ask(&mut alone, 0, B, A), Err(Refusal::Local));
    }

    #[test]
    fn forged_sources_are_refused() {
        let mut s = switch();
        assert_eq!(ask(&mut s, PORT_A, B, X), Err(Refusal::Forged), "not the port's");
        assert_eq!(ask(&mut s, PORT_A, ALL, B), Err(Refusal::Forged));
        assert_eq!(ask(&mut s, UP, B, A), Err(Refusal::Forged), "fixed elsewhere");
        for source in [ALL, Mac([1, 0, 0, 0, 0, 5]), Mac([0; 6])] {
            assert_eq!(ask(&mut s, UP, A, source), Err(Refusal::Forged), "{source}");
        }
        assert_eq!(s.destinations(UP, &[0; 11], 0), Err(Refusal::Forged));
        assert_eq!(s.learned(UP), 0);
        assert_eq!(ask(&mut s, PORT_B, A, B), Ok(vec![PORT_A]), "as if nothing had been");
    }

    #[test]
    fn impossible_ports_are_refused() {
        let error = |fixed| Forwarding::new(fixed, 0).err();
        assert_eq!(error(vec![Some(A), None, Some(A)]), Some(ConfigError::SameAddress(A)));
        assert_eq!(error(vec![Some(ALL)]), Some(ConfigError::NoStation(ALL)));
        assert_eq!(error(vec![None; PORTS_MAX + 1]), Some(ConfigError::TooManyPorts));
        assert_eq!(error(vec![None; PORTS_MAX]), None);
    }

    proptest! {
        #[test]
        fn no_frame_reaches_a_port_that_may_not_get_it(
            frames in proptest::collection::vec((0usize..4, 0u8..6, 0u8..6), 1..100),
        ) {
            let mut s = switch();
            let address = |number: u8| [A, B, X, Y, ALL, Mac([1, 0, 0x5e, 0, 0, 1])][usize::from(number)];
            for (port, to, from) in frames {
                let (to, from) = (address(to), address(from));
                let fixed = s.fixed.clone();
                if let Ok(ports) = ask(&mut s, port, to, from) {
                    prop_assert!(!ports.contains(&port));
                    prop_assert!(fixed[port].is_none_or(|mac| mac == from));
                    for to_port in ports {
                        prop_assert!(to.is_group() || fixed[to_port].is_none_or(|mac| mac == to));
                    }
                }
            }
        }
    }
}
