//! Counts of VM exits by reason, for the report at power-off and at milestones.

use alloc::collections::BTreeMap;
use core::fmt;

use abi::event::{self, guest};

use crate::event_name::event_name;
use crate::serial;

/// Events that have a counter.
const EVENTS: usize = event::GUEST_ARCH as usize + event::GUEST_NOVA as usize;

/// What an exit counts as when the number of exits is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The serial port's registers.
    Serial,
    /// Setting the timer, its interrupt's arrival and the window that it waits for.
    Timer,
    /// Everything else.
    Other,
}

/// Exits of one vCPU since it was created.
#[derive(Clone, Debug)]
pub struct Statistics {
    events: [u64; EVENTS],
    /// Accesses to the serial port, by register; the other ports are in `ports`.
    serial: [u64; serial::REGISTERS as usize],
    timer: u64,
    ports: Tally,
    msrs: Tally,
    interrupts: u64,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            events: [0; EVENTS],
            serial: [0; serial::REGISTERS as usize],
            timer: 0,
            ports: Tally::default(),
            msrs: Tally::default(),
            interrupts: 0,
        }
    }
}

impl Statistics {
    /// Counts an exit.
    #[inline]
    pub fn exit(&mut self, number: u16) {
        if let Some(count) = self.events.get_mut(number as usize) {
            *count += 1;
        }
        if number == guest::INTERRUPT_WINDOW || number == event::GUEST_ARCH + event::RECALL {
            self.timer += 1;
        }
    }

    /// Counts a port access; the exit is counted already.
    #[inline]
    pub fn port(&mut self, port: u16) {
        match serial::register(port) {
            Some(register) => self.serial[register as usize] += 1,
            None => self.ports.count(port.into()),
        }
    }

    /// Counts an exit for an access to a serial register.
    #[inline]
    pub fn serial(&mut self, register: u16) {
        self.exit(guest::IO);
        if let Some(count) = self.serial.get_mut(register as usize) {
            *count += 1;
        }
    }

    /// Counts a register access; the exit is counted already.
    pub fn msr(&mut self, index: u32) {
        self.msrs.count(index);
        if index == 0x6e0 {
            self.timer += 1;
        }
    }

    /// Counts an injected interrupt.
    pub fn interrupt(&mut self) {
        self.interrupts += 1;
    }

    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.events.iter_mut().zip(&other.events) {
            *count += more;
        }
        for (count, more) in self.serial.iter_mut().zip(&other.serial) {
            *count += more;
        }
        self.timer += other.timer;
        self.interrupts += other.interrupts;
        self.ports.add(&other.ports);
        self.msrs.add(&other.msrs);
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.events.iter().sum()
    }

    fn serial_accesses(&self) -> u64 {
        self.serial.iter().sum()
    }

    /// Accesses by port.
    fn all_ports(&self) -> Tally {
        let mut ports = self.ports.clone();
        for (port, &count) in (serial::PORT..).zip(&self.serial) {
            Tally::keep(&mut ports.others, port.into(), count);
        }
        ports
    }

    /// Exits of a class.
    pub fn class(&self, class: Class) -> u64 {
        match class {
            Class::Serial => self.serial_accesses(),
            Class::Timer => self.timer,
            Class::Other => self.total() - self.serial_accesses() - self.timer,
        }
    }

    /// The report: one line each.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let events = self.events.iter().enumerate().filter(|(_, count)| **count != 0);
        core::iter::once(Line::Total(self))
            .chain(events.map(|(number, &count)| Line::Event(number as u16, count)))
            .chain(core::iter::once(Line::Top("ports", self.all_ports().top())))
            .chain(core::iter::once(Line::Top("registers", self.msrs.top())))
    }
}

