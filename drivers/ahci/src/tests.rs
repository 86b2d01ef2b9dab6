//! The driver against the model.

use crate::controller::Error;
use crate::disk::Disk;
use crate::model::{DMA, Model, Plug};
use block::model::{BASE, Handle};
use block::{Action, Command, Device, Failure, Geometry, Outcome};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

/// The driver of a model.
type Driven = Disk<Handle<Model>>;

fn start(change: impl Fn(&mut Model)) -> (Rc<RefCell<Model>>, Result<Driven, Error>) {
    let mut model = Model::new();
    change(&mut model);
    let model = Rc::new(RefCell::new(model));
    (model.clone(), Disk::new(Handle::new(model)))
}

fn working(change: impl Fn(&mut Model)) -> (Rc<RefCell<Model>>, Driven) {
    let (model, disk) = start(change);
    (model, disk.expect("it starts"))
}

fn transfer(action: Action, sector: u64, offset: u64, length: u32) -> Command {
    Command { action, force_unit_access: false, sector, address: BASE + DMA + offset, length }
}

#[test]
fn the_first_disk_comes_up() {
    let (model, disk) = working(|model| model.firmware = 5);
    assert_eq!((disk.port(), disk.identity().model.as_str(), disk.identity().serial.as_str()), (3, "Mo", "S3"));
    let geometry = Geometry {
        sectors: 2048,
        block: 512,
        transfer: 1 << 20,
        depth: 32,
        read_only: false,
        volatile_cache: true,
        force_unit_access: true,
    };
    assert_eq!(disk.geometry(), geometry);
    assert!(geometry.is_valid());
    let again = Disk::new(Handle::new(model)).expect("a successor starts it again");
    assert_eq!(again.geometry(), geometry);
    let changed = working(|model| (model.slots, model.words) = (1, [(84, 0x4000), (85, 0)].into())).1.geometry();
    assert_eq!((changed.depth, changed.volatile_cache, changed.force_unit_access), (1, false, false));
    let large = working(|model| model.block = 4096).1.geometry();
    assert_eq!((large.block, large.sectors), (4096, 2048));
}

#[test]
fn what_cannot_be_driven_is_named() {
    let error = |change: &dyn Fn(&mut Model)| start(change).1.err().expect("it does not start");
    assert_eq!(error(&|m| m.absent = true), Error::Absent);
    assert_eq!(error(&|m| m.wide = false), Error::Memory);
    assert_eq!(error(&|m| m.stuck_reset = true), Error::Reset);
    assert_eq!(error(&|m| m.plugs = [Plug::Packet; 6]), Error::NoDisk);
    assert_eq!(error(&|m| m.plugs = [Plug::Dead; 6]), Error::NoDisk);
    assert_eq!(error(&|m| m.identify_fails = true), Error::Identify(0x41));
    assert_eq!(error(&|m| m.words = [(83, 0x4000)].into()), Error::NoLongAddresses);
    assert_eq!(error(&|m| m.words = [(106, 0x5000), (117, 4096)].into()), Error::Blocks(8192));
    assert_eq!(error(&|m| m.disk.clear()), Error::Empty);
}

#[test]
fn each_kind_of_command_reaches_the_disk() {
    let (model, mut disk) = working(|_| ());
    disk.submit(0, &transfer(Action::Write, 7, 0, 1024));
    disk.submit(31, &Command { force_unit_access: true, ..transfer(Action::Write, 9, 0, 512) });
    disk.submit(2, &transfer(Action::Flush, 0, 0, 0));
    assert!(!model.borrow().is_busy(), "not before the start");
    disk.start();
    assert_eq!(disk.poll(), None);
    (0..3).for_each(|_| model.borrow_mut().step());
    assert_eq!(model.borrow().log, [(0x35, 7, 2, true), (0xea, 0, 0, false), (0x3d, 9, 1, true)]);
    let mut ended: Vec<_> = core::iter::from_fn(|| disk.poll()).collect();
    ended.sort_by_key(|(id, _)| *id);
    assert_eq!(ended, [(0, Outcome::Done), (2, Outcome::Done), (31, Outcome::Done)]);
    assert_eq!(model.borrow().interrupts, 1, "until the cause was cleared");
    disk.submit(0, &transfer(Action::Read, 7, 0, 512));
    disk.start();
    model.borrow_mut().step();
    assert_eq!(model.borrow().interrupts, 2);
}

