extern crate std;

use super::*;
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

const XAPIC: Route = Route { mode: ApicMode::Xapic, takes_vectors: true, clustered: false, logical: 0 };
const X2APIC: Route = Route { mode: ApicMode::X2apic, ..XAPIC };

fn fixed(destination: Destination, vector: u8) -> Message {
    Message { destination, delivery: Delivery::Fixed, vector, level: false }
}

fn backplane(vcpus: usize, route: Route) -> Backplane {
    let backplane = Backplane::new(vcpus);
    (0..vcpus).for_each(|index| backplane.publish(index, route));
    backplane
}

/// Who gets a message; all mail is collected.
fn takers(backplane: &Backplane, message: &Message, sender: Option<u32>) -> Vec<usize> {
    let told = backplane.send(message, sender);
    let takers: Vec<usize> = (0..backplane.vcpus()).filter(|&index| backplane.collect(index).is_some()).collect();
    assert_eq!(told.iter().collect::<Vec<_>>(), takers);
    takers
}

#[test]
fn shorthands_and_physical_destinations() {
    let backplane = backplane(4, X2APIC);
    for (destination, expected) in [
        (Destination::Own, &[2][..]),
        (Destination::All, &[0, 1, 2, 3]),
        (Destination::Others, &[0, 1, 3]),
        (Destination::Physical(3), &[3]),
        (Destination::Physical(4), &[]),
    ] {
        assert_eq!(takers(&backplane, &fixed(destination, 0x40), Some(2)), expected, "{destination:?}");
    }
    assert_eq!(backplane.undelivered(), 1);
    // From the board, there is no sender to leave out.
    assert_eq!(takers(&backplane, &fixed(Destination::Others, 0x40), None), [0, 1, 2, 3]);
    assert_eq!(takers(&backplane, &fixed(Destination::Own, 0x40), None), []);
}

#[test]
fn logical_destinations() {
    let backplane = backplane(3, XAPIC);
    backplane.publish(1, Route { logical: 0x04, ..XAPIC });
    backplane.publish(2, Route { logical: 0x14, clustered: true, ..XAPIC });
    let logical = |set| takers(&backplane, &fixed(Destination::Logical(set), 0x40), Some(0));
    // Flat: any common bit. Cluster model: cluster 1, member 4.
    for (set, expected) in [(0x06, &[1][..]), (0x03, &[]), (0x1c, &[1, 2]), (0xf4, &[1, 2]), (0x24, &[1]), (0x13, &[])]
    {
        assert_eq!(logical(set), expected, "{set:#x}");
    }
    // x2APIC: derived from the id, 16 to a cluster.
    assert_eq!((logical_x2(0), logical_x2(2), logical_x2(0x35)), (1, 4, 0x3_0020));
    (0..3).for_each(|index| backplane.publish(index, X2APIC));
    assert_eq!(logical(0b101), [0, 2]);
    assert_eq!(logical(u32::MAX), [0, 1, 2]);
    assert_eq!(logical(0x1_0007), []);
}

#[test]
fn the_lowest_priority_takes_it() {
    let backplane = backplane(4, X2APIC);
    backplane.publish(3, Route { takes_vectors: false, ..X2APIC });
    let message = Message { delivery: Delivery::LowestPriority, ..fixed(Destination::All, 0x40) };
    for (index, priority) in [0x30, 0x20, 0x2f].into_iter().enumerate() {
        backplane.publish_priority(index, priority);
    }
    // Two of the same class take turns.
    let mut taken = [0; 4];
    for _ in 0..20 {
        let [one] = takers(&backplane, &message, None)[..] else { panic!() };
        taken[one] += 1;
    }
    assert!(taken[0] == 0 && taken[1] >= 5 && taken[2] >= 5 && taken[3] == 0, "{taken:?}");
}

#[test]
fn mail() {
    let backplane = backplane(1, XAPIC);
    let send = |delivery, vector, level| {
        backplane.send(&Message { destination: Destination::All, delivery, vector, level }, None)
    };
    // Only the first piece of news makes the owner look.
    assert_eq!(send(Delivery::Fixed, 0x41, true), VcpuSet::one(0));
    assert!(send(Delivery::Fixed, 0x42, false).is_empty());
    assert!(send(Delivery::Nmi, 0, false).is_empty() && backplane.has_news(0));
    let mail = backplane.collect(0).unwrap();
    assert_eq!((mail.vectors[2], mail.levels[2], mail.nmi, mail.init), (6, 2, true, false));
    assert_eq!(backplane.collect(0), None);
    // The same vector by an edge.
    let _ = send(Delivery::Fixed, 0x41, false);
    assert_eq!(backplane.collect(0).map(|mail| (mail.vectors[2], mail.levels[2])), Some((2, 0)));
    // INIT forgets a start-up IPI from before it, not one from after it.
    let _ = send(Delivery::Startup, 0x99, false);
    let _ = send(Delivery::Init, 0, false);
    assert_eq!(backplane.collect(0).map(|mail| (mail.init, mail.startup)), Some((true, None)));
    let _ = send(Delivery::Init, 0, false);
    let _ = send(Delivery::Startup, 0x9a, false);
    assert_eq!(backplane.collect(0).map(|mail| (mail.init, mail.startup)), Some((true, Some(0x9a))));
    let _ = send(Delivery::Fixed, 15, false);
    assert_eq!(backplane.collect(0).map(|mail| mail.illegal_vector), Some(true));
    backplane.publish(0, Route { takes_vectors: false, ..XAPIC });
    let _ = send(Delivery::Fixed, 0x41, false);
    assert_eq!(backplane.collect(0), Some(Mail::default()));
    backplane.publish(0, Route { mode: ApicMode::Disabled, ..XAPIC });
    assert!(send(Delivery::Init, 0, false).is_empty());
}

#[test]
fn an_earlier_deadline_of_the_board_is_told() {
    let backplane = backplane(2, XAPIC);
    assert_eq!(backplane.set_board_deadline(100), VcpuSet::one(0));
    assert!(backplane.set_board_deadline(200).is_empty() && backplane.collect(0).is_some());
    assert_eq!((backplane.set_board_deadline(150), backplane.board_deadline()), (VcpuSet::one(0), 150));
}

/// Senders on several threads, one owner that sleeps when it sees nothing: every vector arrives, and whoever goes to
/// sleep with news is woken.
#[test]
fn nothing_is_lost_between_threads() {
    const ROUNDS: usize = 20_000;
    let backplane = Arc::new(backplane(1, X2APIC));
    let wakes = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let senders: Vec<_> = (0..3u8)
        .map(|sender| {
            let (backplane, wakes, done) = (backplane.clone(), wakes.clone(), done.clone());
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    // A vector that has not been taken yet would merge with the next.
                    let vector = 0x40 + sender;
                    let told = backplane.send(&fixed(Destination::All, vector), None);
                    wakes.fetch_add(usize::from(!told.is_empty()), Ordering::SeqCst);
                    while backplane.inboxes[0].vectors[2].load(Ordering::SeqCst) >> sender & 1 != 0 {
                        thread::yield_now();
                    }
                }
                done.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let (mut taken, mut woken) = ([0; 3], 0);
    loop {
        let finished = done.load(Ordering::SeqCst) == 3;
        let told = wakes.load(Ordering::SeqCst);
        if let Some(mail) = backplane.collect(0) {
            (0..3).for_each(|sender| taken[sender] += (mail.vectors[2] >> sender & 1) as usize);
        } else if told == woken && finished {
            break;
        } else {
            thread::yield_now();
        }
        woken = told;
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert_eq!(taken, [ROUNDS; 3]);
}
