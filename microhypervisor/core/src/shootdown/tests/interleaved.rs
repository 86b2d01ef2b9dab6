//! Each test runs once for every interleaving of its threads. A thread is a CPU, and its TLB one variable.

use super::*;
use loom::sync::{Arc, Mutex};
use loom::thread;

const PRESENT: u64 = 1;
const ABSENT: u64 = 0;
const OTHER: u64 = 0x1000;
const SPACE: u64 = 0x2000;

struct Cpu {
    root: Use,
    requests: Requests<1>,
    round: Round,
    interrupted: AtomicU32,
    /// The entry as its programs or its guest see it now. Written by this CPU, read by the test.
    tlb: AtomicU64,
    /// The entry as it was cached for the guest, and the generation of that time; 0 if this CPU has no guest.
    cached: AtomicU64,
    seen: AtomicU64,
}

/// CPUs and one space with one entry.
struct Machine<const CPUS: usize> {
    cpus: [Cpu; CPUS],
    entry: AtomicU64,
    lock: Mutex<()>,
    generation: Generation,
}

impl<const CPUS: usize> Machine<CPUS> {
    fn new() -> Arc<Self> {
        let cpus = [const {
            Cpu {
                root: Use(AtomicU64::new(OTHER)),
                requests: Requests::none(),
                round: Round::ended(),
                interrupted: AtomicU32::new(0),
                tlb: AtomicU64::new(ABSENT),
                cached: AtomicU64::new(PRESENT),
                seen: AtomicU64::new(0),
            }
        }; CPUS];
        let machine =
            Self { cpus, entry: AtomicU64::new(PRESENT), lock: Mutex::new(()), generation: Generation::first() };
        for cpu in &machine.cpus {
            [&cpu.root.0, &cpu.requests.0[0], &cpu.tlb, &cpu.cached, &cpu.seen].into_iter().for_each(AtomicU64::touch);
            [&cpu.round.missing, &cpu.interrupted].into_iter().for_each(AtomicU32::touch);
        }
        let space = [&machine.entry, &machine.generation.current, &machine.generation.completed];
        space.into_iter().for_each(AtomicU64::touch);
        Arc::new(machine)
    }

    fn walk(&self, cpu: usize) {
        self.cpus[cpu].tlb.store(self.entry.load(Relaxed), Relaxed);
    }

    /// Loads CR3 and uses the page.
    fn switch(&self, cpu: usize) {
        self.cpus[cpu].root.announce(SPACE);
        fence(SeqCst); // the write of CR3
        self.walk(cpu);
    }

    /// Enters the guest; when it ran last the generation was 1.
    fn enter(&self, cpu: usize) {
        let own = &self.cpus[cpu];
        own.root.enter(SPACE);
        let generation = self.generation.current();
        if generation != own.seen.load(Relaxed).max(1) {
            own.cached.store(self.entry.load(Relaxed), Relaxed);
        }
        own.seen.store(generation, Relaxed);
        own.tlb.store(own.cached.load(Relaxed), Relaxed);
    }

    /// The interrupt, if there is one.
    fn interrupt(&self, cpu: usize) {
        let own = &self.cpus[cpu];
        if own.interrupted.load(Acquire) == 0 {
            return;
        }
        own.interrupted.store(0, Release);
        let taken = own.requests.take(u16::MAX);
        let guest = own.seen.load(Relaxed) != 0;
        if guest {
            // The exit has happened. What is cached stays.
            own.tlb.store(ABSENT, Relaxed);
        } else if own.root.root() == SPACE {
            self.walk(cpu);
        }
        for other in taken {
            let other = &self.cpus[usize::from(other)];
            if other.round.acknowledge() {
                other.interrupted.store(1, Release);
            }
        }
        if guest {
            self.enter(cpu);
        }
    }

    /// The first half of ctrl_pd: returns the generation to complete if a round is still under way.
    fn take_away(&self, cpu: usize) -> Option<u64> {
        let guard = self.lock.lock().unwrap();
        if self.entry.swap(ABSENT, Relaxed) != ABSENT {
            self.generation.bump();
        }
        drop(guard);
        let due = self.generation.due()?;
        let others = self.cpus.iter().enumerate().filter(|(number, _)| *number != cpu);
        let users = others.filter(|(_, other)| other.root.root() == SPACE);
        let requests = users.map(|(_, other)| (other, &other.requests));
        let ended = self.cpus[cpu].round.start(cpu as u16, requests, |target| target.interrupted.store(1, Release));
        if ended {
            self.generation.complete(due);
        }
        (!ended).then_some(due)
    }

    /// The second half, if the round has ended: says whether ctrl_pd has returned.
    fn finish(&self, cpu: usize, due: Option<u64>) -> bool {
        let Some(due) = due else { return true };
        let ended = self.cpus[cpu].round.has_ended();
        if ended {
            self.generation.complete(due);
        }
        ended
    }

    /// What ctrl_pd promises when it returns.
    fn unreachable(&self) {
        for cpu in self.cpus.iter().filter(|cpu| cpu.root.root() == SPACE) {
            assert_eq!(cpu.tlb.load(Relaxed), ABSENT, "reachable through a TLB");
        }
    }
}

/// CPU 0 takes the page away while CPU 1 begins to use the space as `begin` says, and is then interrupted.
fn against_a_beginner(begin: fn(&Machine<2>, usize)) {
    loom::model(move || {
        let machine = Machine::<2>::new();
        let user = {
            let machine = machine.clone();
            thread::spawn(move || {
                begin(&machine, 1);
                machine.interrupt(1);
            })
        };
        let due = machine.take_away(0);
        let returned = machine.finish(0, due);
        user.join().unwrap();
        if returned {
            machine.unreachable();
        }
        machine.interrupt(1);
        assert!(machine.finish(0, due), "all have acknowledged");
        machine.unreachable();
    });
}

#[test]
fn a_switch_to_the_space() {
    against_a_beginner(|machine, cpu| machine.switch(cpu));
}

#[test]
fn an_entry_of_a_guest() {
    against_a_beginner(|machine, cpu| machine.enter(cpu));
}

/// CPUs 0 and 1 take the same page away from the space that CPU 2 uses: both calls return only when it is gone there.
#[test]
fn two_initiators() {
    loom::model(|| {
        let machine = Machine::<3>::new();
        machine.switch(2);
        let initiator = {
            let machine = machine.clone();
            thread::spawn(move || {
                let due = machine.take_away(1);
                if machine.finish(1, due) {
                    machine.unreachable();
                }
                due
            })
        };
        let target = {
            let machine = machine.clone();
            thread::spawn(move || machine.interrupt(2))
        };
        let due = machine.take_away(0);
        if machine.finish(0, due) {
            machine.unreachable();
        }
        let other = initiator.join().unwrap();
        target.join().unwrap();
        machine.interrupt(2);
        assert!(machine.finish(0, due) && machine.finish(1, other), "all have acknowledged");
        assert_eq!(machine.generation.due(), None);
        machine.unreachable();
    });
}

/// CPUs 0 and 1 ask each other.
#[test]
fn mutual() {
    loom::model(|| {
        let machine = Machine::<2>::new();
        machine.switch(0);
        machine.switch(1);
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                let due = machine.take_away(1);
                machine.interrupt(1);
                due
            })
        };
        let due = machine.take_away(0);
        machine.walk(0);
        machine.interrupt(0);
        let other = other.join().unwrap();
        machine.walk(1);
        machine.interrupt(0);
        machine.interrupt(1);
        assert!(machine.finish(0, due) && machine.finish(1, other), "all have acknowledged");
        machine.unreachable();
    });
}
