//! The driver against a model of the device.

use crate::disk::{DEPTH, Disk};
use crate::identity::Error;
use crate::model::{BLOCK_SIZE, EVENT_IDX, FLUSH, Model, OTHERS, QUEUE, READ_ONLY, SIZE_MAX};
use block::{Action, Command, Device as _, Failure, Geometry, Outcome};
use device::dma::window_for_tests;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use virtio::model::{Model as Device, read, store};
use virtio::transport::{ACCESS_PLATFORM, VERSION_1};

const SECTORS: u64 = 1024;
/// Bytes of the window for each command.
const PART: u64 = 16 << 10;

fn transfer(action: Action, sector: u64, address: u64, length: u32) -> Command {
    Command { action, force_unit_access: false, sector, address, length }
}

const A_FLUSH: Command = Command { action: Action::Flush, force_unit_access: false, sector: 0, address: 0, length: 0 };

fn working(model: Model) -> (Model, Disk<Device>, u64) {
    let disk = Disk::new(model.transport()).unwrap();
    (model, disk, window_for_tests(PART as usize * usize::from(DEPTH)))
}

fn submit(disk: &mut Disk<Device>, model: &mut Model, id: u16, command: &Command) {
    disk.submit(id, command);
    disk.start();
    model.take();
}

#[test]
fn a_device_is_what_it_says() {
    let plain = Geometry {
        sectors: SECTORS,
        block: 512,
        transfer: 1 << 20,
        depth: 42,
        read_only: false,
        volatile_cache: false,
        force_unit_access: false,
    };
    let all = SIZE_MAX | READ_ONLY | BLOCK_SIZE | FLUSH;
    let full = Geometry { block: 4096, transfer: 8192, read_only: true, volatile_cache: true, ..plain };
    for (features, sectors, expected) in [(0, SECTORS, plain), (all, SECTORS + 7, full)] {
        let model = Model::new(features | OTHERS, sectors);
        model.set(8, 12_287);
        model.set(20, 4096);
        let disk = Disk::new(model.transport()).unwrap();
        assert_eq!(disk.geometry(), expected);
        let accepted = model.device.with(|state| state.accepted);
        assert_eq!(accepted, features | VERSION_1 | ACCESS_PLATFORM);
        assert_eq!(model.device.vector(QUEUE), 0);
    }
}

#[test]
fn a_device_that_cannot_be_used_is_refused() {
    let refused = |features, offset, value| {
        let model = Model::new(features, SECTORS);
        model.set(offset, value);
        Disk::new(model.transport()).err()
    };
    for bytes in [0, 256, 520, 8192, u32::MAX] {
        assert_eq!(refused(BLOCK_SIZE, 20, bytes), Some(Error::Block(bytes)));
    }
    assert_eq!(refused(SIZE_MAX, 8, 511), Some(Error::Piece(511)));
    assert_eq!(refused(SIZE_MAX, 8, 512), None);
    let model = Model::new(0, SECTORS);
    model.device.with(|state| state.entries = 64);
    assert_eq!(Disk::new(model.transport()).err(), Some(Error::Queue(64)));
    let model = Model::new(0, SECTORS);
    model.device.with(|state| state.vectors = 0);
    assert!(matches!(Disk::new(model.transport()), Err(Error::Device(_))), "no interrupt");
}

#[test]
fn a_flush_is_one() {
    let (mut model, mut disk, window) = working(Model::new(FLUSH, SECTORS));
    submit(&mut disk, &mut model, 0, &transfer(Action::Write, 3, window, 512));
    submit(&mut disk, &mut model, 1, &A_FLUSH);
    assert_eq!(disk.poll(), None);
    model.execute(1);
    assert_eq!((disk.poll(), model.flushes), (Some((1, Outcome::Done)), 1));
    model.execute(0);
    assert_eq!((disk.poll(), disk.poll()), (Some((0, Outcome::Done)), None));
}

