//! Pieces, flushes, failures, fair shares and backpressure, one by one.

use super::*;
use Operation::{Flush, Read, Write};

fn submit(end: &mut (Client, ClientEnds), operation: Operation, fua: bool, sector: u64, length: u32) -> u32 {
    let tag = end.0.submit(operation, fua, sector, 0, length).expect("a tag");
    assert!(end.0.send(&mut end.1));
    tag
}

#[test]
fn long_requests_go_in_pieces() {
    let (world, mut server, mut ends) = met(2, 4096);
    let tag = submit(&mut ends[1], Write, true, 2, 5 * 1024);
    server.turn();
    let pieces: Vec<_> = world.borrow().log.iter().map(|c| (c.sector, c.address, c.length)).collect();
    let window = 2 << 32;
    assert_eq!(pieces, [(66, window, 2048), (70, window + 2048, 2048), (74, window + 4096, 1024)]);
    assert!(world.borrow().log.iter().all(|command| command.force_unit_access));
    assert!(server.is_busy());
    world.borrow_mut().execute(1);
    world.borrow_mut().execute(0);
    server.turn();
    assert_eq!(tags(&mut ends[1]), [], "a piece still runs");
    world.borrow_mut().run();
    server.turn();
    assert_eq!(tags(&mut ends[1]), [(tag, Status::Ok)]);
    assert!(!server.is_busy());
}

#[test]
fn flushes_go_to_the_device_only_where_there_is_a_cache() {
    for (volatile_cache, force_unit_access) in [(false, false), (true, false), (true, true)] {
        let world = World::new(1);
        let wires = [Wires::new(4096, 4096)];
        let geometry = Geometry { volatile_cache, force_unit_access, ..GEOMETRY };
        let mut server = server(&world, &wires, geometry, 9);
        server.turn();
        let mut end = (Client::new(), wires[0].client());
        let Some(Event::Hello(hello)) = end.0.poll(&mut end.1) else { panic!("no hello") };
        assert_eq!((hello.life, hello.volatile_cache), (9, volatile_cache));
        let write = submit(&mut end, Write, true, 0, 512);
        server.turn();
        world.borrow_mut().run();
        server.turn();
        let emulated = volatile_cache && !force_unit_access;
        assert_eq!(tags(&mut end).is_empty(), emulated, "a flush follows");
        if emulated {
            world.borrow_mut().run();
            server.turn();
            assert_eq!(tags(&mut end), [(write, Status::Ok)]);
        }
        submit(&mut end, Flush, false, 0, 0);
        server.turn();
        world.borrow_mut().run();
        server.turn();
        assert_eq!(tags(&mut end).len(), 1);
        let flushes = world.borrow().log.iter().filter(|command| command.action == Action::Flush).count();
        assert_eq!(flushes, usize::from(volatile_cache) + usize::from(emulated));
    }
}

#[test]
fn a_failure_is_told_once_when_all_pieces_have_ended() {
    let (world, mut server, mut ends) = met(1, 4096);
    let tag = submit(&mut ends[0], Read, false, 0, 16 * 512);
    server.turn();
    assert_eq!(world.borrow().running.len(), 3, "of four pieces");
    world.borrow_mut().failing = 1;
    world.borrow_mut().execute(0);
    server.turn();
    assert_eq!(world.borrow().log.len(), 3, "the rest is not tried");
    assert_eq!(tags(&mut ends[0]), []);
    world.borrow_mut().run();
    server.turn();
    assert_eq!(tags(&mut ends[0]), [(tag, Status::MediumError)]);
    let fine = submit(&mut ends[0], Read, false, 0, 512);
    server.turn();
    world.borrow_mut().run();
    server.turn();
    assert_eq!(tags(&mut ends[0]), [(fine, Status::Ok)]);
}

