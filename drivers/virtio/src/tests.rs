//! The transport against a model of a device.

use crate::dma::Region;
use crate::model::{Model, STRUCTURES};
use crate::transport::{ACCESS_PLATFORM, NO_VECTOR, PciTransport, VERSION_1};
use std::vec;
use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceType, Transport};

fn transport(model: &Model, vectors: &[u16]) -> PciTransport<Model> {
    PciTransport::new(model.clone(), STRUCTURES, DeviceType::Network, vectors.into())
}

#[test]
fn features_are_agreed_on() {
    let model = Model::new(VERSION_1 | ACCESS_PLATFORM | 1 << 5 | 1 << 29 | 1 << 40, 0);
    let mut nic = transport(&model, &[]);
    let agreed = VERSION_1 | ACCESS_PLATFORM | 1 << 5;
    assert_eq!(nic.begin(1 << 5 | 1 << 7), Ok(agreed));
    assert_eq!(model.with(|state| state.accepted), agreed);
    assert_eq!(nic.finish(), Ok(()));
}

#[test]
fn devices_that_do_not_agree_are_refused() {
    let legacy = Model::new(1 << 5, 0);
    assert_eq!(transport(&legacy, &[]).begin(1 << 5), Err(Error::Unsupported));
    let stubborn = Model::new(VERSION_1, 0);
    stubborn.with(|state| state.stubborn = true);
    assert_eq!(transport(&stubborn, &[]).begin(0), Err(Error::Unsupported));
    let stuck = Model::new(VERSION_1, 0);
    stuck.with(|state| state.stuck = true);
    assert_eq!(transport(&stuck, &[]).begin(0), Err(Error::Unsupported));
}

#[test]
fn queues_work_and_interrupt_by_their_vectors() {
    let model = Model::new(VERSION_1, 3);
    let mut nic = transport(&model, &[2, 0]);
    nic.begin(0).unwrap();
    let mut queues = [0, 1, 2].map(|queue| VirtQueue::<Region, 8>::new(&mut nic, queue, false, true).unwrap());
    assert_eq!(nic.finish(), Ok(()));
    assert_eq!([0, 1, 2].map(|queue| model.vector(queue)), [2, 0, NO_VECTOR]);
    assert!(matches!(VirtQueue::<Region, 8>::new(&mut nic, 1, false, true), Err(Error::AlreadyUsed)));
    let mut area = device::dma::Area::new(16).unwrap();
    let buffer = area.buffer(0, 16);
    buffer.copy_from_slice(b"sixteen letters!");
    // SAFETY: the buffer stays until it is popped.
    #[allow(unsafe_code)]
    let token = unsafe { queues[1].add(&[&*buffer], &mut []) }.unwrap();
    assert!(queues[1].should_notify());
    nic.bell(1).ring();
    assert_eq!((model.rings(0), model.rings(1)), (0, 1));
    let chain = model.take(1).unwrap();
    assert_eq!((chain.head, chain.readable.as_slice()), (token, &b"sixteen letters!"[..]));
    assert!(model.take(1).is_none());
    model.complete(1, chain.head.into(), 0);
    assert_eq!(queues[1].peek_used(), Some(token));
}

#[test]
fn a_device_without_a_vector_is_noticed() {
    let model = Model::new(VERSION_1, 1);
    model.with(|state| state.vectors = 2);
    let mut nic = transport(&model, &[2]);
    nic.begin(0).unwrap();
    let _queue = VirtQueue::<Region, 8>::new(&mut nic, 0, false, false).unwrap();
    assert_eq!(nic.finish(), Err(Error::IoError));
}

#[test]
fn configuration_is_read_inside_its_bounds() {
    let model = Model::new(VERSION_1, 0);
    model.with(|state| state.config = *b"\x52\x54\x00\x12\x34\x56\x01\x00abcdefghijklmnop");
    let nic = transport(&model, &[]);
    assert_eq!(nic.read_config_space(0), Ok([0x52u8, 0x54, 0, 0x12, 0x34, 0x56]));
    assert_eq!(nic.read_config_space(6), Ok(1u16));
    assert_eq!(nic.read_config_space::<[u8; 4]>(21), Err(Error::ConfigSpaceTooSmall));
    let mut without = STRUCTURES;
    without.device = None;
    let nic = PciTransport::new(model, without, DeviceType::Network, vec![]);
    assert_eq!(nic.read_config_space::<u8>(0), Err(Error::ConfigSpaceMissing));
}
