extern crate std;

use super::*;
use crate::backplane::Backplane;
use crate::memory::VecMemory;
use crate::virtio::driver::Driver;
use crate::virtio::interrupts::Interrupts;
use crate::virtio::queue::Queue;
use alloc::sync::Arc;
use alloc::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const WINDOW: u64 = 64 << 10;
const SECTORS: u64 = 256;
const RAM: u64 = 0x10_0000;
const DATA: u64 = 0x4_0000;

/// A disk in RAM that ends requests when the test says so, in any order.
#[derive(Default)]
struct RamDisk {
    disk: Vec<u8>,
    window: Vec<u8>,
    used: BTreeMap<u32, Request>,
    accepted: VecDeque<u32>,
    sent: Vec<u32>,
    events: VecDeque<Event>,
    limit: usize,
}

impl RamDisk {
    fn end(&mut self, which: usize) {
        let tag = self.sent.swap_remove(which % self.sent.len());
        let request = self.used.remove(&tag).unwrap();
        let (disk, window) = ((request.sector * SECTOR) as usize, request.offset as usize);
        let length = request.length as usize;
        match request.operation {
            Operation::Read => self.window[window..][..length].copy_from_slice(&self.disk[disk..][..length]),
            Operation::Write { .. } => self.disk[disk..][..length].copy_from_slice(&self.window[window..][..length]),
            Operation::Flush => {}
        }
        self.events.push_back(Event::Done { tag, ok: true });
    }
}

impl Backend<Arc<VecMemory>> for RamDisk {
    fn window(&self) -> u64 {
        WINDOW
    }
    fn copy_in(&mut self, at: u64, memory: &Arc<VecMemory>, segment: Segment) {
        memory.load(segment.offset, &mut self.window[at as usize..][..segment.length as usize]);
    }
    fn copy_out(&mut self, at: u64, memory: &Arc<VecMemory>, segment: Segment) {
        memory.store(segment.offset, &self.window[at as usize..][..segment.length as usize]);
    }
    fn submit(&mut self, request: Request) -> Option<u32> {
        let tag = (0..self.limit as u32).find(|tag| !self.used.contains_key(tag))?;
        self.used.insert(tag, request);
        self.accepted.push_back(tag);
        Some(tag)
    }
    fn send(&mut self) {
        self.sent.extend(self.accepted.drain(..));
    }
    fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
    fn idle(&mut self) -> bool {
        self.events.is_empty()
    }
}

struct Bench {
    driver: Driver,
    queues: [Queue; 1],
    interrupts: Interrupts,
    block: Block<RamDisk>,
}

impl Bench {
    fn new(disk: Disk) -> Self {
        let driver = Driver::new(Arc::new(VecMemory::new(RAM)), 0x1000, 64, true, false);
        let interrupts = Interrupts::new(2, Arc::new(Backplane::new(1)));
        let backend = RamDisk {
            disk: vec![0; (SECTORS * SECTOR) as usize],
            window: vec![0; WINDOW as usize],
            limit: IN_FLIGHT,
            ..RamDisk::default()
        };
        let mut bench = Self { driver, queues: [Queue::new(64)], interrupts, block: Block::new(backend, disk, "root") };
        bench.start(u64::MAX);
        bench
    }

    fn start(&mut self, features: u64) {
        self.driver.memory.clear(0x1000, 0x1000).unwrap();
        self.driver = Driver::new(self.driver.memory.clone(), 0x1000, 64, true, false);
        self.queues[0].reset();
        self.queues[0].addresses = self.driver.addresses;
        self.queues[0].enable(&self.driver.memory, crate::virtio::feature::COMMON).unwrap();
        let offered = Model::<Arc<VecMemory>>::features(&self.block);
        Model::<Arc<VecMemory>>::start(&mut self.block, features & offered);
        self.driver.want_interrupt();
    }

    fn notify(&mut self) {
        let Self { driver, queues, interrupts, block } = self;
        block.notify(0, &mut Io { queues, memory: &driver.memory, interrupts }).unwrap();
    }

