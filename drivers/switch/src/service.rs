//! The ports take turns: what each has sent goes to the rings of those that it is for.

use crate::forward::{Forwarding, Ports, Refusal};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use runtime::net::{Input, Output, Record};

/// Frames that a port may send until the next port has its turn.
pub const TURN: usize = 32;

/// What happened at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that the port sent.
    pub sent: u64,
    /// Frames that the port got.
    pub delivered: u64,
    /// Frames for the port that its ring had no space for.
    pub dropped: u64,
    /// Frames of the port with a source that it may not use.
    pub forged: u64,
    /// Times that the port's rings held what no honest program writes.
    pub violations: u64,
}

impl Counters {
    /// Whether something happened that someone should hear of, since `before`.
    pub fn notable_since(&self, before: &Self) -> bool {
        (self.dropped, self.forged, self.violations) != (before.dropped, before.forged, before.violations)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, delivered, dropped, forged, violations } = self;
        write!(f, "{sent} frames sent, {delivered} delivered, {dropped} dropped (ring full), ")?;
        write!(f, "{forged} with a forged source, {violations} violations")
    }
}

/// A port: the ring that it sends by, and the one that it gets frames by.
pub struct Port<I, O> {
    /// Its name.
    pub name: String,
    /// What it sends.
    pub input: I,
    /// What it gets.
    pub output: O,
    /// What happened.
    pub counters: Counters,
}

/// The switch.
pub struct Service<I, O> {
    forwarding: Forwarding,
    ports: Vec<Port<I, O>>,
    record: Record,
    /// Ports with frames since their programs were woken last.
    told: Ports,
}

impl<I: Input, O: Output> Service<I, O> {
    /// The switch of these ports, for which `forwarding` was made.
    pub fn new(forwarding: Forwarding, ports: Vec<Port<I, O>>) -> Self {
        Self { forwarding, ports, record: Record::new(), told: Ports::default() }
    }

    /// The ports.
    pub fn ports(&mut self) -> &mut [Port<I, O>] {
        &mut self.ports
    }

    /// What is known of addresses.
    pub fn forwarding(&mut self) -> &mut Forwarding {
        &mut self.forwarding
    }

    /// One turn of each port, at `now` (in seconds); false if none had anything.
    pub fn turn(&mut self, now: u32) -> bool {
        let mut busy = false;
        for from in 0..self.ports.len() {
            self.told = Ports::default();
            for _ in 0..TURN {
                match self.record.receive(&mut self.ports[from].input) {
                    Ok(true) => self.forward(from, now),
                    Ok(false) => break,
                    Err(_) => self.ports[from].counters.violations += 1,
                }
                busy = true;
            }
            self.told.for_each(|port| self.ports[port].output.notify());
        }
        busy
    }