#[test]
fn who_asks_for_much_does_not_delay_who_asks_for_little() {
    let (world, mut server, mut ends) = met(3, 4096);
    for _ in 0..100 {
        submit(&mut ends[0], Read, false, 0, WINDOW as u32 * 512);
        submit(&mut ends[1], Read, false, 0, WINDOW as u32 * 512);
    }
    server.turn();
    let before = world.borrow().log.len();
    let tag = submit(&mut ends[2], Read, false, 0, 512);
    while tags(&mut ends[2]) != [(tag, Status::Ok)] {
        world.borrow_mut().execute(0);
        server.turn();
    }
    let between = world.borrow().log.len() - before;
    assert!(between <= 3 + GEOMETRY.depth as usize, "{between} commands of others came first");
    // And the two others have had the same share.
    let of = |client: u64| world.borrow().log.iter().filter(|command| command.address >> 32 == client + 1).count();
    assert!(of(0).abs_diff(of(1)) <= 1);
}

#[test]
fn completions_wait_for_space() {
    // Room for three completions; the hello was the fourth.
    let (world, mut server, mut ends) = met(1, 64);
    let sent: Vec<_> = (0..20).map(|sector| submit(&mut ends[0], Read, false, sector, 512)).collect();
    let mut bad = Request::begin(0);
    (bad.tag, bad.operation) = (0x1234, Read);
    assert_eq!(ends[0].1.send(&bad.encode()), Ok(true));
    for _ in 0..50 {
        server.turn();
        world.borrow_mut().run();
    }
    assert!(server.idle(), "until there is space");
    let mut seen = tags(&mut ends[0]);
    assert!(!seen.is_empty() && seen.len() <= 4);
    assert!(!server.idle(), "there is space");
    for _ in 0..20 {
        server.turn();
        seen.extend(tags(&mut ends[0]));
    }
    seen.sort_by_key(|(tag, _)| *tag);
    assert_eq!(seen, sent.iter().map(|&tag| (tag, Status::Ok)).collect::<Vec<_>>(), "the bad one was not the client's");
    assert!(server.idle());
}

#[test]
fn nobody_sleeps_over_a_request() {
    let (world, mut server, mut ends) = met(2, 4096);
    server.turn();
    assert!(server.idle());
    submit(&mut ends[1], Read, false, 0, 512);
    assert!(!server.idle());
    server.turn();
    assert!(server.idle(), "the device works");
    world.borrow_mut().run();
    // More than the device takes at once: the next looks follow its interrupts.
    for _ in 0..9 {
        submit(&mut ends[0], Read, false, 0, 512);
    }
    server.turn();
    assert!(server.idle());
    // More requests than one turn takes, none of which the device gets.
    for _ in 0..100 {
        submit(&mut ends[1], Read, false, SECTORS, 512);
        submit(&mut ends[0], Read, false, SECTORS, 512);
    }
    let mut turns = 0;
    world.borrow_mut().run();
    while !server.idle() || server.is_busy() {
        server.turn();
        world.borrow_mut().run();
        turns += 1;
        assert!(turns < 100);
    }
    assert_eq!(tags(&mut ends[1]).len(), 101);
    assert_eq!(tags(&mut ends[0]).len(), 109);
}

#[test]
fn a_region_that_may_only_be_read() {
    let world = World::new(1);
    let wires = Wires::new(4096, 4096);
    let mut server = Server::new(Disk(world.clone(), GEOMETRY)).expect("valid");
    server.add(wires.driver(), Region { read_only: true, ..region(0) }, 1);
    server.turn();
    let mut end = (Client::new(), wires.client());
    assert!(matches!(end.0.poll(&mut end.1), Some(Event::Hello(hello)) if hello.read_only));
    let write = submit(&mut end, Write, false, 0, 512);
    let read = submit(&mut end, Read, false, 0, 512);
    server.turn();
    world.borrow_mut().run();
    server.turn();
    assert_eq!(tags(&mut end), [(write, Status::ReadOnly), (read, Status::Ok)]);
}