#[test]
fn a_failed_command_does_not_take_others_with_it() {
    let (model, mut disk) = working(|_| ());
    (0..4).for_each(|id| disk.submit(id, &transfer(Action::Read, id.into(), 0, 512)));
    disk.start();
    model.borrow_mut().step();
    model.borrow_mut().fail = Some(0x4051);
    model.borrow_mut().step();
    assert!(!model.borrow().is_busy(), "the port has stopped");
    assert_eq!((disk.poll(), disk.poll()), (Some((0, Outcome::Done)), Some((1, Outcome::Failed))));
    assert_eq!((disk.take_error(), disk.take_error()), (Some(0x4051), None));
    model.borrow_mut().step();
    model.borrow_mut().step();
    assert_eq!((disk.poll(), disk.poll(), disk.poll()), (Some((2, Outcome::Done)), Some((3, Outcome::Done)), None));
    assert_eq!(disk.check(), Ok(()));
    // One that leaves the device busy needs a reset: the driver's successor does that.
    disk.submit(0, &transfer(Action::Read, 0, 0, 512));
    disk.start();
    model.borrow_mut().fail = Some(0x80 | 1);
    model.borrow_mut().step();
    assert_eq!((disk.poll(), disk.check()), (None, Err(Failure::Fatal(0x81))));
    model.borrow_mut().absent = true;
    assert_eq!(disk.check(), Err(Failure::Absent));
}

#[test]
fn a_command_that_never_ends_is_noticed() {
    let (_, mut disk) = working(|_| ());
    disk.submit(9, &transfer(Action::Read, 0, 0, 512));
    disk.start();
    let looks = (0..100).take_while(|_| disk.check().is_ok()).count();
    assert_eq!((looks, disk.check()), (30, Err(Failure::TimeOut(9))));
}

/// Bytes of the window for each command.
const PART: u64 = 64 << 10;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn data_goes_where_it_should(
        steps in prop::collection::vec((any::<bool>(), 0u64..200, 1u32..50, 0u64..32, 0usize..4), 1..120),
        large: bool,
        few: bool,
    ) {
        let (model, mut disk) =
            working(|model| (model.block, model.slots) = (if large { 4096 } else { 512 }, if few { 3 } else { 32 }));
        let geometry = disk.geometry();
        let mut expected = model.borrow().disk.clone();
        let mut running: Vec<Option<Command>> = (0..geometry.depth).map(|_| None).collect();
        let mut stamp = 0u32;
        for (write, block, blocks, offset, count) in steps {
            if let Some(id) = running.iter().position(Option::is_none) {
                let action = if write { Action::Write } else { Action::Read };
                let length = (blocks * geometry.block).min(48 << 10);
                let sector = block * geometry.block_sectors();
                let command = transfer(action, sector, id as u64 * PART + offset * 512, length);
                for at in (0..u64::from(length)).step_by(4) {
                    stamp += 1;
                    model.borrow_mut().memory.put(command.address + at, stamp);
                }
                disk.submit(id as u16, &command);
                disk.start();
                running[id] = Some(command);
            }
            let full = running.iter().all(Option::is_some);
            for _ in 0..if full { running.len() } else { count } {
                model.borrow_mut().step();
                // One at a time, so that the order in which they took place is known.
                while let Some((id, outcome)) = disk.poll() {
                    prop_assert_eq!(outcome, Outcome::Done);
                    let command = running[usize::from(id)].take().expect("it ran");
                    let model = model.borrow();
                    let range = (0..u64::from(command.length)).step_by(4);
                    let memory: Vec<u8> =
                        range.flat_map(|at| model.memory.half(command.address + at).to_le_bytes()).collect();
                    let on_disk = &mut expected[command.sector as usize * 512..][..command.length as usize];
                    if command.action == Action::Write {
                        on_disk.copy_from_slice(&memory);
                    }
                    prop_assert!(memory == on_disk);
                }
            }
        }
        prop_assert!(model.borrow().disk == expected);
    }
}
