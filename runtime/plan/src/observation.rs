//! What the root task tells the host about the system while and after it runs: counters of each CPU and its trace.
//!
//! The messages travel over a serial line of their own, one behind the other: each a length (u32, little-endian) and a
//! postcard body of that many bytes.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Version of [`Message`]; the first message tells it.
pub const VERSION: u32 = 1;
/// A message is never longer, in bytes.
pub const LONGEST: usize = 64 << 10;

/// What the host wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The counters, from time to time and at the end.
    pub counters: bool,
    /// The trace.
    pub trace: bool,
}

impl Wanted {
    /// Whether it is anything.
    pub fn any(self) -> bool {
        self.counters || self.trace
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first.
    Begin {
        /// [`VERSION`].
        version: u32,
        /// Ticks of the system time counter per second.
        frequency: u64,
        /// Number of CPUs that can be observed; 0: the kernel offers nothing.
        cpus: u32,
    },
    /// The counters of a CPU that are not 0.
    Counters {
        /// Its number.
        cpu: u32,
        /// System time.
        time: u64,
        /// Number (as in `abi::observation`) and value.
        values: Vec<(u16, u64)>,
    },
    /// Some records of a CPU's trace, in order.
    Records {
        /// Its number.
        cpu: u32,
        /// Records that were lost before these: the CPU was too busy for anybody to fetch them.
        lost: u64,
        /// System time of the first.
        time: u64,
        /// The records.
        records: Vec<Record>,
    },
    /// From this time on an execution context is the main one of a program.
    Name {
        /// System time.
        time: u64,
        /// Its identity in the trace.
        ec: u64,
        /// The program's name.
        name: String,
    },
    /// Nothing follows.
    End,
}

/// A record of the trace, see `abi::observation::Traced`, with the time since the one before, as most numbers are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Ticks since the record before in the same message; 0 for the first.
    pub ticks: u64,
    /// Its kind.
    pub kind: u8,
    /// Detail.
    pub detail: u16,
    /// See `abi::observation::Traced`.
    pub first: u64,
    /// See `abi::observation::Traced`.
    pub second: u64,
}

impl Message {
    /// The message with its length in front, in `buffer`, whose content goes. No memory is allocated if that has room.
    pub fn encode(&self, mut buffer: Vec<u8>) -> Vec<u8> {
        buffer.clear();
        buffer.extend([0; 4]);
        // Postcard fails only for sequences of unknown length, which these types do not have.
        let mut bytes = postcard::to_extend(self, buffer).unwrap_or_default();
        let length = bytes.len().saturating_sub(4) as u32;
        if let Some(place) = bytes.first_chunk_mut() {
            *place = length.to_le_bytes();
        }
        bytes
    }
}

/// The line is out of step, or the other side speaks another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfStep;

/// Puts messages together from the pieces that arrive.
#[derive(Default)]
pub struct Messages {
    pending: Vec<u8>,
}

impl Messages {
    /// Takes the next bytes of the line; the messages that are whole now.
    pub fn append(&mut self, bytes: &[u8]) -> Result<Vec<Message>, OutOfStep> {
        self.pending.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(head) = self.pending[at..].first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if length > LONGEST {
                return Err(OutOfStep);
            }
            let Some(body) = self.pending.get(at + 4..at + 4 + length) else { break };
            match postcard::take_from_bytes::<Message>(body) {
                Ok((Message::Begin { version, .. }, _)) if version != VERSION => return Err(OutOfStep),
                Ok((message, [])) => messages.push(message),
                _ => return Err(OutOfStep),
            }
            at += 4 + length;
        }
        self.pending.drain(..at);
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn samples() -> Vec<Message> {
        let record = Record { ticks: 300, kind: 3, detail: 0x8001, first: 1 << 40, second: 7 };
        vec![
            Message::Begin { version: VERSION, frequency: 2_600_000_000, cpus: 4 },
            Message::Name { time: 5, ec: 71, name: "linux".to_string() },
            Message::Counters { cpu: 3, time: u64::MAX, values: vec![(0, 5), (511, u64::MAX)] },
            Message::Records { cpu: 0, lost: 9, time: 1 << 50, records: vec![record; 3] },
            Message::End,
        ]
    }

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let stream: Vec<u8> = samples().iter().flat_map(|message| message.encode(Vec::new())).collect();
        for size in 1..=stream.len() {
            let mut messages = Messages::default();
            let parsed: Vec<Message> = stream.chunks(size).flat_map(|piece| messages.append(piece).unwrap()).collect();
            assert_eq!(parsed, samples(), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let other = Message::Begin { version: VERSION + 1, frequency: 1, cpus: 1 };
        let mut long = Message::End.encode(vec![9]);
        long[0] += 1;
        long.push(0);
        for bytes in [&b"Linux version"[..], &other.encode(Vec::new()), &long, &[1, 0, 0, 0, 200]] {
            assert_eq!(Messages::default().append(bytes), Err(OutOfStep));
        }
        assert_eq!(Messages::default().append(&[1, 0, 0]), Ok(vec![]));
    }
}
