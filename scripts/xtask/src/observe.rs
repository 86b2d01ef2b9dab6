//! What the root task tells about the kernel's work, over a third serial line that nothing else uses: counters
//! (`run --stats`) and the trace of each CPU (`run --trace`).

mod counters;
mod names;
pub mod trace;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow, bail};
use plan::observation::{Message, Messages, Wanted};

use crate::emulator::Emulator;
use crate::workspace;

/// COM3 of a machine that is to be started, and what comes over it.
pub struct Line {
    port: u16,
    collector: JoinHandle<Vec<u8>>,
}

impl Line {
    /// Makes one if anything is wanted.
    pub fn open(wanted: Wanted) -> Result<Option<Self>> {
        if !wanted.any() {
            return Ok(None);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let collector = thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Ok((mut stream, _)) = listener.accept() {
                // What came before an error counts.
                let _ = stream.read_to_end(&mut bytes);
            }
            bytes
        });
        Ok(Some(Self { port, collector }))
    }

    /// What the emulator must be told, for `Machine::further`.
    pub fn arguments(&self, emulator: Emulator) -> Vec<String> {
        let port = self.port;
        match emulator {
            Emulator::Bochs => vec![format!("com3: enabled=1, mode=socket-client, dev=127.0.0.1:{port}")],
            Emulator::Qemu | Emulator::Kvm => vec![
                "-chardev".into(),
                format!("socket,id=com3,host=127.0.0.1,port={port},nodelay=on"),
                "-serial".into(),
                "chardev:com3".into(),
            ],
        }
    }

    /// Everything that came, once the machine has ended.
    pub fn finish(self) -> Result<Observation> {
        // A machine that never connected is waited for no longer.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        let bytes = self.collector.join().map_err(|_| anyhow!("the third serial line's thread died"))?;
        Observation::parse(&bytes)
    }
}

/// A record of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// System time.
    pub time: u64,
    /// Records that were lost before it.
    pub lost: u64,
    /// Kind, a number of `abi::observation::Traced`.
    pub kind: u8,
    /// See `abi::observation::Traced`.
    pub detail: u16,
    /// See `abi::observation::Traced`.
    pub first: u64,
    /// See `abi::observation::Traced`.
    pub second: u64,
}

/// From a time on, an execution context is the main one of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// System time.
    pub time: u64,
    /// Its identity.
    pub ec: u64,
    /// The program's name.
    pub name: String,
}

/// All that was told.
#[derive(Default, Debug)]
pub struct Observation {
    /// Ticks of system time per second.
    pub frequency: u64,
    /// CPUs that could be observed.
    pub cpus: u32,
    /// The last counters of each CPU that were told.
    pub counters: BTreeMap<u32, BTreeMap<u16, u64>>,
    /// Each CPU's trace.
    pub records: BTreeMap<u32, Vec<Record>>,
    /// Programs' names, in order.
    pub names: Vec<Named>,
    /// Whether it was told to the end.
    pub complete: bool,
}

impl Observation {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut observation = Self::default();
        let messages =
            Messages::default().append(bytes).map_err(|_| anyhow!("the third serial line is out of step"))?;
        for message in messages {
            match message {
                Message::Begin { frequency, cpus, .. } => {
                    (observation.frequency, observation.cpus) = (frequency.max(1), cpus);
                }
                Message::Counters { cpu, values, .. } => {
                    observation.counters.insert(cpu, values.into_iter().collect());
                }
                Message::Records { cpu, mut lost, mut time, records } => {
                    let all = observation.records.entry(cpu).or_default();
                    for record in records {
                        time += record.ticks;
                        let plan::observation::Record { kind, detail, first, second, .. } = record;
                        all.push(Record { time, lost: std::mem::take(&mut lost), kind, detail, first, second });
                    }
                }
                Message::Name { time, ec, name } => observation.names.push(Named { time, ec, name }),
                Message::End => observation.complete = true,
            }
        }
        Ok(observation)
    }
}

/// Prints the counters and writes the trace, as far as that is wanted.
pub fn tell(observation: Observation, stats: bool, trace: Option<&Path>) -> Result<()> {
    if observation.frequency == 0 {
        bail!("the root task told nothing of what the kernel counts");
    }
    if observation.cpus == 0 {
        bail!("this kernel has neither counters nor a trace");
    }
    if !observation.complete {
        eprintln!("[ the system was ended; what it did last is not in the statistics or the trace ]");
    }
    if stats {
        eprint!("{}", counters::table(&observation));
    }
    if let Some(file) = trace {
        workspace::write(file, trace::perfetto(&observation)?.as_bytes())?;
        let records: usize = observation.records.values().map(Vec::len).sum();
        let lost: u64 = observation.records.values().flatten().map(|record| record.lost).sum();
        eprintln!("[ {}: {records} records, {lost} lost; ui.perfetto.dev shows it ]", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_never_connects_is_not_waited_for() {
        let line = Line::open(Wanted { counters: true, trace: false }).expect("a port is free").expect("is wanted");
        let observation = line.finish().expect("nothing is in step");
        assert_eq!(
            tell(observation, true, None).unwrap_err().to_string(),
            "the root task told nothing of what the kernel counts"
        );
        assert!(Line::open(Wanted::default()).expect("needs nothing").is_none());
    }

    #[test]
    fn times_and_losses_are_put_together() {
        let record = |ticks, first| plan::observation::Record { ticks, kind: 1, detail: 0, first, second: 0 };
        let messages = [
            Message::Begin { version: plan::observation::VERSION, frequency: 1000, cpus: 1 },
            Message::Records { cpu: 0, lost: 0, time: 100, records: vec![record(0, 1), record(5, 2)] },
            Message::Records { cpu: 0, lost: 3, time: 200, records: vec![record(0, 3), record(1, 4)] },
            Message::End,
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.encode(Vec::new())).collect();
        let observation = Observation::parse(&bytes).expect("is in step");
        let told: Vec<_> = observation.records[&0].iter().map(|r| (r.time, r.lost, r.first)).collect();
        assert_eq!(told, [(100, 0, 1), (105, 0, 2), (200, 3, 3), (201, 0, 4)]);
        assert!(observation.complete);
        assert!(!Observation::parse(&bytes[..bytes.len() - 1]).expect("is in step").complete);
        assert!(Observation::parse(&[255; 8]).is_err());
    }
}
