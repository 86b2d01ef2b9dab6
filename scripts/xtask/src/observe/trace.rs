//! The trace in the JSON format of Chrome's and Perfetto's viewers: a track for each CPU with what ran there and what
//! happened, and a track for each execution context with where it ran.

use std::collections::{BTreeMap, BTreeSet};

use abi::event::{HOST_ARCH, STARTUP};
use abi::observation::Traced;
use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Named, Observation, Record, names};

/// The process that stands for the CPUs; protection domains follow.
const CPUS: u64 = 1;
const PROGRAMS: u64 = 1000;
/// In the detail of an event: it is a guest's.
const GUEST: u16 = 1 << 15;

/// The kind of record with number `raw`, or `None` for a number that this version does not define.
fn kind_of(raw: u8) -> Option<Traced> {
    use Traced::*;
    [Switch, Idle, Hypercall, Event, Interrupt, Round, Answer].into_iter().find(|kind| *kind as u8 == raw)
}

/// One event of the format.
#[derive(Serialize)]
struct Event {
    name: String,
    ph: &'static str,
    pid: u64,
    tid: u64,
    /// Microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    /// Of an instant: how far its mark reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    args: Map<String, Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    display_time_unit: &'static str,
    trace_events: Vec<Event>,
}

/// The whole trace.
pub fn perfetto(observation: &Observation) -> Result<String> {
    let people = People::of(observation);
    let start = observation.records.values().flatten().map(|record| record.time).min().unwrap_or(0);
    let microseconds = |time: u64| time.saturating_sub(start) as f64 * 1e6 / observation.frequency as f64;
    let mut writer = Writer { people, microseconds: &microseconds, events: Vec::new(), tracks: BTreeSet::new() };
    for (cpu, records) in &observation.records {
        writer.cpu(u64::from(*cpu), records);
    }
    writer.titles(observation);
    Ok(serde_json::to_string(&File { display_time_unit: "ns", trace_events: writer.events })?)
}

/// Who is who.
struct People<'a> {
    observation: &'a Observation,
    /// Identities of virtual CPUs.
    vcpus: BTreeSet<u64>,
    /// The protection domain of the root task.
    root: Option<u64>,
    /// From when on a protection domain is that of which program, in order.
    programs: Vec<(u64, u64, &'a str)>,
}

impl<'a> People<'a> {
    fn of(observation: &'a Observation) -> Self {
        let records = || observation.records.values().flatten();
        let events = || records().filter(|record| record.kind == Traced::Event as u8);
        let vcpus = events().filter(|event| event.detail & GUEST != 0).map(|event| event.first).collect();
        // It handles the first events of all programs.
        let handler = events().find(|event| event.detail == HOST_ARCH + STARTUP).map(|event| event.second);
        let switches = || records().filter(|record| record.kind == Traced::Switch as u8);
        // It has not run itself before the handler of its first event named it.
        let program = |named: &'a Named| {
            let own = switches().filter(|switch| switch.first == named.ec && switch.time >= named.time);
            own.min_by_key(|switch| switch.time).map(|switch| (named.time, switch.second, named.name.as_str()))
        };
        let root = handler.and_then(|handler| switches().find(|switch| switch.first == handler));
        let programs = observation.names.iter().filter_map(program).collect();
        Self { observation, vcpus, root: root.map(|switch| switch.second), programs }
    }

    fn pd(&self, pd: u64, time: u64) -> String {
        match self.programs.iter().rfind(|program| program.1 == pd && program.0 <= time) {
            Some((_, _, name)) => (*name).into(),
            None if Some(pd) == self.root => "root".into(),
            None => format!("pd {pd}"),
        }
    }

    fn ec(&self, ec: u64) -> String {
        if self.vcpus.contains(&ec) {
            "vCPU".into()
        } else if self.observation.names.iter().any(|named| named.ec == ec) {
            "main".into()
        } else {
            format!("ec {ec}")
        }
    }
}

struct Writer<'a> {
    people: People<'a>,
    microseconds: &'a dyn Fn(u64) -> f64,
    events: Vec<Event>,
    /// Protection domains and their execution contexts.
    tracks: BTreeSet<(u64, u64)>,
}

