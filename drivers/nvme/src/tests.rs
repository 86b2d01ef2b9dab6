//! The driver against the model.

use crate::controller::Error;
use crate::disk::Disk;
use crate::model::{DMA, Model, cap};
use block::model::{BASE, Handle};
use block::{Action, Command, Device, Failure, Geometry, Outcome};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

/// The driver of a model.
type Driven = Disk<Handle<Model>>;

fn start(model: Model) -> (Rc<RefCell<Model>>, Result<Driven, Error>) {
    let model = Rc::new(RefCell::new(model));
    (model.clone(), Disk::new(Handle::new(model)))
}

fn working(model: Model) -> (Rc<RefCell<Model>>, Driven) {
    let (model, disk) = start(model);
    (model, disk.expect("it starts"))
}

fn transfer(action: Action, sector: u64, offset: u64, length: u32) -> Command {
    Command { action, force_unit_access: false, sector, address: BASE + DMA + offset, length }
}

#[test]
fn a_controller_comes_up_whatever_it_did_before() {
    for (cc, delay) in [(0, 0), (0, 3), (0x46_0001, 0), (0x46_0001, 100)] {
        let mut first = Model::new();
        (first.cc, first.delay) = (cc, delay);
        let (model, disk) = working(first);
        let identity = disk.identity();
        assert_eq!((identity.model.as_str(), identity.serial.as_str()), ("Model?", "serial 1"));
        let geometry = disk.geometry();
        let expected = Geometry {
            sectors: 8192,
            block: 512,
            transfer: 512 << 10,
            depth: 63,
            read_only: false,
            volatile_cache: true,
            force_unit_access: true,
        };
        assert_eq!(geometry, expected);
        assert!(geometry.is_valid());
        // And once more on the same controller, as a successor does.
        let again = Disk::new(Handle::new(model)).expect("it starts again");
        assert_eq!(again.geometry(), expected);
    }
}

#[test]
fn limits_of_the_controller_are_kept() {
    let with = |change: &dyn Fn(&mut Model)| {
        let mut model = Model::new();
        change(&mut model);
        working(model).1.geometry()
    };
    assert_eq!(with(&|m| m.cap = cap(8, 2)).depth, 7);
    assert_eq!(with(&|m| m.mdts = 0).transfer, 1 << 20);
    assert_eq!(with(&|m| m.mdts = 255).transfer, 1 << 20);
    assert_eq!(with(&|m| m.mdts = 1).transfer, 8192);
    assert!(!with(&|m| m.cache = 0).volatile_cache);
    let large = with(&|m| m.block_log = 12);
    assert_eq!((large.block, large.sectors), (4096, 8192));
}

#[test]
fn what_cannot_be_driven_is_named() {
    let error = |change: &dyn Fn(&mut Model)| {
        let mut model = Model::new();
        change(&mut model);
        start(model).1.err().expect("it does not start")
    };
    assert_eq!(error(&|m| m.absent = true), Error::Absent);
    assert_eq!(error(&|m| m.cap &= !(1 << 37)), Error::CommandSet);
    assert_eq!(error(&|m| m.cap |= 1 << 48), Error::Page(8192));
    assert_eq!(error(&|m| m.stuck.0 = true), Error::Start(2000));
    assert_eq!(error(&|m| (m.cc, m.stuck.1) = (1, true)), Error::Stop(2000));
    assert_eq!(error(&|m| (m.stuck.0, m.fatal) = (true, true)), Error::Fatal(2));
    assert_eq!(error(&|m| m.refuse = Some((6, 0x0b))), Error::Command(6, 0x0b));
    assert_eq!(error(&|m| m.refuse = Some((1, 0x101))), Error::Command(1, 0x101));
    assert_eq!(error(&|m| m.refuse = Some((5, 0))), Error::TimeOut(5));
    assert_eq!(error(&|m| m.disk.clear()), Error::NoNamespace);
    assert_eq!(error(&|m| m.block_log = 13), Error::Blocks(13, 0));
    assert_eq!(error(&|m| m.metadata = 8), Error::Blocks(9, 8));
}

