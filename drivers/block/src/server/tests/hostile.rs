//! Clients that send anything.

use super::*;
use proptest::prelude::*;

fn record() -> impl Strategy<Value = RequestRecord> {
    let near =
        (0u32..4, 0u8..5, 0u8..3, 0u64..70, 0u64..40, 0u32..40).prop_map(|(tag, op, flags, sector, at, length)| {
            let tag = if tag == 3 { u32::MAX } else { tag };
            let mut request = Request::begin(0);
            (request.tag, request.sector, request.offset, request.length) = (tag, sector, at * 512, length * 512);
            let mut record = request.encode();
            (record[4], record[5]) = (op, flags);
            record
        });
    prop_oneof![4 => near, 1 => any::<RequestRecord>()]
}

#[derive(Clone, Debug)]
enum Step {
    Send(RequestRecord),
    Begin(u32),
    Produced(u32),
    Consumed(u32),
    Read,
    Run,
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => record().prop_map(Step::Send),
        2 => (0u32..4).prop_map(Step::Begin),
        1 => (0u32..3000).prop_map(Step::Produced),
        1 => any::<u32>().prop_map(Step::Consumed),
        2 => Just(Step::Read),
        2 => Just(Step::Run),
        4 => Just(Step::Turn),
    ]
}

proptest! {
    /// Whatever one client does, the other's data goes where it should, and the device sees nothing outside regions.
    #[test]
    fn a_hostile_client_harms_itself(steps in prop::collection::vec(step(), 0..200)) {
        let world = World::new(2);
        let wires = [Wires::new(1024, 128), Wires::new(1024, 128)];
        let mut server = server(&world, &wires, GEOMETRY, 1);
        let mut enemy = wires[0].client();
        let mut friend = (Client::new(), wires[1].client());
        let (mut stamp, mut pending) = (0, None);
        for step in steps {
            match step {
                Step::Send(record) => drop(enemy.send(&record).ok()),
                Step::Begin(life) => drop(enemy.send(&Request::begin(life).encode()).ok()),
                Step::Produced(count) => (0..count).for_each(|_| wires[0].requests.header.push_consumer()),
                Step::Consumed(count) => enemy.1.consume(count as usize),
                Step::Read => drop(enemy.receive().ok()),
                Step::Run => world.borrow_mut().run(),
                Step::Turn => server.turn(),
            }
            if pending.is_none() {
                stamp += 1;
                world.borrow_mut().windows[1][0] = stamp;
                pending = friend.0.submit(Operation::Write, true, stamp % SECTORS, 0, 512);
            }
            friend.0.send(&mut friend.1);
            while let Some(event) = friend.0.poll(&mut friend.1) {
                if let Event::Done { tag, status } = event {
                    prop_assert_eq!((Some(tag), status), (pending, Status::Ok));
                    prop_assert_eq!(world.borrow().durable[(SECTORS + stamp % SECTORS) as usize], stamp);
                    pending = None;
                }
            }
        }
        for _ in 0..8 {
            server.turn();
            world.borrow_mut().run();
            while let Some(event) = friend.0.poll(&mut friend.1) {
                pending = pending.filter(|_| !matches!(event, Event::Done { .. }));
            }
            friend.0.send(&mut friend.1);
        }
        prop_assert_eq!(pending, None);
        // The enemy may have filled its ring with requests; they end, too.
        for _ in 0..100 {
            server.turn();
            world.borrow_mut().run();
        }
        prop_assert!(server.idle(), "nobody is waited for busily");
    }
}