impl Writer<'_> {
    /// What one CPU recorded.
    fn cpu(&mut self, cpu: u64, records: &[Record]) {
        let mut running: Option<&Record> = None;
        let mut last = 0;
        for record in records {
            if record.lost != 0 {
                // Nobody knows for how long it ran on.
                if let Some(switch) = running.take() {
                    self.slice(cpu, switch, last);
                }
                let args = arguments([("records", record.lost)]);
                self.instant(cpu, last, "lost".into(), args);
            }
            last = record.time;
            let kind = kind_of(record.kind);
            if matches!(kind, Some(Traced::Switch | Traced::Idle))
                && let Some(switch) = running.take()
            {
                self.slice(cpu, switch, record.time);
            }
            match kind {
                Some(Traced::Switch) => running = Some(record),
                Some(Traced::Idle) => {}
                Some(kind) => self.happening(cpu, kind, record),
                None => {}
            }
        }
        if let Some(switch) = running {
            self.slice(cpu, switch, last);
        }
    }

    /// An execution context ran from `switch` on.
    fn slice(&mut self, cpu: u64, switch: &Record, end: u64) {
        let (ec, pd) = (switch.first, switch.second);
        let ts = (self.microseconds)(switch.time);
        let dur = Some((self.microseconds)(end) - ts);
        let name = format!("{} {}", self.people.pd(pd, switch.time), self.people.ec(ec));
        let both = [(CPUS, cpu, name), (PROGRAMS + pd, ec, format!("CPU {cpu}"))];
        for (pid, tid, name) in both {
            self.events.push(Event { name, ph: "X", pid, tid, ts, dur, s: None, args: Map::new() });
        }
        self.tracks.insert((pd, ec));
    }

    /// Something happened at a moment.
    fn happening(&mut self, cpu: u64, kind: Traced, record: &Record) {
        let (name, args) = match kind {
            Traced::Hypercall => {
                let name = names::HYPERCALLS[usize::from(record.detail & 0xf)].into();
                let flags = u64::from(record.detail >> 4);
                (name, arguments([("selector", record.first), ("flags", flags), ("ec", record.second)]))
            }
            Traced::Event => {
                let name = match record.detail & GUEST {
                    0 => names::host_event(record.detail),
                    _ => names::guest_event(record.detail & !GUEST),
                };
                (name, arguments([("ec", record.first), ("handler", record.second)]))
            }
            Traced::Interrupt => (format!("interrupt {:#x}", record.detail), Map::new()),
            Traced::Round => ("round".into(), arguments([("ec", record.first)])),
            Traced::Answer => ("answer".into(), Map::new()),
            Traced::Switch | Traced::Idle => return,
        };
        self.instant(cpu, record.time, name, args);
    }

    fn instant(&mut self, cpu: u64, time: u64, name: String, args: Map<String, Value>) {
        let ts = (self.microseconds)(time);
        self.events.push(Event { name, ph: "i", pid: CPUS, tid: cpu, ts, dur: None, s: Some("t"), args });
    }

    /// The names of all tracks.
    fn titles(&mut self, observation: &Observation) {
        let mut title = |what: &str, pid, tid, name: String| {
            let args = Map::from_iter([("name".to_string(), json!(name))]);
            self.events.push(Event { name: what.into(), ph: "M", pid, tid, ts: 0.0, dur: None, s: None, args });
        };
        title("process_name", CPUS, 0, "CPUs".into());
        for cpu in observation.records.keys() {
            title("thread_name", CPUS, u64::from(*cpu), format!("CPU {cpu}"));
        }
        let programs: BTreeMap<u64, String> =
            self.tracks.iter().map(|(pd, _)| (*pd, self.people.pd(*pd, u64::MAX))).collect();
        for (pd, name) in programs {
            title("process_name", PROGRAMS + pd, 0, name);
        }
        for (pd, ec) in &self.tracks {
            title("thread_name", PROGRAMS + pd, *ec, self.people.ec(*ec));
        }
    }
}

fn arguments<const N: usize>(values: [(&str, u64); N]) -> Map<String, Value> {
    values.into_iter().map(|(name, value)| (name.to_string(), json!(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time: u64, kind: Traced, detail: u16, first: u64, second: u64) -> Record {
        Record { time, lost: 0, kind: kind as u8, detail, first, second }
    }

    #[test]
    fn a_program_that_starts_and_enters_its_guest() {
        let mut records = vec![
            record(1000, Traced::Event, HOST_ARCH + STARTUP, 7, 2),
            record(1100, Traced::Switch, 0, 2, 20),
            record(1600, Traced::Hypercall, 0x1b, 5, 2),
            record(2000, Traced::Switch, 0, 7, 70),
            record(3000, Traced::Switch, 0, 8, 70),
            record(3500, Traced::Event, GUEST | 10, 8, 9),
            record(4000, Traced::Idle, 0, 0, 0),
        ];
        records.push(Record { lost: 4, ..record(9000, Traced::Interrupt, 0x30, 0, 0) });
        let named = Named { time: 1200, ec: 7, name: "linux".into() };
        let observation = Observation {
            frequency: 1_000_000,
            cpus: 1,
            records: [(0, records)].into(),
            names: vec![named],
            ..Observation::default()
        };
        let file: Value = serde_json::from_str(&perfetto(&observation).expect("is JSON")).expect("is JSON");
        let events = file["traceEvents"].as_array().expect("has events");
        let of = |kind: &str| -> Vec<String> {
            let own = events.iter().filter(|event| event["ph"] == kind && event["pid"] == CPUS);
            own.map(|event| format!("{} {} {}", event["name"].as_str().unwrap(), event["ts"], event["dur"])).collect()
        };
        assert_eq!(of("X"), ["root ec 2 100.0 900.0", "linux main 1000.0 1000.0", "linux vCPU 2000.0 1000.0"]);
        let instants = ["startup 0.0 null", "ctrl_sm 600.0 null", "CPUID 2500.0 null", "lost 3000.0 null"];
        assert_eq!(of("i"), [&instants[..], &["interrupt 0x30 8000.0 null"]].concat());
        let titles: Vec<&str> = events.iter().filter_map(|event| event["args"]["name"].as_str()).collect();
        assert_eq!(titles, ["CPUs", "CPU 0", "root", "linux", "ec 2", "main", "vCPU"]);
    }
}