#[test]
fn flush_and_force_unit_access_reach_the_controller() {
    let (model, mut disk) = working(Model::new());
    disk.submit(5, &Command { force_unit_access: true, ..transfer(Action::Write, 7, 0, 1024) });
    disk.submit(6, &transfer(Action::Write, 7, 0, 512));
    disk.submit(7, &transfer(Action::Flush, 0, 0, 0));
    assert!(model.borrow().running.is_empty(), "not before the doorbell");
    disk.start();
    let dwords: Vec<_> = model.borrow().running.iter().map(|c| (c[0], c[10], c[12])).collect();
    assert_eq!(dwords, [(5 << 16 | 1, 7, 1 << 30 | 1), (6 << 16 | 1, 7, 0), (7 << 16, 0, 0)]);
    assert_eq!(disk.poll(), None);
    model.borrow_mut().execute(2);
    assert_eq!((disk.poll(), disk.poll()), (Some((7, Outcome::Done)), None));
    assert_eq!(model.borrow().flushes, 1);
}

#[test]
fn failures_are_told() {
    let (model, mut disk) = working(Model::new());
    disk.submit(0, &transfer(Action::Read, 9, 0, 512));
    disk.start();
    assert_eq!(disk.check(), Ok(()));
    // Unrecovered read error, do not retry (4.6.1.2.3).
    model.borrow_mut().failing = 1 << 14 | 0x281;
    model.borrow_mut().execute(0);
    assert_eq!(disk.poll(), Some((0, Outcome::Failed)));
    assert_eq!((disk.take_error(), disk.take_error()), (Some((2, 9, 0x281)), None));
    disk.submit(3, &transfer(Action::Read, 9, 0, 512));
    disk.start();
    let looks = (0..100).take_while(|_| disk.check().is_ok()).count();
    assert_eq!((looks, disk.check()), (30, Err(Failure::TimeOut(3))));
    model.borrow_mut().fatal = true;
    assert_eq!(disk.check(), Err(Failure::Fatal(3)));
    model.borrow_mut().absent = true;
    assert_eq!(disk.check(), Err(Failure::Absent));
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
    (any::<bool>(), 0u64..500, 1u64..100, 0u64..64).prop_map(|(write, block, blocks, offset)| Request {
        write,
        block,
        blocks,
        offset,
    })
}

/// Bytes of the window for each command.
const PART: u64 = 64 << 10;

impl Request {
    /// As a command of name `id` on this disk.
    fn command(&self, id: u64, geometry: &Geometry) -> Command {
        let length = (self.blocks * u64::from(geometry.block)).min(geometry.transfer.into());
        let action = if self.write { Action::Write } else { Action::Read };
        transfer(action, self.block * geometry.block_sectors(), id * PART + self.offset * 512, length as u32)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Data arrives where it should, through queues that wrap around, whatever the order in which commands end.
    #[test]
    fn data_goes_where_it_should(
        steps in prop::collection::vec((request(), any::<usize>(), 0usize..3), 1..150),
        large: bool,
        small_queue: bool,
    ) {
        let mut model = Model::new();
        (model.block_log, model.mdts) = (if large { 12 } else { 9 }, 3);
        model.cap = cap(if small_queue { 5 } else { 1024 }, 1);
        let (model, mut disk) = working(model);
        let geometry = disk.geometry();
        let mut expected = model.borrow().disk.clone();
        let mut running: Vec<Option<Command>> = (0..geometry.depth).map(|_| None).collect();
        let mut stamp = 0u32;
        for (request, pick, count) in steps {
            if let Some(id) = running.iter().position(Option::is_none) {
                let command = request.command(id as u64, &geometry);
                for at in (0..u64::from(command.length)).step_by(4) {
                    stamp += 1;
                    model.borrow_mut().memory.put(command.address + at, stamp);
                }
                disk.submit(id as u16, &command);
                disk.start();
                running[id] = Some(command);
            }
            let count = if running.iter().all(Option::is_some) { running.len() } else { count };
            let count = count.min(model.borrow().running.len());
            for _ in 0..count {
                let mut model = model.borrow_mut();
                let next = pick % model.running.len();
                let id = (model.running[next][0] >> 16) as usize;
                let command = running[id].expect("it runs");
                let memory = |model: &Model| -> Vec<u8> {
                    let range = (0..u64::from(command.length)).step_by(4);
                    range.flat_map(|at| model.memory.half(command.address + at).to_le_bytes()).collect()
                };
                let on_disk = &mut expected[command.sector as usize * 512..][..command.length as usize];
                if command.action == Action::Write {
                    on_disk.copy_from_slice(&memory(&model));
                }
                model.execute(next);
                prop_assert!(memory(&model) == on_disk, "command {id}");
            }
            while let Some((id, outcome)) = disk.poll() {
                prop_assert_eq!(outcome, Outcome::Done);
                prop_assert!(running[usize::from(id)].take().is_some());
            }
            let left = running.iter().flatten().count();
            prop_assert_eq!(left, model.borrow().running.len());
        }
        prop_assert!(model.borrow().disk == expected);
    }
}
