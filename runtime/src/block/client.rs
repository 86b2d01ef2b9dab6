//! The client's side: what is on its way, and what to send again when the driver has a new life.

use super::{
    Completion, CompletionRecord, Hello, IN_FLIGHT, LIFE_MAX, NO_TAG, Operation, Request, RequestRecord, Status,
};
use crate::ring::Violation;

/// The client's ends of the two rings.
pub trait Link {
    /// Sends a request; false if there is no space.
    fn send(&mut self, record: &RequestRecord) -> Result<bool, Violation>;
    /// The next completion, if there is one.
    fn receive(&mut self) -> Result<Option<CompletionRecord>, Violation>;
}

/// What the driver said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A driver's life begins: at first, and after each restart.
    Hello(Hello),
    /// The request with this tag has ended; tag and place in the window are free.
    Done {
        /// What [`Client::submit`] returned.
        tag: u32,
        /// How it ended.
        status: Status,
    },
}

/// One client of a driver. Tags are below [`IN_FLIGHT`]; bit n of a set stands for tag n.
pub struct Client {
    requests: [Request; IN_FLIGHT],
    used: u128,
    unsent: u128,
    /// The driver's life; 0: not known.
    life: u32,
    /// Begin has not been sent.
    begin: bool,
}

const _: () = assert!(IN_FLIGHT == u128::BITS as usize);

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client that has just started.
    pub const fn new() -> Self {
        Self { requests: [Request::begin(0); IN_FLIGHT], used: 0, unsent: 0, life: 0, begin: true }
    }

    /// Whether a driver has said hello.
    pub fn is_attached(&self) -> bool {
        self.life != 0
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        self.used.count_ones() as usize
    }

    /// Accepts a request and gives it a tag; `None` while [`IN_FLIGHT`] have not ended. It goes to the driver by
    /// [`Self::send`], now or when there is a driver. `length` is 0 for a flush.
    pub fn submit(
        &mut self,
        operation: Operation,
        force_unit_access: bool,
        sector: u64,
        offset: u64,
        length: u32,
    ) -> Option<u32> {
        let tag = (!self.used).trailing_zeros();
        *self.requests.get_mut(tag as usize)? = Request { tag, operation, force_unit_access, sector, offset, length };
        self.used |= 1 << tag;
        self.unsent |= 1 << tag;
        Some(tag)
    }

    /// Sends what waits; false if the ring is too full for all of it or the driver breaks the ring's protocol: call
    /// again when there is space. The caller wakes the driver afterwards.
    pub fn send(&mut self, link: &mut impl Link) -> bool {
        if self.begin {
            if link.send(&Request::begin(self.life).encode()) != Ok(true) {
                return false;
            }
            self.begin = false;
        }
        while self.life != 0 && self.unsent != 0 {
            let tag = self.unsent.trailing_zeros();
            if link.send(&self.requests[tag as usize].encode()) != Ok(true) {
                return false;
            }
            self.unsent &= self.unsent - 1;
        }
        true
    }

    /// The next thing that the driver said; `None` if there is nothing. [`Self::send`] follows when all has been taken.
    pub fn poll(&mut self, link: &mut impl Link) -> Option<Event> {
        loop {
            let record = match link.receive() {
                Ok(record) => record?,
                Err(Violation) => {
                    // Completions are lost: the driver shall finish what runs and begin again.
                    self.attach(0);
                    return None;
                }
            };
            match Completion::decode(&record) {
                Completion::Hello(hello) if (1..=LIFE_MAX).contains(&hello.life) => {
                    self.attach(hello.life);
                    return Some(Event::Hello(hello));
                }
                Completion::Done { tag, status } if self.is_sent(tag) => {
                    self.used &= !(1 << tag);
                    return Some(Event::Done { tag, status });
                }
                // Its predecessor's, or nonsense.
                _ => {}
            }
        }
    }

    fn is_sent(&self, tag: u32) -> bool {
        const { assert!(NO_TAG as usize >= IN_FLIGHT) };
        self.life != 0 && tag < IN_FLIGHT as u32 && (self.used & !self.unsent) >> tag & 1 != 0
    }

    fn attach(&mut self, life: u32) {
        (self.life, self.begin, self.unsent) = (life, true, self.used);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    #[derive(Default)]
    struct Wires {
        sent: Vec<RequestRecord>,
        space: usize,
        received: VecDeque<Result<CompletionRecord, Violation>>,
    }

    impl Link for Wires {
        fn send(&mut self, record: &RequestRecord) -> Result<bool, Violation> {
            if self.sent.len() < self.space {
                self.sent.push(*record);
                return Ok(true);
            }
            Ok(false)
        }
        fn receive(&mut self) -> Result<Option<CompletionRecord>, Violation> {
            self.received.pop_front().transpose()
        }
    }

    impl Wires {
        fn tags(&mut self) -> Vec<(u32, u64)> {
            let sent = self.sent.drain(..).map(|record| Request::decode(&record).expect("a request"));
            sent.map(|r| if r.operation == Operation::Begin { (NO_TAG, r.sector) } else { (r.tag, r.sector) }).collect()
        }
        fn hello(&mut self, life: u32) -> Event {
            let hello = Hello { life, sectors: 9, read_only: false, volatile_cache: false };
            self.received.push_back(Ok(Completion::Hello(hello).encode()));
            Event::Hello(hello)
        }
        fn done(&mut self, tag: u32) -> Option<Event> {
            let status = Status::Ok;
            self.received.push_back(Ok(Completion::Done { tag, status }.encode()));
            Some(Event::Done { tag, status })
        }
    }

    #[test]
    fn everything_unfinished_goes_to_each_new_life() {
        let (mut client, mut wires) = (Client::new(), Wires { space: 99, ..Wires::default() });
        for sector in [10, 11, 12] {
            assert!(client.submit(Operation::Write, false, sector, 0, 512).is_some());
        }
        wires.done(0);
        assert_eq!(client.poll(&mut wires), None, "for a predecessor");
        assert!(client.send(&mut wires));
        assert_eq!(wires.tags(), [(NO_TAG, 0)], "nothing before the hello");
        let hello = wires.hello(7);
        assert_eq!(client.poll(&mut wires), Some(hello));
        assert!(client.send(&mut wires));
        assert_eq!(wires.tags(), [(NO_TAG, 7), (0, 10), (1, 11), (2, 12)]);
        let done = wires.done(1);
        assert_eq!(client.poll(&mut wires), done);
        wires.done(1);
        assert_eq!(client.poll(&mut wires), None, "it had ended");
        // Two lives, one after the other: the second begins with all that is left, too.
        wires.hello(8);
        wires.done(2);
        wires.hello(9);
        assert!(matches!(client.poll(&mut wires), Some(Event::Hello(_))));
        assert!(matches!(client.poll(&mut wires), Some(Event::Hello(_))), "2 was not sent to life 8");
        assert_eq!(client.submit(Operation::Flush, false, 0, 0, 0), Some(1));
        assert!(client.send(&mut wires));
        assert_eq!(wires.tags(), [(NO_TAG, 9), (0, 10), (1, 0), (2, 12)]);
    }

    #[test]
    fn lost_completions_are_made_up_for() {
        let (mut client, mut wires) = (Client::new(), Wires { space: 99, ..Wires::default() });
        wires.hello(1);
        client.poll(&mut wires);
        client.submit(Operation::Read, false, 3, 0, 512);
        client.send(&mut wires);
        wires.received.push_back(Err(Violation));
        wires.done(0);
        assert_eq!(client.poll(&mut wires), None);
        assert_eq!(client.poll(&mut wires), None, "before the hello");
        wires.sent.clear();
        assert!(client.send(&mut wires));
        assert_eq!(wires.tags(), [(NO_TAG, 0)]);
    }

    #[test]
    fn a_full_ring_and_full_tags_hold_back() {
        let (mut client, mut wires) = (Client::new(), Wires { space: 2, ..Wires::default() });
        wires.hello(1);
        client.poll(&mut wires);
        for tag in 0..IN_FLIGHT as u32 {
            assert_eq!(client.submit(Operation::Read, false, 0, 0, 512), Some(tag));
        }
        assert_eq!(client.submit(Operation::Read, false, 0, 0, 512), None);
        let mut seen = Vec::new();
        while !client.send(&mut wires) {
            seen.extend(wires.tags());
        }
        seen.extend(wires.tags());
        assert_eq!(seen.len(), IN_FLIGHT + 1);
        assert_eq!(client.in_flight(), IN_FLIGHT);
        let done = wires.done(77);
        assert_eq!(client.poll(&mut wires), done);
        assert_eq!(client.submit(Operation::Read, false, 0, 0, 512), Some(77));
    }
}