/// Counts by key. The keys of late are in a small table, for counting is part of every exit.
#[derive(Clone, Debug)]
struct Tally {
    /// Key and count, at the key's last bits; slot 0's key is there from the start, and never counted wrongly.
    late: [(u32, u64); Self::SLOTS],
    others: BTreeMap<u32, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { late: [(0, 0); Self::SLOTS], others: BTreeMap::new() }
    }
}

impl Tally {
    const SLOTS: usize = 64;

    #[inline]
    fn count(&mut self, key: u32) {
        let slot = &mut self.late[key as usize % Self::SLOTS];
        if slot.0 != key {
            let (old, count) = core::mem::replace(slot, (key, 0));
            Self::keep(&mut self.others, old, count);
        }
        slot.1 += 1;
    }

    #[cold]
    fn keep(others: &mut BTreeMap<u32, u64>, key: u32, count: u64) {
        if count != 0 {
            *others.entry(key).or_default() += count;
        }
    }

    fn add(&mut self, other: &Self) {
        other.whole().iter().for_each(|(&key, &count)| Self::keep(&mut self.others, key, count));
    }

    fn whole(&self) -> BTreeMap<u32, u64> {
        let mut whole = self.others.clone();
        self.late.iter().for_each(|&(key, count)| Self::keep(&mut whole, key, count));
        whole
    }

    /// The eight most frequent keys.
    fn top(&self) -> [(u64, u64); 8] {
        let mut top = [(0, 0); 8];
        for (key, count) in self.whole() {
            let mut entry = (key.into(), count);
            for slot in &mut top {
                if entry.1 > slot.1 {
                    core::mem::swap(slot, &mut entry);
                }
            }
        }
        top
    }
}

/// A line of the report.
#[derive(Clone, Copy)]
pub enum Line<'a> {
    /// All exits by class.
    Total(&'a Statistics),
    /// Exits by one reason.
    Event(u16, u64),
    /// The most frequent keys of a kind.
    Top(&'static str, [(u64, u64); 8]),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Total(statistics) => write!(
                f,
                "exits: {} = serial port {} + timer {} + other {}; interrupts injected: {}",
                statistics.total(),
                statistics.class(Class::Serial),
                statistics.class(Class::Timer),
                statistics.class(Class::Other),
                statistics.interrupts
            ),
            Line::Event(number, count) => match event_name(*number) {
                "" => write!(f, "exits by event {number:#x}: {count}"),
                name => write!(f, "exits by {name}: {count}"),
            },
            Line::Top(what, top) => {
                write!(f, "busiest {what}:")?;
                top.iter().filter(|(_, count)| *count != 0).try_for_each(|(key, count)| write!(f, " {key:#x} {count}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn classes_add_up() {
        let mut statistics = Statistics::default();
        for number in [guest::IO, guest::IO, guest::WRMSR, guest::CPUID, guest::INTERRUPT_WINDOW] {
            statistics.exit(number);
        }
        statistics.port(0x3f8);
        statistics.port(0x70);
        statistics.msr(0x6e0);
        statistics.interrupt();
        let lines: Vec<_> = statistics.lines().map(|line| line.to_string()).collect();
        assert_eq!(lines[0], "exits: 5 = serial port 1 + timer 2 + other 2; interrupts injected: 1");
        assert!(lines.contains(&"exits by port I/O: 2".to_string()));
        assert_eq!(lines[5], "busiest ports: 0x70 1 0x3f8 1");
        assert_eq!(lines[6], "busiest registers: 0x6e0 1");
        let mut sum = statistics.clone();
        sum.add(&statistics);
        // The same slot of the table, by turns.
        (0..3).for_each(|_| [0x40, 0x80, 0].into_iter().for_each(|port| sum.port(port)));
        let lines: Vec<_> = sum.lines().map(|line| line.to_string()).collect();
        assert_eq!(lines[0], "exits: 10 = serial port 2 + timer 4 + other 4; interrupts injected: 2");
        assert_eq!(lines[5], "busiest ports: 0x0 3 0x40 3 0x80 3 0x70 2 0x3f8 2");
    }
}