#[test]
fn what_failed_is_told() {
    let (mut model, mut disk, window) = working(Model::new(FLUSH, SECTORS));
    let read = transfer(Action::Read, 9, window, 1024);
    let write = transfer(Action::Write, 9, window, 1024);
    // What the device says of it, and what that is worth: all of it must have been written.
    let cases = [
        (read, Some(0), 1025, None),
        (read, Some(0), 1024, Some(0)),
        (read, Some(0), 1026, Some(0)),
        (read, Some(0), 0, Some(0)),
        (read, Some(1), 1025, Some(1)),
        (read, None, 1025, Some(0xff)),
        (write, Some(0), 1, None),
        (write, Some(0), 0, Some(0)),
        (write, Some(0), u32::MAX, Some(0)),
        (write, Some(2), 1, Some(2)),
        (write, Some(77), 1, Some(77)),
        (write, None, 1, Some(0xff)),
        (A_FLUSH, Some(0), 1, None),
        (A_FLUSH, Some(1), 1, Some(1)),
    ];
    for (command, status, written, expected) in cases {
        submit(&mut disk, &mut model, 7, &command);
        model.end(0, status, written);
        let outcome = if expected.is_none() { Outcome::Done } else { Outcome::Failed };
        assert_eq!(disk.poll(), Some((7, outcome)), "{command:?} {status:?} {written}");
        let error = expected.map(|status| (command.action, command.sector, status));
        assert_eq!((disk.take_error(), disk.take_error(), disk.rules()), (error, None, Ok(())));
    }
}

#[test]
fn what_no_device_may_do_is_noticed() {
    // Tokens: one beyond the queue, one without a request, one inside a request, one that has been given back.
    for head in [128, 0xffff, 0x10_0080, 60, 1, 3] {
        let (mut model, mut disk, window) = working(Model::new(EVENT_IDX, SECTORS));
        submit(&mut disk, &mut model, 0, &transfer(Action::Write, 0, window, 512));
        submit(&mut disk, &mut model, 1, &transfer(Action::Write, 1, window, 512));
        model.execute(1);
        assert_eq!((disk.poll(), disk.check()), (Some((1, Outcome::Done)), Ok(())));
        model.device.complete(QUEUE, head, 1);
        // Nothing counts any more.
        model.execute(0);
        assert_eq!((disk.poll(), disk.poll()), (None, None), "{head}");
        submit(&mut disk, &mut model, 1, &transfer(Action::Write, 1, window, 512));
        assert_eq!(disk.poll(), None, "{head}");
        assert_eq!((disk.rules(), disk.check()), (Err(Failure::Misbehaviour), Err(Failure::Misbehaviour)));
    }
}

#[test]
fn health_is_looked_at() {
    let (mut model, mut disk, window) = working(Model::new(0, SECTORS));
    submit(&mut disk, &mut model, 2, &transfer(Action::Read, 9, window, 512));
    model.execute(0);
    assert_eq!(disk.poll(), Some((2, Outcome::Done)));
    submit(&mut disk, &mut model, 3, &transfer(Action::Read, 9, window, 512));
    let looks = (0..100).take_while(|_| disk.check().is_ok()).count();
    assert_eq!((looks, disk.check()), (30, Err(Failure::TimeOut(3))));
    for (status, failure) in [(0x4f, Failure::Fatal(0x4f)), (0, Failure::Fatal(0)), (0xff, Failure::Absent)] {
        model.device.with(|state| state.status = status);
        assert_eq!(disk.check(), Err(failure));
    }
}

#[test]
fn a_device_hears_once_of_many() {
    for features in [0, EVENT_IDX] {
        let (mut model, mut disk, window) = working(Model::new(features, SECTORS));
        for round in 1..=2 {
            for id in 0..DEPTH {
                disk.submit(id, &transfer(Action::Read, u64::from(id), window, 512));
            }
            assert_eq!(model.device.rings(QUEUE), round - 1);
            disk.start();
            disk.start();
            assert_eq!(model.device.rings(QUEUE), round);
            model.take();
            assert_eq!(model.running.len(), usize::from(DEPTH));
            (0..DEPTH).for_each(|_| model.execute(0));
            assert_eq!((0..).take_while(|_| disk.poll().is_some()).count(), usize::from(DEPTH));
        }
    }
}

