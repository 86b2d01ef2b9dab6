//! Each test runs once for every interleaving of its threads.

use super::*;
use loom::sync::Arc;
use loom::thread;

/// A mailbox, its objects, and the owner's local APIC: the number of interrupts not yet taken.
struct Machine {
    cells: Cells<2>,
    mailbox: Mailbox,
    interrupts: AtomicU32,
    /// What senders wrote before they posted.
    payload: [AtomicU32; 2],
}

impl Machine {
    fn new() -> Arc<Self> {
        let machine = Self {
            cells: Cells::new(),
            mailbox: Mailbox::empty(),
            interrupts: AtomicU32::new(0),
            payload: [const { AtomicU32::new(0) }; 2],
        };
        let links = machine.cells.0.iter().flat_map(|cell| [&cell.pending, &cell.next]);
        let words = links.chain(&machine.payload).chain([&machine.interrupts, &machine.mailbox.newest]);
        words.for_each(AtomicU32::touch);
        Arc::new(machine)
    }

    fn post(&self, id: u32, bits: u32) {
        if self.mailbox.post(&self.cells, id, bits) {
            self.interrupts.fetch_add(1, AcqRel);
        }
    }

    /// Takes one interrupt, if there is one, and then all messages. Returns the bits of each object.
    fn interrupted(&self, inbox: &mut Inbox, taken: &mut [u32; 2]) {
        if self.interrupts.load(Acquire) == 0 {
            return;
        }
        self.interrupts.fetch_sub(1, AcqRel);
        while let Some((id, bits)) = inbox.take(&self.mailbox, &self.cells) {
            assert_ne!(bits, 0, "nobody is queued without a message");
            let old = &mut taken[id as usize];
            assert_eq!(*old & bits, 0, "no message comes twice");
            *old |= bits;
            for sender in (0..2).filter(|sender| bits & 1 << sender != 0) {
                assert_eq!(self.payload[sender].load(Relaxed), 1, "what was written before is seen");
            }
        }
    }
}

/// Sender `n` posts bit `n` for object `ids[n]` while the owner takes interrupts; then the owner takes the rest.
fn two_senders(ids: [u32; 2]) {
    loom::model(move || {
        let machine = Machine::new();
        let senders = [0, 1].map(|sender| {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.payload[sender].store(1, Relaxed);
                machine.post(ids[sender], 1 << sender);
            })
        });
        let (mut inbox, mut taken) = (Inbox::empty(), [0; 2]);
        machine.interrupted(&mut inbox, &mut taken);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        machine.interrupted(&mut inbox, &mut taken);
        machine.interrupted(&mut inbox, &mut taken);
        let mut expected = [0; 2];
        expected[ids[0] as usize] |= 1;
        expected[ids[1] as usize] |= 2;
        assert_eq!(taken, expected, "interrupts lead to all messages");
        assert!(inbox.is_empty(&machine.mailbox));
        assert!(machine.cells.0.iter().all(|cell| !cell.is_pending()));
    });
}

#[test]
fn one_object_two_senders() {
    two_senders([0, 0]);
}

#[test]
fn two_objects_two_senders() {
    two_senders([0, 1]);
}

/// An object is posted anew while the owner walks a list that it stood in.
#[test]
fn posted_again_while_taken() {
    loom::model(|| {
        let machine = Machine::new();
        machine.payload.iter().for_each(|payload| payload.store(1, Relaxed));
        machine.post(0, 1);
        machine.post(1, 1);
        let sender = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.post(0, 2);
                machine.post(1, 2);
            })
        };
        let (mut inbox, mut taken) = (Inbox::empty(), [0; 2]);
        machine.interrupted(&mut inbox, &mut taken);
        sender.join().unwrap();
        for _ in 0..2 {
            machine.interrupted(&mut inbox, &mut taken);
        }
        assert_eq!(taken, [3, 3]);
    });
}

/// What one sender posts comes out in order, also if the object was queued already.
#[test]
fn in_order() {
    loom::model(|| {
        let machine = Machine::new();
        let sender = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.post(0, 1);
                machine.post(1, 1);
            })
        };
        let mut inbox = Inbox::empty();
        let mut order = [inbox.take(&machine.mailbox, &machine.cells), inbox.take(&machine.mailbox, &machine.cells)];
        sender.join().unwrap();
        order.sort_by_key(Option::is_none);
        for taken in &mut order {
            *taken = taken.or_else(|| inbox.take(&machine.mailbox, &machine.cells));
        }
        assert_eq!(order, [Some((0, 1)), Some((1, 1))]);
    });
}