    /// Sends the frame in the record, which came by port `from`, on its way.
    fn forward(&mut self, from: usize, now: u32) {
        self.ports[from].counters.sent += 1;
        let to = match self.forwarding.destinations(from, self.record.frame(), now) {
            Ok(to) => to,
            Err(refusal) => {
                self.ports[from].counters.forged += u64::from(refusal == Refusal::Forged);
                return;
            }
        };
        self.told = self.told.with(to);
        for port in to {
            let Port { output, counters, .. } = &mut self.ports[port];
            match self.record.send(output) {
                Ok(true) => counters.delivered += 1,
                Ok(false) => counters.dropped += 1,
                Err(_) => counters.violations += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Mac;
    use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
    use runtime::ring::{Consumer, Header, Producer, Ring};
    use std::boxed::Box;
    use std::string::ToString;

    const CAPACITY: usize = 4096;
    type Peer = Port<Consumer<'static>, Producer<'static>>;

    fn mac(port: usize) -> Mac {
        Mac([2, 0, 0, 0, 0, port as u8])
    }

    fn frame(to: Mac, from: Mac, length: usize) -> Record {
        let mut record = Record::new();
        let mut bytes = [&to.0[..], &from.0].concat();
        bytes.resize(length, 0x55);
        assert!(record.set(&bytes));
        record
    }

    fn ring(header: &'static Header) -> Ring<'static> {
        let data: Vec<AtomicU8> = (0..CAPACITY).map(|_| AtomicU8::new(0)).collect();
        Ring::new(header, data.leak()).unwrap()
    }

    fn header() -> &'static Header {
        Box::leak(Box::new(Header::new(CAPACITY)))
    }

    /// A switch with an uplink (port 0) and stations, and what is behind the ports: their ends of the rings.
    fn switch(stations: usize) -> (Service<Consumer<'static>, Producer<'static>>, Vec<Peer>) {
        switch_with(stations, [header(), header()])
    }

    /// The same, with the given headers for the rings of port 1.
    fn switch_with(
        stations: usize,
        headers: [&'static Header; 2],
    ) -> (Service<Consumer<'static>, Producer<'static>>, Vec<Peer>) {
        let fixed = (0..=stations).map(|port| (port != 0).then(|| mac(port))).collect();
        let (mut ports, mut peers) = (Vec::new(), Vec::new());
        for port in 0..=stations {
            let [out, input] = if port == 1 { headers } else { [header(), header()] }.map(ring);
            let (name, counters) = (port.to_string(), Counters::default());
            ports.push(Port { name: name.clone(), input: Consumer::new(out), output: Producer::new(input), counters });
            peers.push(Port { name, input: Consumer::new(input), output: Producer::new(out), counters });
        }
        (Service::new(Forwarding::new(fixed, 3).unwrap(), ports), peers)
    }

    fn received(peer: &mut Peer) -> usize {
        let mut record = Record::new();
        let mut count = 0;
        while record.receive(&mut peer.input) == Ok(true) {
            count += 1;
        }
        count
    }

    #[test]
    fn frames_arrive_whole_and_are_counted() {
        let (mut switch, mut peers) = switch(3);
        let sent = frame(mac(2), mac(1), 200);
        assert_eq!(sent.send(&mut peers[1].output), Ok(true));
        assert_eq!(frame(Mac([0xff; 6]), mac(1), 60).send(&mut peers[1].output), Ok(true));
        assert_eq!(frame(mac(2), mac(3), 60).send(&mut peers[1].output), Ok(true));
        assert!(switch.turn(0));
        assert!(!switch.turn(0));
        let mut record = Record::new();
        assert_eq!(record.receive(&mut peers[2].input), Ok(true));
        assert_eq!(record.frame(), sent.frame());
        let counts: Vec<_> = peers.iter_mut().map(received).collect();
        assert_eq!(counts, [1, 0, 1, 1], "the broadcast");
        let sender = switch.ports()[1].counters;
        assert_eq!((sender.sent, sender.forged, sender.delivered), (3, 1, 0));
        assert_eq!(switch.ports()[2].counters.delivered, 2);
        assert!(sender.notable_since(&Counters::default()));
    }

    #[test]
    fn a_port_that_takes_nothing_loses_frames_alone() {
        let (mut switch, mut peers) = switch(3);
        let per_ring = CAPACITY / runtime::net::record_length(1000);
        for _ in 0..3 * per_ring {
            // Frames for 2, which sleeps, and for 3.
            assert_eq!(frame(mac(2), mac(1), 1000).send(&mut peers[1].output), Ok(true));
            assert_eq!(frame(mac(3), mac(1), 1000).send(&mut peers[1].output), Ok(true));
            assert!(switch.turn(0));
            assert_eq!(received(&mut peers[3]), 1);
        }
        assert_eq!(received(&mut peers[2]), per_ring);
        let slept = switch.ports()[2].counters;
        assert_eq!((slept.delivered, slept.dropped), (per_ring as u64, 2 * per_ring as u64));
        assert_eq!(switch.ports()[3].counters.dropped, 0);
    }

    #[test]
    fn ports_take_turns() {
        let (mut switch, mut peers) = switch(3);
        for _ in 0..CAPACITY / 24 {
            assert_eq!(frame(mac(3), mac(1), 14).send(&mut peers[1].output), Ok(true));
        }
        assert_eq!(frame(mac(3), mac(2), 14).send(&mut peers[2].output), Ok(true));
        assert!(switch.turn(0));
        assert_eq!(received(&mut peers[3]), TURN + 1, "the other port did not wait for all of them");
    }

    /// Hostile programs write anything anywhere in the rings of their own ports; the others notice nothing.
    #[test]
    fn hostile_ports_harm_only_themselves() {
        let headers = [header(), header()];
        let (mut switch, mut peers) = switch_with(3, headers);
        // What the program behind port 1 shares with the switch, as the words that its memory holds.
        #[allow(unsafe_code)]
        // SAFETY: a header is 48 words and lives for ever; those that are written below are atomics.
        let [out, input] = headers
            .map(|header| unsafe { core::slice::from_raw_parts(core::ptr::from_ref(header).cast::<AtomicU32>(), 48) });
        let mut number = 12345u32;
        for round in 0..2000 {
            for _ in 0..3 {
                number = number.wrapping_mul(1664525).wrapping_add(1013904223);
                let bytes = number.to_le_bytes();
                let word = [0x40 / 4, 0x44 / 4, 0x80 / 4, 0x84 / 4][usize::from(bytes[3] & 3)];
                let value = if bytes[3] & 4 != 0 { number } else { u32::from(bytes[2]) * 8 };
                [out, input][usize::from(bytes[3] >> 7)][word].store(value, Ordering::Relaxed);
                let _ = peers[1].output.write(&bytes);
            }
            assert_eq!(frame(mac(3), mac(2), 100).send(&mut peers[2].output), Ok(true));
            assert_eq!(frame(mac(1), mac(2), 100).send(&mut peers[2].output), Ok(true));
            switch.turn(0);
            assert_eq!(received(&mut peers[3]), 1, "round {round}");
            assert_eq!(received(&mut peers[0]), 0);
        }
        assert!(switch.ports()[1].counters.violations > 100);
        let others = [0, 2, 3].map(|port| switch.ports()[port].counters);
        assert!(others.iter().all(|c| (c.violations, c.dropped, c.forged) == (0, 0, 0)), "{others:?}");
    }
}