    fn serve(&mut self, ready: bool) -> bool {
        let Self { driver, queues, interrupts, block } = self;
        block.serve(ready, &mut Io { queues, memory: &driver.memory, interrupts }).unwrap()
    }

    /// Adds a request for page `page` of the data; its head.
    fn add(&mut self, kind: u32, sector: u64, page: u64, length: u32) -> Option<u16> {
        let at = DATA + 0x2000 * page;
        let header = u128::from(kind) | u128::from(sector) << 64;
        self.driver.memory.write(at - 0x100, &header.to_le_bytes()).unwrap();
        self.driver.memory.write(at - 0x80, &[0xee]).unwrap();
        let (header, status) = ((at - 0x100, 16), (at - 0x80, 1));
        // In two pieces, so that they are put together.
        let data = [(at, length / 3), (at + u64::from(length / 3), length - length / 3)];
        match kind {
            request::OUT => self.driver.add(&[header, data[0], data[1]], &[status]),
            request::FLUSH => self.driver.add(&[header], &[status]),
            _ => self.driver.add(&[header], &[data[0], data[1], status]),
        }
    }

    fn status(&self, page: u64) -> u8 {
        self.driver.memory.read_u32(DATA + 0x2000 * page - 0x80).unwrap() as u8
    }

    /// One request, all at once: bytes written, status.
    fn ask(&mut self, kind: u32, sector: u64, length: u32) -> (u32, u8) {
        let head = self.add(kind, sector, 0, length).unwrap();
        self.notify();
        while !self.block.backend.sent.is_empty() {
            self.block.backend.end(0);
        }
        self.serve(true);
        let back = self.driver.take_back().unwrap();
        assert_eq!((back.0, self.driver.take_back()), (head, None));
        (back.1, self.status(0))
    }
}

const DISK: Disk = Disk { sectors: SECTORS, read_only: false, cached: true };

#[test]
fn what_is_written_is_read() {
    let mut bench = Bench::new(DISK);
    bench.driver.memory.write(DATA, &[0x5a; 1536]).unwrap();
    assert_eq!(bench.ask(request::OUT, 3, 1536), (1, request::OK));
    assert_eq!(bench.block.backend.disk[3 * 512 - 1..][..3], [0, 0x5a, 0x5a]);
    bench.driver.memory.clear(DATA, 4096).unwrap();
    assert_eq!(bench.ask(request::IN, 2, 2048), (2049, request::OK));
    assert_eq!(bench.driver.memory.read_u64(DATA + 508), Ok(0x5a5a_5a5a_0000_0000));
    assert_eq!(bench.ask(request::FLUSH, 0, 0), (1, request::OK));
    assert_eq!(bench.ask(request::GET_ID, 0, 20), (21, request::OK));
    assert_eq!(bench.driver.memory.read_u64(DATA), Ok(u64::from_le_bytes(*b"root\0\0\0\0")));
}

#[test]
fn impossible_requests_fail() {
    let mut bench = Bench::new(DISK);
    for (kind, sector, length) in [
        (request::IN, SECTORS, 512),
        (request::IN, SECTORS - 1, 1024),
        (request::OUT, u64::MAX, 512),
        (request::IN, 0, 511),
        (request::OUT, 0, WINDOW as u32 + 512),
    ] {
        assert_eq!(bench.ask(kind, sector, length), (1, request::FAILED), "{kind} {sector} {length}");
    }
    assert_eq!(bench.ask(11, 0, 16), (1, request::UNSUPPORTED));
    assert_eq!(bench.ask(request::IN, SECTORS - 1, 512), (513, request::OK));
    let mut bench = Bench::new(Disk { read_only: true, ..DISK });
    assert_eq!(bench.ask(request::OUT, 0, 512), (1, request::FAILED));
    assert_ne!(Model::<Arc<VecMemory>>::features(&bench.block) & feature::RO, 0);
    bench.driver.add(&[(DATA, 15)], &[(DATA, 1)]).unwrap();
    let Bench { driver, mut queues, mut interrupts, mut block } = bench;
    let mut io = Io { queues: &mut queues, memory: &driver.memory, interrupts: &mut interrupts };
    assert_eq!(block.notify(0, &mut io), Err(Violation::Request), "half a header");
}

