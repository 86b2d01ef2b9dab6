//! Both halves against a model of the controller.

use crate::model::Model;
use crate::spec;
use crate::start::{Device, Error};
use crate::{receive, send};
use nic::{Misbehaviour, Receive, Transmit};
use runtime::net::HEADER;
use std::vec::Vec;

fn device() -> (Model, Device<Model>) {
    let model = Model::new();
    let device = Device::start(model.clone(), [Some(0), Some(1)]).unwrap();
    (model, device)
}

fn send_frame(device: &mut Device<Model>, frame: &[u8]) -> bool {
    let fill = |space: &mut [u8]| {
        space[..HEADER].fill(0xee);
        space[HEADER..HEADER + frame.len()].copy_from_slice(frame);
        Ok::<_, ()>(Some(frame.len()))
    };
    device.transmitter.can_send() == Ok(true) && device.transmitter.send(fill) == Ok(true)
}

fn next(device: &mut Device<Model>) -> Result<Option<Vec<u8>>, Misbehaviour> {
    let mut got = None;
    while device.receiver.next(|frame| got = Some(frame.to_vec()))? {
        if got.is_some() {
            break;
        }
    }
    Ok(got)
}

#[test]
fn a_controller_starts_with_its_address_and_its_interrupts() {
    let (model, device) = device();
    assert_eq!(device.mac, Some([0x52, 0x54, 0, 1, 2, 3]));
    let get = |offset| model.0.borrow().get(offset);
    assert_eq!(get(spec::IVAR), 0b1000 | 0b1001 << 8);
    assert_eq!((get(spec::IMS), get(spec::EIAC)), (spec::RXQ0, spec::RXQ0 | spec::TXQ0));
    assert_eq!(get(spec::RCTL) & (spec::RCTL_UPE | spec::RCTL_MPE), spec::RCTL_UPE | spec::RCTL_MPE);
    assert_eq!(get(spec::RX + spec::LENGTH), 4096);
    let model = Model::new();
    Device::start(model.clone(), [Some(0), None]).unwrap();
    assert_eq!(model.0.borrow().get(spec::IVAR), 0b1000, "one vector");
    let stuck = Model::new();
    stuck.0.borrow_mut().stuck = true;
    assert_eq!(Device::start(stuck, [None; 2]).err(), Some(Error::Reset));
}

#[test]
fn frames_from_the_network_arrive_in_order() {
    let (model, mut device) = device();
    let mut number = 0u32;
    for round in 0..200 {
        for i in 0..round {
            assert!(model.receive(&(number + i).to_le_bytes().repeat(4 + i as usize)));
        }
        assert_eq!(model.interrupts().len(), usize::from(round != 0), "one until the driver has looked");
        for i in 0..round {
            assert_eq!(next(&mut device), Ok(Some((number + i).to_le_bytes().repeat(4 + i as usize))));
        }
        assert_eq!(next(&mut device), Ok(None));
        assert!(!device.receiver.look_again());
        assert_eq!(model.interrupts().len(), 0, "none for what has been seen");
        number += round;
    }
}

#[test]
fn a_controller_without_buffers_gets_all_again() {
    let (model, mut device) = device();
    assert_eq!((0..).take_while(|_| model.receive(&[7; 60])).count(), receive::COUNT - 1);
    assert!(device.receiver.look_again());
    assert_eq!((0..).take_while(|_| next(&mut device) == Ok(Some([7; 60].into()))).count(), receive::COUNT - 1);
    assert!(!device.receiver.look_again());
    assert_eq!((0..).take_while(|_| model.receive(&[8; 60])).count(), receive::COUNT - 1);
}

#[test]
fn broken_frames_are_dropped() {
    let (model, mut device) = device();
    let (done, end) = (spec::RX_DONE, spec::RX_END);
    assert!(model.deliver(&[1; 60], 60, done | end | 1 << 40));
    assert!(model.deliver(&[2; 2048], 2048, done), "longer than a buffer");
    assert!(model.deliver(&[3; 2048], 2048, done));
    assert!(model.deliver(&[4; 100], 100, done | end));
    assert!(model.receive(&[5; 64]));
    assert_eq!(next(&mut device), Ok(Some([5; 64].into())));
    assert!(model.deliver(&[6; 60], 2049, done | end));
    assert_eq!(next(&mut device), Err(Misbehaviour), "no buffer is that long");
}

#[test]
fn frames_to_the_network_leave_in_order() {
    let (model, mut device) = device();
    for number in 0..1000u32 {
        let frame = number.to_le_bytes().repeat(4 + number as usize % 300);
        assert!(send_frame(&mut device, &frame));
        assert_eq!(model.send(), None, "the bell has not rung");
        device.transmitter.ring();
        assert_eq!(model.send(), Some(frame));
    }
    assert_eq!(model.interrupts(), [0; 0], "nobody waits");
    assert_eq!(device.transmitter.send(|_| Ok::<_, ()>(None)), Ok(false));
    assert_eq!(device.transmitter.send(|_| Err(7)), Err(7));
    device.transmitter.ring();
    assert_eq!(model.send(), None);
}

#[test]
fn a_slow_controller_is_waited_for() {
    let (model, mut device) = device();
    assert_eq!((0..).take_while(|_| send_frame(&mut device, &[1; 60])).count(), send::COUNT - 1);
    device.transmitter.ring();
    assert_eq!(device.transmitter.await_buffer(), Ok(false));
    assert_eq!(model.interrupts(), [0; 0]);
    assert!(model.send().is_some());
    assert_eq!(model.interrupts(), [spec::TXQ0]);
    assert!(model.send().is_some());
    assert_eq!(model.interrupts(), [0; 0], "one is enough");
    assert!(send_frame(&mut device, &[2; 60]) && send_frame(&mut device, &[3; 60]));
    assert!(!send_frame(&mut device, &[4; 60]));
    assert!(model.send().is_some());
    assert_eq!(device.transmitter.await_buffer(), Ok(true), "there is one already");
}
