//! Each test runs once for every interleaving of its threads.

use super::*;
use loom::sync::Arc;
use loom::thread;

struct Machine {
    table: HeaderTable<'static>,
    headers: &'static [Header],
}

impl Machine {
    /// A table of two headers.
    fn new() -> Arc<Self> {
        let headers: &'static [Header] = vec![Header::new(), Header::new()].leak();
        let table = HeaderTable::new(headers);
        for header in headers {
            header.life.touch();
            for member in
                [&header.content, &header.link, &header.before, &header.owner, &header.first, &header.abandoned]
            {
                member.touch();
            }
        }
        table.abandoned.touch();
        Arc::new(Self { table, headers })
    }

    /// What `destroy` does with abandoned headers: ends those that nothing uses. Returns how many.
    fn collect(&self) -> usize {
        let mut ended = 0;
        while let Some(index) = self.table.take_abandoned() {
            assert!((index as usize) < self.headers.len());
            ended += usize::from(self.table.end(index, true));
        }
        ended
    }
}

#[test]
fn what_is_used_again_does_not_end() {
    loom::model(|| {
        let machine = Machine::new();
        let reference = machine.table.alloc(Kind::Sm, 1, 0);
        let user = thread::spawn({
            let machine = machine.clone();
            move || {
                if machine.headers[0].retain(reference.generation) {
                    assert!(machine.table.resolve(reference).is_some(), "it ended though somebody uses it");
                    machine.table.drop_use(reference);
                }
            }
        });
        machine.table.drop_use(reference);
        let ended = machine.collect();
        user.join().unwrap();
        assert_eq!(ended + machine.collect(), 1, "nothing uses it any more");
        assert!(!machine.headers[0].retain(reference.generation));
    });
}

#[test]
fn nothing_that_was_abandoned_is_lost() {
    loom::model(|| {
        let machine = Machine::new();
        let references = [0, 1].map(|index| machine.table.alloc(Kind::Sm, index, index));
        let other = thread::spawn({
            let machine = machine.clone();
            move || machine.table.drop_use(references[1])
        });
        machine.table.drop_use(references[0]);
        let ended = machine.collect();
        other.join().unwrap();
        assert_eq!(ended + machine.collect(), 2);
    });
}
