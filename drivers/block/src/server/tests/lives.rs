//! Drivers and clients that die at any time: nothing that was acknowledged is lost, and nothing comes twice or elsewhere.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// A client makes a request: of which kind, where, how many sectors.
    Submit(usize, u8, u64, u64),
    /// A client looks at its rings.
    Pump(usize),
    Turn,
    /// A command of the device takes place.
    Execute(usize),
    /// The driver dies. Which of its commands took place is in the bits; the others never will. Its successor's
    /// requests begin where the ring is now, or where the predecessor stopped.
    Kill(u32, bool),
    /// A client dies and has a successor.
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0usize..2;
    prop_oneof![
        8 => (client.clone(), 0u8..8, 0..SECTORS, 1u64..12).prop_map(|(c, k, s, n)| Step::Submit(c, k, s, n)),
        8 => client.clone().prop_map(Step::Pump),
        6 => Just(Step::Turn),
        8 => any::<usize>().prop_map(Step::Execute),
        1 => any::<(u32, bool)>().prop_map(|(done, skip)| Step::Kill(done, skip)),
        1 => client.prop_map(Step::Restart),
    ]
}

#[derive(Clone)]
enum Pending {
    Read { sector: u64, count: u64, at: u64 },
    Write { sector: u64, at: u64, stamps: Vec<u64>, durable: bool },
    Flush { seen: Vec<u64> },
}

/// What a client knows.
struct Guest {
    number: usize,
    client: Client,
    ends: ClientEnds,
    /// What was acknowledged for each sector.
    acknowledged: Vec<u64>,
    pending: Vec<Option<Pending>>,
    in_use: Vec<bool>,
    busy: Vec<bool>,
}

impl Guest {
    fn new(number: usize, wires: Wires) -> Self {
        Self {
            number,
            client: Client::new(),
            ends: wires.client(),
            acknowledged: vec![0; SECTORS as usize],
            pending: vec![None; 128],
            in_use: vec![false; WINDOW as usize],
            busy: vec![false; SECTORS as usize],
        }
    }

    fn submit(&mut self, world: &mut World, stamp: &mut u64, kind: u8, sector: u64, count: u64) {
        let count = count.min(SECTORS - sector);
        let sectors = sector as usize..(sector + count) as usize;
        if kind == 0 {
            let tag = self.client.submit(Operation::Flush, false, 0, 0, 0).expect("few requests");
            self.pending[tag as usize] = Some(Pending::Flush { seen: self.acknowledged.clone() });
            return;
        }
        let place = (0..=(WINDOW - count) as usize).find(|&at| !self.in_use[at..at + count as usize].contains(&true));
        let Some(at) = place.filter(|_| !self.busy[sectors.clone()].contains(&true)) else { return };
        self.in_use[at..at + count as usize].fill(true);
        self.busy[sectors].fill(true);
        let durable = kind == 1;
        let (operation, pending) = if kind < 5 {
            let stamps: Vec<_> = (*stamp..*stamp + count).collect();
            *stamp += count;
            world.windows[self.number][at..at + count as usize].copy_from_slice(&stamps);
            (Operation::Write, Pending::Write { sector, at: at as u64, stamps, durable })
        } else {
            (Operation::Read, Pending::Read { sector, count, at: at as u64 })
        };
        let tag = self.client.submit(operation, durable, sector, at as u64 * 512, count as u32 * 512);
        self.pending[tag.expect("few requests") as usize] = Some(pending);
    }

    fn pump(&mut self, world: &mut World, stamp: &mut u64) {
        while let Some(event) = self.client.poll(&mut self.ends) {
            let Event::Done { tag, status } = event else { continue };
            assert_eq!(status, Status::Ok);
            let pending = self.pending[tag as usize].take().expect("known");
            self.finish(world, stamp, pending);
        }
        self.client.send(&mut self.ends);
    }

    fn finish(&mut self, world: &mut World, stamp: &mut u64, pending: Pending) {
        let first = self.number * SECTORS as usize;
        let (sector, count, at) = match pending {
            Pending::Flush { seen } => {
                let durable = &world.durable[first..first + SECTORS as usize];
                assert!(durable.iter().zip(&seen).all(|(durable, seen)| durable >= seen), "a flush came too early");
                return;
            }
            Pending::Read { sector, count, at } => {
                for i in 0..count as usize {
                    let read = world.windows[self.number][at as usize + i];
                    assert_eq!(read, self.acknowledged[sector as usize + i], "sector {}", sector as usize + i);
                }
                (sector, count, at)
            }
            Pending::Write { sector, at, stamps, durable } => {
                for (i, &stamp) in stamps.iter().enumerate() {
                    self.acknowledged[sector as usize + i] = stamp;
                    assert!(!durable || world.durable[first + sector as usize + i] >= stamp);
                }
                (sector, stamps.len() as u64, at)
            }
        };
        self.busy[sector as usize..][..count as usize].fill(false);
        self.in_use[at as usize..][..count as usize].fill(false);
        // The window is the client's again, who uses it for something else at once.
        for place in &mut world.windows[self.number][at as usize..][..count as usize] {
            *place = *stamp;
            *stamp += 1;
        }
    }