#[test]
fn writes_are_durable_where_the_driver_cannot_flush() {
    for (cached, features, mode, durable) in [
        (true, u64::MAX, 1, false),
        (true, u64::MAX, 0, true),
        (true, !feature::FLUSH & !feature::CONFIG_WCE, 1, true),
        (false, u64::MAX, 1, false),
    ] {
        let mut bench = Bench::new(Disk { cached, ..DISK });
        bench.start(features);
        Model::<Arc<VecMemory>>::write_config(&mut bench.block, WRITEBACK, &[mode]);
        bench.add(request::OUT, 0, 0, 512).unwrap();
        bench.notify();
        let operation = bench.block.backend.used[&0].operation;
        assert_eq!(operation, Operation::Write { durable });
    }
}

#[test]
fn what_finds_no_room_waits() {
    let mut bench = Bench::new(DISK);
    // 16 pages of window, 5 for each.
    for page in 0..5 {
        bench.add(request::IN, page, page, 0x5000).unwrap();
    }
    assert!(bench.driver.must_notify());
    bench.notify();
    assert_eq!(bench.block.backend.sent.len(), 3);
    bench.block.backend.end(1);
    bench.serve(true);
    assert_eq!(bench.block.backend.sent.len(), 3);
    for _ in 0..4 {
        bench.block.backend.end(0);
        bench.serve(true);
    }
    assert_eq!((0..5).map(|_| bench.driver.take_back().unwrap().1).sum::<u32>(), 5 * 0x5001);
    // The same with few requests allowed.
    bench.block.backend.limit = 2;
    for page in 0..5 {
        bench.add(request::IN, page, page, 512).unwrap();
    }
    bench.notify();
    assert_eq!(bench.block.backend.sent.len(), 2);
    while !bench.block.backend.sent.is_empty() {
        bench.block.backend.end(0);
        bench.serve(true);
    }
    assert_eq!(bench.driver.outstanding(), 5);
    assert_eq!((0..5).filter_map(|_| bench.driver.take_back()).count(), 5);
}

#[test]
fn with_many_on_their_way_the_driver_need_not_notify() {
    let mut bench = Bench::new(DISK);
    for page in 0..QUIET_FROM as u64 {
        bench.add(request::IN, 0, page, 512).unwrap();
    }
    assert!(bench.driver.must_notify());
    bench.notify();
    bench.add(request::IN, 0, 20, 512).unwrap();
    assert!(!bench.driver.must_notify());
    bench.block.backend.end(0);
    bench.serve(true);
    assert_eq!(bench.block.backend.sent.len(), QUIET_FROM, "it looked by itself");
    while !bench.block.backend.sent.is_empty() {
        bench.block.backend.end(0);
    }
    bench.serve(true);
    bench.add(request::IN, 0, 21, 512).unwrap();
    assert!(bench.driver.must_notify(), "nobody will look");
}

#[test]
fn after_a_reset_nothing_of_before_reaches_the_guest() {
    let mut bench = Bench::new(DISK);
    bench.block.backend.disk.fill(0x77);
    bench.add(request::IN, 0, 0, 4096).unwrap();
    bench.add(request::OUT, 9, 1, 512).unwrap();
    bench.notify();
    assert_eq!(bench.block.backend.sent.len(), 2);
    Model::<Arc<VecMemory>>::reset(&mut bench.block);
    bench.start(u64::MAX);
    bench.add(request::IN, 9, 2, 512).unwrap();
    bench.notify();
    assert_eq!(bench.block.backend.sent.len(), 2, "the old write may still come");
    bench.block.backend.end(0);
    bench.serve(false);
    bench.block.backend.end(0);
    bench.serve(true);
    assert_eq!((bench.driver.take_back(), bench.driver.memory.read_u32(DATA)), (None, Ok(0)));
    assert_eq!((bench.status(0), bench.status(1)), (0xee, 0xee));
    bench.block.backend.end(0);
    bench.serve(true);
    assert_eq!(bench.driver.take_back().map(|(_, written)| written), Some(513));
    assert_eq!(bench.driver.memory.read_u32(DATA + 0x4000), Ok(0), "what the write before the reset wrote");
}

