//! The counters as a table: a line for each that counted, a column for each CPU.

use std::fmt::Write;

use abi::event::{GUEST_ARCH, GUEST_NOVA, HOST_ARCH, HOST_NOVA};
use abi::observation::counter;

use super::{Observation, names};

/// The table, with headings.
pub fn table(observation: &Observation) -> String {
    let mut table = format!("{:36}", "");
    for cpu in 0..observation.cpus {
        let _ = write!(table, "{:>14}", format!("CPU {cpu}"));
    }
    table += "\n";
    let section = |heading: &str, rows: Vec<(usize, String)>| {
        let mut text = String::new();
        for (number, name) in rows {
            let value = |cpu| observation.counters.get(&cpu).and_then(|all| all.get(&(number as u16))).copied();
            let values: Vec<u64> = (0..observation.cpus).map(|cpu| value(cpu).unwrap_or_default()).collect();
            if values.iter().any(|value| *value != 0) {
                let _ = write!(text, "  {name:34}");
                values.iter().for_each(|value| text += &format!("{value:>14}"));
                text += "\n";
            }
        }
        if text.is_empty() { text } else { format!("{heading}\n{text}") }
    };
    let hypercalls =
        names::HYPERCALLS.iter().enumerate().map(|(number, name)| (counter::HYPERCALL + number, (*name).into()));
    table += &section("hypercalls", hypercalls.collect());
    for (heading, rows) in names::COUNTERS {
        table += &section(heading, rows.iter().map(|(number, name)| (*number, (*name).into())).collect());
    }
    let events = |base: usize, count: u16, name: fn(u16) -> String| -> Vec<(usize, String)> {
        (0..count).map(|number| (base + usize::from(number), name(number))).collect()
    };
    table += &section("exits by reason", events(counter::GUEST_EVENT, GUEST_ARCH + GUEST_NOVA, names::guest_event));
    table += &section("events of programs", events(counter::HOST_EVENT, HOST_ARCH + HOST_NOVA, names::host_event));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::event::guest;

    #[test]
    fn what_counted_has_a_line() {
        let mut observation = Observation { cpus: 2, frequency: 1, ..Observation::default() };
        let cpuid = (counter::GUEST_EVENT + usize::from(guest::CPUID)) as u16;
        observation.counters.insert(0, [(0, 12), (cpuid, 3)].into());
        observation.counters.insert(1, [(counter::ROUND as u16, 1_000_000)].into());
        let expected = "
                                             CPU 0         CPU 1
hypercalls
  ipc_call                                      12             0
shootdowns
  rounds begun                                   0       1000000
exits by reason
  CPUID                                          3             0
";
        assert_eq!(table(&observation), expected[1..]);
    }
}