#[test]
fn indices_wrap_around() {
    let (mut model, mut disk, window) = working(Model::new(EVENT_IDX, SECTORS));
    for number in 0..18_000u32 {
        let id = number as u16 % (DEPTH - 3);
        let action = if number & 1 == 0 { Action::Read } else { Action::Write };
        (id..id + 4).for_each(|id| disk.submit(id, &transfer(action, u64::from(number) % SECTORS, window, 512)));
        disk.start();
        assert_eq!(model.device.rings(QUEUE), number + 1, "a device that waits hears of them");
        model.take();
        (0..4).for_each(|_| model.execute(0));
        let ended = (0..5).filter_map(|_| disk.poll()).map(|(_, outcome)| outcome);
        assert_eq!(ended.collect::<Vec<_>>(), [Outcome::Done; 4]);
    }
}

/// A command of the property below; `offset` lies in the command's own part of the window, in sectors.
#[derive(Clone, Debug)]
struct Request {
    write: bool,
    block: u64,
    blocks: u64,
    offset: u64,
}

fn request() -> impl Strategy<Value = Request> {
    (any::<bool>(), 0u64..100, 1u64..20, 0u64..16).prop_map(|(write, block, blocks, offset)| Request {
        write,
        block,
        blocks,
        offset,
    })
}

impl Request {
    /// As a command of name `id` on this disk, with its data in this window.
    fn command(&self, id: u64, window: u64, geometry: &Geometry) -> Command {
        let length = (self.blocks * u64::from(geometry.block)).min(geometry.transfer.into());
        let action = if self.write { Action::Write } else { Action::Read };
        let address = window + id * PART + self.offset * 512;
        transfer(action, self.block * geometry.block_sectors(), address, length as u32)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Data arrives where it should, whatever the order in which commands end.
    #[test]
    fn data_goes_where_it_should(
        steps in prop::collection::vec((request(), any::<usize>(), 0usize..3), 1..200),
        large: bool,
        events: bool,
    ) {
        let features = BLOCK_SIZE | SIZE_MAX | if events { EVENT_IDX } else { 0 };
        let model = Model::new(features, SECTORS);
        model.set(8, 8192);
        model.set(20, if large { 4096 } else { 512 });
        let (mut model, mut disk, window) = working(model);
        let geometry = disk.geometry();
        let mut expected = model.disk.clone();
        let mut running: Vec<Option<Command>> = vec![None; geometry.depth.into()];
        let mut stamp = 0u32;
        for (request, pick, count) in steps {
            if let Some(id) = running.iter().position(Option::is_none) {
                let command = request.command(id as u64, window, &geometry);
                for at in (0..u64::from(command.length)).step_by(4) {
                    stamp += 1;
                    store(command.address + at, &stamp.to_le_bytes());
                }
                submit(&mut disk, &mut model, id as u16, &command);
                running[id] = Some(command);
            }
            let count = if running.iter().all(Option::is_some) { running.len() } else { count };
            for _ in 0..count.min(model.running.len()) {
                let place = pick % model.running.len();
                model.execute(place);
                let (id, outcome) = disk.poll().expect("one has ended");
                prop_assert_eq!((outcome, disk.poll()), (Outcome::Done, None));
                let command = running[usize::from(id)].take().expect("it ran");
                let memory = read(command.address, command.length as usize);
                let on_disk = &mut expected[command.sector as usize * 512..][..command.length as usize];
                if command.action == Action::Write {
                    on_disk.copy_from_slice(&memory);
                }
                prop_assert!(memory == on_disk, "command {}", id);
            }
        }
        prop_assert!(model.disk == expected);
    }
}