#[test]
fn the_configuration_tells_what_the_disk_is() {
    let mut bench = Bench::new(DISK);
    let read = |bench: &Bench, at, length| {
        let mut bytes = [0; 8];
        Model::<Arc<VecMemory>>::read_config(&bench.block, at, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!((read(&bench, 0, 8), read(&bench, 12, 4), read(&bench, 20, 4)), (SECTORS, 126, 512));
    assert_eq!((read(&bench, 32, 1), read(&bench, 33, 8), read(&bench, 5000, 8)), (1, 0, 0));
    bench.block.backend.events.push_back(Event::Ready(Disk { sectors: 1000, ..DISK }));
    assert!(bench.serve(true));
    assert_eq!(read(&bench, 0, 4), 1000);
    bench.block.backend.events.push_back(Event::Ready(Disk { sectors: 1000, ..DISK }));
    assert!(!bench.serve(true));
}

proptest! {
    /// Random reads and writes of distinct places, many at a time, ending in any order: the disk is as a model says.
    #[test]
    fn a_disk_is_a_disk(steps in prop::collection::vec((any::<bool>(), 0u64..14, 0u64..16, 1u32..9, any::<u8>(), any::<usize>()), 1..120)) {
        let mut bench = Bench::new(DISK);
        let mut model = vec![0u8; (SECTORS * SECTOR) as usize];
        let mut held: BTreeMap<u16, (u64, u64, u32, Option<u8>)> = BTreeMap::new();
        for (write, page, place, sectors, byte, choice) in steps {
            let length = sectors * 512;
            let busy = held.values().any(|&(p, s, ..)| p == page || s == place * 16);
            if !busy {
                if write {
                    bench.driver.memory.write(DATA + 0x2000 * page, &vec![byte; length as usize]).unwrap();
                }
                let kind = if write { request::OUT } else { request::IN };
                if let Some(head) = bench.add(kind, place * 16, page, length) {
                    held.insert(head, (page, place * 16, length, write.then_some(byte)));
                    if bench.driver.must_notify() {
                        bench.notify();
                    }
                }
            }
            if choice % 2 == 0 && !bench.block.backend.sent.is_empty() {
                bench.block.backend.end(choice / 2);
                bench.serve(true);
            }
            while let Some((head, written)) = bench.driver.take_back() {
                let (page, sector, length, byte) = held.remove(&head).unwrap();
                prop_assert_eq!(bench.status(page), request::OK);
                let range = (sector * SECTOR) as usize..(sector * SECTOR) as usize + length as usize;
                match byte {
                    Some(byte) => {
                        model[range].fill(byte);
                        prop_assert_eq!(written, 1);
                    }
                    None => {
                        let mut bytes = vec![0; length as usize];
                        bench.driver.memory.read(DATA + 0x2000 * page, &mut bytes).unwrap();
                        prop_assert_eq!((&bytes[..], written), (&model[range], length + 1));
                    }
                }
            }
            bench.driver.want_interrupt();
        }
        // Nothing is forgotten.
        while !bench.block.backend.sent.is_empty() {
            bench.block.backend.end(0);
            bench.serve(true);
        }
        prop_assert_eq!((0..held.len()).filter_map(|_| bench.driver.take_back()).count(), held.len());
        prop_assert_eq!(bench.block.pages.take(WINDOW), Some(0));
    }
}
