//! Both halves against a model of the device.

use crate::device::{Device, HEADER, RECEIVE_QUEUE, SEND_QUEUE};
use crate::{receive, send};
use nic::{Misbehaviour, Receive, Transmit};
use runtime::net::HEADER as RECORD_HEADER;
use std::vec::Vec;
use virtio::model::{Model, STRUCTURES};
use virtio::transport::{ACCESS_PLATFORM, PciTransport, VERSION_1};
use virtio_drivers::transport::DeviceType;

const RX: usize = RECEIVE_QUEUE as usize;
const TX: usize = SEND_QUEUE as usize;
const EVENT_IDX: u64 = 1 << 29;
const MAC: u64 = 1 << 5;

fn device(features: u64) -> (Model, Device<Model>) {
    let model = Model::new(VERSION_1 | ACCESS_PLATFORM | features, 2);
    model.with(|state| state.config[..6].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]));
    let transport = PciTransport::new(model.clone(), STRUCTURES, DeviceType::Network, [0, 1].into());
    let device = Device::start(transport).unwrap();
    (model, device)
}

/// What the device delivers for a frame.
fn received(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER], frame].concat()
}

fn send_frame(device: &mut Device<Model>, frame: &[u8]) -> bool {
    let fill = |space: &mut [u8]| {
        space[..RECORD_HEADER].fill(0xee);
        space[RECORD_HEADER..RECORD_HEADER + frame.len()].copy_from_slice(frame);
        Ok::<_, ()>(Some(frame.len()))
    };
    device.transmitter.can_send() == Ok(true) && device.transmitter.send(fill) == Ok(true)
}

#[test]
fn the_address_is_the_devices() {
    let (model, with) = device(MAC | EVENT_IDX | 1);
    assert_eq!(with.mac, Some([0x52, 0x54, 0, 1, 2, 3]));
    assert_eq!(model.with(|state| state.accepted), VERSION_1 | ACCESS_PLATFORM | MAC | EVENT_IDX);
    assert_eq!((model.vector(RX), model.vector(TX)), (0, 1));
    assert_eq!(device(0).1.mac, None);
}

#[test]
fn frames_from_the_network_arrive_in_order_for_ever() {
    for features in [0, EVENT_IDX] {
        let (model, mut device) = device(features);
        assert_eq!(model.rings(RX), 1, "all buffers, one bell");
        let mut next = 0u32;
        // Beyond the wrap of the queue's 16-bit indices.
        for round in 0..800 {
            let count = 1 + round % 200;
            for i in 0..count {
                let frame = (next + i).to_le_bytes().repeat(16);
                assert!(model.deliver(RX, &received(&frame)));
            }
            for i in 0..count {
                let frame = (next + i).to_le_bytes().repeat(16);
                assert_eq!(device.receiver.next(|got| assert_eq!(got, frame)), Ok(true));
            }
            assert_eq!(device.receiver.next(|_| panic!("nothing was sent")), Ok(false));
            assert!(!device.receiver.look_again());
            next += count;
        }
        assert!(next > 65536);
    }
}

#[test]
fn a_device_without_buffers_gets_all_again() {
    let (model, mut device) = device(EVENT_IDX);
    let frame = received(&[7; 60]);
    assert_eq!((0..).take_while(|_| model.deliver(RX, &frame)).count(), receive::COUNT);
    model.want_bell(RX);
    let rings = model.rings(RX);
    assert!(device.receiver.look_again());
    while device.receiver.next(|got| assert_eq!(got, [7; 60])) == Ok(true) {}
    assert!(!device.receiver.look_again());
    assert_eq!(model.rings(RX), rings + 1, "it waited for buffers, and heard of them once");
    assert_eq!((0..).take_while(|_| model.deliver(RX, &frame)).count(), receive::COUNT);
}

#[test]
fn what_no_device_may_do_is_noticed() {
    for (head, length) in [(300, 40), (65535, 40), (3, 2049), (3, 11), (3, u32::MAX), (u32::MAX, 14)] {
        let (model, mut device) = device(EVENT_IDX);
        model.complete(RX, head, length);
        assert_eq!(device.receiver.next(|_| panic!("no frame")), Err(Misbehaviour), "{head} {length}");
    }
    let (model, mut device) = device(EVENT_IDX);
    model.complete(TX, 5, 0);
    assert_eq!(device.transmitter.reclaim(), Err(Misbehaviour), "nothing was sent");
}

#[test]
fn frames_to_the_network_have_a_header_of_zeros() {
    for features in [0, EVENT_IDX] {
        let (model, mut device) = device(features);
        for number in 0..70_000u32 {
            let frame = number.to_le_bytes().repeat(4 + number as usize % 300);
            assert!(send_frame(&mut device, &frame));
            device.transmitter.ring();
            let chain = model.take(TX).unwrap();
            assert_eq!(chain.readable, received(&frame));
            model.complete(TX, chain.head.into(), 0);
            assert_eq!(model.rings(TX), number + 1, "a device that waits hears of it");
            model.want_bell(TX);
        }
        assert_eq!(device.transmitter.send(|_| Ok::<_, ()>(None)), Ok(false), "no frame");
        assert_eq!(device.transmitter.send(|_| Err(7)), Err(7));
        assert!(model.take(TX).is_none());
    }
}

#[test]
fn a_slow_device_is_waited_for() {
    let (model, mut device) = device(EVENT_IDX);
    assert_eq!((0..).take_while(|_| send_frame(&mut device, &[1; 60])).count(), send::COUNT);
    device.transmitter.ring();
    assert_eq!(model.rings(TX), 1, "a bell for all of them");
    assert_eq!(device.transmitter.can_send(), Ok(false));
    // It finishes the second first.
    let (first, second) = (model.take(TX).unwrap(), model.take(TX).unwrap());
    model.complete(TX, second.head.into(), 0);
    assert_eq!(device.transmitter.reclaim(), Ok(true));
    assert!(send_frame(&mut device, &[2; 70]));
    assert!(!send_frame(&mut device, &[3; 80]));
    model.complete(TX, first.head.into(), 0);
    assert!(send_frame(&mut device, &[3; 80]));
}