    /// The client's successor knows what is on the disk only when nothing runs any more: it looks then.
    fn settle(&mut self, world: &World) {
        let first = self.number * SECTORS as usize;
        self.acknowledged.copy_from_slice(&world.current[first..first + SECTORS as usize]);
    }
}

fn run(steps: Vec<Step>, completion_bytes: usize, force_unit_access: bool) {
    let world = World::new(2);
    let geometry = Geometry { force_unit_access, ..GEOMETRY };
    let wires = [Wires::new(2048, completion_bytes), Wires::new(2048, completion_bytes)];
    let mut life = 1;
    let mut driver = server(&world, &wires, geometry, life);
    let mut guests = [Guest::new(0, wires[0]), Guest::new(1, wires[1])];
    let mut stamp = 1;
    for step in steps {
        match step {
            Step::Submit(who, kind, sector, count) => {
                guests[who].submit(&mut world.borrow_mut(), &mut stamp, kind, sector, count);
            }
            Step::Pump(who) => guests[who].pump(&mut world.borrow_mut(), &mut stamp),
            Step::Turn => driver.turn(),
            Step::Execute(pick) if !world.borrow().running.is_empty() => world.borrow_mut().execute(pick),
            Step::Execute(_) => {}
            Step::Kill(done, skip) => {
                reset(&mut world.borrow_mut(), done);
                life += 1000;
                if skip {
                    wires.iter().for_each(|wires| wires.requests.header.skip_to_producer());
                }
                driver = server(&world, &wires, geometry, life);
            }
            Step::Restart(who) => {
                // What it had under way takes place or not before the driver answers its successor.
                let mut successor = Guest::new(who, wires[who]);
                wires[who].completions.header.skip_to_producer();
                successor.ends = wires[who].client();
                for _ in 0..200 {
                    successor.pump(&mut world.borrow_mut(), &mut stamp);
                    driver.turn();
                    world.borrow_mut().run();
                }
                assert!(successor.client.is_attached());
                successor.settle(&world.borrow());
                guests[who] = successor;
            }
        }
    }
    for _ in 0..400 {
        driver.turn();
        world.borrow_mut().run();
        guests.iter_mut().for_each(|guest| guest.pump(&mut world.borrow_mut(), &mut stamp));
    }
    for guest in &guests {
        assert_eq!(guest.client.in_flight(), 0, "every request ends");
        let first = guest.number * SECTORS as usize;
        assert_eq!(guest.acknowledged, world.borrow().current[first..first + SECTORS as usize]);
    }
}

/// The device forgets its commands; some have taken place before.
fn reset(world: &mut World, done: u32) {
    for bit in 0..world.running.len() {
        if done >> bit & 1 != 0 {
            world.execute(0);
        }
    }
    world.running.clear();
    world.done.clear();
    // What took place has ended.
    world.ended = world.current.clone();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn nothing_acknowledged_is_lost(steps in prop::collection::vec(step(), 0..300), wide: bool, fua: bool) {
        run(steps, if wide { 4096 } else { 64 }, fua);
    }
}

#[test]
fn what_runs_ends_before_a_new_life() {
    let (world, mut server, mut ends) = met(1, 4096);
    let (client, link) = &mut ends[0];
    client.submit(Operation::Write, false, 0, 0, 512);
    assert!(client.send(link));
    server.turn();
    // A successor of the client that knows nothing.
    let mut client = Client::new();
    assert!(client.send(link));
    server.turn();
    assert_eq!(client.poll(link), None, "the write could still read the window");
    world.borrow_mut().run();
    server.turn();
    assert!(matches!(client.poll(link), Some(Event::Hello(hello)) if hello.life == 2));
}

#[test]
fn requests_that_got_lost_are_asked_for_again() {
    let world = World::new(1);
    let wires = [Wires::new(4096, 4096)];
    let mut server = server(&world, &wires, GEOMETRY, 1);
    let (mut client, mut link) = (Client::new(), wires[0].client());
    let tag = client.submit(Operation::Read, false, 0, 0, 512).expect("a tag");
    // Somebody spoils the ring's index.
    (0..4097).for_each(|_| wires[0].requests.header.push_consumer());
    let mut lives = Vec::new();
    for _ in 0..4 {
        server.turn();
        world.borrow_mut().run();
        while let Some(event) = client.poll(&mut link) {
            match event {
                Event::Hello(hello) => lives.push(hello.life),
                done => assert_eq!((done, &lives[..]), (Event::Done { tag, status: Status::Ok }, &[1, 2][..])),
            }
        }
        link = wires[0].client();
        client.send(&mut link);
    }
    assert_eq!(client.in_flight(), 0);
}
